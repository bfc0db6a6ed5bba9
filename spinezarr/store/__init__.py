"""The Zarr v3 store: its layout, and reading and writing it."""
