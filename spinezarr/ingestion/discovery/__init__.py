"""Which scans does a raw folder hold, and which other files?"""
