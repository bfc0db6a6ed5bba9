import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import spinezarr
from spinezarr.cli.main import app
from spinezarr.errors import CorruptStoreError
from spinezarr.formats import open_volume
from spinezarr.ingest.discover import discover
from spinezarr.ingest.run import ingest
from spinezarr.ingest.scan import ScanOptions
from spinezarr.recipe import Recipe
from spinezarr.store.files import open_filesystem
from spinezarr.testing import (
    DTYPES,
    MetaImageForm,
    NiftiForm,
    all_axcodes,
    write_metaimage,
    write_nifti,
    write_totalsegmentator,
)

REAL = Path(__file__).parents[3] / "shared/data/real"
SHAPE = (67, 5, 50)
AFFINE = np.array([[0.7, 0, 0, -31.3], [0, 0.8, 0, 12.1], [0, 0, 2.5, -700.7], [0, 0, 0, 1]])


def stored(raw, out, image="{scan}_ct.nii", label="{scan}_seg.nii", **options):
    recipe = Recipe.of_pairs(image, label, name="pairs")
    found = discover(recipe, str(raw))
    report = ingest(recipe, found, str(out), options=ScanOptions(**options))
    assert not report.failed, report.failed
    return spinezarr.open(out)


def assert_given_back(file, source):
    """Voxels as stored, type with byte order, scaling, affine and both its forms: bit for bit."""
    found, expected = nib.load(file), nib.load(source)
    assert type(found) is type(expected)
    assert found.shape == expected.shape
    assert found.get_data_dtype() == expected.get_data_dtype()
    numbers, wanted = (np.asarray(image.dataobj.get_unscaled()) for image in (found, expected))
    assert numbers.tobytes() == wanted.tobytes()
    values, meant = (np.asarray(image.dataobj) for image in (found, expected))
    assert values.dtype == meant.dtype
    assert values.tobytes() == meant.tobytes()
    assert found.affine.tobytes() == expected.affine.tobytes()
    for form in ("get_sform", "get_qform"):
        matrix, code = getattr(found.header, form)(coded=True)
        wanted, wanted_code = getattr(expected.header, form)(coded=True)
        assert code == wanted_code
        assert (matrix is None) == (wanted is None)
        if matrix is not None:
            assert matrix.tobytes() == wanted.tobytes()
    assert found.header.get_zooms() == expected.header.get_zooms()
    assert found.header.get_xyzt_units() == expected.header.get_xyzt_units()


def voxels(rng, form):
    dtype = np.dtype(form.dtype)
    if dtype.kind == "f":
        return rng.normal(0, 500, SHAPE).astype(dtype)
    span = form.slope or 1
    low, high = max(np.iinfo(dtype).min, -1024), min(np.iinfo(dtype).max, 3071)
    return (rng.integers(low, high + 1, SHAPE) * span + (form.inter or 0)).astype("f8")


forms = st.builds(
    NiftiForm,
    orientation=st.sampled_from(all_axcodes()),
    dtype=st.sampled_from(DTYPES),
    oblique_deg=st.sampled_from([0.0, 0.0, 7.3, -31.0]),
    big_endian=st.booleans(),
    slope=st.sampled_from([None, None, 1.0, 2.0, 0.1, -0.37]),
    inter=st.none(),
    sform_code=st.sampled_from([0, 1, 2]),
    qform_code=st.sampled_from([1, 2]),
    unit=st.sampled_from(["mm", "unknown"]),
)


def test_every_orientation_is_given_back(tmp_path):
    rng = np.random.default_rng(2)
    codes, endings = [(1, 1), (2, 0), (0, 1)], ("ct.nii.gz", "seg.nii.gz")
    for i, axes in enumerate(all_axcodes()):
        sform, qform = codes[i % 3]
        scaled = {"slope": 0.5, "inter": -1000.25} if i % 5 == 0 else {}
        form = NiftiForm(
            axes,
            DTYPES[i % len(DTYPES)],
            oblique_deg=0.0 if i % 2 else 11.0,
            big_endian=i % 4 == 0,
            sform_code=sform,
            qform_code=qform,
            **scaled,
        )
        write_nifti(tmp_path / f"raw/{axes}_ct.nii", voxels(rng, form), AFFINE, form)
        mask = NiftiForm(all_axcodes()[-i], DTYPES[-i % len(DTYPES)], form.oblique_deg)
        label = rng.integers(0, 26, SHAPE).astype(np.uint8)
        write_nifti(tmp_path / f"raw/{axes}_seg.nii", label, AFFINE, mask)
    store = stored(tmp_path / "raw", tmp_path / "a.zarr")
    for axes in all_axcodes():
        done = store.export_nifti(axes, tmp_path)
        assert done.notes == ()
        assert [Path(file).name for file in done.files] == [f"{axes}_{end}" for end in endings]
        for file in done.files:
            assert_given_back(file, tmp_path / "raw" / Path(file).name.removesuffix(".gz"))


@given(forms, forms, st.sampled_from([None, 0.0, -1024.0, 3.3]), st.integers(0, 2**32))
@settings(max_examples=15)
def test_whatever_the_form_it_is_given_back(tmp_path_factory, image, label, inter, seed):
    folder, rng = tmp_path_factory.mktemp("forms"), np.random.default_rng(seed)
    # Floats that are scaled come back as they are where dividing does not undo the scaling.
    slope = image.slope if np.dtype(image.dtype).kind in "iu" else None
    image = replace(image, slope=slope, inter=inter if slope else None)
    label = replace(label, slope=None, oblique_deg=image.oblique_deg)
    write_nifti(folder / "raw/a_ct.nii", voxels(rng, image), AFFINE, image)
    mask = rng.integers(0, 26, SHAPE).astype(np.uint8)
    write_nifti(folder / "raw/a_seg.nii", mask, AFFINE, label)
    store = stored(folder / "raw", folder / "a.zarr")
    done = store.export_nifti("a", folder, compressed=False)
    for file in done.files:
        assert_given_back(file, folder / "raw" / Path(file).name)


def test_headers_without_any_place_and_nifti_2_are_given_back(tmp_path):
    rng = np.random.default_rng(1)
    values = rng.integers(-5, 5, SHAPE).astype(np.int16)
    (tmp_path / "raw").mkdir()
    affine = np.array([[0.1, 0.02, 0, 3], [-0.03, 0.3, 0, 1 / 3], [0, 0, 0.7, 2], [0, 0, 0, 1]])
    exact = nib.Nifti2Image(values, affine)
    exact.set_qform(None, 0)
    nib.save(exact, tmp_path / "raw/two_ct.nii")
    placeless = nib.Nifti1Image(values, None)
    placeless.header.set_zooms((0.7, 1.1, 3.3))
    nib.save(placeless, tmp_path / "raw/none_ct.nii")
    store = stored(tmp_path / "raw", tmp_path / "a.zarr", label=None)
    for name in ("two", "none"):
        (file,) = store.export_nifti(name, tmp_path).files
        assert_given_back(file, tmp_path / f"raw/{name}_ct.nii")


def test_scaled_values_that_their_slope_does_not_give_come_as_they_are(tmp_path):
    rng = np.random.default_rng(1)
    # Far from zero, dividing by a third does not undo multiplying by it.
    form = NiftiForm("LPS", "float32", slope=1 / 3, inter=1e15)
    write_nifti(tmp_path / "raw/a_ct.nii", rng.normal(1e15, 9, SHAPE), AFFINE, form)
    store = stored(tmp_path / "raw", tmp_path / "a.zarr", label=None)
    done = store.export_nifti("a", tmp_path)
    found, expected = nib.load(done.files[0]), nib.load(tmp_path / "raw/a_ct.nii")
    assert np.asarray(found.dataobj).tobytes() == np.asarray(expected.dataobj).tobytes()
    assert found.affine.tobytes() == expected.affine.tobytes()
    if found.get_data_dtype() != expected.get_data_dtype():
        assert done.notes == (
            "a_ct.nii.gz: holds the scaled values, which its slope does not give",
        )


def test_a_mask_that_took_the_images_grid_keeps_its_own_affine(tmp_path):
    rng = np.random.default_rng(3)
    image = rng.integers(-9, 9, SHAPE).astype(np.int16)
    write_nifti(tmp_path / "raw/a_ct.nii", image, AFFINE, NiftiForm("PIR"))
    label = rng.integers(0, 26, SHAPE).astype(np.uint8)
    write_nifti(tmp_path / "raw/a_seg.nii", label, AFFINE, NiftiForm("PIR", "uint8"))
    mask = nib.load(tmp_path / "raw/a_seg.nii", mmap=False)
    wrong = nib.Nifti1Image(np.asarray(mask.dataobj), np.diag([-1.0, -1.0, 2.0, 1.0]))
    nib.save(wrong, tmp_path / "raw/a_seg.nii")
    store = stored(tmp_path / "raw", tmp_path / "a.zarr", take_image_grid=True)
    for file in store.export_nifti("a", tmp_path).files:
        assert_given_back(file, tmp_path / "raw" / Path(file).name.removesuffix(".gz"))


@pytest.mark.parametrize(("spacing", "kind"), [(0.75, nib.Nifti1Image), (0.7, nib.Nifti2Image)])
def test_metaimages_come_with_equal_voxels_and_affine(tmp_path, spacing, kind):
    rng = np.random.default_rng(4)
    affine = np.diag([spacing, spacing, 2.5, 1.0])
    values = rng.integers(-900, 900, SHAPE).astype(np.int16)
    write_metaimage(tmp_path / "raw/a.mha", values, affine, MetaImageForm("RAI"))
    store = stored(tmp_path / "raw", tmp_path / "a.zarr", image="{scan}.mha", label=None)
    done = store.export_nifti("a", tmp_path)
    assert bool(done.notes) == (kind is nib.Nifti2Image)
    assert_holds_volume(done.files[0], tmp_path / "raw/a.mha", kind)


def assert_holds_volume(file, source, kind=None):
    fs, path = open_filesystem(str(source))
    volume = open_volume(fs, path + ("/" if Path(source).is_dir() else ""))
    (values,) = volume.slabs([volume.grid.shape_ijk[2]])
    found = nib.load(file)
    assert kind is None or type(found) is kind
    assert found.get_data_dtype() == volume.dtype
    np.testing.assert_array_equal(np.asarray(found.dataobj), values)
    assert found.affine.tobytes() == volume.grid.affine.tobytes()


def test_mapped_and_merged_masks_come_in_the_scheme(tmp_path):
    write_totalsegmentator(tmp_path / "raw")
    recipe = Recipe.load("totalsegmentator")
    report = ingest(recipe, discover(recipe, str(tmp_path / "raw")), str(tmp_path / "t.zarr"))
    assert not report.failed
    store = spinezarr.open(tmp_path / "t.zarr")
    kinds = set()
    for scan_id in store.table.scan.to_numpy().tolist():
        done = store.export_nifti(scan_id, tmp_path)
        kinds |= {note.split(": ", 1)[1].split(" ")[0] for note in done.notes}
        mask = nib.load(done.files[1])
        assert mask.get_data_dtype() == np.uint8
        canonical = nib.as_closest_canonical(mask)
        expected = store.scan(scan_id).label.to_numpy()
        np.testing.assert_array_equal(np.asarray(canonical.dataobj).transpose(2, 1, 0), expected)
    assert kinds


# Failures


@pytest.fixture
def pair(tmp_path):
    """A store of two scans."""
    rng = np.random.default_rng(8)
    for name in ("a", "b"):
        image = rng.integers(-900, 900, SHAPE).astype(np.int16)
        write_nifti(tmp_path / f"raw/{name}_ct.nii", image, AFFINE, NiftiForm())
        label = rng.integers(0, 26, SHAPE).astype(np.uint8)
        write_nifti(tmp_path / f"raw/{name}_seg.nii", label, AFFINE, NiftiForm(dtype="uint8"))
    stored(tmp_path / "raw", tmp_path / "two.zarr")
    return tmp_path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def run(*words, code=0):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output + repr(result.exception)
    assert "Traceback" not in result.output
    return result


def test_an_interrupted_export_leaves_whole_files_only(pair):
    store, out = spinezarr.open(pair / "two.zarr"), pair / "out"
    for calls in count():
        out.mkdir(exist_ok=True)
        left = iter(range(calls))

        def interrupt(size, left=left):
            if size > 0 and next(left, None) is None:
                raise KeyboardInterrupt

        try:
            store.export_nifti("a", out, on_bytes=interrupt)
        except KeyboardInterrupt:
            assert all(name.endswith(".nii.gz") for name in names(out))
            for name in names(out):
                assert_given_back(out / name, pair / "raw" / name.removesuffix(".gz"))
            shutil.rmtree(out)
        else:
            break
    assert calls == 4
    assert names(out) == ["a_ct.nii.gz", "a_seg.nii.gz"]


def test_a_killed_export_leaves_no_half_file_under_a_files_name(pair):
    code = (
        "import os, spinezarr;"
        f"spinezarr.open({str(pair / 'two.zarr')!r})"
        f".export_nifti('a', {str(pair)!r}, on_bytes=lambda _: os._exit(9))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, env={**os.environ})
    assert done.returncode == 9
    assert {"a_ct.nii.gz.partial"} == {name for name in names(pair) if "nii" in name}
    run("export", "nifti", pair / "two.zarr", "--out", pair)
    assert sum("nii.gz" in name for name in names(pair)) == 4
    assert "a_ct.nii.gz.partial" not in names(pair)


def test_a_damaged_scan_fails_and_others_are_written(pair):
    shard = pair / "two.zarr/scans/a/image/c/0/0/0"
    data = bytearray(shard.read_bytes())
    data[200] ^= 1
    shard.write_bytes(data)
    result = run("export", "nifti", pair / "two.zarr", "--out", pair / "out", "--json", code=1)
    said = json.loads(result.stdout)
    assert "image chunk" in said["failed"]["a"]
    assert names(pair / "out") == ["b_ct.nii.gz", "b_seg.nii.gz"]
    assert [scan["scan_id"] for scan in said["done"]] == ["b"]
    with pytest.raises(CorruptStoreError):
        spinezarr.open(pair / "two.zarr").export_nifti("a", pair / "out")
    output = run("export", "nifti", pair / "two.zarr", "--out", pair / "more", code=1).output
    assert "Wrote 2 files of 1 scans" in output
    assert "image chunk" in output


def test_files_that_are_there_are_not_replaced_unless_so_asked(pair):
    words = ("export", "nifti", pair / "two.zarr", "--out", pair / "out", "--uncompressed")
    run(*words, "--scan", "b")
    assert names(pair / "out") == ["b_ct.nii", "b_seg.nii"]
    (pair / "out/b_seg.nii").write_bytes(b"mine")
    assert "is there already" in " ".join(run(*words, code=2).stderr.split())
    assert (pair / "out/b_seg.nii").read_bytes() == b"mine"
    run(*words, "--overwrite")
    assert names(pair / "out") == ["a_ct.nii", "a_seg.nii", "b_ct.nii", "b_seg.nii"]
    for name in names(pair / "out"):
        assert_given_back(pair / "out" / name, pair / "raw" / name)


def test_wrong_usage_ends_with_2(pair):
    run("export", "nifti", pair / "none.zarr", "--out", pair / "out", code=2)
    run("export", "nifti", pair / "two.zarr", "--out", pair / "out", "--scan", "c", code=2)
    (pair / "file").write_text("x")
    run("export", "nifti", pair / "two.zarr", "--out", pair / "file", code=2)


def test_the_same_scan_gives_the_same_bytes(pair):
    store = spinezarr.open(pair / "two.zarr")
    found = []
    for name in ("one", "other"):
        (pair / name).mkdir()
        files = store.export_nifti("a", pair / name).files
        found.append([Path(file).read_bytes() for file in files])
    assert found[0] == found[1]


if REAL.is_dir():

    @pytest.mark.parametrize(
        ("image", "label"),
        [
            ("lidc-idri/lidc-idri-0001_ct.nii.gz", "lidc-idri/lidc-idri-0001_seg_las.nii.gz"),
            ("totalsegmentator/example_ct.nii.gz", "totalsegmentator/example_seg.nii.gz"),
            ("tptbox/sub-ct_label-22_ct.nii.gz", "tptbox/sub-ct_seg-subreg_label-22_msk.nii.gz"),
            ("verse/sub-verse004_seg-vert_msk.nii.gz", "verse/sub-verse004_seg-vert_msk.nii.gz"),
        ],
    )
    def test_real_files_are_given_back(tmp_path, image, label):
        (tmp_path / "raw").mkdir()
        for source, kind in ((image, "ct"), (label, "seg")):
            shutil.copy(REAL / source, tmp_path / f"raw/a_{kind}.nii.gz")
        ends = {"image": "{scan}_ct.nii.gz", "label": "{scan}_seg.nii.gz"}
        store = stored(tmp_path / "raw", tmp_path / "a.zarr", **ends)
        for file in store.export_nifti("a", tmp_path, compressed=False).files:
            assert_given_back(file, tmp_path / "raw" / f"{Path(file).name}.gz")

    def test_a_real_metaimage_comes_with_equal_voxels_and_affine(tmp_path):
        store = stored(REAL / "elastix", tmp_path / "e.zarr", image="{scan}.mha", label=None)
        (scan_id,) = store.table.scan.to_numpy().tolist()
        (file,) = store.export_nifti(scan_id, tmp_path).files
        assert_holds_volume(file, REAL / f"elastix/{scan_id}.mha")
