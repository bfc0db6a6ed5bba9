"""Giving scans back in other forms: pictures."""
