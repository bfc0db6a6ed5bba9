"""Runs the command line in processes that are killed, paused or limited, and judges the store.

- ``driver``: the processes; each change of a file is recorded before it happens
- ``dataset``: raw folders of two versions, and the stores they become
- ``check``: the states of a store that are allowed after a kill, and after the next run
- ``bucket``: an S3 server, and a proxy that kills, refuses or cuts at a request
- ``kills``: the kill loops and their counts
"""
