import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from orientations import FEW_AXCODES
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

import spinezarr
from spinezarr.cli.main import app
from spinezarr.errors import UsageError
from spinezarr.export.nifti import export_scan
from spinezarr.export.nifti_placement import NiftiPlacement
from spinezarr.formats.volume import open_volume
from spinezarr.geometry import corner_distance_mm
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.ingestion.scan import ScanOptions
from spinezarr.recipe import Recipe
from spinezarr.remote.filesystem import open_filesystem
from spinezarr.testing import (
    DTYPES,
    DicomForm,
    MetaImageForm,
    NiftiForm,
    all_axcodes,
    write_dicom_series,
    write_metaimage,
    write_nifti,
    write_totalsegmentator,
)

SHAPE = (67, 5, 50)
AFFINE = np.array([[0.7, 0, 0, -31.3], [0, 0.8, 0, 12.1], [0, 0, 2.5, -700.7], [0, 0, 0, 1]])


def stored(raw, out, image="{scan}_ct.nii", label="{scan}_seg.nii", **options):
    recipe = Recipe.from_pairs(image, label, name="pairs")
    found = discover(recipe, str(raw))
    report = ingest(recipe, found, str(out), options=ScanOptions(**options))
    assert not report.failed, report.failed
    return spinezarr.open(out)


def assert_restored(file, source):
    """Compare voxels, type with byte order, scaling, affine and both its forms, bit for bit."""
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


@pytest.mark.parametrize(
    "orientations",
    [FEW_AXCODES, pytest.param(all_axcodes(), marks=pytest.mark.long)],
    ids=["few", "all"],
)
def test_every_orientation_is_restored(tmp_path, assert_read_alike, orientations):
    rng = np.random.default_rng(2)
    codes, endings = [(1, 1), (2, 0), (0, 1)], ("ct.nii.gz", "seg.nii.gz")
    for i, axes in enumerate(orientations):
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
        mask = NiftiForm(orientations[-i], DTYPES[-i % len(DTYPES)], form.oblique_deg)
        label = rng.integers(0, 26, SHAPE).astype(np.uint8)
        write_nifti(tmp_path / f"raw/{axes}_seg.nii", label, AFFINE, mask)
    store = stored(tmp_path / "raw", tmp_path / "a.zarr")
    for axes in orientations:
        exact = store.export_nifti(out=tmp_path, scans=axes, exact=True, overwrite=True).done[0]
        assert exact.notes == ()
        assert [Path(file).name for file in exact.files] == [f"{axes}_{end}" for end in endings]
        for file in exact.files:
            assert_restored(file, tmp_path / "raw" / Path(file).name.removesuffix(".gz"))
        done = store.export_nifti(out=tmp_path, scans=axes, overwrite=True).done[0]
        assert done.files == exact.files
        noted = assert_usable(done, tmp_path / "raw", assert_read_alike)
        assert all("not all programs read" in note for note in noted)


def assert_usable(done, raw, assert_read_alike):
    """Check that programs read the files alike, and like the source unless noted; return notes."""
    noted = {}
    for note in done.notes:
        name, _, text = note.partition(": ")
        noted.setdefault(name, []).append(text)
    for file in map(Path, done.files):
        assert_read_alike(file)
        (source,) = (raw / name for name in (file.name, file.stem) if (raw / name).exists())
        if file.name not in noted:
            assert_restored(file, source)
        found, expected = nib.load(file), nib.load(source)
        np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(expected.dataobj))
    return [note for notes in noted.values() for note in notes]


@given(forms, forms, st.sampled_from([None, 0.0, -1024.0, 3.3]), st.integers(0, 2**32))
@settings(max_examples=15)
def test_files_of_any_form_are_restored(
    tmp_path_factory, assert_read_alike, image, label, inter, seed
):
    folder, rng = tmp_path_factory.mktemp("forms"), np.random.default_rng(seed)
    # Scaled floats are written as values where division does not undo the scaling.
    slope = image.slope if np.dtype(image.dtype).kind in "iu" else None
    image = replace(image, slope=slope, inter=inter if slope else None)
    label = replace(label, slope=None, oblique_deg=image.oblique_deg)
    write_nifti(folder / "raw/a_ct.nii", voxels(rng, image), AFFINE, image)
    mask = rng.integers(0, 26, SHAPE).astype(np.uint8)
    write_nifti(folder / "raw/a_seg.nii", mask, AFFINE, label)
    store = stored(folder / "raw", folder / "a.zarr")
    for file in (
        store.export_nifti(out=folder, scans="a", compressed=False, exact=True, overwrite=True)
        .done[0]
        .files
    ):
        assert_restored(file, folder / "raw" / Path(file).name)
    (folder / "usable").mkdir()
    assert_usable(
        store.export_nifti(out=folder / "usable", scans="a", overwrite=True).done[0],
        folder / "raw",
        assert_read_alike,
    )


def test_headers_without_orientation_and_nifti_2_are_restored_exactly(tmp_path):
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
        (file,) = (
            store.export_nifti(out=tmp_path, scans=name, exact=True, overwrite=True).done[0].files
        )
        assert_restored(file, tmp_path / f"raw/{name}_ct.nii")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_are_written_where_the_slope_cannot_restore_the_numbers(tmp_path, dtype):
    numbers = np.random.default_rng(1).normal(0, 700, SHAPE).astype(dtype)
    path = tmp_path / "raw/a_ct.nii"
    write_nifti(path, numbers, AFFINE, NiftiForm("LPS", dtype))
    data = bytearray(path.read_bytes())
    # With such an intercept the last digits of the numbers are lost.
    data[112:120] = np.array([1 / 3, 1e15], "<f4").tobytes()
    path.write_bytes(data)
    store = stored(tmp_path / "raw", tmp_path / "a.zarr", label=None)
    done = store.export_nifti(out=tmp_path, scans="a", overwrite=True).done[0]
    assert done.notes == ()
    found, expected = nib.load(done.files[0]), nib.load(path)
    assert np.asarray(found.dataobj).tobytes() == np.asarray(expected.dataobj).tobytes()
    assert found.affine.tobytes() == expected.affine.tobytes()
    if dtype == "float32":  # for float64 the values are stored instead
        assert_restored(done.files[0], path)


def test_a_mask_that_took_the_grid_of_its_image_is_exported_on_it(tmp_path, assert_read_alike):
    rng = np.random.default_rng(3)
    image = rng.integers(-9, 9, SHAPE).astype(np.int16)
    write_nifti(tmp_path / "raw/a_ct.nii", image, AFFINE, NiftiForm("PIR"))
    label = rng.integers(0, 26, SHAPE).astype(np.uint8)
    write_nifti(tmp_path / "raw/a_seg.nii", label, AFFINE, NiftiForm("PIR", "uint8"))
    mask = nib.load(tmp_path / "raw/a_seg.nii", mmap=False)
    wrong = nib.Nifti1Image(np.asarray(mask.dataobj), np.diag([-1.0, -1.0, 2.0, 1.0]))
    nib.save(wrong, tmp_path / "raw/a_seg.nii")
    store = stored(tmp_path / "raw", tmp_path / "a.zarr", take_image_grid=True)
    for file in (
        store.export_nifti(out=tmp_path, scans="a", exact=True, overwrite=True).done[0].files
    ):
        assert_restored(file, tmp_path / "raw" / Path(file).name.removesuffix(".gz"))
    done = store.export_nifti(out=tmp_path, scans="a", overwrite=True).done[0]
    (note,) = done.notes
    assert re.fullmatch(
        r"a_seg.nii.gz: is placed on its image; its source places it \d+ mm away", note
    )
    found, mask = map(nib.load, done.files)
    np.testing.assert_array_equal(found.affine, mask.affine)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(wrong.dataobj))
    for file in done.files:
        assert_read_alike(file)


def test_further_axes_of_length_1_are_left_out_of_the_export(tmp_path):
    rng = np.random.default_rng(6)
    values = rng.integers(-9, 9, (9, 8, 7)).astype(np.int16)
    label = rng.integers(0, 26, values.shape).astype(np.uint8)
    (tmp_path / "raw").mkdir()
    nib.save(nib.Nifti1Image(values[..., None], AFFINE), tmp_path / "raw/a_ct.nii")
    nib.save(nib.Nifti1Image(label[..., None, None], AFFINE), tmp_path / "raw/a_seg.nii")
    store = stored(tmp_path / "raw", tmp_path / "a.zarr")
    for file, source in zip(
        store.export_nifti(out=tmp_path, scans="a", overwrite=True).done[0].files,
        (values, label),
        strict=True,
    ):
        found = nib.load(file)
        assert found.shape == source.shape
        assert found.get_data_dtype() == source.dtype
        np.testing.assert_array_equal(found.dataobj, source)
        expected = nib.load(tmp_path / "raw" / Path(file).name.removesuffix(".gz"))
        assert found.affine.tobytes() == expected.affine.tobytes()


# Positions that programs read differently


OBLIQUE = nib.affines.from_matvec(
    Rotation.from_euler("xyz", [7.3, -4, 11], degrees=True).as_matrix()
    @ np.diag([-0.7, -0.8, 2.5]),
    [131.3, 112.1, -700.7],
)
STRAIGHT = np.diag([-0.7, -0.8, 2.5, 1.0])


def sheared(degrees):
    slipped = np.eye(4)
    slipped[1, 2] = np.tan(np.radians(degrees))
    return slipped @ STRAIGHT


def header(affine, qform_code, sform_code, qform=None, **fields):
    """Compose a header that nibabel would not write."""
    made = nib.Nifti1Header()
    made.set_data_shape(SHAPE[::-1])
    made.set_data_dtype(fields.pop("dtype", "int16"))
    made.set_zooms(np.linalg.norm(affine[:3, :3], axis=0))
    if qform_code:
        made.set_qform(affine if qform is None else qform, qform_code)
    made.set_sform(affine if sform_code else None, sform_code)
    made.set_xyzt_units(fields.pop("unit", "mm"))
    if "pixdim" in fields:
        made["pixdim"][1:4] = fields.pop("pixdim")
    made["magic"], made["vox_offset"] = b"n+1", 352
    assert not fields
    return made


READ_APART = {
    "no place": (header(OBLIQUE, 0, 0), "sform_code and qform_code are 0"),
    "contradicting qform": (
        header(OBLIQUE, 1, 2, STRAIGHT),
        "in its source, they differ by 800 mm",
    ),
    "other lengths": (
        header(STRAIGHT, 0, 2, pixdim=(1, 1, 1)),
        "voxel sizes of its sform in pixdim",
    ),
    "meters": (header(STRAIGHT, 1, 1, unit="meter"), "source calls the same numbers meters"),
    "microns": (header(STRAIGHT, 1, 0, unit="micron"), "source calls the same numbers microns"),
    "sheared a little": (header(sheared(0.04), 0, 1), r"0\.04 degrees off .* up to 0\.06 mm else"),
}


@pytest.mark.parametrize("name", READ_APART)
def test_headers_that_programs_read_differently_are_written_unambiguously(
    tmp_path, assert_read_alike, name
):
    made, expected = READ_APART[name]
    values = np.random.default_rng(1).integers(-5, 5, SHAPE).astype(np.int16)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a_ct.nii").write_bytes(made.binaryblock + bytes(4) + values.tobytes())
    with pytest.raises((AssertionError, RuntimeError)):
        assert_read_alike(tmp_path / "raw/a_ct.nii")
    store = stored(tmp_path / "raw", tmp_path / "a.zarr", label=None)
    done = store.export_nifti(out=tmp_path, scans="a", overwrite=True).done[0]
    (note, *rounded) = done.notes
    assert re.search(expected, note)
    (file,) = done.files
    assert_read_alike(file, apart_mm=0.07)
    # The position is that of the store, up to the rounding in the note.
    meant = np.array(store.scan("a").attrs["image_source"]["affine_ijk"])
    apart = corner_distance_mm(SHAPE[::-1], nib.load(file).affine, meant)
    said = [float(re.search(r"up to (\S+) mm away", text)[1]) for text in rounded]
    assert apart <= sum(said) <= 2e-5
    np.testing.assert_array_equal(np.asarray(nib.load(file).dataobj).T, values)
    (exact,) = store.export_nifti(out=tmp_path, scans="a", exact=True, overwrite=True).done[0].files
    assert_restored(exact, tmp_path / "raw/a_ct.nii")


def test_axes_that_a_qform_cannot_express_are_noted(tmp_path):
    made = header(sheared(5), 1, 1)
    (tmp_path / "raw").mkdir()
    values = np.zeros(SHAPE, np.int16)
    (tmp_path / "raw/a_ct.nii").write_bytes(made.binaryblock + bytes(4) + values.tobytes())
    store = stored(tmp_path / "raw", tmp_path / "a.zarr", label=None)
    done = store.export_nifti(out=tmp_path, scans="a", overwrite=True).done[0]
    assert any("5 degrees off perpendicular: SimpleITK" in note for note in done.notes)
    (file,) = done.files
    # The qform of the source would place voxels 4 mm elsewhere.
    with pytest.raises(RuntimeError, match="orthonormal"):
        SimpleITK.ReadImage(file)
    np.testing.assert_array_equal(nib.load(file).affine, made.get_best_affine())


@pytest.mark.parametrize(("slope", "dtype"), [(0.5, "uint16"), (0.3, "float64")])
def test_scaled_dicom_keeps_its_numbers_where_nifti_holds_the_scale(
    tmp_path, assert_read_alike, slope, dtype
):
    numbers = np.random.default_rng(2).integers(0, 4096, (30, 20, 9)).astype(np.uint16)
    values = numbers * slope - 1024
    write_dicom_series(tmp_path / "raw/a", values, STRAIGHT, DicomForm(slope=slope))
    store = stored(tmp_path / "raw", tmp_path / "a.zarr", image="{scan}/", label=None)
    (file,) = store.export_nifti(out=tmp_path, scans="a", overwrite=True).done[0].files
    assert_read_alike(file)
    found = nib.load(file)
    assert found.get_data_dtype() == dtype
    canonical = nib.as_closest_canonical(found).get_fdata()
    np.testing.assert_array_equal(canonical.T, store.scan("a").image.to_numpy())


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([-1024, 3071], "int16"),
        ([0, 65535], "uint16"),
        ([-40_000, 40_000], "int32"),
        ([0, 2**32 - 1], "uint32"),
        ([-1, 2**40], "float64"),
        ([0, 2**60], "int64"),
    ],
)
@pytest.mark.parametrize("ending", ["nii", "mha"])
def test_64_bit_integers_become_a_type_that_programs_read(
    tmp_path, assert_read_alike, values, dtype, ending
):
    image = np.resize(np.array(values, np.int64), SHAPE)
    if ending == "nii":
        (tmp_path / "raw").mkdir()
        made = header(STRAIGHT, 1, 1, dtype="int64")
        (tmp_path / "raw/a.nii").write_bytes(made.binaryblock + bytes(4) + image.tobytes())
    else:
        write_metaimage(tmp_path / "raw/a.mha", image, AFFINE, MetaImageForm("LPS", "int64"))
    store = stored(tmp_path / "raw", tmp_path / "a.zarr", image="{scan}." + ending, label=None)
    done = store.export_nifti(out=tmp_path, scans="a", overwrite=True).done[0]
    found = nib.load(done.files[0])
    assert found.get_data_dtype() == dtype
    assert any(dtype in note for note in done.notes) == (ending == "nii" or dtype == "int64")
    canonical = np.asarray(nib.as_closest_canonical(found).dataobj)
    np.testing.assert_array_equal(canonical.T, store.scan("a").image.to_numpy())
    if dtype != "int64":
        assert_read_alike(done.files[0])


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "float32"])
def test_metaimages_are_exported_in_the_narrowest_type(tmp_path, assert_read_alike, dtype):
    values = np.resize(np.array([0, 100], dtype), SHAPE)
    write_metaimage(tmp_path / "raw/a.mha", values, AFFINE, MetaImageForm("PIR", dtype))
    store = stored(tmp_path / "raw", tmp_path / "a.zarr", image="{scan}.mha", label=None)
    (file,) = store.export_nifti(out=tmp_path, scans="a", overwrite=True).done[0].files
    narrow = dtype if np.dtype(dtype).itemsize == 1 else "int16"
    assert nib.load(file).get_data_dtype() == narrow
    assert_read_alike(file)
    (exact,) = store.export_nifti(out=tmp_path, scans="a", exact=True, overwrite=True).done[0].files
    assert nib.load(exact).get_data_dtype() == dtype


def test_12_bit_dicom_is_exported_as_int16_in_nifti_1(tmp_path, assert_read_alike):
    values = np.random.default_rng(4).integers(-1024, 3072, (9, 20, 30)).astype(np.int16)
    write_dicom_series(tmp_path / "raw/a", values, AFFINE, DicomForm())
    store = stored(tmp_path / "raw", tmp_path / "a.zarr", image="{scan}/", label=None)
    done = store.export_nifti(out=tmp_path, scans="a", overwrite=True).done[0]
    (file,) = done.files
    assert_read_alike(file)
    assert nib.load(file).get_data_dtype() == np.int16
    (note,) = done.notes
    said = float(re.search(r"places voxels up to (\S+) mm away from its source", note)[1])
    assert said <= 2e-5
    (exact,) = (
        store.export_nifti(out=tmp_path / "raw", scans="a", exact=True, overwrite=True)
        .done[0]
        .files
    )
    assert nib.load(exact).get_data_dtype() == np.int32
    distance = corner_distance_mm((30, 20, 9), nib.load(file).affine, nib.load(exact).affine)
    assert 0 < distance <= said
    np.testing.assert_array_equal(
        np.asarray(nib.load(file).dataobj), np.asarray(nib.load(exact).dataobj)
    )
    itk = SimpleITK.ReadImage(file)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "raw/a")))
    source = reader.Execute()
    np.testing.assert_allclose(itk.GetOrigin(), source.GetOrigin(), atol=2e-5)
    np.testing.assert_allclose(itk.GetDirection(), source.GetDirection(), atol=1e-6)
    np.testing.assert_allclose(itk.GetSpacing(), source.GetSpacing(), rtol=1e-6)
    np.testing.assert_array_equal(*map(SimpleITK.GetArrayFromImage, (itk, source)))


degrees = st.one_of(st.just(0.0), st.floats(-40, 40), st.floats(-0.01, 0.01))


@given(
    st.sampled_from(all_axcodes()),
    st.tuples(degrees, degrees, degrees),
    st.lists(st.floats(0.2, 5), min_size=3, max_size=3),
    st.lists(st.floats(-2000, 2000), min_size=3, max_size=3),
    st.tuples(*[st.integers(1, 700)] * 3),
)
def test_itk_and_nibabel_read_any_position(
    tmp_path_factory, affine_of_itk, axes, turns, spacing, origin, shape
):
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("xyz", turns, degrees=True).as_matrix()
    affine = turned @ nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(axes), (9, 9, 9))
    affine[:3, :3] *= spacing
    affine[:3, 3] = origin
    place = NiftiPlacement.portable(SimpleNamespace(affine_ijk=affine, shape_ijk=shape, nifti=None))
    assert all(
        "away from its source, because its affine is rounded" in note for note in place.notes
    )
    made = place.header(shape)
    assert made["sform_code"] == made["qform_code"] == 1
    rounded = corner_distance_mm(shape, made.get_best_affine(), affine)
    assert rounded <= 1e-3
    made["magic"], made["vox_offset"] = b"n+1", 352
    path = tmp_path_factory.mktemp("place") / "header.nii"
    path.write_bytes(made.binaryblock + bytes(4))
    itk = SimpleITK.ImageFileReader()
    itk.SetFileName(str(path))
    itk.ReadImageInformation()
    assert itk.GetSize() == shape
    assert corner_distance_mm(shape, affine_of_itk(itk), affine) <= 2e-3


@pytest.mark.parametrize(("spacing", "rounds"), [(0.75, False), (0.7, True)])
def test_metaimages_are_exported_with_equal_voxels_and_affine(
    tmp_path, assert_read_alike, spacing, rounds
):
    rng = np.random.default_rng(4)
    affine = np.diag([spacing, spacing, 2.5, 1.0])
    values = rng.integers(-900, 900, SHAPE).astype(np.int16)
    write_metaimage(tmp_path / "raw/a.mha", values, affine, MetaImageForm("RAI"))
    store = stored(tmp_path / "raw", tmp_path / "a.zarr", image="{scan}.mha", label=None)
    done = store.export_nifti(out=tmp_path, scans="a", overwrite=True).done[0]
    assert bool(done.notes) == rounds
    assert_read_alike(done.files[0])
    exact = store.export_nifti(out=tmp_path, scans="a", exact=True, overwrite=True).done[0]
    assert bool(exact.notes) == rounds
    kind = nib.Nifti2Image if rounds else nib.Nifti1Image
    assert_holds_volume(exact.files[0], tmp_path / "raw/a.mha", kind)


def assert_holds_volume(file, source, kind=None):
    fs, path = open_filesystem(str(source))
    volume = open_volume(fs, path + ("/" if Path(source).is_dir() else ""))
    (values,) = volume.slabs([volume.grid.shape_ijk[2]])
    found = nib.load(file)
    assert kind is None or type(found) is kind
    assert found.get_data_dtype() == volume.dtype
    np.testing.assert_array_equal(np.asarray(found.dataobj), values)
    assert found.affine.tobytes() == volume.grid.affine_ijk.tobytes()


def test_mapped_and_merged_masks_are_exported_in_the_scheme(tmp_path):
    write_totalsegmentator(tmp_path / "raw")
    recipe = Recipe.load("totalsegmentator")
    report = ingest(recipe, discover(recipe, str(tmp_path / "raw")), str(tmp_path / "t.zarr"))
    assert not report.failed
    store = spinezarr.open(tmp_path / "t.zarr")
    kinds = set()
    for scan_id in store.table.scan.to_numpy().tolist():
        done = store.export_nifti(out=tmp_path, scans=scan_id, overwrite=True).done[0]
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
    """Return a store of two scans."""
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
            export_scan(store._reader.scan("a"), store._engine, out, on_bytes=interrupt)
        except KeyboardInterrupt:
            assert all(name.endswith(".nii.gz") for name in names(out))
            for name in names(out):
                assert_restored(out / name, pair / "raw" / name.removesuffix(".gz"))
            shutil.rmtree(out)
        else:
            break
    assert calls == 4
    assert names(out) == ["a_ct.nii.gz", "a_seg.nii.gz"]


def test_a_killed_export_leaves_no_incomplete_file_under_a_final_name(pair):
    code = (
        "import os, spinezarr;"
        f"spinezarr.open({str(pair / 'two.zarr')!r})"
        f".export_nifti(out={str(pair)!r}, scans='a', on_progress=lambda p: p.done and os._exit(9))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, env={**os.environ})
    assert done.returncode == 9
    assert {"a_ct.nii.gz.partial"} == {name for name in names(pair) if "nii" in name}
    run("export", "nifti", pair / "two.zarr", "--out", pair)
    assert sum("nii.gz" in name for name in names(pair)) == 4
    assert "a_ct.nii.gz.partial" not in names(pair)


def test_the_error_of_a_full_disk_names_the_file_and_what_to_do(pair):
    code = (
        "import resource, sys; from spinezarr.cli.main import app;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "app(sys.argv[1:])"
    )
    words = ["export", "nifti", pair / "two.zarr", "--out", pair / "out"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], check=False, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert f"{pair}/out/a_ct.nii.gz.partial: File too large. Raise the limit" in done.stderr
    assert names(pair / "out") == []


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
    report = spinezarr.open(pair / "two.zarr").export_nifti(out=pair / "python", scans="a")
    assert (report.done, "image chunk" in report.failed["a"]) == ((), True)
    output = run("export", "nifti", pair / "two.zarr", "--out", pair / "more", code=1).output
    assert "Wrote 2 files of 1 scan " in output
    assert "image chunk" in output


def test_existing_files_are_replaced_only_with_overwrite(pair):
    words = ("export", "nifti", pair / "two.zarr", "--out", pair / "out", "--uncompressed")
    run(*words, "--scan", "b")
    assert names(pair / "out") == ["b_ct.nii", "b_seg.nii"]
    (pair / "out/b_seg.nii").write_bytes(b"mine")
    assert "exists already" in " ".join(run(*words, code=2).stderr.split())
    assert (pair / "out/b_seg.nii").read_bytes() == b"mine"
    run(*words, "--overwrite")
    assert names(pair / "out") == ["a_ct.nii", "a_seg.nii", "b_ct.nii", "b_seg.nii"]
    for name in names(pair / "out"):
        assert_restored(pair / "out" / name, pair / "raw" / name)


def test_equal_notes_of_many_files_are_one_row(tmp_path):
    values = np.zeros((9, 20, 30), np.int16)
    for name in "abc":
        write_metaimage(tmp_path / f"raw/{name}.mha", values, AFFINE, MetaImageForm("LPS"))
    stored(tmp_path / "raw", tmp_path / "m.zarr", image="{scan}.mha", label=None)
    said = run("export", "nifti", tmp_path / "m.zarr", "--out", tmp_path / "out").output
    assert "3, e.g. a_ct.nii.gz" in said
    assert said.count("away from its source") == 1
    words = ("export", "nifti", tmp_path / "m.zarr", "--out", tmp_path / "exact")
    listed = json.loads(run(*words, "--exact", "--json").stdout)["done"]
    assert [len(scan["notes"]) for scan in listed] == [1, 1, 1]
    assert isinstance(nib.load(tmp_path / "exact/a_ct.nii.gz"), nib.Nifti2Image)


def test_no_file_is_written_next_to_one_with_the_other_ending(pair):
    """SimpleITK would read the voxels of a.nii for a.nii.gz."""
    words = ("export", "nifti", pair / "two.zarr", "--out", pair / "out", "--scan", "a")
    run(*words)
    for more in ((), ("--overwrite",)):
        said = run(*words, "--uncompressed", *more, code=2).stderr
        assert "a_ct.nii.gz: lies next to a_ct.nii" in " ".join(said.split())
    store = spinezarr.open(pair / "two.zarr")
    values = np.zeros(store.scan("a").image.shape, np.uint8)
    with pytest.raises(UsageError, match=r"a_ct\.nii\.gz: lies next to a_ct\.nii"):
        store.export_nifti(out=pair / "out", scans="a", compressed=False, overwrite=True).done[0]
    with pytest.raises(UsageError, match=r"a_seg\.nii\.gz: lies next to a_seg\.nii"):
        store.write_nifti("a", values, pair / "out/a_seg.nii")
    assert names(pair / "out") == ["a_ct.nii.gz", "a_seg.nii.gz"]


def test_wrong_usage_of_export_exits_with_2(pair):
    run("export", "nifti", pair / "none.zarr", "--out", pair / "out", code=2)
    run("export", "nifti", pair / "two.zarr", "--out", pair / "out", "--scan", "c", code=2)
    (pair / "file").write_text("x")
    run("export", "nifti", pair / "two.zarr", "--out", pair / "file", code=2)


def test_the_same_scan_gives_the_same_bytes(pair):
    store = spinezarr.open(pair / "two.zarr")
    found = []
    for name in ("one", "other"):
        (pair / name).mkdir()
        files = store.export_nifti(out=pair / name, scans="a", overwrite=True).done[0].files
        found.append([Path(file).read_bytes() for file in files])
    assert found[0] == found[1]
