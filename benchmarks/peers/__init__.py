"""The readers that ``patches.py`` compares; each is opened in a child process of its own."""
