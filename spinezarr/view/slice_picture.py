"""How is a slice drawn as a picture with a window, colored masks and square pixels?

Slices have radiological display: the head is up, the patient's right is on the left of coronal and
axial slices, and anterior is up in axial and on the left in sagittal slices. Planes are those of
the stored grid, so the planes of an oblique scan are tilted like its axes.
"""

import io
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from spinezarr.errors import UsageError
from spinezarr.export.spine_slices import middle_slice, read_slice
from spinezarr.export.voxel_reader import VoxelReader
from spinezarr.geometry import SLICE_AXIS, Plane, axis_positions_mm
from spinezarr.store.attributes import ScanAttributes
from spinezarr.store.layout import LABEL
from spinezarr.store.scan_handle import ScanHandle
from spinezarr.vertebrae import ANATOMICAL_ORDER, BACKGROUND
from spinezarr.view.shown_labels import ShownLabel, shown_labels
from spinezarr.view.windows import DEFAULT_WINDOW, WINDOWS_HU, WindowHU, gray_of

__all__ = [
    "LARGEST_PX",
    "SliceRequest",
    "draw_slice",
    "is_border",
    "label_names",
    "parse_labels",
    "slice_at",
    "slice_png",
]

LARGEST_PX: Final = 2048
"""Most pixels along the longer side of a picture."""
_OPACITY: Final = 0.4
"""Opacity of the color of a vertebra."""
_MIN_OUTLINED_PX: Final = 192
"""Fewest pixels along the longer side of pictures with outlines; smaller ones have none."""
_N_LABELS: Final = 256
_PNG_LEVEL: Final = 3
"""Compression level of PNG. Level 6 takes twice as long for 4 % fewer bytes."""

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class SliceRequest:
    """The slice to draw, and how to draw it."""

    plane: Plane
    index: int
    """Index of the slice along the axis across its plane."""
    window_hu: WindowHU = WINDOWS_HU[DEFAULT_WINDOW]
    """HU of black and of white."""
    labels: frozenset[str] | None = None
    """Names of the labels to color in both masks, as :func:`parse_labels` returns; None for all."""
    size_px: int | None = None
    """Pixels along the longer side; None for one pixel for each voxel of the finer spacing."""
    mask: str = LABEL
    """Mask that is filled with colors; the scan may lack ``label``."""
    outline: str | None = None
    """Mask that is outlined over it; None for none. The filled mask then has no outlines."""


def label_names(facts: ScanAttributes, mask: str) -> list[str]:
    """Return the names of the labels of a mask, as a list that commas separate has them."""
    return [_key(label) for label in shown_labels(facts, mask)]


def parse_labels(text: str, names: Collection[str] = ()) -> frozenset[str] | None:
    """Parse which labels to color: ``true``, ``false``, or names separated by commas.

    Parameters
    ----------
    text
        The text.
    names
        Names that are allowed besides those of vertebrae; see :func:`label_names`.

    Returns
    -------
    frozenset of str or None
        The names; None for all.

    Raises
    ------
    UsageError
        If the text holds anything else. The message lists the names.

    Examples
    --------
    >>> parse_labels("true"), sorted(parse_labels("L1,disc", ["disc"])), parse_labels("false")
    (None, ['L1', 'disc'], frozenset())
    """
    if text in {"true", "false"}:
        return None if text == "true" else frozenset()
    chosen, known = frozenset(text.split(",")), dict.fromkeys((*ANATOMICAL_ORDER, *names))
    if not known.keys() >= chosen:
        raise UsageError(
            f"labels: must be true, false, or names separated by commas, of {', '.join(known)}."
        )
    return chosen


def _key(label: ShownLabel) -> str:
    """Return the name of a label in a list that commas separate."""
    return label.name.replace(",", " ")


def slice_at(
    scan: ScanHandle, voxels: VoxelReader, plane: Plane, mm: float | None, mask: str = LABEL
) -> int:
    """Return the index of a slice.

    Parameters
    ----------
    scan
        The scan.
    voxels
        Reads the mask to find the spine.
    plane
        Plane of the slice.
    mm
        Position along the axis across the plane, as the coordinate ``x``, ``y`` or ``z`` of the
        scan (RAS+); None for the middle of the spine, or of a scan without a mask.
    mask
        Mask that the slice shows, whose vertebrae have the middle.

    Raises
    ------
    UsageError
        If the position is outside of the scan; the message gives its range.
    """
    if mm is None:
        return middle_slice(scan, voxels, plane, mask)
    axis = SLICE_AXIS[plane]
    name = "zyx"[axis]
    at_mm = axis_positions_mm(scan.affine, scan.image.shape_zyx)[name]
    half_mm = scan.attributes.spacing_zyx_mm[axis] / 2
    first, last = float(at_mm[0]) - half_mm, float(at_mm[-1]) + half_mm
    if not first <= mm <= last:
        raise UsageError(f"mm: {name} of this scan is between {first:.2f} and {last:.2f} mm.")
    return int(np.abs(at_mm - mm).argmin())


def slice_png(scan: ScanHandle, voxels: VoxelReader, request: SliceRequest) -> bytes:
    """Draw a slice as PNG; see :func:`draw_slice`."""
    pixels = draw_slice(scan, voxels, request)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=_PNG_LEVEL)
    return file.getvalue()


def draw_slice(scan: ScanHandle, voxels: VoxelReader, request: SliceRequest) -> Pixels:
    """Draw a slice.

    Parameters
    ----------
    scan
        The scan.
    voxels
        Reads the slice.
    request
        The slice to draw, and how.

    Returns
    -------
    numpy.ndarray
        Pixels ``(rows, columns)``, or ``(rows, columns, RGB)`` if a label is colored. Without a
        size and with square voxels, shades are those of
        :func:`spinezarr.view.windows.gray_of`. Otherwise shades are interpolated, or averaged
        where several voxels fall into a pixel, and labels are those of the nearest voxels.
    """
    flat = SLICE_AXIS[request.plane]
    rows_mm, columns_mm = (
        mm for axis, mm in enumerate(scan.attributes.spacing_zyx_mm) if axis != flat
    )
    image = read_slice(scan.image, voxels, flat, request.index)
    shape = _size_px(image.shape, (rows_mm, columns_mm), request.size_px)
    gray = _resized(gray_of(_flipped(image), request.window_hu), shape)
    if request.labels == frozenset():
        return gray
    pixels = np.repeat(gray[..., None], 3, axis=2)
    is_colored = False
    for mask, is_outline in ((request.mask, False), (request.outline, True)):
        if mask is None or (mask == LABEL and scan.label is None):
            continue
        voxel_labels = read_slice(scan.mask(mask), voxels, flat, request.index)
        label = _nearest(_flipped(voxel_labels), shape)
        colors, is_shown = _colors_of(scan.attributes, mask, request.labels)
        label = np.where(is_shown[label], label, BACKGROUND)
        has_outlines = request.outline is None and max(shape) >= _MIN_OUTLINED_PX
        _color(
            pixels,
            label,
            colors,
            inner_opacity=0.0 if is_outline else _OPACITY,
            has_outlines=has_outlines or is_outline,
        )
        is_colored |= bool(label.any())
    return pixels if is_colored else gray


def _flipped(voxels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Flip a slice, whose indices increase toward superior, anterior or right, for display."""
    return voxels[::-1, ::-1]


def _size_px(
    shape: tuple[int, ...], spacing_mm: tuple[float, float], size_px: int | None
) -> tuple[int, int]:
    """Return rows and columns of square pixels that cover a slice."""
    rows_mm, columns_mm = (n * mm for n, mm in zip(shape, spacing_mm, strict=True))
    pixel_mm = max(rows_mm, columns_mm) / (size_px or LARGEST_PX)
    if size_px is None:
        pixel_mm = max(pixel_mm, min(spacing_mm))
    return max(1, round(rows_mm / pixel_mm)), max(1, round(columns_mm / pixel_mm))


def _resized(gray: Pixels, shape: tuple[int, int]) -> Pixels:
    if gray.shape == shape:
        return gray
    picture = Image.fromarray(np.ascontiguousarray(gray))
    return np.asarray(picture.resize(shape[::-1], Image.Resampling.BILINEAR))


def _nearest(label: Pixels, shape: tuple[int, int]) -> Pixels:
    if label.shape == shape:
        return label
    rows, columns = (
        ((np.arange(n) + 0.5) * size / n).astype(np.intp)
        for n, size in zip(shape, label.shape, strict=True)
    )
    pixels: Pixels = label[rows[:, None], columns]
    return pixels


def _color(
    pixels: Pixels,
    label: Pixels,
    colors: npt.NDArray[np.float64],
    *,
    inner_opacity: float,
    has_outlines: bool,
) -> None:
    """Blend colors over labels in place. With outlines, borders get the full color."""
    has_label = label != BACKGROUND
    opacity = np.full(int(has_label.sum()), inner_opacity)
    if has_outlines:
        opacity[is_border(label)[has_label]] = 1.0
    opacity = opacity[:, None]
    blended = pixels[has_label] * (1 - opacity) + colors[label[has_label]] * opacity
    pixels[has_label] = np.rint(blended)


def is_border(label: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Find the pixels of a slice, or the voxels of a mask, next to one of another value.

    Examples
    --------
    >>> is_border(np.array([[[0, 0, 1, 1, 1]]], np.uint8))
    array([[[False,  True,  True, False, False]]])
    """
    border = np.zeros(label.shape, bool)
    for axis in range(label.ndim):
        differs = np.diff(label, axis=axis) != 0
        first, last = [slice(None)] * label.ndim, [slice(None)] * label.ndim
        first[axis], last[axis] = slice(None, -1), slice(1, None)
        border[tuple(first)] |= differs
        border[tuple(last)] |= differs
    return border


def _colors_of(
    facts: ScanAttributes, mask: str, names: frozenset[str] | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Return the color of each value of a mask, RGB of 0 to 255, and whether it is shown."""
    colors = np.zeros((_N_LABELS, 3))
    is_shown = np.zeros(_N_LABELS, bool)
    for label in shown_labels(facts, mask):
        colors[label.value] = label.color
        is_shown[label.value] = names is None or _key(label) in names
    return 255 * colors, is_shown
