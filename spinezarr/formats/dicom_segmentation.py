"""How is a DICOM Segmentation read as masks on the grid of its image?

A frame is the mask of one segment in one slice, or the label map of one slice. Frames without any
voxel may be left out. The headers of frames place them, never their order.

References
----------
DICOM PS3.3 sections A.51 and C.8.20 (Segmentation), C.7.6.16 (Multi-frame Functional Groups);
PS3.5 section 8.1.1 (pixels of one bit):
https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_C.8.20.html
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, Final

import fsspec
import numpy as np
import numpy.typing as npt

from spinezarr.errors import FormatError, LabelError
from spinezarr.formats.affine import LPS_TO_RAS
from spinezarr.formats.dicom_data_set import DataSet
from spinezarr.formats.dicom_file import first_item, naming_file
from spinezarr.formats.dicom_header import DicomHeader, pixel_source, read_header
from spinezarr.formats.dicom_keywords import KEYWORDS
from spinezarr.formats.dicom_slices import checked_integer, checked_numbers
from spinezarr.formats.dicom_stack import SliceHeader
from spinezarr.formats.dicom_syntax import DEFLATED, EXPLICIT, IMPLICIT, check_packages, uid_name
from spinezarr.formats.file_kinds import KIND_BYTES, wrong_kind_error
from spinezarr.formats.limits import DEFAULT_LIMITS, Limits
from spinezarr.formats.part_of_grid import PartOfGrid
from spinezarr.formats.segments import Mask
from spinezarr.formats.source_file import SourceFile
from spinezarr.geometry import Grid, Matrix4x4
from spinezarr.text import count_noun

__all__ = ["DicomSegmentation"]

_CLASSES: Final = frozenset({"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"})
"""Segmentation Storage and Label Map Segmentation Storage (PS3.6 annex A)."""
_BINARY: Final = "BINARY"
_FRACTIONAL: Final = "FRACTIONAL"
_LABEL_MAP: Final = "LABELMAP"
_PACKED_SYNTAXES: Final = frozenset({IMPLICIT, EXPLICIT, DEFLATED})
"""Transfer syntaxes of pixels of one bit. The standard allows no compression of each frame."""
_BITS: Final = (1, 8, 16)
_BYTE: Final = 8
_POSITION_ROUNDING_MM: Final = 0.1
"""Error of positions that writers round, as for slices of CTs."""
_ORIENTATION_TOLERANCE: Final = 1e-4
_READ_BYTES: Final = 1 << 22
_MAX_SEGMENTS: Final = 65_535


@dataclass(frozen=True, slots=True)
class _Segment:
    number: int
    name: str


@dataclass(frozen=True, slots=True)
class _Frame:
    """One frame of the file, and its place in the image."""

    index: int
    start_ijk: tuple[int, int, int]
    """Voxel of its first pixel."""


class DicomSegmentation:
    """An opened DICOM Segmentation; see :class:`spinezarr.formats.segments.Segmentation`.

    Parameters
    ----------
    fs, path
        File system and path of the file.
    image
        Grid of the image. The file may cover a part of it; the rest is background.
    limits
        Limits that the file must not exceed.

    Raises
    ------
    FormatError
        If the file is no DICOM Segmentation, is damaged or exceeds a limit.
    GridMismatchError
        If a frame does not lie on the voxels of the image, or extends beyond it.
    UsageError
        If pydicom and gdcm are not installed.
    """

    def __init__(
        self,
        fs: fsspec.AbstractFileSystem,
        path: str,
        image: Grid,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        check_packages(path)
        self._fs = fs
        self._path = path
        self._limits = limits
        self._size_bytes = int(fs.size(path) or 0)
        self._header = self._read_header()
        with naming_file(path):
            data = self._header.data
            self._pixels = _pixel_facts(data, self._header.transfer_syntax, path)
            self._segments = _segments(data, path)
            self._grid, self._frames = _place_frames(data, self._pixels, image, path)
        self._source: SourceFile | None = None

    @property
    def grid(self) -> Grid:
        """Grid of the image, with axes along the columns, rows and normal of the frames."""
        return self._grid

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each segment: its SegmentLabel."""
        return tuple(segment.name for segment in self._segments)

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the file for the user."""
        if self._pixels.kind == _FRACTIONAL:
            return ("the segments are fractional, but hold only 0 and their largest value",)
        return ()

    def masks(
        self, thicknesses: Iterable[int], segments: Sequence[int], /
    ) -> Iterator[Iterator[Mask | None]]:
        """Yield masks slab by slab; see :meth:`spinezarr.formats.segments.Segmentation.masks`."""
        with self._fs.open(self._path, "rb") as raw:
            digest, size_bytes = hashlib.sha256(), 0
            while block := raw.read(_READ_BYTES):
                digest.update(block)
                size_bytes += len(block)
            if size_bytes != self._size_bytes or self._read_header() != self._header:
                raise FormatError(f"{self._path}: has changed while it was read. Ingest it again.")

            def read(start: int, stop: int) -> bytes:
                raw.seek(start)
                return bytes(raw.read(stop - start))

            frame_of = self._frame_reader(read, size_bytes)
            numbers = [self._segments[position].number for position in segments]
            for start, stop in pairwise(accumulate(thicknesses, initial=0)):
                slab = range(start, stop)
                yield (self._mask(frame_of, number, slab) for number in numbers)
        self._source = SourceFile(size_bytes, digest.hexdigest())

    def source_file(self) -> SourceFile:
        """Return size and hash of the file."""
        if self._source is None:
            raise RuntimeError("source_file() before masks()")
        return self._source

    def _read_header(self) -> DicomHeader:
        limits, path = self._limits, self._path
        if self._size_bytes > limits.dicom_multiframe_bytes:
            raise FormatError(
                f"{path}: has more than {limits.dicom_multiframe_bytes} bytes, expected a "
                "segmentation. Take it out of the folder."
            )
        with naming_file(path):
            header = read_header(
                lambda start, stop: self._fs.cat_file(path, start=start, end=stop),
                self._size_bytes,
                max_bytes=limits.dicom_header_bytes,
                max_inflated_bytes=limits.dicom_file_bytes,
                classes=_CLASSES,
            )
        if header is None:
            start = self._fs.cat_file(path, start=0, end=KIND_BYTES)
            raise wrong_kind_error(path, start, "a DICOM file")
        if _CLASSES.isdisjoint(header.sop_classes):
            kind = next(filter(None, map(uid_name, header.sop_classes)), "of an unknown class")
            raise FormatError(
                f"{path}: is a DICOM object, but no Segmentation: {kind}. Let the template of the "
                "mask name the segmentation."
            )
        return header

    def _mask(
        self, frame_of: Callable[[int], npt.NDArray[Any]], number: int, slab: range
    ) -> Mask | None:
        is_map = self._pixels.kind == _LABEL_MAP
        frames = {k: self._frames.get((0 if is_map else number, k)) for k in slab}
        if not any(frames.values()):
            return None
        mask = np.zeros((*self._grid.shape_ijk[:2], len(slab)), np.bool_, order="F")
        for k, frame in frames.items():
            if frame is None:
                continue
            pixels = frame_of(frame.index)
            inside = pixels == number if is_map else pixels != 0
            i, j, _ = frame.start_ijk
            rows, columns = inside.shape
            mask[i : i + columns, j : j + rows, k - slab.start] = inside.T
        return mask

    def _frame_reader(
        self, read: Callable[[int, int], bytes], size_bytes: int
    ) -> Callable[[int], npt.NDArray[Any]]:
        """Return a function that returns the pixels of a frame with axes (row, column)."""
        facts, path = self._pixels, self._path
        with naming_file(path):
            read, size_bytes = pixel_source(
                read, size_bytes, self._header, self._limits.dicom_file_bytes
            )
        if facts.bits_allocated == 1:
            return _packed_frames(read, size_bytes, self._header, facts, path)
        from spinezarr.formats.dicom_pixels import FrameReader  # noqa: PLC0415  needs pydicom

        reader = FrameReader(
            read,
            size_bytes,
            self._header,
            facts.frames,
            max_bytes=self._limits.dicom_file_bytes,
            path=path,
        )

        # The frames of a label map are needed once for each segment.
        @lru_cache(maxsize=_frames_kept(facts))
        def frame_of(index: int) -> npt.NDArray[Any]:
            pixels = reader.read(facts.slice_header(path, index))
            if facts.kind != _LABEL_MAP:
                _check_binary(pixels, facts, path)
            return pixels

        return frame_of


@dataclass(frozen=True, slots=True)
class _PixelFacts:
    """How the pixels of all frames are stored."""

    kind: str
    """SegmentationType."""
    frames: int
    shape_rows_columns: tuple[int, int]
    bits_allocated: int
    largest: int
    """Value of a voxel that belongs to its segment; 0 for a label map."""

    def slice_header(self, path: str, frame: int) -> SliceHeader:
        """Return the facts that a decoder of frames needs. No position is among them."""
        return SliceHeader(
            path,
            frame,
            position_lps_mm=(0.0, 0.0, 0.0),
            cosines=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
            spacing_rows_columns_mm=(1.0, 1.0),
            shape_rows_columns=self.shape_rows_columns,
            bits_allocated=self.bits_allocated,
            bits_stored=self.bits_allocated,
            signed=False,
            rescale=None,
            rescale_type="",
            tilt_deg=None,
            thickness_mm=None,
            notes=(),
        )


def _frames_kept(facts: _PixelFacts) -> int:
    """Return how many decoded frames fit into the memory of a slab of masks."""
    rows, columns = facts.shape_rows_columns
    return max(1, (1 << 26) // max(1, rows * columns * facts.bits_allocated // _BYTE))


def _pixel_facts(data: DataSet, syntax: str, path: str) -> _PixelFacts:
    kind = data.text("SegmentationType")
    frames, rows, columns, bits, samples = (
        checked_integer(data, keyword, path)
        for keyword in ("NumberOfFrames", "Rows", "Columns", "BitsAllocated", "SamplesPerPixel")
    )
    if kind not in (_BINARY, _FRACTIONAL, _LABEL_MAP):
        raise FormatError(
            f"{path}: its SegmentationType is not BINARY, FRACTIONAL or LABELMAP. Export it again."
        )
    if min(frames, rows, columns) < 1 or bits not in _BITS or samples != 1:
        raise FormatError(
            f"{path}: has {frames} frames of {rows} x {columns} pixels of {bits} bits and "
            f"{samples} samples; expected at least one frame, and one sample of 1, 8 or 16 bits. "
            "Export it again."
        )
    if (bits == 1) != (kind == _BINARY):
        raise FormatError(
            f"{path}: is {kind} with {bits} bits for each pixel; expected 1 bit for BINARY, and 8 "
            "or 16 otherwise. Export it again."
        )
    if bits == 1 and syntax not in _PACKED_SYNTAXES:
        raise FormatError(
            f"{path}: has pixels of one bit in the transfer syntax {uid_name(syntax)!r}, which is "
            "not read; expected them uncompressed. Convert it to explicit little endian."
        )
    largest = 1
    if kind == _FRACTIONAL:
        largest = checked_integer(data, "MaximumFractionalValue", path)
    return _PixelFacts(kind, frames, (rows, columns), bits, 0 if kind == _LABEL_MAP else largest)


def _segments(data: DataSet, path: str) -> tuple[_Segment, ...]:
    items = data.sequence("SegmentSequence")
    segments = tuple(
        _Segment(checked_integer(item, "SegmentNumber", path), _label(item)) for item in items
    )
    numbers = {segment.number for segment in segments}
    if not segments or len(numbers) < len(segments) or max(numbers) > _MAX_SEGMENTS:
        raise FormatError(
            f"{path}: names {count_noun(len(segments), 'segment')} with {len(numbers)} numbers, "
            "expected at least one, each with its own number. Export it again."
        )
    return segments


def _label(item: DataSet) -> str:
    """Return SegmentLabel in UTF-8, or else in Latin-1."""
    element = item.elements.get(KEYWORDS["SegmentLabel"][0])
    value = b"" if element is None else element.value.strip(b" \0")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _place_frames(
    data: DataSet, pixels: _PixelFacts, image: Grid, path: str
) -> tuple[Grid, dict[tuple[int, int], _Frame]]:
    """Return the grid of the image along the frames, and the frames by segment number and k.

    The segment number is 0 for label maps.
    """
    shared = data.sequence("SharedFunctionalGroupsSequence")[:1]
    groups = data.sequence("PerFrameFunctionalGroupsSequence")
    if len(groups) != pixels.frames:
        raise FormatError(
            f"{path}: has {count_noun(pixels.frames, 'frame')} and positions of {len(groups)} "
            "(PerFrameFunctionalGroupsSequence). It is cut short or damaged: download it again."
        )
    rows, columns = pixels.shape_rows_columns
    first: Matrix4x4 | None = None
    part: PartOfGrid | None = None
    starts: dict[tuple[float, ...], tuple[int, int, int]] = {}
    frames: dict[tuple[int, int], _Frame] = {}
    for index, group in enumerate(groups):
        turn = _directions((group, *shared), path)
        if part is None or first is None:
            part, first = PartOfGrid.of(image, turn, path), turn
        elif np.abs(turn - first).max() > _ORIENTATION_TOLERANCE:
            raise FormatError(
                f"{path}: its frames differ in orientation or spacing, expected one of each. "
                "Export it again as one stack."
            )
        position = checked_numbers(
            first_item((group, *shared), "PlanePositionSequence") or DataSet(),
            "ImagePositionPatient",
            3,
            path,
        )
        if position not in starts:
            affine = turn.copy()
            affine[:3, 2] = part.whole.affine_ijk[:3, 2]
            affine[:3, 3] = LPS_TO_RAS[:3, :3] @ position
            starts[position] = part.start_of(
                (columns, rows, 1), affine, rounding_mm=_POSITION_ROUNDING_MM
            )
        start = starts[position]
        number = 0
        if pixels.kind != _LABEL_MAP:
            item = first_item((group, *shared), "SegmentIdentificationSequence") or DataSet()
            number = checked_integer(item, "ReferencedSegmentNumber", path)
        if (number, start[2]) in frames:
            raise FormatError(
                f"{path}: its frames {frames[number, start[2]].index + 1} and {index + 1} show the "
                f"same segment ({number}) in the same slice; expected one. Export it again."
            )
        frames[number, start[2]] = _Frame(index, start)
    if part is None:
        raise FormatError(f"{path}: has no frame. Download it again.")
    return part.whole, frames


def _directions(groups: tuple[DataSet, ...], path: str) -> Matrix4x4:
    """Return a 4 x 4 matrix with the steps in RAS+ mm to the next column, row and slice.

    The last is the unit normal.
    """
    cosines = checked_numbers(
        first_item(groups, "PlaneOrientationSequence") or DataSet(),
        "ImageOrientationPatient",
        6,
        path,
    )
    between_rows, between_columns = checked_numbers(
        first_item(groups, "PixelMeasuresSequence") or DataSet(), "PixelSpacing", 2, path
    )
    across, down = np.array(cosines).reshape(2, 3)
    normal = np.cross(across, down)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([across * between_columns, down * between_rows, normal], axis=1)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if min(between_rows, between_columns) <= 0 or lengths.min() < _ORIENTATION_TOLERANCE:
        raise FormatError(
            f"{path}: its frames have no usable orientation and spacing: {cosines} and "
            f"{between_rows} x {between_columns} mm. Export it again."
        )
    return np.asarray(LPS_TO_RAS @ affine)


def _packed_frames(
    read: Callable[[int, int], bytes],
    size_bytes: int,
    header: DicomHeader,
    facts: _PixelFacts,
    path: str,
) -> Callable[[int], npt.NDArray[Any]]:
    """Return a function that unpacks a frame of one bit for each pixel, the lowest bit first.

    A frame starts at the bit after the last one of the frame before it.
    """
    rows, columns = facts.shape_rows_columns
    n_bits = rows * columns
    n_bytes = -(-n_bits * facts.frames // _BYTE)
    location = header.pixels
    present_bytes = 0
    if location is not None and location.size_bytes is not None:
        present_bytes = max(0, min(location.size_bytes, size_bytes - location.start))
    if location is None or present_bytes < n_bytes:
        raise FormatError(
            f"{path}: cut short: it holds {present_bytes} of {n_bytes} bytes of pixels. "
            "Download it again."
        )
    pixels_start = location.start

    def frame_of(index: int) -> npt.NDArray[Any]:
        first, shift = divmod(index * n_bits, _BYTE)
        last = -(-(index + 1) * n_bits // _BYTE)
        packed = np.frombuffer(read(pixels_start + first, pixels_start + last), np.uint8)
        if len(packed) != last - first:
            raise FormatError(f"{path}: has changed while it was read. Ingest it again.")
        bits = np.unpackbits(packed, bitorder="little")[shift : shift + n_bits]
        return bits.reshape(rows, columns)

    return frame_of


def _check_binary(pixels: npt.NDArray[Any], facts: _PixelFacts, path: str) -> None:
    """Refuse fractions of voxels, which no threshold can turn into the mask of an annotator."""
    between = pixels[(pixels != 0) & (pixels != facts.largest)]
    if between.size:
        raise LabelError(
            f"{path}: is a fractional segmentation and holds the value {between[0]} of "
            f"{facts.largest}; expected only 0 and {facts.largest}. Choose a threshold, and export "
            "it as a binary segmentation."
        )
