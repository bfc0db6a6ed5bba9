"""Which synthetic data can tests use: phantoms with masks, as arrays, files and datasets?"""

from spinezarr.testing.centroids import VerseConvention, lml_text, verse_json
from spinezarr.testing.ctspine1k import (
    CTSPINE1K_SCANS,
    Layout,
    ScanPlan,
    Split,
    resized,
    source_of,
    split_text,
    write_ctspine1k,
    write_ctspine1k_names,
)
from spinezarr.testing.ctspine1k_tables import path_csv_text, series_of, write_ctspine1k_tables
from spinezarr.testing.ctspine1k_tcia import CTSPINE1K_TCIA_SCANS, write_ctspine1k_tcia
from spinezarr.testing.ctspine1k_verse import write_ctspine1k_verse
from spinezarr.testing.ctspinopelvic1k import (
    CTSPINOPELVIC1K_SCANS,
    SpinoPelvicPlan,
    write_ctspinopelvic1k,
)
from spinezarr.testing.dicom import (
    DICOM_TRANSFER_SYNTAXES,
    DicomForm,
    write_dicom_multiframe,
    write_dicom_objects,
    write_dicom_series,
)
from spinezarr.testing.dicom_identity import set_dicom_elements
from spinezarr.testing.form import DTYPES
from spinezarr.testing.hospital import HOSPITAL_SCANS, HospitalPlan, write_hospital
from spinezarr.testing.metaimage import MetaImageForm, write_metaimage
from spinezarr.testing.msr import MSR_SCANS, MsrPlan, write_msr, write_msr_nifti
from spinezarr.testing.nifti import NiftiForm, write_nifti
from spinezarr.testing.orientation import all_axcodes
from spinezarr.testing.phantom import Phantom, PhantomSpec, make_phantom, usual_levels
from spinezarr.testing.predictions import write_cads, write_spineps
from spinezarr.testing.rsna import RSNA_SCANS, RsnaPlan, write_rsna
from spinezarr.testing.segmentation import write_dicom_segmentation, write_seg_nrrd
from spinezarr.testing.spine_mets import (
    SPINE_METS_SCANS,
    SpineMetsPlan,
    vertebra_masks,
    write_spine_mets,
)
from spinezarr.testing.totalsegmentator import (
    TOTALSEGMENTATOR_SCANS,
    TotalSegmentatorPlan,
    totalsegmentator_values,
    write_totalsegmentator,
    write_totalsegmentator_multilabel,
)
from spinezarr.testing.verse import VERSE_2019, VERSE_2020, VersePlan, VerseSplit, VerseYear
from spinezarr.testing.verse_challenge import (
    VERSE_2020_CHALLENGE,
    write_verse_2019_challenge,
    write_verse_2020_challenge,
)
from spinezarr.testing.verse_subjects import write_verse_subjects
from spinezarr.testing.written import WrittenScan
from spinezarr.testing.xvertseg import XVERTSEG_SCANS, XVertSegPlan, write_xvertseg

__all__ = [
    "CTSPINE1K_SCANS",
    "CTSPINE1K_TCIA_SCANS",
    "CTSPINOPELVIC1K_SCANS",
    "DICOM_TRANSFER_SYNTAXES",
    "DTYPES",
    "HOSPITAL_SCANS",
    "MSR_SCANS",
    "RSNA_SCANS",
    "SPINE_METS_SCANS",
    "TOTALSEGMENTATOR_SCANS",
    "VERSE_2019",
    "VERSE_2020",
    "VERSE_2020_CHALLENGE",
    "XVERTSEG_SCANS",
    "DicomForm",
    "HospitalPlan",
    "Layout",
    "MetaImageForm",
    "MsrPlan",
    "NiftiForm",
    "Phantom",
    "PhantomSpec",
    "RsnaPlan",
    "ScanPlan",
    "SpineMetsPlan",
    "SpinoPelvicPlan",
    "Split",
    "TotalSegmentatorPlan",
    "VerseConvention",
    "VersePlan",
    "VerseSplit",
    "VerseYear",
    "WrittenScan",
    "XVertSegPlan",
    "all_axcodes",
    "lml_text",
    "make_phantom",
    "path_csv_text",
    "resized",
    "series_of",
    "set_dicom_elements",
    "source_of",
    "split_text",
    "totalsegmentator_values",
    "usual_levels",
    "verse_json",
    "vertebra_masks",
    "write_cads",
    "write_ctspine1k",
    "write_ctspine1k_names",
    "write_ctspine1k_tables",
    "write_ctspine1k_tcia",
    "write_ctspine1k_verse",
    "write_ctspinopelvic1k",
    "write_dicom_multiframe",
    "write_dicom_objects",
    "write_dicom_segmentation",
    "write_dicom_series",
    "write_hospital",
    "write_metaimage",
    "write_msr",
    "write_msr_nifti",
    "write_nifti",
    "write_rsna",
    "write_seg_nrrd",
    "write_spine_mets",
    "write_spineps",
    "write_totalsegmentator",
    "write_totalsegmentator_multilabel",
    "write_verse_2019_challenge",
    "write_verse_2020_challenge",
    "write_verse_subjects",
    "write_xvertseg",
]
