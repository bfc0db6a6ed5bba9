"""Which facts does a page or widget need to show a scan?

One model holds all of them, and becomes JSON.
"""

from collections.abc import Iterator
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from spinezarr.errors import SpinezarrError
from spinezarr.export.spine_slices import middle_of_spine
from spinezarr.export.voxel_reader import VoxelReader
from spinezarr.geometry import SHEAR_TOLERANCE_DEG, shear_deg
from spinezarr.store.attributes import ScanAttributes
from spinezarr.store.audit_log import AuditedScan
from spinezarr.store.layout import LABEL
from spinezarr.store.scan_handle import ScanHandle
from spinezarr.store.severity import SEVERITIES, Severity
from spinezarr.store.table import ANOMALY, ERRATUM
from spinezarr.vertebrae import hex_of
from spinezarr.view.levels import COARSEST_VOXELS, Level, levels_of, shown_dtype
from spinezarr.view.shown_labels import shown_labels
from spinezarr.view.windows import WINDOWS_HU, WindowHU

__all__ = ["VertebraModel", "ViewModel", "shown_vertebrae", "view_of"]

_MM3_PER_ML = 1000.0
_LABEL_SCHEME = "vertebrae"
"""Scheme of the masks ``label`` of all stores."""

_Count = Annotated[int, Field(ge=0)]
_XYZ = tuple[float, float, float]
_Row = tuple[float, float, float, float]


class _ViewBaseModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class LevelModel(_ViewBaseModel):
    """A resolution in which a scan can be read."""

    level: _Count
    """Number of the level; 0 is the stored array."""
    factor_zyx: tuple[_Count, _Count, _Count]
    """Number of stored voxels that a voxel of the level stands for, along each axis."""
    shape_zyx: tuple[_Count, _Count, _Count]
    spacing_zyx_mm: tuple[float, float, float]
    affine: tuple[_Row, _Row, _Row, _Row]
    """4 x 4, voxel (x, y, z, 1) of the level to RAS+ mm."""

    @classmethod
    def of(cls, level: Level) -> "LevelModel":
        """Make the model of a level."""
        a, b, c, d = (tuple(row) for row in level.affine.tolist())
        return cls(
            level=level.level,
            factor_zyx=level.factor_zyx,
            shape_zyx=level.shape_zyx,
            spacing_zyx_mm=level.spacing_zyx_mm,
            affine=(a, b, c, d),
        )


class VertebraModel(_ViewBaseModel):
    """A vertebra of a mask, or another structure."""

    value: Annotated[int, Field(ge=1, le=255)]
    name: str
    color: Annotated[str, Field(pattern="^#[0-9a-f]{6}$")]
    """Color of the vertebra, the same in every picture and mask. Other structures are gray in
    ``label``, and pale in further masks."""
    voxel_count: _Count
    volume_ml: float
    centroid_xyz_mm: _XYZ | None
    """Mean position of its voxels, x, y, z in RAS+ mm; null for other structures of ``label``."""


class MaskModel(_ViewBaseModel):
    """A mask of a scan."""

    name: str
    """Name of the array."""
    checksum: str
    """Names the version of the mask: ``content_checksum`` for ``label``, ``mask_checksum`` for a
    further mask."""
    scheme: str
    """Name of the scheme that the names of the values come from, such as ``vertebrae``."""
    license: str
    """License of a further mask; often empty."""
    author: str
    """Who made a further mask; often empty."""
    model: str
    """Program or network that made a further mask; often empty."""
    vertebrae: tuple[VertebraModel, ...]
    """Vertebrae from head to tail, then other structures."""

    @classmethod
    def of(cls, scan: ScanHandle, name: str) -> "MaskModel":
        """Make the model of a mask that the scan has."""
        record = scan.attributes.masks.get(name)
        return cls(
            name=name,
            checksum=scan.mask(name).content_checksum,
            scheme=_LABEL_SCHEME if record is None else record.scheme,
            license="" if record is None else record.license,
            author="" if record is None else record.author,
            model="" if record is None else record.model,
            vertebrae=tuple(shown_vertebrae(scan.attributes, name)),
        )


class NoteModel(_ViewBaseModel):
    """A finding of the last audit."""

    severity: Severity
    rule: str
    text: str
    vertebra: str | None
    position_xyz_mm: _XYZ | None
    """Position of the finding, x, y, z in RAS+ mm; null if it has none."""


class ViewModel(_ViewBaseModel):
    """Everything that a page shows of a scan."""

    scan_id: str
    content_checksum: str
    """Checksum of the voxels and their positions, which names the version of the scan."""
    dataset: str
    patient_id: str
    split: str
    source: str
    label_state: str
    anomaly: str
    """Anatomical variant that the dataset names; often empty."""
    erratum: str
    """Known error of the mask; often empty."""
    audit: str
    """Severity of the worst finding, or ``ok``; empty if this version was not audited."""
    shape_zyx: tuple[_Count, _Count, _Count]
    spacing_zyx_mm: tuple[float, float, float]
    affine: tuple[_Row, _Row, _Row, _Row]
    """4 x 4, stored voxel (x, y, z, 1) to RAS+ mm."""
    is_oblique: bool
    """Whether the axes of the grid differ from those of the patient, so planes are tilted."""
    oblique_deg: float
    levels: tuple[LevelModel, ...]
    """Levels from the stored array to the coarsest."""
    image_dtype: str
    """Type of the image in levels: int16, or float32 if the values do not fit."""
    image_range_hu: tuple[float, float] | None
    """Lowest and highest finite value; null if no value is finite."""
    image_nan_voxels: _Count
    image_infinite_voxels: _Count
    masks: tuple[MaskModel, ...]
    """Masks of the scan, ``label`` first; empty if it has none."""
    findings: tuple[NoteModel, ...]
    """Findings of the last audit, the worst first."""
    windows: dict[str, WindowHU]
    """HU of black and white for each preset."""
    middle_mm: _XYZ
    """Position to show first, x, y, z in RAS+.

    It is the middle of the spine, or of a scan without a mask."""
    previous: str | None
    """Scan before this one in the scan table; null for the first."""
    next: str | None
    """Scan after this one in the scan table; null for the last."""


def view_of(
    scan: ScanHandle,
    voxels: VoxelReader,
    scan_ids: list[str],
    audited: AuditedScan | None,
    *,
    coarsest_voxels: int = COARSEST_VOXELS,
) -> ViewModel:
    """Make the model of a scan.

    Volumes and centroids come from the attributes of the scan. No voxel is read for them.

    Parameters
    ----------
    scan
        The scan.
    voxels
        Reads a slice of the mask.
    scan_ids
        Ids of all scans of the store, in the order of its table.
    audited
        Findings of the last audit of this version of the scan; None without an audit.
    coarsest_voxels
        Most voxels of the coarsest level.
    """
    facts = scan.attributes
    annotations = {**facts.sidecar, **facts.columns}
    row = scan_ids.index(facts.scan_id) if facts.scan_id in scan_ids else None
    return ViewModel(
        scan_id=facts.scan_id,
        content_checksum=scan.content_checksum,
        dataset=facts.dataset,
        patient_id=facts.patient_id,
        split=facts.split,
        source=facts.source,
        label_state=facts.label_state,
        anomaly=annotations.get(ANOMALY, ""),
        erratum=annotations.get(ERRATUM, ""),
        audit="" if audited is None else audited.verdict,
        shape_zyx=facts.shape_zyx,
        spacing_zyx_mm=facts.spacing_zyx_mm,
        affine=facts.affine,
        is_oblique=max(facts.oblique_deg, shear_deg(scan.affine)) > SHEAR_TOLERANCE_DEG,
        oblique_deg=facts.oblique_deg,
        levels=tuple(map(LevelModel.of, levels_of(scan, coarsest_voxels))),
        image_dtype=shown_dtype(scan.image).name,
        image_range_hu=facts.image_range_hu,
        image_nan_voxels=facts.image_nan_voxels,
        image_infinite_voxels=facts.image_infinite_voxels,
        masks=tuple(MaskModel.of(scan, name) for name in scan.mask_names),
        findings=() if audited is None else tuple(_notes(audited)),
        windows=dict(WINDOWS_HU),
        middle_mm=_middle_mm(scan, voxels),
        previous=scan_ids[row - 1] if row else None,
        next=scan_ids[row + 1] if row is not None and row + 1 < len(scan_ids) else None,
    )


def shown_vertebrae(facts: ScanAttributes, mask: str = LABEL) -> Iterator[VertebraModel]:
    """Yield the vertebrae of a mask from head to tail, then other structures."""
    affine = np.array(facts.affine)
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / _MM3_PER_ML
    for label in shown_labels(facts, mask):
        centroid: _XYZ | None = None
        if label.record is not None:
            x, y, z = (affine[:3] @ (*label.record.centroid_zyx[::-1], 1)).tolist()
            centroid = x, y, z
        yield VertebraModel(
            value=label.value,
            name=label.name,
            color=hex_of(label.color),
            voxel_count=label.voxel_count,
            volume_ml=label.voxel_count * voxel_ml,
            centroid_xyz_mm=centroid,
        )


def _notes(audited: AuditedScan) -> Iterator[NoteModel]:
    for finding in sorted(
        audited.findings, key=lambda finding: -SEVERITIES.index(finding.severity)
    ):
        yield NoteModel(
            severity=finding.severity,
            rule=finding.rule,
            text=finding.text,
            vertebra=finding.vertebra,
            position_xyz_mm=finding.position_xyz_mm,
        )


def _middle_mm(scan: ScanHandle, voxels: VoxelReader) -> _XYZ:
    """Return the position to show first; the middle of the scan if the mask cannot be read."""
    try:
        z, y, x = middle_of_spine(scan, voxels)
    except (SpinezarrError, OSError):
        z, y, x = (n // 2 for n in scan.image.shape_zyx)
    x_mm, y_mm, z_mm = (scan.affine[:3] @ (x, y, z, 1)).tolist()
    return x_mm, y_mm, z_mm
