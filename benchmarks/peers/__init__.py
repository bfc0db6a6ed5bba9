"""The readers that ``patches.py`` compares. Each is opened in a child process of its own."""
