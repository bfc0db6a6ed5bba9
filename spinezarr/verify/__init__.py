"""Is a store intact?

Every byte is compared with the manifests, and on request every voxel with the source files.
"""
