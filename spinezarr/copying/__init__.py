"""Copies of stores: from disk to a bucket or hub, and from there to disk."""
