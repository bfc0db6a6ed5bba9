"""Makes stores whose table lists more scans than are on disk, for tests of long lists.

A scan table is made from the attributes of each scan. Here the attributes of a few scans are used
under many names, with other sizes, vertebrae and findings, so 10,000 rows take seconds.
"""

import hashlib
import random
from pathlib import Path

from spinezarr.store.attributes import VertebraRecord
from spinezarr.store.audit_log import AuditedScan, FindingRecord
from spinezarr.store.reader import StoreReader
from spinezarr.store.table import build_table
from spinezarr.store.writer import StoreWriter
from spinezarr.testing import usual_levels
from spinezarr.vertebrae import ANATOMICAL_ORDER

__all__ = ["write_large_table"]

_SOURCES = (
    ("COLONOG", "1.3.6.1.4.1.9328.50.4.{:04}", ("T8", "T12"), ("L4", "sacrum"), 0.74),
    ("MSD-T10", "liver_{}", ("T5", "T11"), ("L2", "L5"), 0.18),
    ("COVID-19", "volume-covid19-A-{:04}_ct", ("C6", "T2"), ("T10", "L2"), 0.05),
    ("HNSCC-3DCT-RT", "HN_P{:03}", ("C1", "C2"), ("T4", "T10"), 0.03),
)
"""Collections of CTSpine1K: name, ids, first and last vertebra of a scan, fraction of scans."""
_SPACINGS_Z_MM = (0.7, 0.8, 1.0, 1.0, 1.0, 1.25, 1.25, 1.5, 2.0, 2.5, 2.5, 3.0, 5.0)
_SPLITS = ("train", "train", "train", "validation", "test")
_ANOMALIES = {"L6": "lumbarisation", "T13": "thirteenth thoracic vertebra"}
_RULES = {"warning": "centroid beside its label", "error": "two vertebrae are swapped"}


def _draw_levels(rng, first, last):
    """Return the levels of a mask, from one to another, sometimes with a rare one."""
    top = rng.choice(usual_levels(*first))
    levels = list(usual_levels(top, rng.choice(usual_levels(*last))))
    extra = rng.choices(("", "L6", "T13"), (0.95, 0.035, 0.015))[0]
    before = {"L6": "L5", "T13": "T12"}.get(extra)
    if before in levels:
        levels.insert(levels.index(before) + 1, extra)
    return sorted(levels, key=ANATOMICAL_ORDER.index), extra if before in levels else ""


def _scan_attributes(rng, template, scan_id, source, levels, anomaly):
    n_slices = rng.choice((186, 245, 320, 421, 512, 563, 640))
    spacing_z, spacing = rng.choice(_SPACINGS_Z_MM), round(rng.triangular(0.55, 0.98, 0.75), 3)
    shape = (n_slices, 512, 512)
    record = VertebraRecord(
        voxel_count=9000, centroid_zyx=(20, 250, 250), start_zyx=(0,) * 3, stop_zyx=(41, 500, 500)
    )
    entry = next(iter(template.manifest.values()))
    size = int(n_slices * 512 * 512 * rng.uniform(0.6, 0.9))
    columns = {"anomaly": _ANOMALIES.get(anomaly, "")}
    if rng.random() < 0.02:
        columns["erratum"] = "the mask is shifted by one level"
    update = {
        "scan_id": scan_id,
        "source": source,
        "split": rng.choice(_SPLITS),
        "shape_zyx": shape,
        "spacing_zyx_mm": (spacing_z, spacing, spacing),
        "image_checksum": hashlib.sha256(scan_id.encode()).hexdigest()[:32],
        "vertebrae": dict.fromkeys(levels, record),
        "columns": columns,
        "sidecar": {},
        "manifest": {"image/c/0/0/0": entry.model_copy(update={"size_bytes": size})},
        "source_bytes": int(size * 1.13),
    }
    return template.model_copy(update=update)


def _audit_result(rng):
    severity = rng.choices(("ok", "info", "warning", "error"), (0.8, 0.05, 0.11, 0.04))[0]
    facts = {
        "vertebra": None,
        "voxel_zyx": None,
        "position_xyz_mm": None,
        "facts": {},
        "others": {},
    }
    text = _RULES.get(severity, "the grid is oblique")
    finding = FindingRecord(rule="shown", severity="info", text=text, **facts)
    findings = () if severity == "ok" else (finding.model_copy(update={"severity": severity}),)
    return AuditedScan(identity="", findings=findings)


def write_large_table(store: str | Path, n: int, *, seed: int = 0) -> None:
    """Write the table of a store again with its own scans, and others up to ``n`` in all.

    Parameters
    ----------
    store
        Path of a store of :func:`spinezarr.testing.write_ctspine1k`; its own scans stay.
    n
        Number of rows of the table; 0 for a store without scans.
    seed
        Seed of the random generator.
    """
    rng = random.Random(seed)  # noqa: S311
    reader = StoreReader(str(store))
    own = [reader.scan(scan_id).attributes for scan_id in reader.table.scan.to_numpy().tolist()]
    scans = {scan.scan_id: scan for scan in own[:n]}
    number = 1
    while len(scans) < n:
        name, ids, first, last, _ = rng.choices(_SOURCES, [row[-1] for row in _SOURCES])[0]
        scan_id = ids.format(number)
        number += 1
        if scan_id not in scans:
            levels, anomaly = _draw_levels(rng, first, last)
            scans[scan_id] = _scan_attributes(rng, own[0], scan_id, name, levels, anomaly)
    audited = {scan_id: _audit_result(rng) for scan_id in scans}
    writer = StoreWriter(str(store), reader.root)
    writer.registry.publish_table(build_table(reader.root, scans.values(), audited))
