"""Whether a store is whole: every byte against the manifests, every voxel against the source."""
