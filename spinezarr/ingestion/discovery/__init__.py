"""Which scans a raw folder holds, and which files it holds besides."""
