"""How do requests for patches become a batch?

The chunks are planned, located, fetched and decoded; then voxels are resampled if asked for.
"""
