"""Stores over HTTP: bytes for every Zarr client, patches for trainers, JSON for pages."""
