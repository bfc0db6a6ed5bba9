"""Writes masks as DICOM Segmentations, and as the ``.seg.nrrd`` of 3D Slicer.

The module shares no code with the readers under test.

References
----------
.. [1] DICOM PS3.3 section C.8.20 (Segmentation); PS3.5 section 8.1.1 (pixels of one bit)
.. [2] NRRD: https://teem.sourceforge.net/nrrd/format.html
.. [3] Segments of 3D Slicer:
   https://slicer.readthedocs.io/en/latest/developer_guide/modules/segmentations.html
"""

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from spinezarr.errors import UsageError
from spinezarr.testing.dicom import (
    check_dicom_packages,
    dicom_decimals,
    dicom_items,
    new_dicom_object,
)

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["Mask", "SegmentationType", "write_dicom_segmentation", "write_seg_nrrd"]

SegmentationType = Literal["BINARY", "FRACTIONAL", "LABELMAP"]
_CLASSES: Final[dict[SegmentationType, str]] = {
    "BINARY": "1.2.840.10008.5.1.4.1.1.66.4",
    "FRACTIONAL": "1.2.840.10008.5.1.4.1.1.66.4",
    "LABELMAP": "1.2.840.10008.5.1.4.1.1.66.7",
}
_EXPLICIT: Final = "1.2.840.10008.1.2.1"
_SERIES: Final = 300
_DIMENSIONS: Final = ((0x0062000B, 0x0062000A), (0x00200032, 0x00209113))
"""Tags of ReferencedSegmentNumber and ImagePositionPatient, and of the sequences that hold them."""
_LPS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])

Mask: TypeAlias = npt.NDArray[np.bool_]


def write_dicom_segmentation(
    path: Path,
    segments: Mapping[str, Mask],
    affine_ijk: npt.NDArray[np.float64],
    kind: SegmentationType = "BINARY",
    *,
    study: str = "2.25.1",
    empty_frames: bool = False,
    largest: int = 255,
) -> Path:
    """Write one DICOM Segmentation [1]_, the same bytes each time.

    Parameters
    ----------
    path
        File to write; its folder is made if it is missing.
    segments
        Mask of each segment with axes (i, j, k), by its SegmentLabel. Axis i becomes the columns, j
        the rows and k the slices.
    affine_ijk
        4 x 4 matrix from voxel ``(i, j, k, 1)`` to RAS+ mm.
    kind
        SegmentationType. In a label map, later segments overwrite earlier ones.
    study
        StudyInstanceUID.
    empty_frames
        Whether frames without a voxel are written; most programs leave them out.
    largest
        MaximumFractionalValue of a fractional segmentation.

    Returns
    -------
    Path
        The file, which is ``path``.

    Raises
    ------
    UsageError
        If there is no frame to write, or pydicom and gdcm are not installed.
    """
    from pydicom.uid import UID  # noqa: PLC0415  only writing DICOM needs pydicom

    check_dicom_packages(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = _frames(segments, kind, empty_frames=empty_frames)
    if not frames:
        raise UsageError(f"{path}: no segment has a voxel; expected at least one")
    dataset = new_dicom_object(_CLASSES[kind], study, _SERIES, 1, "SEG")
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.FrameOfReferenceUID = f"{study}.1"
    dataset.SegmentationType = kind
    if kind == "FRACTIONAL":
        dataset.SegmentationFractionalType = "PROBABILITY"
        dataset.MaximumFractionalValue = largest
    dataset.SegmentSequence = [
        _segment(number, name) for number, name in enumerate(segments, start=1)
    ]
    _set_groups(dataset, frames, affine_ijk)
    _set_pixels(dataset, frames, kind, largest)
    dataset.file_meta.TransferSyntaxUID = UID(_EXPLICIT)
    dataset.save_as(path, enforce_file_format=True)
    return path


_Frame = tuple[int, int, npt.NDArray[np.uint8]]
"""Number of the segment (0 in a label map), slice, and pixels with axes (row, column)."""


def _frames(
    segments: Mapping[str, Mask], kind: SegmentationType, *, empty_frames: bool
) -> list[_Frame]:
    numbered = list(enumerate(segments.values(), start=1))
    if kind == "LABELMAP":
        labels = np.zeros(numbered[0][1].shape, np.uint8)
        for number, mask in numbered:
            labels[mask] = number
        numbered, arrays = [(0, labels > 0)], {0: labels}
    else:
        arrays = {number: mask.astype(np.uint8) for number, mask in numbered}
    return [
        (number, k, arrays[number][:, :, k].T)
        for number, mask in numbered
        for k in range(mask.shape[2])
        if empty_frames or mask[:, :, k].any()
    ]


def _segment(number: int, name: str) -> "Dataset":
    from pydicom import Dataset  # noqa: PLC0415  only writing DICOM needs pydicom

    item = Dataset()
    item.SegmentNumber = number
    item.SegmentLabel = name
    item.SegmentAlgorithmType = "MANUAL"
    for keyword, code, meaning in (
        ("SegmentedPropertyCategoryCodeSequence", "123037004", "Anatomical Structure"),
        ("SegmentedPropertyTypeCodeSequence", "51282000", "Vertebra"),
    ):
        kind = Dataset()
        kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning = code, "SCT", meaning
        setattr(item, keyword, [kind])
    return item


def _set_groups(
    dataset: "Dataset", frames: list[_Frame], affine_ijk: npt.NDArray[np.float64]
) -> None:
    affine_lps = _LPS @ affine_ijk
    across, down, step = affine_lps[:3, :3].T
    lengths = [float(np.linalg.norm(vector)) for vector in (across, down, step)]
    dataset.SharedFunctionalGroupsSequence = [
        dicom_items(
            PlaneOrientationSequence={
                "ImageOrientationPatient": dicom_decimals(
                    *(across / lengths[0]), *(down / lengths[1])
                )
            },
            PixelMeasuresSequence={
                "PixelSpacing": dicom_decimals(lengths[1], lengths[0]),
                "SliceThickness": dicom_decimals(lengths[2]),
                "SpacingBetweenSlices": dicom_decimals(lengths[2]),
            },
        )
    ]
    dimensions = _DIMENSIONS if frames[0][0] else _DIMENSIONS[1:]
    dataset.DimensionIndexSequence = [_dimension(*pointers) for pointers in dimensions]
    groups = []
    for number, k, _ in frames:
        position = (affine_lps @ [0, 0, k, 1])[:3]
        group = dicom_items(
            FrameContentSequence={"DimensionIndexValues": [number, k + 1] if number else [k + 1]},
            PlanePositionSequence={"ImagePositionPatient": dicom_decimals(*position)},
        )
        if number:
            identification = dicom_items(
                SegmentIdentificationSequence={"ReferencedSegmentNumber": number}
            )
            group.update(identification)
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups


def _dimension(element: int, group: int) -> "Dataset":
    from pydicom import Dataset  # noqa: PLC0415  only writing DICOM needs pydicom

    item = Dataset()
    item.DimensionIndexPointer = element
    item.FunctionalGroupPointer = group
    return item


def _set_pixels(
    dataset: "Dataset", frames: list[_Frame], kind: SegmentationType, largest: int
) -> None:
    stacked = np.stack([pixels for _, _, pixels in frames])
    dataset.NumberOfFrames = len(frames)
    dataset.Rows, dataset.Columns = stacked.shape[1:]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelRepresentation = 0
    bits = 1 if kind == "BINARY" else 8
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    if kind == "BINARY":
        data = np.packbits(stacked.ravel(), bitorder="little").tobytes()
    else:
        data = (stacked * (largest if kind == "FRACTIONAL" else 1)).astype(np.uint8).tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OB"


def write_seg_nrrd(
    path: Path,
    segments: Mapping[str, Mask],
    affine_ijk: npt.NDArray[np.float64],
    *,
    crop: bool = False,
    **fields: Any,  # noqa: ANN401  any field of the header
) -> Path:
    """Write a segmentation as 3D Slicer does [3]_, the same bytes each time.

    Segments that overlap go to different layers.

    Parameters
    ----------
    path
        File to write; its folder is made if it is missing.
    segments
        Mask of each segment with axes (i, j, k), by its name.
    affine_ijk
        4 x 4 matrix from voxel ``(i, j, k, 1)`` to RAS+ mm.
    crop
        Whether only the box around the segments is written.
    **fields
        Further or other fields of the header [2]_, such as ``encoding="raw"``. Spaces of names are
        written as underscores; None leaves a field out.

    Returns
    -------
    Path
        The file, which is ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    layers, places = _layers(segments)
    affine = affine_ijk.copy()
    if crop:
        inside = np.argwhere(layers.any(axis=0))
        low, high = inside.min(axis=0), inside.max(axis=0) + 1
        layers = layers[:, low[0] : high[0], low[1] : high[1], low[2] : high[2]]
        affine[:3, 3] += affine[:3, :3] @ low
    lps = _LPS @ affine
    is_3d = len(layers) == 1
    vectors = ["({})".format(",".join(map(repr, lps[:3, axis].tolist()))) for axis in range(3)]
    sizes = layers.shape[1:] if is_3d else layers.shape
    header = {
        "type": "unsigned char",
        "dimension": len(sizes),
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, sizes)),
        "space directions": " ".join([*([] if is_3d else ["none"]), *vectors]),
        "kinds": " ".join([*([] if is_3d else ["list"]), *["domain"] * 3]),
        "endian": "little",
        "encoding": "gzip",
        "space origin": "({})".format(",".join(map(repr, lps[:3, 3].tolist()))),
        **{name.replace("_", " "): value for name, value in fields.items()},
    }
    lines = [
        "NRRD0004",
        *(f"{name}: {value}" for name, value in header.items() if value is not None),
    ]
    for number, (name, (layer, value)) in enumerate(zip(segments, places, strict=True)):
        lines += [
            f"Segment{number}_ID:=Segment_{number + 1}",
            f"Segment{number}_LabelValue:={value}",
            f"Segment{number}_Layer:={layer}",
            f"Segment{number}_Name:={name}",
        ]
    data = layers.tobytes(order="F")
    if header["encoding"] == "gzip":
        data = gzip.compress(data, 6, mtime=0)
    path.write_bytes("\n".join([*lines, "", ""]).encode() + data)
    return path


def _layers(
    segments: Mapping[str, Mask],
) -> tuple[npt.NDArray[np.uint8], list[tuple[int, int]]]:
    """Return layers with axes (layer, i, j, k), and the layer and value of each segment."""
    layers: list[npt.NDArray[np.uint8]] = []
    values: list[int] = []
    places = []
    for mask in segments.values():
        layer = next((n for n, drawn in enumerate(layers) if not drawn[mask].any()), len(layers))
        if layer == len(layers):
            layers.append(np.zeros(mask.shape, np.uint8))
            values.append(0)
        values[layer] += 1
        layers[layer][mask] = values[layer]
        places.append((layer, values[layer]))
    return np.stack(layers), places
