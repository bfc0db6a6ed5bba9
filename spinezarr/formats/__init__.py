"""How is each kind of source file read?

Every image format opens as a :class:`~spinezarr.formats.volume.Volume`. A centroid file is read
whole, as :class:`~spinezarr.formats.centroids.Centroids`. A table is read as rows of text.
"""

from spinezarr.formats.centroids import Centroids, misordered_levels, read_centroids
from spinezarr.formats.dicom import DicomSeriesVolume
from spinezarr.formats.limits import DEFAULT_LIMITS, Limits
from spinezarr.formats.merged import MergedLabels
from spinezarr.formats.metaimage import MetaImageVolume
from spinezarr.formats.nifti import NiftiVolume
from spinezarr.formats.source_file import SourceFile
from spinezarr.formats.volume import Volume, open_volume, unsupported_kind

__all__ = [
    "DEFAULT_LIMITS",
    "Centroids",
    "DicomSeriesVolume",
    "Limits",
    "MergedLabels",
    "MetaImageVolume",
    "NiftiVolume",
    "SourceFile",
    "Volume",
    "misordered_levels",
    "open_volume",
    "read_centroids",
    "unsupported_kind",
]
