"""Which elements of a DICOM header are kept?

A few dozen elements out of hundreds tell what a file is, to which series it belongs and where its
slices lie.

References
----------
DICOM PS3.6 section 6 (the elements); PS3.3 sections C.7.6.16.2 and C.8.15.3 (functional groups of
multi-frame images) and C.8.20 (segmentations).
"""

from collections.abc import Mapping
from typing import Final, TypeAlias

__all__ = ["KEPT_TAGS", "KEYWORDS", "KEYWORD_OF_TAG", "SERIES_TAG", "SOP_CLASS_TAG", "KeptTags"]

KEYWORDS: Final = {
    "MediaStorageSOPClassUID": (0x00020002, b"UI"),
    "TransferSyntaxUID": (0x00020010, b"UI"),
    "ImageType": (0x00080008, b"CS"),
    "SOPClassUID": (0x00080016, b"UI"),
    "SeriesDescription": (0x0008103E, b"LO"),
    "SliceThickness": (0x00180050, b"DS"),
    "SpacingBetweenSlices": (0x00180088, b"DS"),
    "GantryDetectorTilt": (0x00181120, b"DS"),
    "ConvolutionKernel": (0x00181210, b"SH"),
    "StudyInstanceUID": (0x0020000D, b"UI"),
    "SeriesInstanceUID": (0x0020000E, b"UI"),
    "SeriesNumber": (0x00200011, b"IS"),
    "InstanceNumber": (0x00200013, b"IS"),
    "ImagePositionPatient": (0x00200032, b"DS"),
    "ImageOrientationPatient": (0x00200037, b"DS"),
    "FrameOfReferenceUID": (0x00200052, b"UI"),
    "ImagesInAcquisition": (0x00201002, b"IS"),
    "NumberOfSeriesRelatedInstances": (0x00201209, b"IS"),
    "StackID": (0x00209056, b"SH"),
    "TemporalPositionIndex": (0x00209128, b"UL"),
    "SamplesPerPixel": (0x00280002, b"US"),
    "PhotometricInterpretation": (0x00280004, b"CS"),
    "NumberOfFrames": (0x00280008, b"IS"),
    "Rows": (0x00280010, b"US"),
    "Columns": (0x00280011, b"US"),
    "PixelSpacing": (0x00280030, b"DS"),
    "BitsAllocated": (0x00280100, b"US"),
    "BitsStored": (0x00280101, b"US"),
    "HighBit": (0x00280102, b"US"),
    "PixelRepresentation": (0x00280103, b"US"),
    "RescaleIntercept": (0x00281052, b"DS"),
    "RescaleSlope": (0x00281053, b"DS"),
    "RescaleType": (0x00281054, b"LO"),
    "LossyImageCompression": (0x00282110, b"CS"),
    "SegmentationType": (0x00620001, b"CS"),
    "SegmentNumber": (0x00620004, b"US"),
    "SegmentLabel": (0x00620005, b"LO"),
    "ReferencedSegmentNumber": (0x0062000B, b"US"),
    "MaximumFractionalValue": (0x0062000E, b"US"),
    "CTReconstructionSequence": (0x00189314, b"SQ"),
    "FrameContentSequence": (0x00209111, b"SQ"),
    "PlanePositionSequence": (0x00209113, b"SQ"),
    "PlaneOrientationSequence": (0x00209116, b"SQ"),
    "PixelMeasuresSequence": (0x00289110, b"SQ"),
    "PixelValueTransformationSequence": (0x00289145, b"SQ"),
    "SegmentSequence": (0x00620002, b"SQ"),
    "SegmentIdentificationSequence": (0x0062000A, b"SQ"),
    "SharedFunctionalGroupsSequence": (0x52009229, b"SQ"),
    "PerFrameFunctionalGroupsSequence": (0x52009230, b"SQ"),
}
"""Tag and usual value representation of each kept element (PS3.6 section 6)."""
KEYWORD_OF_TAG: Final = {tag: (keyword, vr) for keyword, (tag, vr) in KEYWORDS.items()}
KeptTags: TypeAlias = "Mapping[int, KeptTags | None]"
"""Kept tags. For a sequence, the value holds the kept tags of its items."""


def _tags(*keywords: str) -> dict[int, None]:
    return {KEYWORDS[keyword][0]: None for keyword in keywords}


_GROUPS: Final[KeptTags] = {
    KEYWORDS["CTReconstructionSequence"][0]: _tags("ConvolutionKernel"),
    KEYWORDS["FrameContentSequence"][0]: _tags("StackID", "TemporalPositionIndex"),
    KEYWORDS["PlanePositionSequence"][0]: _tags("ImagePositionPatient"),
    KEYWORDS["PlaneOrientationSequence"][0]: _tags("ImageOrientationPatient"),
    KEYWORDS["PixelMeasuresSequence"][0]: _tags("PixelSpacing", "SliceThickness"),
    KEYWORDS["PixelValueTransformationSequence"][0]: _tags(
        "RescaleIntercept", "RescaleSlope", "RescaleType"
    ),
    KEYWORDS["SegmentIdentificationSequence"][0]: _tags("ReferencedSegmentNumber"),
}
"""Kept tags in the functional groups of multi-frame images."""
KEPT_TAGS: Final[KeptTags] = {
    **{tag: None for tag, vr in KEYWORDS.values() if vr != b"SQ"},
    KEYWORDS["SegmentSequence"][0]: _tags("SegmentNumber", "SegmentLabel"),
    KEYWORDS["SharedFunctionalGroupsSequence"][0]: _GROUPS,
    KEYWORDS["PerFrameFunctionalGroupsSequence"][0]: _GROUPS,
}
SOP_CLASS_TAG: Final = KEYWORDS["SOPClassUID"][0]
SERIES_TAG: Final = KEYWORDS["SeriesInstanceUID"][0]
