"""How do the voxels of a source file become the shards of a stored array?"""
