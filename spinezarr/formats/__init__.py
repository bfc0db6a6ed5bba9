"""How is each kind of source file read?

Every image format opens as a :class:`~spinezarr.formats.volume.Volume`. A centroid file is read
whole, as :class:`~spinezarr.formats.centroids.Centroids`. A table is read as rows of text.
"""
