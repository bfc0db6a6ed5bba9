"""Contradictory headers: tests of the notes in the report, and of the findings of the audit."""

import nibabel as nib
import numpy as np
import pytest

import spinezarr
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.testing import MetaImageForm, PhantomSpec, make_phantom, write_metaimage

PHANTOM = make_phantom(
    PhantomSpec(shape_zyx=(48, 48, 48), spacing_zyx_mm=(4.5, 4.2, 4.2), levels=("L1", "L2"))
)
IMAGE, LABEL = (array.transpose(2, 1, 0).copy() for array in (PHANTOM.image, PHANTOM.label))
AFFINE = PHANTOM.affine_xyz
PAIRS = Recipe.from_pairs("{scan}_ct.nii", "{scan}_seg.nii", name="pairs")


def run(folder, recipe=PAIRS):
    report = ingest(recipe, discover(recipe, str(folder)), str(folder / "s.zarr"))
    assert not report.failed, report.failed
    return report, spinezarr.open(folder / "s.zarr")


def findings_of(store, *rules):
    return [finding for finding in store.audit().findings if finding.rule in rules]


def write(folder, *, image=AFFINE, mask=AFFINE, edit=None):
    """Write a pair with one affine each; ``edit`` changes the header of the image."""
    for name, values, affine in (("ct", IMAGE, image), ("seg", LABEL, mask)):
        written = nib.Nifti1Image(values, affine)
        written.set_qform(affine, code=1)
        written.set_sform(affine, code=1)
        header = written.header.copy()
        header["magic"], header["vox_offset"] = header.single_magic, header.single_vox_offset
        if name == "ct" and edit is not None:
            edit(header)
        content = header.binaryblock + bytes(4) + values.tobytes(order="F")
        (folder / f"a_{name}.nii").write_bytes(content)


def spacing_of_one(header):
    header["pixdim"][1:4] = 1
    header["qform_code"] = 0


def moved_qform(header):
    header["qoffset_y"] += 12


@pytest.mark.parametrize(
    ("edit", "note", "rule"),
    [
        (spacing_of_one, "pixdim states voxels of 1 x 1 x 1 mm, but", "spacing-conflict"),
        (moved_qform, "the qform places corners up to 12 mm away", "qform-conflict"),
    ],
)
def test_the_sform_of_a_contradictory_header_is_used(tmp_path, edit, note, rule):
    write(tmp_path, edit=edit)
    report, store = run(tmp_path)
    (said,) = report.notes["a"]
    assert said.startswith(note)
    assert said.endswith("the sform was used")
    np.testing.assert_allclose(store.scan("a").attrs["affine"], AFFINE, atol=1e-4)
    (finding,) = findings_of(store, "spacing-conflict", "qform-conflict")
    assert (finding.rule, finding.severity) == (rule, "warning")
    assert finding.text.startswith("the image's header ")


def test_a_consistent_header_causes_no_note(tmp_path):
    write(tmp_path)
    report, store = run(tmp_path)
    assert report.notes == {}
    assert findings_of(store, "spacing-conflict", "qform-conflict", "unplaced", "sheared") == []


def test_notes_distinguish_the_header_of_the_mask(tmp_path):
    write(tmp_path)
    path = tmp_path / "a_seg.nii"
    header = nib.load(path).header
    header["qoffset_x"] += 5
    path.write_bytes(header.binaryblock + path.read_bytes()[348:])
    report, store = run(tmp_path)
    (said,) = report.notes["a"]
    assert said.startswith("mask: the qform places corners up to 5 mm away")
    (finding,) = findings_of(store, "qform-conflict")
    assert finding.text == (
        "the mask's header has a qform and an sform that place a corner 5 mm apart"
    )


def without_codes(header):
    header["sform_code"] = header["qform_code"] = 0


def test_the_audit_finds_a_file_without_orientation(tmp_path):
    write(tmp_path, edit=without_codes)
    images = Recipe.from_pairs("{scan}_ct.nii", None, name="images")
    report, store = run(tmp_path, images)
    assert any("states no orientation" in note for note in report.notes["a"])
    (finding,) = findings_of(store, "unplaced")
    assert (finding.severity, finding.facts["file"]) == ("warning", "image")


@pytest.mark.parametrize("affine", [np.eye(4), np.diag([-1.0, -1.0, 1.0, 1.0])])
def test_the_audit_finds_a_file_with_a_default_affine(tmp_path, affine):
    write(tmp_path, image=affine, mask=affine)
    report, store = run(tmp_path)
    (said,) = report.notes["a"]
    assert said.startswith("the affine is the identity (voxels of 1 mm")
    assert [f.facts["file"] for f in findings_of(store, "unplaced")] == ["image", "mask"]


def sheared(degrees):
    shear = np.eye(4)
    shear[1, 2] = np.tan(np.radians(degrees))
    return shear @ AFFINE


def test_the_audit_distinguishes_shear_from_obliqueness(tmp_path):
    write(tmp_path, image=sheared(15), mask=sheared(15), edit=without_qform)
    path = tmp_path / "a_seg.nii"
    header = nib.load(path).header
    header["qform_code"] = 0
    header["pixdim"][1:4] = np.linalg.norm(header.get_sform()[:3, :3], axis=0)
    path.write_bytes(header.binaryblock + path.read_bytes()[348:])
    report, store = run(tmp_path)
    (said,) = report.notes["a"]
    assert "sheared, 15.0 degrees off perpendicular" in said
    assert "oblique" not in said
    (finding,) = findings_of(store, "sheared", "oblique")
    assert (finding.rule, finding.severity) == ("sheared", "warning")
    assert finding.facts["shear_deg"] == pytest.approx(15, abs=1e-4)
    assert store.scan("a").attrs["oblique_deg"] == pytest.approx(7.5, abs=1e-4)


def without_qform(header):
    header["qform_code"] = 0
    header["pixdim"][1:4] = np.linalg.norm(header.get_sform()[:3, :3], axis=0)


def test_a_rotated_grid_is_oblique_and_not_sheared(tmp_path):
    angle = np.radians(15)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    write(tmp_path, image=turn @ AFFINE, mask=turn @ AFFINE)
    report, store = run(tmp_path)
    (said,) = report.notes["a"]
    assert "15.0 degrees oblique" in said
    assert findings_of(store, "sheared") == []


# MetaImage


def edited(path, **fields):
    """Change lines of a header, or add them."""
    head, data = path.read_bytes().split(b"ElementDataFile = LOCAL\n")
    lines = [line for line in head.decode().splitlines() if line.split(" = ")[0] not in fields]
    lines += [f"{key} = {value}" for key, value in fields.items() if value is not None]
    text = "\n".join([*lines, "ElementDataFile = LOCAL\n"])
    path.write_bytes(text.encode() + data)


@pytest.mark.parametrize(
    ("fields", "note", "rule", "severity"),
    [
        ({"ElementSize": "4.2 4.2 9"}, "ElementSize states voxels of", "element-size", "info"),
        (
            {"TransformMatrix": f"1 0 0 0 1 0 0 {np.sin(np.radians(15))} {np.cos(np.radians(15))}"},
            "sheared, 15.0 degrees",
            "sheared",
            "warning",
        ),
        ({"TransformMatrix": None}, "no TransformMatrix", "unplaced", "warning"),
        (
            {"ElementSpacing": "1 1 1", "Offset": "0 0 0"},
            "the affine is the identity",
            "unplaced",
            "warning",
        ),
    ],
)
def test_contradictions_in_metaimage_headers_are_found(tmp_path, fields, note, rule, severity):
    write_metaimage(tmp_path / "a.mha", PHANTOM.image, AFFINE, MetaImageForm("LPS"))
    edited(tmp_path / "a.mha", **fields)
    report, store = run(tmp_path, Recipe.from_pairs("{scan}.mha", None, name="metaimages"))
    assert any(note in said for said in report.notes["a"])
    rules = ("element-size", "sheared", "oblique", "unplaced")
    (finding,) = findings_of(store, *rules)
    assert (finding.rule, finding.severity) == (rule, severity)
