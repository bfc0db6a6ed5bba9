"""Each attack or defect in a source file fails one scan, and the others are stored."""

from pathlib import Path

import numpy as np
import pytest
from metaimage_attack import (
    plant_absolute_data_file,
    plant_data_file_elsewhere,
    plant_data_file_of_other_size,
    plant_linked_data_file,
)

import spinezarr
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.testing import (
    DicomForm,
    MetaImageForm,
    PhantomSpec,
    make_phantom,
    write_dicom_series,
    write_metaimage,
)

SPEC = PhantomSpec(shape_zyx=(12, 18, 20), spacing_zyx_mm=(8.0, 10.0, 10.0), levels=("T12", "L1"))
PHANTOM = make_phantom(SPEC)
GOOD = "1111111"
PLANTED = "9999999"


def run(recipe, raw, out):
    return ingest(recipe, discover(recipe, str(raw)), str(out))


def assert_only_good_is_stored(report, good, bad, fragments):
    assert report.done == (good,)
    (failed,) = report.failed
    assert failed.scan_id == bad
    assert "Please report this" not in failed.reason
    assert all(text in failed.reason for text in fragments), failed.reason
    store = spinezarr.open(report.store)
    assert store.table.scan.to_numpy().tolist() == [good]
    np.testing.assert_array_equal(store.scan(good).image, PHANTOM.image)
    assert not Path(report.store, "scans", bad).exists()


def name_passwd(root, header_path=f"patient0099/{PLANTED}/{PLANTED}.mhd"):
    """Name a file of the machine in a header, with exactly its size."""
    header = plant_data_file_of_other_size(root, 0)
    header.with_suffix(".raw").unlink()
    size = Path("/etc/passwd").stat().st_size
    lines = [
        line for line in header.read_text().splitlines()
        if not line.startswith(("DimSize", "ElementType", "ElementDataFile"))
    ]  # fmt: skip
    lines += [f"DimSize = {size} 1 1", "ElementType = MET_UCHAR", "ElementDataFile = /etc/passwd"]
    header.write_text("\n".join(lines) + "\n")


def link_passwd(root):
    header = plant_data_file_of_other_size(root, 0)
    header.with_suffix(".raw").unlink()
    header.with_suffix(".raw").symlink_to("/etc/passwd")


ATTACKS = {
    "absolute": (
        lambda root: plant_absolute_data_file(root, root.parent / "x.raw"),
        ["ElementDataFile"],
    ),
    "elsewhere": (plant_data_file_elsewhere, ["ElementDataFile"]),
    "linked": (lambda root: plant_linked_data_file(root, root.parent / "x.raw"), ["link"]),
    "longer": (lambda root: plant_data_file_of_other_size(root, 3), ["3459", "3456"]),
    "shorter": (lambda root: plant_data_file_of_other_size(root, -1), ["3455", "3456"]),
    "names /etc/passwd": (name_passwd, ["ElementDataFile"]),
    "links to /etc/passwd": (link_passwd, ["link"]),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_header_that_names_a_foreign_data_file_fails_only_its_scan(attack, tmp_path):
    plant, fragments = ATTACKS[attack]
    raw = tmp_path / "raw"
    good = raw / "patient0001" / GOOD / f"{GOOD}.mhd"
    write_metaimage(good, PHANTOM.image, PHANTOM.affine_xyz, MetaImageForm())
    plant(raw)
    report = run(Recipe.load("msr"), raw, tmp_path / "s.zarr")
    assert_only_good_is_stored(report, GOOD, PLANTED, [f"{PLANTED}.mhd", *fragments])
    stored = b"".join(path.read_bytes() for path in (tmp_path / "s.zarr").rglob("*.json"))
    assert b"root:" not in stored


DEFECTS = {
    "gap": (DicomForm(missing=(5,)), ["16", "8"]),
    "two gaps": (DicomForm(missing=(3, 7)), ["16", "8"]),
    "repeated slice": (DicomForm(repeated=(4,)), ["4"]),
    "tilted gantry": (DicomForm(gantry_tilt_deg=12.0), ["12"]),
    "moved slice": (DicomForm(moved_mm=((6, 1.5),)), ["9.500"]),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_series_that_cannot_be_stacked_fails_only_its_scan(defect, tmp_path):
    form, fragments = DEFECTS[defect]
    raw = tmp_path / "raw"
    array_ijk = PHANTOM.image.transpose(2, 1, 0)
    for name, way in (("good", DicomForm()), ("bad", form)):
        write_dicom_series(raw / name, array_ijk, PHANTOM.affine_xyz, way)
    recipe = Recipe.from_pairs("{scan}/", None, name="series")
    report = run(recipe, raw, tmp_path / "s.zarr")
    assert_only_good_is_stored(report, "good", "bad", ["bad", *fragments])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bad.nii.gz", b""),
        ("bad.nii.gz", b"\0" * 4000),
        ("bad.nii", b"\x5c\x01\0\0" + b"\xff" * 600),
        ("bad.mha", b"ObjectType = Image\nNDims = 3\nDimSize = 9999999 9999999 9999999\n"),
        ("bad.png", b"\x89PNG\r\n\x1a\n"),
    ],
)
def test_a_file_that_is_no_volume_fails_only_its_scan(name, content, tmp_path):
    raw = tmp_path / "raw"
    write_metaimage(raw / "good.mha", PHANTOM.image, PHANTOM.affine_xyz, MetaImageForm())
    (raw / name).write_bytes(content)
    recipe = Recipe.from_pairs(r"{scan}.{ext:mha|nii|nii\.gz|png}", None, name="odd")
    report = run(recipe, raw, tmp_path / "s.zarr")
    assert_only_good_is_stored(report, "good", "bad", [name])
