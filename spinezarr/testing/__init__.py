"""A synthetic spine worth testing on: phantoms with masks, as arrays, files or whole datasets."""

from spinezarr.testing.ctspine1k import (
    CTSPINE1K_SCANS,
    Layout,
    ScanPlan,
    Split,
    WrittenScan,
    resized,
    source_of,
    split_text,
    write_ctspine1k,
    write_ctspine1k_names,
)
from spinezarr.testing.metaimage import MetaImageForm, write_metaimage
from spinezarr.testing.nifti import DTYPES, NiftiForm, write_nifti
from spinezarr.testing.orientation import all_axcodes
from spinezarr.testing.phantom import Phantom, PhantomSpec, make_phantom

__all__ = [
    "CTSPINE1K_SCANS",
    "DTYPES",
    "Layout",
    "MetaImageForm",
    "NiftiForm",
    "Phantom",
    "PhantomSpec",
    "ScanPlan",
    "Split",
    "WrittenScan",
    "all_axcodes",
    "make_phantom",
    "resized",
    "source_of",
    "split_text",
    "write_ctspine1k",
    "write_ctspine1k_names",
    "write_metaimage",
    "write_nifti",
]
