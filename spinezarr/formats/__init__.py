"""Source file formats: each opens as a :class:`~spinezarr.formats.volume.Volume`."""

from spinezarr.formats.merged import MergedLabels
from spinezarr.formats.metaimage import MetaImageVolume
from spinezarr.formats.nifti import NiftiVolume
from spinezarr.formats.source_file import SourceFile
from spinezarr.formats.volume import Volume, open_volume

__all__ = [
    "MergedLabels",
    "MetaImageVolume",
    "NiftiVolume",
    "SourceFile",
    "Volume",
    "open_volume",
]
