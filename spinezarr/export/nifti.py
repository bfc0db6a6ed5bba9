"""How is a scan written as NIfTI files with the source's voxels in its axis order?

:mod:`spinezarr.export.nifti_form` chooses type, scaling and geometry. A file is written slab by
slab under a name with ``.partial``, and renamed when it is complete. If the store holds the numbers
of the source file, these are written. Otherwise values with a slope and an intercept are scaled
back, if this gives the same values again; every value is checked.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import numpy as np
import numpy.typing as npt
from isal import igzip

from spinezarr.errors import UsageError
from spinezarr.export.atomic_file import write_atomically
from spinezarr.export.nifti_form import NiftiForm, NotScaledBackError, dtype_to_write
from spinezarr.export.nifti_placement import NiftiPlacement
from spinezarr.export.voxel_reader import VoxelReader
from spinezarr.geometry import AxisMap, Box, Matrix4x4, affine_rows
from spinezarr.store.attributes import ScanAttributes
from spinezarr.store.layout import IMAGE, LABEL
from spinezarr.store.records import SourceRecord
from spinezarr.store.scan_handle import ArraySpec, ScanHandle

__all__ = [
    "ExportedScan",
    "check_no_conflicting_file",
    "export_scan",
    "file_name",
    "iter_nifti_bytes",
    "write_label_on_image",
    "write_nifti",
    "write_on_image_grid",
    "write_values",
    "write_values_of_array",
]

# isal has few annotations, so strict mypy would refuse each call.
_igzip: Any = igzip
_SUFFIXES: Final = {IMAGE: "ct", LABEL: "seg"}
_GZIP_LEVEL: Final = 2
"""Compression level of ISA-L (0 to 3), a compromise of speed and size."""


@dataclass(frozen=True, slots=True)
class ExportedScan:
    """The files written for one scan."""

    scan_id: str
    files: tuple[str, ...]
    """Paths of the files."""
    notes: tuple[str, ...]
    """Remarks on how files differ from their sources."""


def file_name(scan_id: str, array: str, *, compressed: bool) -> str:
    """Return the file name for ``image``, ``label`` or a further mask.

    Examples
    --------
    >>> file_name("liver_0", "label", compressed=True)
    'liver_0_seg.nii.gz'
    >>> file_name("liver_0", "prediction", compressed=False)
    'liver_0_seg-prediction.nii'
    """
    suffix = _SUFFIXES.get(array) or f"{_SUFFIXES[LABEL]}-{array}"
    return f"{scan_id}_{suffix}{'.nii.gz' if compressed else '.nii'}"


def check_no_conflicting_file(path: Path) -> None:
    """Refuse to write ``a.nii.gz`` next to an ``a.nii``, or vice versa.

    nifti_clib, and therefore ITK, would read the voxels of ``a.nii`` for both.

    Raises
    ------
    UsageError
        If the other file exists.
    """
    name = path.name
    twin = path.with_name(name.removesuffix(".gz") if name.endswith(".gz") else f"{name}.gz")
    if twin.exists():
        raise UsageError(
            f"{twin}: lies next to {name}, so SimpleITK and ITK-SNAP would read the voxels of one "
            "of these files for both. Remove it, or choose another folder."
        )


def export_scan(
    scan: ScanHandle,
    voxels: VoxelReader,
    folder: Path,
    *,
    masks: Collection[str] = (LABEL,),
    compressed: bool = True,
    exact: bool = False,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> ExportedScan:
    """Write image and masks of a scan as NIfTI files.

    Only one slab of stored voxels, one chunk thick, is in memory.

    Parameters
    ----------
    scan
        The scan.
    voxels
        Reader of its voxels.
    folder
        Existing folder for the files. Existing files of the same names are replaced.
    masks
        Names of the masks to write; those that the scan lacks are left out.
    compressed
        Whether to write ``.nii.gz`` rather than ``.nii``.
    exact
        Whether to keep the type and affine of the source bit for bit, even if some programs do not
        read them.
    on_bytes
        Called with the number of bytes of stored voxels after each slab.

    Returns
    -------
    ExportedScan
        Paths of the files, and remarks.

    Raises
    ------
    CorruptStoreError
        If stored bytes are missing or damaged. The file is then not written.
    UsageError
        If a file of the same name with the other ending exists.
    """
    facts = scan.attributes
    files: list[str] = []
    notes: list[str] = []
    for spec in (scan.image, *(scan.mask(name) for name in scan.mask_names if name in masks)):
        path = folder / file_name(facts.scan_id, spec.name, compressed=compressed)
        notes += write_nifti(path, spec, facts, voxels, on_bytes, exact=exact)
        files.append(str(path))
    return ExportedScan(facts.scan_id, tuple(files), tuple(notes))


def write_nifti(
    path: Path,
    spec: ArraySpec,
    facts: ScanAttributes,
    voxels: VoxelReader,
    on_bytes: Callable[[int], None],
    *,
    exact: bool = False,
) -> list[str]:
    """Write one array of a scan as a NIfTI file.

    Parameters
    ----------
    path
        Path ending in ``.nii.gz`` or ``.nii``. An existing file is replaced.
    spec, facts
        The array, and the attributes of its scan.
    voxels, exact, on_bytes
        As for :func:`export_scan`.

    Returns
    -------
    list of str
        Remarks on how the file differs from its source.

    Raises
    ------
    CorruptStoreError
        If stored bytes are missing or damaged. The file is then not written.
    UsageError
        If a file of the same name with the other ending exists.
    """
    form = NiftiForm.exact(spec, facts) if exact else NiftiForm.portable(spec, facts)
    notes = [f"{path.name}: {note}" for note in form.notes]
    try:
        _write(path, spec, form, voxels, on_bytes)
    except NotScaledBackError:
        form = form.with_values()
        notes.append(
            f"{path.name}: holds the scaled values, which the slope of its source does not "
            "reproduce"
        )
        _write(path, spec, form, voxels, on_bytes)
    return notes


def iter_nifti_bytes(
    spec: ArraySpec, facts: ScanAttributes, voxels: VoxelReader
) -> Iterator[bytes]:
    """Yield the uncompressed content of the file that :func:`write_nifti` writes.

    Only one slab of stored voxels is in memory. If the numbers of the source are computed from
    stored values, all values are first read once to check that the numbers reproduce them.

    Parameters
    ----------
    spec, facts
        The array, and the attributes of its scan.
    voxels
        Reader of its voxels.

    Yields
    ------
    bytes
        Parts of the file in sequence.

    Raises
    ------
    CorruptStoreError
        During iteration, if stored bytes are missing or damaged. The yielded parts are then
        incomplete.
    """
    spec, form = _prefer_stored_numbers(spec, NiftiForm.portable(spec, facts))
    if form.scaling is not None and not form.gets_unscaled_numbers:
        try:
            for slab in _slabs(spec, form, voxels):
                form.numbers(slab)
        except NotScaledBackError:
            form = form.with_values()
    yield form.header()
    for slab in _slabs(spec, form, voxels):
        for k in range(slab.shape[2]):
            yield form.numbers(slab[..., k]).tobytes(order="F")


def write_label_on_image(
    path: Path,
    spec: ArraySpec,
    facts: ScanAttributes,
    voxels: VoxelReader,
    on_bytes: Callable[[int], None],
    *,
    values: npt.NDArray[np.uint8],
) -> None:
    """Write a mask as uint8 with the axes and the affine of the exported image.

    Parameters
    ----------
    path, facts, voxels, on_bytes
        As for :func:`write_nifti`.
    spec
        The mask.
    values
        Value to write for each stored label, of shape (256,).

    Raises
    ------
    CorruptStoreError
        If stored bytes are missing or damaged. The file is then not written.
    """
    form = replace(NiftiForm.on_image(facts, np.dtype(np.uint8)), values=values)
    _write(path, spec, form, voxels, on_bytes)


def _prefer_stored_numbers(spec: ArraySpec, form: NiftiForm) -> tuple[ArraySpec, NiftiForm]:
    """Return array and form for reading stored numbers without scaling, if the file holds these."""
    if spec.scaling is not None and form.scaling == (spec.scaling.slope, spec.scaling.intercept):
        return spec.unscaled(), replace(form, gets_unscaled_numbers=True)
    return spec, form


def _write(
    path: Path,
    spec: ArraySpec,
    form: NiftiForm,
    voxels: VoxelReader,
    on_bytes: Callable[[int], None],
) -> None:
    """Write one complete file or none, compressed if its name ends in ``.gz``."""
    check_no_conflicting_file(path)
    spec, form = _prefer_stored_numbers(spec, form)
    written_bytes = 0
    try:
        with _output(path, compressed=path.name.endswith(".gz")) as file:
            file.write(form.header())
            for slab in _slabs(spec, form, voxels):
                for k in range(slab.shape[2]):
                    file.write(form.numbers(slab[..., k]).tobytes(order="F"))
                slab_bytes = slab.size * spec.stored_dtype.itemsize
                written_bytes += slab_bytes
                on_bytes(slab_bytes)
    except BaseException:
        on_bytes(-written_bytes)
        raise


def _slabs(spec: ArraySpec, form: NiftiForm, voxels: VoxelReader) -> Iterator[npt.NDArray[Any]]:
    """Yield slabs of stored values in the source's axis order ``(i, j, k)``, with ascending k."""
    axis_map = AxisMap.from_axcodes(form.record.orientation)
    for box in axis_map.slab_boxes(spec.shape_zyx, spec.chunk_shape_zyx):
        block = np.empty(box.shape_zyx, spec.dtype)
        voxels.read_into(spec, box, block)
        yield axis_map.from_zyx(block)


def write_on_image_grid(path: Path, scan: ScanHandle, values_zyx: npt.NDArray[Any]) -> None:
    """Write values on the grid of a scan, with the axes and the affine of the exported image.

    Parameters
    ----------
    path
        Path ending in ``.nii.gz`` or ``.nii``. An existing file is replaced.
    scan
        The scan.
    values_zyx
        One value for each stored voxel, with axes ``(z, y, x)``. Booleans are written as uint8,
        float16 as float32, and 64-bit integers, which some programs do not read, in the narrowest
        type that holds them.

    Raises
    ------
    UsageError
        If the path has another ending, a file of the same name with the other ending exists, the
        shape is not that of the scan, or no type holds the values.
    """
    _check_ending(path)
    if values_zyx.shape != scan.image.shape_zyx:
        raise UsageError(
            f"{path}: values of shape {values_zyx.shape} for scan {scan.image.scan_id!r}, which "
            f"has {scan.image.shape_zyx} (z, y, x)."
        )
    dtype = dtype_to_write(values_zyx, path)
    form = NiftiForm.on_image(scan.attributes, dtype)
    spec = replace(scan.image, stored_dtype=dtype, scaling=None)
    _write(path, spec, form, _ArrayReader(values_zyx), lambda _: None)


def write_values_of_array(
    path: Path, spec: ArraySpec, facts: ScanAttributes, values_zyx: npt.NDArray[Any]
) -> None:
    """Write values in memory in the place of an array of a scan.

    If the values are those of the array, the voxels of the file are those that :func:`write_nifti`
    writes. Values that the type and slope of its source do not hold are written in their own type.

    Parameters
    ----------
    path
        Path ending in ``.nii.gz`` or ``.nii``. An existing file is replaced.
    spec, facts
        The array, and the attributes of its scan, with the grid of the values.
    values_zyx
        One value for each voxel, with axes ``(z, y, x)``.

    Raises
    ------
    UsageError
        As for :func:`write_on_image_grid`.
    """
    _check_ending(path)
    portable = NiftiForm.portable(spec, facts)
    for form in (portable, portable.with_values()):
        if form.holds(values_zyx):
            _write_values(path, values_zyx, form)
            return
    dtype = dtype_to_write(values_zyx, path)
    _write_values(path, values_zyx, NiftiForm.on_image(facts, dtype))


def write_values(path: Path, values_zyx: npt.NDArray[Any], affine: Matrix4x4) -> None:
    """Write values as NIfTI with the axes x, y and z of the store.

    Parameters
    ----------
    path, values_zyx
        As for :func:`write_on_image_grid`.
    affine
        4 x 4 matrix from voxel ``(x, y, z, 1)`` to RAS+ mm.

    Raises
    ------
    UsageError
        If the path has another ending, a file of the same name with the other ending exists, or no
        type holds the values.
    """
    _check_ending(path)
    z, y, x = values_zyx.shape
    record = SourceRecord(
        file="",
        size_bytes=0,
        sha256="",
        dtype=values_zyx.dtype.name,
        shape_ijk=(x, y, z),
        affine_ijk=affine_rows(affine),
        orientation="RAS",
        stored_dtype=values_zyx.dtype.str,
        scaling=None,
        nifti=None,
        metaimage=None,
    )
    placement = NiftiPlacement.portable(record)
    _write_values(
        path, values_zyx, NiftiForm(record, placement, dtype_to_write(values_zyx, path), None)
    )


def _write_values(path: Path, values_zyx: npt.NDArray[Any], form: NiftiForm) -> None:
    z, y, x = values_zyx.shape
    spec = ArraySpec.in_memory("", path.name, (z, y, x), values_zyx.dtype)
    _write(path, spec, form, _ArrayReader(values_zyx), lambda _: None)


def _check_ending(path: Path) -> None:
    if not path.name.endswith((".nii", ".nii.gz")):
        raise UsageError(f"{path}: the name must end in .nii or .nii.gz.")


class _ArrayReader:
    """A voxel reader of values in memory."""

    def __init__(self, values_zyx: npt.NDArray[Any]) -> None:
        self._values_zyx = values_zyx

    def read_into(self, array: ArraySpec, box: Box, out: npt.NDArray[Any]) -> None:  # noqa: ARG002
        out[...] = self._values_zyx[box.slices]


@contextmanager
def _output(path: Path, *, compressed: bool) -> Iterator[BinaryIO]:
    with write_atomically(path) as raw:
        if not compressed:
            yield raw
            return
        # Without name and time, the same scan gives the same bytes.
        compressed_file = _igzip.IGzipFile(
            "", "wb", compresslevel=_GZIP_LEVEL, fileobj=raw, mtime=0
        )
        with compressed_file:
            yield cast("BinaryIO", compressed_file)
