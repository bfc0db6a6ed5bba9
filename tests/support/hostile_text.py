"""Makes text that is harmful when printed, and stores and raw folders with it in every field."""

import csv
import json
import shutil
import unicodedata
from pathlib import Path

import nibabel as nib
import numpy as np

from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.store.attributes import RootAttributes, parse_scan_group
from spinezarr.store.audit_log import AuditedScan, AuditLog, FindingRecord, scan_identity
from spinezarr.store.ledger import LedgerEntry
from spinezarr.store.metadata import root_files
from spinezarr.store.sealed import seal, unseal
from spinezarr.store.writer import StoreWriter
from spinezarr.text import to_printable

EVIL = (
    "é日\x1b[31mX\x1b]0;title\x07\x9b5m\x85\x08\x7f\u202eevil\u2066\u061c\u200b\ufeff\u2028\u2029"
    "\U000e0041\U0010ffff\u3164\nFORGED: all is well\r\t$\\frac{$ "
    "<img src=x onerror=alert(1)>[link=http://x]a[/link][red]:smile:|`$x$ [m](http://x.org)"
)
"""Text with control, invisible and unassigned characters, lines, markup and formulas."""
EVIL_ID = "=cmd()" + "".join(
    char for char in EVIL.replace("/", "_").replace("\\", "_") if to_printable(char) == char
)
"""The most harmful name that a scan may have; it begins like a formula."""
AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
IMAGE = (np.arange(16 * 16 * 16, dtype=np.int16) % 997).reshape(16, 16, 16)
MASK = np.zeros((16, 16, 16), np.uint8)
MASK[2:7, 2:12, 2:12], MASK[8:13, 2:12, 2:12], MASK[14:15, 2:4, 2:4] = 20, 21, 60


def forbidden(text):
    """Return the characters of a text that must not be printed to a terminal."""
    return {
        char
        for char in text
        if char != "\n"
        and (unicodedata.category(char) in {"Cc", "Cf", "Cs", "Cn", "Zl", "Zp"} or char == "\u3164")
    }


PRINTABLE_EVIL = "".join(char for char in EVIL if not forbidden(char) and char != "\n")
"""The part of that text that is allowed in files that a person writes."""


def write_pair(folder, name):
    """Write a small image and its mask."""
    folder.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(IMAGE, AFFINE), folder / f"{name}_ct.nii.gz")
    nib.save(nib.Nifti1Image(MASK, AFFINE), folder / f"{name}_seg.nii.gz")


def write_recipe(place, text=PRINTABLE_EVIL):
    """Write a recipe with harmful texts, as JSON, which is valid YAML."""
    recipe = {
        "name": "evil",
        "title": text,
        "license": text,
        "citation": text,
        "homepage": text,
        "layouts": {
            text: {
                "description": text,
                "image": ["{scan}_ct.nii.gz"],
                "label": ["{scan}_seg.nii.gz"],
            }
        },
        "labels": {"scheme": "canonical", "state": "unknown"},
        "source": text.replace("{", ""),
        "splits": {"files": ["split.txt"], "sections": {"one": text}, "entry": "{scan}"},
        "tables": {text: {"files": ["clinic.csv"], "key": "Id"}},
        "orphaned_masks": "expected",
    }
    place.write_text(json.dumps(recipe), encoding="utf-8")
    return place


def write_raw(folder):
    """Write a raw folder with harmful file names, tables and lists."""
    write_pair(folder, "a")
    write_pair(folder, "b")
    (folder / "split.txt").write_text("one:\na\nabsent\n", encoding="utf-8")
    with (folder / "clinic.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["Id", EVIL], ["a", EVIL], [EVIL, EVIL]])
    evil = EVIL_ID[:60].encode() + b"\xff"
    for name in (evil, evil + b"_seg.nii.gz", evil + b"_ct.nii.gz"):
        (folder / name.decode(errors="surrogateescape")).write_bytes(b"x")
    return folder


def _patch(path, **attributes):
    metadata = unseal(path.read_bytes())
    metadata["attributes"] |= attributes
    path.write_bytes(seal(metadata))


def write_store(folder):
    """Make a store of two scans with valid seals, and harmful text in every field."""
    raw = folder / "plain"
    write_pair(raw, "a")
    write_pair(raw, "b")
    recipe = Recipe.from_pairs("{scan}_ct.nii.gz", "{scan}_seg.nii.gz", name="evil")
    url = folder / "evil.zarr"
    report = ingest(recipe, discover(recipe, str(raw)), str(url))
    assert not report.failed
    root = RootAttributes(
        format_version=7,
        dataset=EVIL,
        title=EVIL,
        license=EVIL,
        citation=EVIL,
        homepage=EVIL,
        codec_profile="balanced",
    )
    (url / "zarr.json").write_bytes(root_files(root.model_dump(mode="json"))["zarr.json"])
    shutil.rmtree(url / "table")
    shutil.rmtree(url / "table_bundle")
    scans, ids = {}, {"a": EVIL_ID, "b": "b" + EVIL_ID}
    for name, scan_id in ids.items():
        (url / "scans" / name).rename(url / "scans" / _short(scan_id))
        place = url / "scans" / _short(scan_id) / "zarr.json"
        facts = unseal(place.read_bytes())["attributes"]
        sources = {key: {**facts[key], "file": EVIL} for key in ("image_source", "label_source")}
        _patch(
            place,
            **sources,
            scan_id=_short(scan_id),
            dataset=EVIL,
            source=EVIL,
            license=EVIL,
            split=EVIL if name == "a" else f"test{EVIL}",
            citation=EVIL,
            patient_id=EVIL,
            columns={EVIL: EVIL},
            sidecar={EVIL: EVIL},
            written_by=EVIL,
            notes=[EVIL],
            structures={"60": EVIL[:100]},
            centroid_source={"file": EVIL, "size_bytes": 1},
        )
        scans[_short(scan_id)] = parse_scan_group(place.read_bytes()).attributes
    writer = StoreWriter(str(url), root)
    entries = {
        name: LedgerEntry(inputs="", stamp="", identity=scan_identity(scan))
        for name, scan in scans.items()
    }
    table = writer.registry.write_table(None, scans, entries)
    finding = FindingRecord(
        rule="skipped-level",
        severity="error",
        vertebra=None,
        text=EVIL,
        voxel_zyx=None,
        position_xyz_mm=None,
        facts={EVIL: EVIL},
        others={},
    )
    audited = {
        name: AuditedScan(identity=scan_identity(scan), findings=(finding,))
        for name, scan in scans.items()
    }
    writer.registry.write_audit_log(AuditLog(scans=audited), table, scans)
    return url


def _short(scan_id):
    """Shorten a name, so that file names made from it have room for endings."""
    return scan_id.encode()[:200].decode(errors="ignore")


def write_card(place):
    """Write a card with harmful texts."""
    card = {
        "name": "evil",
        "title": PRINTABLE_EVIL,
        "source": PRINTABLE_EVIL,
        "as_of": PRINTABLE_EVIL,
        "scans": 3,
        "splits": {PRINTABLE_EVIL: 1, "other" + PRINTABLE_EVIL: 1},
        "caveats": [PRINTABLE_EVIL],
    }
    place.write_text(json.dumps(card), encoding="utf-8")
    return place


def write_catalog(place, store: Path, recipe: Path):
    """Write a catalog with harmful names and locations."""
    entry = {"recipe": str(recipe), "store": str(store), "license": PRINTABLE_EVIL}
    absent = {
        "recipe": PRINTABLE_EVIL,
        "store": f"absent{PRINTABLE_EVIL}",
        "raw": f"absent{PRINTABLE_EVIL}",
        "license": PRINTABLE_EVIL,
    }
    datasets = {"good": entry, PRINTABLE_EVIL: absent}
    place.write_text(json.dumps({"datasets": datasets}), encoding="utf-8")
    return place
