"""How do requests for patches become a batch?

The chunks are planned, located, fetched and decoded. Then voxels are resampled if requested.
"""
