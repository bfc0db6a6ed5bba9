"""Reads objects of buckets and web servers: requests, retries, errors, and the file systems."""
