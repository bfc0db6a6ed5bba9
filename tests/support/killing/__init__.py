"""Runs the command line as processes that are killed, paused or starved, and judges what is left.

- ``driver``: the processes; each change of a file is written down before it happens
- ``dataset``: raw folders of two versions, and the stores they become
- ``check``: what a store may look like after a kill, and after the next run
- ``bucket``: an S3 server, and a proxy that kills, refuses or cuts at a request
- ``kills``: the kill loops and their counts
"""
