"""How are stores served over HTTP: bytes for Zarr clients, patches for trainers, JSON for pages?"""
