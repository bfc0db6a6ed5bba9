"""Images whose scaled values int16 cannot hold: the file's own numbers are stored."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st

import spinezarr
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.ingestion.scan import ScanOptions
from spinezarr.ingestion.voxels.memory import MemoryBudget
from spinezarr.recipe import Recipe
from spinezarr.scaling import Scaling
from spinezarr.testing import DicomForm, NiftiForm, write_dicom_series, write_nifti
from spinezarr.verify.source import compare_with_source
from spinezarr.verify.store import verify_store

IMAGES = Recipe.from_pairs("{scan}_ct.nii", None, name="images")
STORED = {"byte": "uint8", "half": "int16", "word": "uint16", "thin": "float32", "down": "int8"}
AFFINE = np.diag([0.8, 0.9, 2.5, 1.0])


def run(raw, out, recipe=IMAGES, **options):
    report = ingest(recipe, discover(recipe, str(raw)), str(out), options=ScanOptions(**options))
    assert not report.failed, report.failed
    return report


def assert_same_bits(found, expected):
    """Compare bit for bit, with the sign of zero; any NaN equals any other, in any byte order."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.dtype == expected.dtype.newbyteorder("=")
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))


def raw_numbers_zyx(path):
    image = nib.load(path, mmap=False)
    plain = nib.Nifti1Image(image.dataobj.get_unscaled(), image.affine)
    return np.asarray(nib.as_closest_canonical(plain).dataobj).transpose(2, 1, 0)


@pytest.mark.parametrize("name", STORED)
def test_the_array_holds_the_stored_numbers_of_the_file(odd, name):
    array = zarr.open_array(f"{odd.url}/scans/{name}/image", mode="r")
    expected = raw_numbers_zyx(odd.raw / f"{name}_ct.nii")
    assert array.dtype == np.dtype(STORED[name]).newbyteorder("<")
    np.testing.assert_array_equal(array[:], expected)


@pytest.mark.parametrize("name", [*STORED, "plain", "holes", "sieve"])
def test_xarray_and_our_reader_return_the_values_of_nibabel_bit_for_bit(odd, name):
    plain = xr.open_zarr(f"{odd.url}/scans/{name}")
    ours = spinezarr.open(odd.url).scan(name)
    for scan in (plain, ours):
        assert_same_bits(scan.image, odd.image[name])
    assert plain.image.attrs == ours.image.attrs == {"long_name": "CT number", "units": "HU"}


@settings(max_examples=40)
@example(dtype="uint16", slope=1.0, inter=0.0, version=1, big_endian=True, seed=0)
@given(
    dtype=st.sampled_from(["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32"]),
    slope=st.sampled_from([0.3, -0.37, 1e-3, 1 / 3, 1.0, 2.0, 7.25]),
    inter=st.sampled_from([0.0, -1024.0, 0.1, 3.3, -1e6]),
    version=st.sampled_from([1, 2]),
    big_endian=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_any_scaling_returns_the_values_of_nibabel_bit_for_bit(
    tmp_path_factory, dtype, slope, inter, version, big_endian, seed
):
    folder = tmp_path_factory.mktemp("scaled")
    rng = np.random.default_rng(seed)
    limits = np.iinfo(dtype) if dtype != "float32" else None
    shape = tuple(rng.integers(1, 9, 3))
    numbers = (
        rng.normal(0, 1e4, shape).astype(dtype)
        if limits is None
        else rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    )
    numbers.flat[0] = 0
    header = (nib.Nifti1Header, nib.Nifti2Header)[version - 1](endianness="<>"[big_endian])
    header.set_data_dtype(np.dtype(dtype))
    header.set_data_shape(shape)
    header.set_sform(AFFINE, code=1)
    header["magic"], header["vox_offset"] = header.single_magic, header.single_vox_offset
    header["scl_slope"], header["scl_inter"] = slope, inter
    voxels = numbers.astype(numbers.dtype.newbyteorder("<>"[big_endian])).tobytes(order="F")
    (folder / "a_ct.nii").write_bytes(header.binaryblock + bytes(4) + voxels)
    run(folder, folder / "s.zarr")
    expected = np.asarray(nib.load(folder / "a_ct.nii").dataobj).transpose(2, 1, 0)
    store = spinezarr.open(folder / "s.zarr")
    scan = xr.open_zarr(folder / "s.zarr/scans/a")
    if store.table.image_dtype.item() == "int16":
        np.testing.assert_array_equal(scan.image, expected)
    else:
        assert_same_bits(scan.image, expected)
        assert_same_bits(store.scan("a").image, expected)
        if expected.dtype != dtype:
            assert store.table.image_stored_dtype.item() == dtype
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", STORED)
def test_table_attributes_and_report_describe_the_scaling(odd, name):
    table = spinezarr.open(odd.url).table.sel(scan=name)
    assert table.image_dtype.item() == "float64"
    assert table.image_stored_dtype.item() == STORED[name]
    assert table.image_min_hu.item() == odd.image[name].min()
    assert table.image_max_hu.item() == odd.image[name].max()
    scaling = nib.load(odd.raw / f"{name}_ct.nii").dataobj
    attributes = spinezarr.open(odd.url).scan(name).attrs
    assert attributes["image_scaling"] == [scaling.slope, scaling.inter]
    words = (
        f"the image was stored as the file's {STORED[name]} with its slope {scaling.slope:g} and "
    )
    (note,) = (note for note in odd.notes[name] if note.startswith(words))
    assert f"intercept {scaling.inter:g}, because it holds " in note
    assert note.endswith(", which int16 cannot hold")
    metadata = json.loads(Path(odd.url, "scans", name, "image/zarr.json").read_text())
    for key in ("scale_factor", "add_offset"):
        assert isinstance(metadata["attributes"].get(key, 0.0), float)


def test_an_ordinary_image_has_no_scaling(odd):
    store = spinezarr.open(odd.url)
    attributes = store.scan("plain").attrs
    assert (attributes["image_stored_dtype"], attributes["image_scaling"]) == ("int16", None)
    assert "scale_factor" not in zarr.open_array(f"{odd.url}/scans/plain/image").attrs


def test_a_scaled_image_that_fits_int16_is_stored_as_int16(tmp_path):
    values = np.arange(-500, 500, 2).reshape(5, 10, 10).astype(float)
    form = NiftiForm("LPS", "uint16", slope=2, inter=-500)
    write_nifti(tmp_path / "a_ct.nii", values, AFFINE, form)
    report = run(tmp_path, tmp_path / "s.zarr")
    assert report.notes == {}
    assert zarr.open_array(f"{tmp_path}/s.zarr/scans/a/image").dtype == np.int16


@pytest.mark.parametrize(("dtype", "kept"), [("float64", "float64"), ("int64", "float64")])
def test_values_are_stored_if_the_numbers_of_the_file_are_as_wide(tmp_path, dtype, kept):
    values = np.arange(500).reshape(5, 10, 10) * 0.5
    write_nifti(tmp_path / "a_ct.nii", values, AFFINE, NiftiForm("LPS", dtype, slope=0.5))
    report = run(tmp_path, tmp_path / "s.zarr")
    assert report.notes["a"][0].startswith(f"the image was kept as {kept}, because it holds ")
    assert zarr.open_array(f"{tmp_path}/s.zarr/scans/a/image").dtype == kept


def test_a_scaling_that_overflows_is_refused(tmp_path):
    header = nib.Nifti2Header()
    header.set_data_dtype(np.int16)
    # The overflow comes after slabs that have shown that int16 is too narrow.
    header.set_data_shape((3, 3, 150))
    header.set_sform(AFFINE, code=1)
    header["magic"], header["vox_offset"] = header.single_magic, header.single_vox_offset
    header["scl_slope"] = 1e306
    numbers = np.full(9 * 150, 1, "<i2")
    for largest, refused in ((100, False), (32000, True)):
        numbers[-1] = largest
        content = header.binaryblock + bytes(4) + numbers.tobytes()
        (tmp_path / "a_ct.nii").write_bytes(content)
        store = tmp_path / f"{largest}.zarr"
        report = ingest(IMAGES, discover(IMAGES, str(tmp_path)), str(store))
        assert bool(report.failed) == refused
    assert "scale a voxel beyond the range of numbers" in report.failed[0].reason


def test_checksums_are_equal_if_and_only_if_the_values_are(tmp_path):
    numbers = np.random.default_rng(1).integers(0, 255, (70, 20, 20))
    forms = {
        "a": NiftiForm("LPS", "uint8", slope=0.5, inter=-10),
        "b": NiftiForm("PIR", "int16", slope=0.5, inter=-10),
        "c": NiftiForm("LPS", "float64"),
        "d": NiftiForm("LPS", "uint8", slope=0.5, inter=-11),
        "e": NiftiForm("LPS", "uint8", slope=0.25, inter=-10),
    }
    for name, form in forms.items():
        slope, inter = form.slope or 0.5, -10 if form.inter is None else form.inter
        write_nifti(tmp_path / f"{name}_ct.nii", numbers * slope + inter, AFFINE, form)
    run(tmp_path, tmp_path / "s.zarr")
    table = spinezarr.open(tmp_path / "s.zarr").table
    assert table.image_stored_dtype.to_numpy().tolist() == [
        "uint8",
        "int16",
        "float64",
        "uint8",
        "uint8",
    ]
    a, b, c, d, e = table.image_checksum.to_numpy().tolist()
    assert a == b == c
    assert len({a, d, e}) == 3


def test_the_memory_budget_changes_no_byte(odd, tmp_path):
    recipe = Recipe.from_pairs("{scan}_ct.nii", "{scan}_seg.nii", name="odd")
    run(odd.raw, tmp_path / "s.zarr", recipe, memory=MemoryBudget(9, 9, 0))
    for name in STORED:
        for path in sorted((tmp_path / "s.zarr/scans" / name / "image").rglob("*")):
            if path.is_file():
                twin = Path(odd.url) / path.relative_to(tmp_path / "s.zarr")
                assert path.read_bytes() == twin.read_bytes()


def test_verify_against_the_sources_finds_them_equal(odd):
    assert not verify_store(odd.url).faults
    assert compare_with_source(odd.url, [str(odd.raw)], list(odd.image)).faults == ()


def test_verify_reports_another_scaling_in_the_source(odd, tmp_path):
    raw = shutil.copytree(odd.raw, tmp_path / "raw")
    data = bytearray((raw / "byte_ct.nii").read_bytes())
    data[112:116] = np.float32(0.3001).tobytes()
    (raw / "byte_ct.nii").write_bytes(data)
    faults = compare_with_source(odd.url, [str(raw)], ["byte"]).faults
    assert {fault.kind for fault in faults} == {"source", "voxels"}


def test_a_repeated_run_reads_nothing_and_amending_keeps_the_scaling(odd, tmp_path):
    store = shutil.copytree(odd.url, tmp_path / "s.zarr")
    recipe = Recipe.from_pairs("{scan}_ct.nii", "{scan}_seg.nii", name="odd")
    assert len(run(odd.raw, store, recipe).skipped) == len(odd.image)
    renamed = recipe.model_copy(update={"citation": "another one"})
    assert len(run(odd.raw, store, renamed).updated) == len(odd.image)
    assert not verify_store(str(store)).faults
    assert_same_bits(xr.open_zarr(store / "scans/byte").image, odd.image["byte"])


@pytest.mark.parametrize("name", [*STORED, "sieve"])
def test_exports_restore_the_file_bit_for_bit(odd, tmp_path, name):
    done = (
        spinezarr.open(odd.url)
        .export_nifti(out=tmp_path, scans=name, compressed=False, overwrite=True)
        .done[0]
    )
    assert done.notes == ()
    found, expected = nib.load(done.files[0]), nib.load(odd.raw / f"{name}_ct.nii")
    assert found.get_data_dtype() == expected.get_data_dtype()
    assert found.dataobj.slope == expected.dataobj.slope
    assert found.dataobj.inter == expected.dataobj.inter
    numbers = [np.asarray(image.dataobj.get_unscaled()) for image in (found, expected)]
    assert numbers[0].tobytes() == numbers[1].tobytes()
    assert found.affine.tobytes() == expected.affine.tobytes()


# DICOM


@pytest.mark.parametrize(
    ("form", "stored"),
    [
        (DicomForm(slope=0.5, intercept=-1000.25), "uint16"),
        (DicomForm(slope=0.1, intercept=0, signed=True), "int16"),
        (DicomForm(slope=1.0, intercept=-1000.5), "uint16"),
    ],
)
def test_a_series_of_one_fractional_scaling_keeps_its_numbers(tmp_path, form, stored):
    limits = np.iinfo(stored)
    numbers = np.random.default_rng(4).integers(limits.min, limits.max, (6, 7, 5), endpoint=True)
    values = numbers * form.slope + form.intercept
    write_dicom_series(tmp_path / "raw/a", values, AFFINE, form)
    recipe = Recipe.from_pairs("{scan}/", None, name="series")
    report = run(tmp_path / "raw", tmp_path / "s.zarr", recipe)
    words = f"stored as the file's {stored} with its slope {form.slope:g}"
    assert words in " ".join(report.notes["a"])
    array = zarr.open_array(f"{tmp_path}/s.zarr/scans/a/image")
    assert array.dtype == stored
    store = spinezarr.open(tmp_path / "s.zarr")
    for scan in (xr.open_zarr(tmp_path / "s.zarr/scans/a"), store.scan("a")):
        np.testing.assert_array_equal(np.sort(scan.image, None), np.sort(values, None))
    assert (
        compare_with_source(str(tmp_path / "s.zarr"), [str(tmp_path / "raw")], ["a"]).faults == ()
    )
    (file,) = store.export_nifti(out=tmp_path, scans="a", overwrite=True).done[0].files
    exported = np.asarray(nib.as_closest_canonical(nib.load(file)).dataobj).transpose(2, 1, 0)
    np.testing.assert_array_equal(exported, scan.image)


def test_a_series_of_whole_numbers_stays_whole(tmp_path):
    values = np.arange(0, 64000, 305).reshape(6, 7, 5)
    write_dicom_series(tmp_path / "raw/a", values, AFFINE, DicomForm())
    run(tmp_path / "raw", tmp_path / "s.zarr", Recipe.from_pairs("{scan}/", None, name="series"))
    assert zarr.open_array(f"{tmp_path}/s.zarr/scans/a/image").dtype == np.int32


# Arithmetic


@given(
    st.sampled_from(["u1", "i2", "<i4", ">i2", "f4", ">f4"]),
    st.floats(-10, 10).filter(bool),
    st.floats(-2000, 2000),
    st.sampled_from(["f4", "f8", ">f8", "i2"]),
)
def test_values_for_any_output_type_are_computed_in_float64(dtype, slope, inter, out_dtype):
    numbers = np.arange(240).astype(dtype).reshape(6, 5, 8)
    scaling = Scaling(slope, inter)
    expected = numbers.astype(np.float64) * slope + inter
    if not inter:
        expected = numbers.astype(np.float64) * slope
    assert scaling.values(numbers).dtype == np.float64
    np.testing.assert_array_equal(scaling.values(numbers), expected)
    around = np.zeros((8, 12, 6), out_dtype)
    out = around[:, ::2].transpose(2, 1, 0)[:, :5]
    scaling.values_into(numbers, out)
    np.testing.assert_array_equal(out, expected.astype(out_dtype))
    assert not around[:, 1::2].any()


def test_large_and_empty_blocks_are_scaled_alike():
    numbers = np.arange(2 * 700 * 600, dtype=np.int32).reshape(2, 700, 600)
    out = np.empty(numbers.shape, np.float32)
    Scaling(0.1, 5).values_into(numbers, out)
    np.testing.assert_array_equal(out, (numbers * np.float64(0.1) + 5).astype(np.float32))
    Scaling(0.1, 5).values_into(numbers[:0], out[:0])
    Scaling(0.1, 5).values_into(numbers[:, :0], out[:, :0])


def test_attributes_of_a_scaling_survive_a_round_trip():
    for scaling in (Scaling(0.3, -10.0), Scaling(2.0, 0.0), Scaling(-1e-30, 1e30)):
        assert Scaling.of_attributes(json.loads(json.dumps(scaling.attributes))) == scaling
    assert Scaling.of_attributes({"units": "HU"}) is None
