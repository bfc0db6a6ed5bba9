"""Which readers does ``patches.py`` compare? Each is opened in a child process of its own."""
