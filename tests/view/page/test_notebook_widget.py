"""The widget of a notebook draws its masks, in a browser."""

import io

import nibabel as nib
import numpy as np
import pytest
from notebook_host import show_widget
from PIL import Image

import spinezarr
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.vertebrae import VALUE_OF_NAME, vertebra_color

pytestmark = pytest.mark.long
SHAPE_XYZ = (32, 32, 32)
BLOCKS = {
    "label": ("L1", np.s_[6:26, 6:26, 20:30]),
    "prediction": ("T12", np.s_[6:26, 6:26, 4:14]),
}
"""Vertebra of each mask, and where it lies; both are in the planes that the widget shows first."""
SHADE_ERROR = 3
KNOWN_MESSAGES = ("niivue-warn", "onChange is not a function")
"""Messages that the script of ipyniivue writes in this page, whatever is shown."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Write a scan of black voxels with two masks."""
    folder = tmp_path_factory.mktemp("notebook")
    masks = {name: np.zeros(SHAPE_XYZ, np.uint8) for name in BLOCKS}
    for name, (vertebra, block) in BLOCKS.items():
        masks[name][block] = VALUE_OF_NAME[vertebra]
    image = np.full(SHAPE_XYZ, -1000, np.int16)
    for name, voxels in (("a_ct", image), ("a_seg", masks["label"])):
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / f"{name}.nii.gz")
    recipe = Recipe.from_pairs("{scan}_ct.nii.gz", "{scan}_seg.nii.gz", name="notebook")
    ingest(recipe, discover(recipe, str(folder)), str(folder / "notebook.zarr"))
    spinezarr.open(folder / "notebook.zarr").write_labels("a", "prediction", masks["prediction"].T)
    return spinezarr.open(folder / "notebook.zarr")


@pytest.mark.parametrize(("mask", "outline"), [("label", "prediction"), ("prediction", "label")])
def test_the_widget_fills_one_mask_and_outlines_another(page, store, mask, outline):
    show_widget(page, store.view("a", mask=mask, outline=outline, height_px=600).widget)
    with Image.open(io.BytesIO(page.locator("canvas").screenshot())) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    side = pixels.shape[0] // 2
    middle = pixels.shape[1] // 2
    sagittal = pixels[:side, middle : middle + side]
    filled, outlined = (
        255 * np.array(vertebra_color(VALUE_OF_NAME[BLOCKS[m][0]])) for m in (mask, outline)
    )
    is_filled, is_outlined = (
        (np.abs(sagittal - color).max(axis=2) <= SHADE_ERROR) for color in (filled / 2, outlined)
    )
    assert is_filled.sum() > side**2 / 10
    rows, columns = np.nonzero(is_outlined)
    assert len(rows)
    inside = sagittal[rows.min() : rows.max(), columns.min() : columns.max()]
    centers = inside[
        len(inside) // 4 : -len(inside) // 4, inside.shape[1] // 4 : inside.shape[1] // 2
    ]
    assert (centers == 0).all()
    page.logged_errors = [
        text for text in page.logged_errors if not any(known in text for known in KNOWN_MESSAGES)
    ]
