"""From the voxels of a source file to the shards of a stored array."""
