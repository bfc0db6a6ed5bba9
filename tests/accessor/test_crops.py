"""Affine and NIfTI files of a cropped dataset are what nibabel cuts out of the whole."""

import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from opened_scans import WAYS
from small_scans import SCANS, nifti_of

import spinezarr
from spinezarr.errors import UsageError

MANY = settings(max_examples=40, deadline=None)


@st.composite
def crops(draw, shape):
    """Draw a slice with at least one voxel for each axis, which may be reversed."""
    slices = []
    for n in shape:
        start = draw(st.integers(0, n - 1))
        stop = draw(st.integers(start + 1, n))
        step = draw(st.sampled_from([1, 1, 1, 2, 3]))
        # nibabel scales an axis of one voxel by the step, which no dataset can know.
        step = step if len(range(start, stop, step)) > 1 else 1
        part = range(start, stop, step)
        if len(part) > 1 and draw(st.booleans()):
            part = part[::-1]
        end = part[-1] + part.step
        slices.append(slice(part[0], None if end < 0 else end, part.step))
    return tuple(slices)


@st.composite
def cropped_scans(draw):
    name = draw(st.sampled_from(sorted(SCANS)))
    return name, draw(crops(SCANS[name][0])), draw(st.sampled_from(WAYS))


@st.composite
def twice_cropped_scans(draw):
    name, crop, way = draw(cropped_scans())
    shape = [len(range(n)[item]) for n, item in zip(SCANS[name][0], crop, strict=True)]
    second = draw(crops(shape))
    # An axis of one voxel has the spacing of the scan: its coordinate does not tell another.
    lengths = [len(range(n)[item]) for n, item in zip(shape, second, strict=True)]
    assume(all(n > 1 or item.step == 1 for n, item in zip(lengths, crop, strict=True)))
    return name, crop, second, way


def cut(dataset, crop):
    return dataset.isel(dict(zip("zyx", crop, strict=True)))


@pytest.fixture(scope="module")
def exported(small, tmp_path_factory):
    """Return the folder of the NIfTI files of all scans."""
    folder = tmp_path_factory.mktemp("exported")
    store = spinezarr.open(small.url)
    report = store.export_nifti(out=folder, layer=["label", "ribs"], compressed=False)
    assert not report.failed
    return folder


@MANY
@given(cropped_scans())
def test_the_affine_of_a_crop_is_that_of_nibabel(scans, drawn):
    name, crop, way = drawn
    model = nifti_of(scans["loaded"][name]).slicer[crop[::-1]]
    found = cut(scans[way][name], crop).spine.affine
    np.testing.assert_allclose(found, model.affine, rtol=1e-12, atol=1e-12)


@MANY
@given(twice_cropped_scans())
def test_a_crop_of_a_crop_is_a_crop(scans, drawn):
    name, crop, second, way = drawn
    once = cut(scans[way][name], crop)
    model = nifti_of(scans["loaded"][name]).slicer[crop[::-1]].slicer[second[::-1]]
    found = cut(once, second)
    np.testing.assert_allclose(found.spine.affine, model.affine, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_the_affine_of_a_whole_scan_is_its_attribute(scans, way):
    for name, (_, affine) in SCANS.items():
        dataset = scans[way][name]
        np.testing.assert_array_equal(dataset.spine.affine, dataset.attrs["affine"])
        np.testing.assert_allclose(dataset.spine.affine, affine, atol=1e-5)


def test_a_selection_by_mm_and_an_average_of_blocks_keep_positions(scans):
    scan = scans["spinezarr"]["box"]
    part = scan.sel(z=slice(-20, 40), x=slice(3, None))
    start = [int(np.flatnonzero(scan[axis] == part[axis][0]).item()) for axis in "xyz"]
    moved = nib.affines.apply_affine(scan.spine.affine, start)
    np.testing.assert_allclose(part.spine.affine[:3, 3], moved)
    with xr.set_options(keep_attrs=True):
        coarse = scan.coarsen(z=2, y=3, boundary="trim").mean()
    middle = nib.affines.apply_affine(scan.spine.affine, (0, 1, 0.5))
    np.testing.assert_allclose(coarse.spine.affine[:3, 3], middle)
    lengths = np.linalg.norm(coarse.spine.affine[:3, :3], axis=0)
    np.testing.assert_allclose(lengths, np.multiply(scan.attrs["spacing_zyx_mm"], (2, 3, 1))[::-1])


@MANY
@given(cropped_scans(), st.sampled_from([None, "label", "ribs"]))
def test_a_written_crop_is_what_nibabel_cuts_out_of_the_exported_file(
    scans, exported, tmp_path_factory, drawn, layer
):
    name, crop, way = drawn
    dataset = scans[way][name]
    if (layer or "image") not in dataset:
        return
    suffix = {None: "ct", "label": "seg", "ribs": "seg-ribs"}[layer]
    whole = nib.load(exported / f"{name}_{suffix}.nii")
    path = tmp_path_factory.mktemp("crop") / "part.nii"
    cut(dataset, crop).spine.to_nifti(path, layer)
    part = nib.load(path)
    model = nifti_of(dataset, layer or "image").slicer[crop[::-1]]
    found, expected = map(nib.as_closest_canonical, (part, model))
    np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(expected.dataobj))
    np.testing.assert_allclose(found.affine, expected.affine, rtol=1e-5, atol=1e-4)
    assert part.get_data_dtype() == whole.get_data_dtype()
    if all(item.step > 0 for item in crop):
        assert nib.aff2axcodes(part.affine) == nib.aff2axcodes(whole.affine)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SCANS)
def test_a_whole_scan_is_written_as_the_export_writes_it(scans, exported, tmp_path, way, name):
    dataset = scans[way][name]
    for variable, suffix in (("image", "ct"), ("label", "seg"), ("ribs", "seg-ribs")):
        if variable in dataset:
            path = tmp_path / f"{name}_{suffix}.nii"
            dataset.spine.to_nifti(path, None if variable == "image" else variable)
            assert path.read_bytes() == (exported / path.name).read_bytes()


def test_changed_values_are_written_in_a_type_that_holds_them(scans, tmp_path):
    scan = scans["spinezarr"]["box"]
    with xr.set_options(keep_attrs=True):
        scaled = scan.assign(image=scan.image * 1000.5)
        larger = scan.assign(label=scan.label.astype("i4") * 1000)
    for dataset, layer in ((scaled, None), (larger, "label")):
        dataset.isel(z=slice(2, 9)).spine.to_nifti(tmp_path / "a.nii.gz", layer)
        file = nib.as_closest_canonical(nib.load(tmp_path / "a.nii.gz"))
        expected = dataset[layer or "image"][2:9].to_numpy().transpose(2, 1, 0)
        np.testing.assert_array_equal(np.asarray(file.dataobj), expected)
        affine = dataset.isel(z=slice(2, 9)).spine.affine
        np.testing.assert_allclose(file.affine, affine, rtol=1e-5, atol=1e-4)


def test_a_new_variable_is_written_with_the_axes_of_the_store(scans, tmp_path):
    scan = scans["plain xarray"]["oblique"]
    bone = scan.assign(bone=scan.image > 200).isel(y=slice(3, None, 2))
    bone.spine.to_nifti(tmp_path / "bone.nii", "bone")
    file = nib.load(tmp_path / "bone.nii")
    np.testing.assert_array_equal(np.asarray(file.dataobj), bone.bone.to_numpy().transpose(2, 1, 0))
    np.testing.assert_allclose(file.affine, bone.spine.affine, rtol=1e-5, atol=1e-4)


def test_a_file_needs_an_ending_and_no_twin(scans, tmp_path):
    scan = scans["spinezarr"]["voxel"]
    with pytest.raises(UsageError, match=r"must end in \.nii or \.nii\.gz"):
        scan.spine.to_nifti(tmp_path / "a.mha")
    scan.spine.to_nifti(tmp_path / "a.nii")
    with pytest.raises(UsageError, match="lies next to"):
        scan.spine.to_nifti(str(tmp_path / "a.nii.gz"))
    with pytest.raises(UsageError, match=r"has no variable 'ribs' over .* it has image, label"):
        scan.spine.to_nifti(tmp_path / "b.nii", "ribs")


# Datasets that are no scans


def no_attributes(scan):
    return scan.drop_attrs()


def no_coordinates(scan):
    return scan.drop_vars("y")


def reordered(scan):
    return scan.transpose("x", "y", "z")


def single_plane(scan):
    return scan.isel(z=3)


def picked_voxels(scan):
    return scan.isel(x=[1, 2, 5])


def same_voxel_twice(scan):
    return scan.isel(x=[3, 3])


def no_voxel(scan):
    return scan.isel(y=slice(0))


def nan_coordinates(scan):
    return scan.assign_coords(z=np.full(scan.sizes["z"], np.nan))


def text_coordinates(scan):
    return scan.assign_coords(z=[f"plane {n}" for n in range(scan.sizes["z"])])


def singular_affine(scan):
    return scan.assign_attrs(affine=np.zeros((4, 4)).tolist())


def wrong_affine(scan):
    return scan.assign_attrs(affine="RAS")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_attributes, "no attribute 'affine'.*keep_attrs"),
        (no_coordinates, "scan 'box': has no coordinate 'y'"),
        (single_plane, r"reduced to a single position.*dataset\.isel\(z=\[index\]\)"),
        (picked_voxels, "positions along 'x' are not evenly spaced.*Cut by slices"),
        (same_voxel_twice, "positions along 'x' are not evenly spaced"),
        (no_voxel, "has no voxel along 'y'"),
        (nan_coordinates, "positions along 'z' are not evenly spaced"),
        (text_coordinates, "coordinate 'z' must have numbers in mm"),
        (singular_affine, "no invertible 4 x 4 matrix"),
        (wrong_affine, "no invertible 4 x 4 matrix"),
    ],
)
def test_a_dataset_that_is_no_scan_is_refused_with_a_next_step(scans, tmp_path, change, message):
    dataset = change(scans["plain xarray"]["box"])
    for use in (
        lambda: dataset.spine.affine,
        lambda: dataset.spine.to_nifti(tmp_path / "a.nii"),
        dataset.spine.plot,
        lambda: dataset.spine.resample(2),
        lambda: dataset.spine.sel_vertebra("L1"),
        dataset.spine.window,
        dataset.spine.view,
    ):
        with pytest.raises(UsageError, match=message):
            use()
    assert not (tmp_path / "a.nii").exists()


def test_reordered_dimensions_are_refused(scans, tmp_path):
    dataset = reordered(scans["spinezarr"]["box"])
    message = r"'image' has the dimensions \(x, y, z\), expected.*dataset\.transpose"
    for use in (
        lambda: dataset.spine.to_nifti(tmp_path / "a.nii"),
        dataset.spine.plot,
        dataset.spine.window,
    ):
        with pytest.raises(UsageError, match=message):
            use()
    with pytest.raises(UsageError, match="'label' has the dimensions"):
        dataset.spine.sel_vertebra("L1")
    with pytest.raises(UsageError, match=r"expected \(z, y, x\)"):
        dataset.spine.resample(2)


def test_the_table_of_a_store_is_no_scan(small):
    with pytest.raises(UsageError, match="no attribute 'affine'"):
        _ = spinezarr.open(small.url).table.spine.affine
