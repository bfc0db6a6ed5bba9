import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import spinezarr
from spinezarr.audit.audited_mask import AuditedMask
from spinezarr.audit.cross_scan_rules import scan_keys
from spinezarr.audit.run import audit_across
from spinezarr.audit.voxel_measurements import _dilate, measure_voxels
from spinezarr.errors import CorruptStoreError, UnknownScanError
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.store.audit_log import AUDIT_FILE
from spinezarr.store.layout import BALANCED
from spinezarr.testing import NiftiForm, PhantomSpec, make_phantom, write_nifti
from spinezarr.testing.phantom import connected_part
from spinezarr.vertebrae import NAME_OF_VALUE, VALUE_OF_NAME

LEVELS = ("T10", "T11", "T12", "L1", "L2", "L3")
SPEC = PhantomSpec(
    shape_zyx=(48, 48, 48), spacing_zyx_mm=(4.5, 4.2, 4.2), levels=LEVELS, cut_share=0
)
RECIPE = Recipe.from_pairs("{scan}_ct.nii", "{scan}_seg.nii", name="planted")
REAL = Path(__file__).parents[3] / "shared/data/real"
T11, T12, L1 = (VALUE_OF_NAME[name] for name in ("T11", "T12", "L1"))


def write_scan(raw, name, image, label, affine, *, orientation="LPS"):
    write_nifti(raw / f"{name}_ct.nii", image, affine, NiftiForm(orientation))
    if label is not None:
        write_nifti(raw / f"{name}_seg.nii", label, affine, NiftiForm(orientation, "uint8"))


def ingest_all(raw, url, recipe=RECIPE, **changes):
    """Ingest a folder; ``changes`` are fields of the scan sources to change, by scan id."""
    found = discover(recipe, str(raw))
    sources = tuple(replace(s, **changes.get(s.scan_id, {})) for s in found.scans)
    report = ingest(recipe, replace(found, scans=sources), str(url))
    assert not report.failed, report.failed
    return spinezarr.open(url)


def measured(store, scan_id, mask="label"):
    reader = store._reader
    scan = reader.scan(scan_id)
    counts = reader.label_chunks(scan_id, mask)
    return measure_voxels(store._engine, scan, AuditedMask.of(scan, mask), counts)


def short(findings):
    return [(f.rule, f.severity, f.vertebra) for f in findings]


# Each defect changes image and mask in place, and returns the expected finding and its place.


def middle_of(label, value):
    return tuple(np.rint(np.argwhere(label == value).mean(axis=0)).astype(int).tolist())


def skipped(image, label):
    """Remove a level; the finding lies between its neighbors, close to the vertebra itself."""
    between = [np.argwhere(label == v).mean(axis=0) for v in (T11, L1)]
    label[label == T12] = 0
    return ("skipped-level", "error", "T12"), np.rint(np.mean(between, axis=0))


def swapped(image, label):
    at = middle_of(label, L1)
    first, second = label == T12, label == L1
    label[first], label[second] = L1, T12
    return ("label-order", "error", "T12"), at


def split(image, label):
    z = middle_of(label, L1)[0]
    label[z - 1 : z + 1][label[z - 1 : z + 1] == L1] = 0
    return ("pieces", "error", "L1"), None


def stray_near(image, label):
    z, y, x = min(np.argwhere(label == L1).tolist(), key=lambda at: at[2])
    label[z, y, x - 2] = L1
    return ("stray-voxels", "info", "L1"), (z, y, x - 2)


def stray_far(image, label):
    label[2, 40, 3] = L1
    return ("stray-voxels", "warning", "L1"), (2, 40, 3)


def stray_label(image, label):
    label[9, 8, 7:10] = VALUE_OF_NAME["C1"]
    return ("stray-label", "error", "C1"), (9, 8, 8)


def fragment(image, label):
    at = np.argwhere(label == T11)
    label[label == T11] = 0
    label[tuple(at[len(at) // 2])] = T11
    return ("fragment", "error", "T11"), at[len(at) // 2]


def unknown_value(image, label):
    label[5, 6, 7] = 40
    return ("unknown-value", "error", None), (5, 6, 7)


def moved_mask(image, label):
    label[:] = np.roll(label, 8, axis=2)
    return ("mask-off-bone", "error", None), None


def mask_beside_bone(image, label):
    label[:] = np.roll(label, 4, axis=2)
    return ("mask-off-bone", "warning", None), None


def mask_in_air(image, label):
    image[label > 0] = -800
    return ("mask-off-bone", "error", None), None


def picture(image, label):
    image[:] = np.interp(image, (-200, 600), (0, 255))
    return ("image-values", "error", None), None


def no_vertebra(image, label):
    label[:] = 0
    return ("empty-mask", "error", None), None


def clean(image, label):
    return None, None


DEFECTS = {
    plant.__name__: plant
    for plant in (
        clean,
        skipped,
        swapped,
        split,
        stray_near,
        stray_far,
        stray_label,
        fragment,
        unknown_value,
        moved_mask,
        mask_beside_bone,
        mask_in_air,
        picture,
        no_vertebra,
    )
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Return a store with a scan of each defect, oriented differently, and what is expected."""
    raw = tmp_path_factory.mktemp("planted")
    expected = {}
    orientations = ("LPS", "RAS", "PIR", "ASL")
    for seed, (name, plant) in enumerate(DEFECTS.items()):
        phantom = make_phantom(replace(SPEC, seed=seed))
        image, label = phantom.image.copy(), phantom.label.copy()
        expected[name] = (*plant(image, label), label)
        orientation = orientations[seed % len(orientations)]
        write_scan(raw, name, image, label, phantom.affine_xyz, orientation=orientation)
    return ingest_all(raw, tmp_path_factory.mktemp("store") / "planted.zarr"), expected


@pytest.fixture(scope="module")
def audited(planted):
    return planted[0].audit().by_scan()


@pytest.mark.parametrize("name", DEFECTS)
def test_each_planted_defect_is_the_only_finding_of_its_scan(planted, audited, name):
    expected, where, _ = planted[1][name]
    findings = audited[name]
    if expected is None:
        assert findings == []
        return
    (finding,) = findings
    rule, severity, vertebra = expected
    assert (finding.rule, finding.severity) == (rule, severity)
    assert vertebra in {None, finding.vertebra}
    if where is not None:
        assert finding.voxel_zyx == tuple(int(n) for n in where)
    if finding.voxel_zyx is not None:
        affine = np.array(planted[0].scan(name).attrs["affine"])
        position = (affine @ [*finding.voxel_zyx[::-1], 1])[:3]
        np.testing.assert_allclose(finding.position_xyz_mm, position, atol=1e-3)


def test_pieces_of_a_split_vertebra_equal_those_of_a_flood_fill(planted, audited):
    label = planted[1]["split"][2]
    (finding,) = audited["split"]
    parts = [connected_part(label == L1, tuple(p["voxel_zyx"])) for p in finding.facts["largest"]]
    assert [part.sum() for part in parts] == [p["voxel_count"] for p in finding.facts["largest"]]
    assert sum(part.sum() for part in parts) == (label == L1).sum()
    assert parts[1][finding.voxel_zyx]


def test_a_clean_dataset_has_no_error_or_warning(tmp_path):
    specs = {
        "cut": replace(SPEC, cut_share=0.35, seed=50),
        "eleven": replace(SPEC, levels=("T9", "T10", "T11", "L1", "L2", "L3"), seed=51),
        "thirteen": replace(SPEC, levels=("T11", "T12", "T13", "L1", "L2", "L3"), seed=52),
        "lumbar": replace(SPEC, levels=("L1", "L2", "L3", "L4", "L5", "L6"), seed=53),
        "thoracic": replace(SPEC, levels=("T5", "T6", "T7", "T8", "T9", "T10"), seed=54),
    }
    for name, spec in specs.items():
        phantom = make_phantom(spec)
        write_scan(tmp_path, name, phantom.image, phantom.label, phantom.affine_xyz)
    findings = ingest_all(tmp_path, tmp_path / "clean.zarr").audit().by_scan()
    assert short(findings["eleven"]) == [("skipped-level", "info", "T12")]
    assert {f.vertebra for f in findings["cut"]} == {"T10", "L3"}
    assert {f.severity for found in findings.values() for f in found} == {"info"}
    assert all(not findings[name] for name in ("thirteen", "lumbar", "thoracic"))


def test_nonfinite_voxels_are_one_finding_and_hide_no_bone(tmp_path):
    phantom = make_phantom(SPEC)
    image = phantom.image.astype(np.float32)
    image[5:-5:7] = np.nan
    image[6:-6:7, ::2] = np.inf
    write_nifti(tmp_path / "a_ct.nii", image, phantom.affine_xyz, NiftiForm("LPS", "float32"))
    write_nifti(
        tmp_path / "a_seg.nii", phantom.label, phantom.affine_xyz, NiftiForm("LPS", "uint8")
    )
    blank = np.full(image.shape, np.nan)
    write_nifti(tmp_path / "b_ct.nii", blank, phantom.affine_xyz, NiftiForm("LPS", "float32"))
    shutil.copy(tmp_path / "a_seg.nii", tmp_path / "b_seg.nii")
    findings = ingest_all(tmp_path, tmp_path / "s.zarr").audit().by_scan()
    assert short(findings["a"]) == [("not-finite", "error", None), ("image-type", "info", None)]
    assert short(findings["b"]) == [("not-finite", "error", None), ("image-type", "info", None)]
    assert findings["a"][0].facts == {
        "nan_voxels": np.isnan(image).sum(),
        "infinite_voxels": np.isinf(image).sum(),
    }


def test_a_scan_without_mask_is_noted(tmp_path):
    phantom = make_phantom(SPEC)
    write_scan(tmp_path, "a", phantom.image, None, phantom.affine_xyz)
    images = Recipe.from_pairs("{scan}_ct.nii", None, name="images")
    store = ingest_all(tmp_path, tmp_path / "images.zarr", images)
    assert short(store.audit().findings) == [("no-mask", "info", None)]


# Pieces that cross chunk borders


def pieces_by_flood_fill(mask):
    found = []
    left = mask.copy()
    while left.any():
        part = connected_part(left, tuple(np.argwhere(left)[0]))
        at = np.argwhere(part)
        found.append((len(at), tuple(at.min(0).tolist()), tuple((at.max(0) + 1).tolist())))
        left &= ~part
    return sorted(found)


def test_pieces_are_counted_once_over_all_chunks(tmp_path):
    z, y, x = BALANCED.chunk_shape_zyx
    rng = np.random.default_rng(3)
    label = np.zeros((z + 6, 3 * y + 9, 3 * x + 5), np.uint8)
    for value in (8, 9, 10):
        for _ in range(25):
            start = [int(rng.integers(0, n - 8)) for n in label.shape]
            size = rng.integers(1, 9, 3)
            label[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = value
    # T4 fills an L of chunks, and one voxel of a chunk that touches none of them.
    bow = [(0, i) for i in range(4)] + [(i, 3) for i in range(4)]
    for j, k in bow:
        label[1:3, j * y : (j + 1) * y, k * x : (k + 1) * x] = 11
    label[5, 2 * y + 3, x - 9] = 11
    label[0, 0, 0] = 12
    label[-1, -1, -1] = 12
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    write_scan(tmp_path, "a", np.zeros(label.shape, np.int16), label, affine)
    store = ingest_all(tmp_path, tmp_path / "a.zarr")
    facts = measured(store, "a")
    assert sorted(facts.components) == ["T1", "T2", "T3", "T4", "T5"]
    for name, pieces in facts.components.items():
        mask = label == VALUE_OF_NAME[name]
        found = sorted((p.voxel_count, p.box.start_zyx, p.box.stop_zyx) for p in pieces)
        assert found == pieces_by_flood_fill(mask), name
        assert all(mask[piece.voxel_zyx] for piece in pieces)
        counts = [piece.voxel_count for piece in pieces]
        assert counts == sorted(counts, reverse=True)


def bone_by_numpy(image, label, spacing_zyx, reach_mm=6.0):
    """Return vertebra, median, voxels and fraction of brighter pairs, from the whole volume."""
    values = [value for value in np.unique(label).tolist() if value in NAME_OF_VALUE]
    value = max(values, key=lambda value: (label == value).sum())
    inside = label == value
    steps = [max(2, round(reach_mm / mm)) for mm in spacing_zyx]
    near, beside = np.zeros_like(inside), np.zeros_like(inside)
    for z, y, x in np.argwhere(inside).tolist():
        near[
            tuple(slice(max(0, i - n), i + n + 1) for i, n in zip((z, y, x), steps, strict=True))
        ] = True
    for z, y, x in np.argwhere(label > 0).tolist():
        beside[tuple(slice(max(0, i - 1), i + 2) for i in (z, y, x))] = True
    hu, around = (image[where].astype(float) for where in (inside, near & ~beside))
    pairs = (hu[:, None] > around).mean() + (hu[:, None] == around).mean() / 2
    return NAME_OF_VALUE[value], np.median(hu), inside.sum(), pairs


def test_bone_is_compared_with_its_surroundings(planted):
    store, expected = planted
    for name in ("clean", "split", "moved_mask", "mask_beside_bone"):
        scan = store.scan(name)
        image, label = scan.image.to_numpy(), expected[name][2]
        found = measured(store, name).bone
        vertebra, median, count, share = bone_by_numpy(image, label, scan.attrs["spacing_zyx_mm"])
        assert (found.vertebra, found.median_hu, found.voxel_count) == (vertebra, median, count)
        assert found.brighter_share == pytest.approx(share)
        assert label[found.voxel_zyx] == VALUE_OF_NAME[vertebra]


def test_only_the_middle_of_a_large_label_is_sampled_and_never_the_sacrum(tmp_path):
    label = np.zeros((4, 300, 260), np.uint8)
    label[:1] = 20
    label[1:] = 26
    image = np.where(label == 20, 500, 40).astype(np.int16)
    write_scan(tmp_path, "a", image, label, np.eye(4))
    store = ingest_all(tmp_path, tmp_path / "a.zarr")
    bone = measured(store, "a").bone
    assert (bone.vertebra, bone.median_hu, bone.brighter_share) == ("L1", 500, None)
    assert bone.voxel_count == 192 * 192


@given(st.data())
def test_growing_is_a_box_around_each_voxel(data):
    shape = data.draw(st.tuples(*[st.integers(1, 9)] * 3))
    reach = data.draw(st.tuples(*[st.integers(0, 9)] * 3))
    mask = data.draw(hnp.arrays(bool, shape))
    expected = np.zeros(shape, bool)
    for at in np.argwhere(mask).tolist():
        expected[tuple(slice(max(0, i - n), i + n + 1) for i, n in zip(at, reach, strict=True))] = (
            True
        )
    np.testing.assert_array_equal(_dilate(mask, reach), expected)


REAL_PAIRS = {
    "tptbox": ("tptbox/sub-ct_label-22_ct.nii.gz", "tptbox/sub-ct_seg-vert_label-22_msk.nii.gz"),
    "totalseg": ("totalsegmentator/example_ct.nii.gz", "totalsegmentator/example_seg.nii.gz"),
}
REAL_PAIRS = {name: pair for name, pair in REAL_PAIRS.items() if (REAL / pair[0]).exists()}


class TestRealBone:
    """Tests that run only where the real files are."""

    __test__ = bool(REAL_PAIRS)

    @pytest.mark.parametrize("name", REAL_PAIRS)
    def test_a_real_mask_is_distinguished_from_a_mirrored_one(self, name, tmp_path):
        image, label = (nib.as_closest_canonical(nib.load(REAL / p)) for p in REAL_PAIRS[name])
        voxels = [np.asarray(v.dataobj).transpose(2, 1, 0) for v in (image, label)]
        image_zyx, label_zyx = voxels[0].astype(np.int16), voxels[1].astype(np.uint8)
        write_scan(tmp_path, "as_it_is", image_zyx, label_zyx, image.affine)
        write_scan(tmp_path, "mirrored", image_zyx, label_zyx[:, ::-1], image.affine)
        found = ingest_all(tmp_path, tmp_path / "a.zarr").audit().by_scan()
        rules = {scan: [(f.rule, f.severity) for f in fs] for scan, fs in found.items()}
        assert "mask-off-bone" not in dict(rules["as_it_is"])
        assert ("mask-off-bone", "error") in rules["mirrored"]


# Several scans


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """Return a raw folder of four scans, which no test may change; a and b have equal images."""
    raw = tmp_path_factory.mktemp("four")
    for seed, name in enumerate(["a", "b", "c", "d"]):
        phantom = make_phantom(replace(SPEC, seed=max(1, seed)))
        write_scan(raw, name, phantom.image, phantom.label, phantom.affine_xyz)
    return raw


@pytest.fixture
def raw_copy(four, tmp_path):
    """Copy that folder."""
    return Path(shutil.copytree(four, tmp_path / "raw"))


def test_a_scan_in_two_splits_is_an_error_of_both(raw_copy, tmp_path):
    splits = {"a": "train", "b": "test", "c": "train", "d": "validation"}
    changes = {name: {"split": split} for name, split in splits.items()}
    changes["d"]["patient_id"] = "c"
    store = ingest_all(raw_copy, tmp_path / "a.zarr", **changes)
    audit = store.audit()
    assert {name: short(found) for name, found in audit.by_scan().items()} == {
        "a": [("same-image", "error", None)],
        "b": [("same-image", "error", None)],
        "c": [("same-patient", "error", None)],
        "d": [("same-patient", "error", None)],
    }
    assert "split test: b of planted" in audit.findings[0].text
    assert audit.exit_code == 1
    assert short(store.audit(scans=["b"]).findings) == [("same-image", "error", None)]


def test_a_duplicate_in_one_split_is_a_warning(raw_copy, tmp_path):
    audit = ingest_all(raw_copy, tmp_path / "a.zarr").audit()
    assert short(audit.findings) == [("same-image", "warning", None)] * 2
    assert audit.exit_code == 0
    assert audit.counts == {"same-image": {"warning": 2}}


def test_comparing_stores_does_not_repeat_findings_within_each(raw_copy, tmp_path):
    store = ingest_all(raw_copy, tmp_path / "a.zarr")
    audit = store.audit()
    keys = scan_keys(store.url, "planted", store.table)
    assert audit_across(keys, [audit]) == [audit]
    other = [replace(key, url="b.zarr", dataset="other") for key in keys]
    (more,) = audit_across([*keys, *other], [audit])
    assert {f.scan_id for f in more.findings} == {"a", "b", "c", "d"}


def test_an_error_names_the_unknown_scan_of_an_audit(store):
    with pytest.raises(UnknownScanError, match="'nobody'"):
        store.audit(scans=["nobody"])


def test_a_damaged_scan_is_a_finding_and_the_others_are_audited(raw_copy, tmp_path):
    store = ingest_all(raw_copy, tmp_path / "a.zarr")
    shutil.rmtree(tmp_path / "a.zarr/scans/c/label")
    (tmp_path / "a.zarr/scans/d/zarr.json").write_text("{}")
    store = spinezarr.open(store.url)
    audit = store.audit(write=False)
    found = audit.by_scan()
    assert short(found["c"]) == short(found["d"]) == [("damaged", "error", None)]
    assert "label chunk" in found["c"][0].text
    assert short(found["a"]) == [("same-image", "warning", None)]
    before = store.table
    assert store.audit() == audit
    assert columns(store) == {"a": "warning", "b": "warning", "c": "error", "d": ""}
    added = ["audit", "audit_findings"]
    xr.testing.assert_identical(store.table.drop_vars(added), before.drop_vars(added))


# Findings kept in the store


@pytest.fixture(scope="module")
def prepared(four, tmp_path_factory):
    """Return a folder with raw files and an audited store, which no test may change."""
    folder = tmp_path_factory.mktemp("prepared")
    shutil.copytree(four, folder / "raw")
    write_defect(folder / "raw", "d")
    store = ingest_all(folder / "raw", folder / "a.zarr")
    store.audit()
    return folder


@pytest.fixture
def audited_copy(prepared, tmp_path):
    """Return raw folder and audited store of four scans."""
    shutil.copytree(prepared, tmp_path / "kept")
    return tmp_path / "kept/raw", spinezarr.open(tmp_path / "kept/a.zarr")


def write_defect(raw, name):
    phantom = make_phantom(replace(SPEC, seed=9))
    label = phantom.label.copy()
    stray_label(phantom.image, label)
    label[2, 40, 3] = L1
    write_scan(raw, name, phantom.image, label, phantom.affine_xyz)


def columns(store):
    table = spinezarr.open(store.url).table
    return dict(zip(table.scan.to_numpy(), table.audit.to_numpy(), strict=True))


def test_the_column_is_empty_before_an_audit(store):
    assert set(store.table.audit.to_numpy()) == {""}
    assert set(store.table.audit_findings.to_numpy()) == {""}


def test_the_table_has_the_severity_of_each_scan(audited_copy):
    _, store = audited_copy
    assert columns(store) == {"a": "warning", "b": "warning", "c": "ok", "d": "error"}
    texts = store.table.audit_findings
    assert texts.sel(scan="c").item() == ""
    first, second = texts.sel(scan="d").item().split("; ")
    assert first.startswith("C1 has")
    assert second.startswith("L1 has 1 stray voxels")


def test_findings_are_a_group_that_zarr_reads(audited_copy):
    _, store = audited_copy
    attributes = zarr.open_group(f"{store.url}/audit", mode="r").attrs
    (*_, stray) = attributes["scans"]["d"]["findings"]
    assert stray["voxel_zyx"] == [2, 40, 3]
    assert not list(Path(store.url).rglob("*.partial"))


def test_findings_are_kept_when_the_table_is_rebuilt(audited_copy, tmp_path):
    raw, store = audited_copy
    before = columns(store)
    shutil.rmtree(Path(store.url) / "table")
    ingest_all(raw, store.url)
    assert columns(store) == before
    xr.testing.assert_identical(spinezarr.open(store.url).table, store.table)


def test_findings_are_dropped_when_the_voxels_change(audited_copy):
    raw, store = audited_copy
    phantom = make_phantom(replace(SPEC, seed=20))
    label = phantom.label.copy()
    label[label == T11] = 0
    # A mask of equal size alone might not be noticed, so the image changes, too.
    write_nifti(raw / "b_ct.nii", phantom.image[:-1], phantom.affine_xyz, NiftiForm())
    write_nifti(raw / "b_seg.nii", label[:-1], phantom.affine_xyz, NiftiForm(dtype="uint8"))
    ingest_all(raw, store.url)
    # The finding of a named b, which is another scan now, so it is dropped.
    assert columns(store) == {"a": "ok", "b": "", "c": "ok", "d": "error"}


def test_a_scan_moved_to_another_split_counts_as_not_audited(audited_copy):
    raw, store = audited_copy
    ingest_all(raw, store.url, c={"split": "test", "split_index": 0})
    assert columns(store)["c"] == ""


def test_an_audit_of_one_scan_keeps_the_findings_of_others(audited_copy):
    raw, store = audited_copy
    phantom = make_phantom(replace(SPEC, seed=9, shape_zyx=(47, 48, 48)))
    write_scan(raw, "d", phantom.image, phantom.label, phantom.affine_xyz)
    ingest_all(raw, store.url)
    assert columns(store)["d"] == ""
    again = spinezarr.open(store.url)
    again.audit(scans=["d"])
    assert columns(store) == {"a": "warning", "b": "warning", "c": "ok", "d": "ok"}
    assert again.table.audit.sel(scan="d").item() == "ok"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"attributes": {}}', b"\xff", None])
def test_damaged_findings_are_an_error_until_the_next_audit(audited_copy, content):
    raw, store = audited_copy
    path = Path(store.url) / AUDIT_FILE
    flipped = path.read_bytes().replace(b"C1 has", b"C2 has")
    path.write_bytes(flipped if content is None else content)
    table = (Path(store.url) / "table/zarr.json").read_bytes()
    phantom = make_phantom(SPEC)
    write_scan(raw, "e", phantom.image, phantom.label, phantom.affine_xyz)
    with pytest.raises(CorruptStoreError, match=r"audit/zarr\.json.*Run 'spinezarr audit"):
        ingest_all(raw, store.url)
    assert not (Path(store.url) / "scans/e").exists(), "the error must come before any work is done"
    with pytest.raises(CorruptStoreError, match="over all scans again"):
        store.audit(scans=["d"])
    assert (Path(store.url) / "table/zarr.json").read_bytes() == table
    store.audit()
    ingest_all(raw, store.url)
    assert columns(store)["d"] == "error"


def test_an_audit_of_a_store_on_a_web_server_only_reads(audited_copy, serve):
    _, store = audited_copy
    url, _ = serve(Path(store.url).parent)
    remote = spinezarr.open(f"{url}/a.zarr")
    audit = remote.audit(scans=["d"])
    assert audit.findings == store.audit(scans=["d"]).findings
    assert len(audit.findings) == 2
    assert "cannot be written" in audit.not_written
    assert not store.audit(scans=["d"]).not_written


def test_an_audit_that_cannot_be_written_does_not_change_the_store(raw_copy, tmp_path):
    store = ingest_all(raw_copy, tmp_path / "a.zarr")
    (tmp_path / "a.zarr/audit").mkdir()
    (tmp_path / "a.zarr/audit/zarr.json").mkdir()
    assert "cannot be written" in store.audit().not_written
    assert set(columns(store).values()) == {""}


LABEL_RULES = {
    "empty-mask", "skipped-level", "label-order", "pieces", "stray-voxels", "stray-label",
    "fragment", "unknown-value", "mask-off-bone",
}  # fmt: skip


@pytest.mark.parametrize("moved", [0, 100])
def test_a_further_mask_has_the_findings_of_an_equal_label(planted, audited, tmp_path, moved):
    """The vertebrae of a mask are known by their names, whatever their values are."""
    shutil.copytree(planted[0].url, tmp_path / "planted.zarr")
    store = spinezarr.open(tmp_path / "planted.zarr")
    scheme = {value + moved: name for value, name in NAME_OF_VALUE.items()}
    for scan_id, (_, _, label) in planted[1].items():
        values = np.where(label > 0, label.astype(int) + moved, 0)
        store.write_labels(scan_id, "copy", values, scheme=scheme)
    found = store.audit(layer="copy")
    for scan_id, findings in found.by_scan().items():
        expected = [finding for finding in audited[scan_id] if finding.rule in LABEL_RULES]
        if scan_id == "unknown_value":
            assert short(findings) == short(expected)
            continue
        assert findings == expected
    assert {rule for rule, _, _ in short(found.findings)} == LABEL_RULES
    assert store.table.audit.to_numpy().tolist() == planted[0].table.audit.to_numpy().tolist()
