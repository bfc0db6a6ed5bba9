"""What do the commands print?

A command imports its report after it has run.
"""
