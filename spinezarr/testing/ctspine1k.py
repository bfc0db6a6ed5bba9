"""Writes small CTSpine1K datasets of phantoms, in the layouts that people download."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from spinezarr.errors import UsageError
from spinezarr.testing.nifti import NiftiForm, write_nifti
from spinezarr.testing.phantom import PhantomSpec, make_phantom, usual_levels
from spinezarr.testing.written import WrittenScan, centers_in_file

__all__ = [
    "CTSPINE1K_SCANS",
    "Layout",
    "ScanPlan",
    "Split",
    "ctspine1k_paths",
    "resized",
    "source_of",
    "split_text",
    "write_ctspine1k",
    "write_ctspine1k_names",
    "write_split_file",
]

Layout = Literal["official", "huggingface"]
"""The release from Google Drive and Baidu, or ``alexanderdann/CTSpine1K`` on Hugging Face."""
Split = Literal["train", "validation", "test"]
"""Names of the splits; the file calls them trainset, test_public and test_private."""

_SECTIONS: Final[dict[Split, str]] = {
    "train": "trainset",
    "validation": "test_public",
    "test": "test_private",
}


@dataclass(frozen=True, slots=True)
class _Source:
    """One of the four collections that CTSpine1K gathers, with its folders."""

    name: str
    prefixes: tuple[str, ...]
    official_image: str
    official_label: str


_SOURCES: Final = (
    _Source("COLONOG", ("1.3.6.1.4.1.9328.50.4.", "CTC-"), "colon", "conlon"),
    _Source("COVID-19", ("volume-covid19-A-",), "COVID-19", "COVID-19"),
    _Source("HNSCC-3DCT-RT", ("HN_P",), "HNSCC-3DCT-RT_neck", "HNSCC-3DCT-RT_neck"),
    _Source("MSD-T10", ("liver_",), "liver", "Liver"),
)

_VERSE_MASKS: Final = (
    "label/Verse/verse074_seg.nii.gz",
    "label/completed_annotation_verse/verse506_CT-iso_seg.nii.gz",
)
"""Masks that the official release ships without their images."""

_IMAGE_FORM: Final = NiftiForm()
_LABEL_FORM: Final = NiftiForm(dtype="uint8")

_MIN_SIZE: Final = 16
"""Smallest number of voxels along each axis that :func:`resized` returns."""


def source_of(scan_id: str) -> str:
    """Return the collection of a scan, from the prefix of its name.

    Examples
    --------
    >>> source_of("CTC-1018399231"), source_of("liver_0")
    ('COLONOG', 'MSD-T10')
    """
    return _source(scan_id).name


def _source(scan_id: str) -> _Source:
    for source in _SOURCES:
        if scan_id.startswith(source.prefixes):
            return source
    known = ", ".join(prefix for source in _SOURCES for prefix in source.prefixes)
    raise UsageError(
        f"{scan_id!r} is not the name of a CTSpine1K scan; such names begin with one of {known}"
    )


@dataclass(frozen=True, slots=True)
class ScanPlan:
    """One scan to write."""

    scan_id: str
    """File name without ``.nii.gz``; its prefix decides the source."""
    split: Split
    """Section of the split file."""
    spec: PhantomSpec
    """Phantom to draw."""
    image_form: NiftiForm = _IMAGE_FORM
    """How the image is stored."""
    label_form: NiftiForm = _LABEL_FORM
    """How the mask is stored."""

    def __post_init__(self) -> None:
        if self.split not in _SECTIONS:
            raise UsageError(
                f"{self.scan_id}: split must be one of {', '.join(_SECTIONS)}; got {self.split!r}"
            )
        if self.image_form.oblique_deg != self.label_form.oblique_deg:
            raise UsageError(f"{self.scan_id}: oblique_deg must be the same for image and mask")
        source_of(self.scan_id)


CTSPINE1K_SCANS: Final = (
    ScanPlan(
        "1.3.6.1.4.1.9328.50.4.0001",
        "train",
        PhantomSpec(1, (200, 256, 256), (1.9, 1.4, 1.4), usual_levels("T8", "L5")),
        NiftiForm("LPS"),
        NiftiForm("LPS", "float64"),
    ),
    ScanPlan(
        "liver_0",
        "train",
        PhantomSpec(2, (140, 256, 256), (2.5, 1.5, 1.5), usual_levels("T9", "L5"), padding_hu=None),
        NiftiForm("RAS", "int16", slope=1.0, inter=-1024.0),
        NiftiForm("RAS", "uint8"),
    ),
    ScanPlan(
        "HN_P001",
        "train",
        PhantomSpec(
            3, (144, 224, 224), (2.0, 1.4, 1.4), usual_levels("C2", "T6"), padding_hu=-3024
        ),
        NiftiForm("LPS"),
        NiftiForm("LPS", "int16"),
    ),
    ScanPlan(
        "CTC-1018399231",
        "validation",
        PhantomSpec(4, (216, 256, 256), (1.6, 1.35, 1.35), (*usual_levels("T10", "L5"), "L6")),
        NiftiForm("LPS", "int32"),
        NiftiForm("LPS", "uint8"),
    ),
    ScanPlan(
        "volume-covid19-A-0377_ct",
        "validation",
        PhantomSpec(5, (128, 256, 256), (2.5, 1.45, 1.45), usual_levels("T2", "L1")),
        NiftiForm("LAS"),
        NiftiForm("LAS", "uint8"),
    ),
    ScanPlan(
        "1.3.6.1.4.1.9328.50.4.0505",
        "test",
        PhantomSpec(
            6, (192, 256, 256), (2.0, 1.4, 1.4), usual_levels("T9", "L5"), padding_hu=-2048
        ),
        NiftiForm("LPI", "int16"),
        NiftiForm("LPI", "uint8"),
    ),
)
"""Six scans of the four sources with real names in their real splits: one with L6, one neck."""


def resized(spec: PhantomSpec, scale: float) -> PhantomSpec:
    """Return a spec of the same patient with ``scale`` times as many voxels along each axis.

    Examples
    --------
    >>> resized(PhantomSpec(), 0.25).shape_zyx
    (40, 48, 48)
    """
    z, y, x = (max(_MIN_SIZE, round(n * scale)) for n in spec.shape_zyx)
    dz, dy, dx = (
        round(step * old / new, 4)
        for step, old, new in zip(spec.spacing_zyx_mm, spec.shape_zyx, (z, y, x), strict=True)
    )
    return replace(spec, shape_zyx=(z, y, x), spacing_zyx_mm=(dz, dy, dx))


def split_text(names_by_split: Mapping[Split, Iterable[str]]) -> str:
    r"""Compose ``data_split.txt``.

    Lines end in CRLF, headers end in a colon, and a blank line separates the sections.

    Examples
    --------
    >>> split_text({"train": ["liver_0"], "validation": [], "test": ["HN_P001"]})
    'trainset:\r\nliver_0.nii.gz\r\n\r\ntest_public:\r\n\r\ntest_private:\r\nHN_P001.nii.gz\r\n'
    """
    sections = (
        "".join(
            f"{line}\r\n"
            for line in (f"{header}:", *(f"{n}.nii.gz" for n in names_by_split.get(split, ())))
        )
        for split, header in _SECTIONS.items()
    )
    return "\r\n".join(sections)


def ctspine1k_paths(root: Path, scan_id: str, layout: Layout) -> tuple[Path, Path]:
    """Return the paths of the image and the mask of a scan."""
    source = _source(scan_id)
    image, label = f"{scan_id}.nii.gz", f"{scan_id}_seg.nii.gz"
    if layout == "official":
        return (
            root / "data" / source.official_image / image,
            root / "label" / source.official_label / label,
        )
    if layout == "huggingface":
        raw = root / "raw_data"
        return raw / "volumes" / source.name / image, raw / "labels" / source.name / label
    raise UsageError(f"layout must be official or huggingface, got {layout!r}")


def write_split_file(root: Path, names: Mapping[Split, Sequence[str]], layout: Layout) -> None:
    """Write ``data_split.txt`` in its folder of the layout."""
    path = root / "data_split.txt" if layout == "official" else root / "metadata/data_split.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(split_text(names).encode("ascii"))


def write_ctspine1k(
    root: Path,
    layout: Layout = "official",
    scans: Sequence[ScanPlan] = CTSPINE1K_SCANS,
    *,
    scale: float = 1.0,
    on_scan: Callable[[str], None] | None = None,
) -> tuple[WrittenScan, ...]:
    """Write a dataset of phantoms.

    Parameters
    ----------
    root
        Folder of the dataset; it is made if it is missing.
    layout
        Which release to imitate.
    scans
        Scans to write.
    scale
        Factor on the number of voxels along each axis, for the same patients: 0.25 makes scans of
        some 50 voxels along each axis, each in a fraction of a second.
    on_scan
        Called with the scan's id after each scan.

    Returns
    -------
    tuple of WrittenScan
        One record per scan, in the order of ``scans``.
    """
    written = []
    for plan in scans:
        record = _write_scan(root, layout, replace(plan, spec=resized(plan.spec, scale)))
        written.append(record)
        if on_scan is not None:
            on_scan(plan.scan_id)
    if layout == "official":
        for number, name in enumerate(_VERSE_MASKS):
            phantom = make_phantom(PhantomSpec(number, (32, 32, 32), (9.0, 4.0, 4.0)))
            form = NiftiForm("PIR", "uint8")
            write_nifti(root / name, phantom.label, phantom.affine_xyz, form)
    write_split_file(
        root, {s: [w.scan_id for w in written if w.split == s] for s in _SECTIONS}, layout
    )
    return tuple(written)


def _write_scan(root: Path, layout: Layout, plan: ScanPlan) -> WrittenScan:
    """Draw one scan and write its two files."""
    image_path, label_path = ctspine1k_paths(root, plan.scan_id, layout)
    phantom = make_phantom(plan.spec)
    write_nifti(image_path, phantom.image, phantom.affine_xyz, plan.image_form)
    write_nifti(label_path, phantom.label, phantom.affine_xyz, plan.label_form)
    return WrittenScan(
        scan_id=plan.scan_id,
        patient=plan.scan_id,
        source=source_of(plan.scan_id),
        split=plan.split,
        image_path=image_path,
        label_path=label_path,
        spec=plan.spec,
        image_form=plan.image_form,
        label_form=plan.label_form,
        centers_mm=centers_in_file(phantom, plan.image_form.oblique_deg),
    )


def write_ctspine1k_names(
    root: Path, names_by_split: Mapping[Split, Sequence[str]], layout: Layout = "official"
) -> None:
    """Write empty image and label files for a list of names, and the split file.

    This is for tests that search files but never read them. Names may end in ``.nii.gz``.
    """
    names = {
        split: [name.removesuffix(".nii.gz") for name in split_names]
        for split, split_names in names_by_split.items()
    }
    for split_names in names.values():
        for scan_id in split_names:
            for path in ctspine1k_paths(root, scan_id, layout):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
    write_split_file(root, names, layout)
