"""Third-party programs read scans as OME-Zarr images, and place them where they lie.

``ngff-zarr``, with the schemas of the specification, is installed for development. The others pin
an old pydantic, so they have an extra and an environment of their own: ``make test-ome``.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import pytest
import zarr

import spinezarr
from spinezarr.serve.limits import ServeLimits
from spinezarr.serve.run import BackgroundServer
from spinezarr.serve.settings import ServeSettings
from spinezarr.view.levels import levels_of

SCAN = "liver_0"
APART = "has an environment of its own: make test-ome"


@dataclass(frozen=True)
class Expected:
    """The stored voxels, and where they lie."""

    url: str
    sha256: tuple[str, str]
    at_mm: tuple[float, float, float]
    """Position of voxel AT by the affine, (z, y, x)."""


AT = (5, 11, 7)


def sha256(voxels):
    return hashlib.sha256(np.ascontiguousarray(voxels).tobytes()).hexdigest()


@pytest.fixture(scope="module", params=["served", "written"])
def expected(request, ctspine1k_url, tmp_path_factory):
    """Serve the image of a scan, or write it to disk; return where it is, and the stored values."""
    store = spinezarr.open(ctspine1k_url)
    scan = store.scan(SCAN)
    x, y, z, _ = store._reader.scan(SCAN).affine @ [*AT[::-1], 1]
    voxels = (sha256(scan.image.values), sha256(scan.label.values))
    if request.param == "written":
        folder = tmp_path_factory.mktemp("written")
        store.export_ome_zarr(out=folder, scans=SCAN)
        yield Expected(str(folder / f"{SCAN}.ome.zarr"), voxels, (z, y, x))
        return
    with BackgroundServer(ServeSettings(paths=(ctspine1k_url,))) as server:
        yield Expected(f"{server.url}/ome/ctspine1k/{SCAN}.ome.zarr", voxels, (z, y, x))


def place(transformations):
    scale, move = transformations
    return np.array(AT) * scale["scale"] + move["translation"]


@pytest.mark.parametrize(
    ("folder", "kind"),
    [("", "image"), ("labels/vertebrae", "image"), ("labels/vertebrae", "label")],
)
@pytest.mark.parametrize("strict", [False, True])
def test_metadata_follow_the_schemas_of_the_specification(expected, folder, kind, strict):
    validate = pytest.importorskip("ngff_zarr.validate").validate
    root = zarr.open_group(expected.url, mode="r", zarr_format=3)
    attributes = (root[folder] if folder else root).attrs.asdict()
    validate({"ome": attributes["ome"]}, version="0.5", model=kind, strict=strict)


@pytest.mark.filterwarnings("ignore")
def test_ngff_zarr_reads_the_image(expected):
    ngff_zarr = pytest.importorskip("ngff_zarr")
    image = ngff_zarr.from_ngff_zarr(expected.url, validate=True).images[0]
    mask = ngff_zarr.from_ngff_zarr(f"{expected.url}/labels/vertebrae").images[0]
    found = tuple(sha256(np.asarray(one.data)) for one in (image, mask))
    assert found == expected.sha256
    at = [image.translation[d] + image.scale[d] * i for d, i in zip("zyx", AT, strict=True)]
    np.testing.assert_allclose(at, expected.at_mm)
    assert image.axes_units == dict.fromkeys("zyx", "millimeter")
    turned = {axis: one.value.value for axis, one in image.axes_orientations.items()}
    assert turned == {
        "z": "inferior-to-superior",
        "y": "posterior-to-anterior",
        "x": "left-to-right",
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("folder", "array"), [("", "image"), ("/labels/vertebrae", "label")])
def test_the_itk_image_of_ngff_zarr_lies_in_place(ctspine1k_url, folder, array):
    """Slicer's extension computes the same matrix as ngff-zarr's conversion for ITK.

    If ngff-zarr converts translations one day, this fails, and the tree for ITK can go.
    """
    ngff_zarr = pytest.importorskip("ngff_zarr")
    limits = ServeLimits(coarsest_level_voxels=500)
    store = spinezarr.open(ctspine1k_url)
    plan = levels_of(store._reader.scan(SCAN), 500)
    stored = getattr(store.scan(SCAN), array).values
    assert (stored != stored[..., ::-1]).any()  # left and right differ
    with BackgroundServer(ServeSettings(paths=(ctspine1k_url,), limits=limits)) as server:
        url = f"{server.url}/ome/ctspine1k/itk/{SCAN}.ome.zarr{folder}"
        images = ngff_zarr.from_ngff_zarr(url, validate=True).images
        assert len(images) == len(plan) > 1
        for level, image in zip(plan, images, strict=True):
            found = ngff_zarr.ngff_image_to_itk_image(image, wasm=True)
            lps_mm = found.origin + found.direction @ np.multiply(found.spacing, AT[::-1])
            expected_mm = level.affine @ [*AT[::-1], 1]
            np.testing.assert_allclose(lps_mm, expected_mm[:3] * (-1, -1, 1))
            if level.level == 0:
                np.testing.assert_array_equal(found.data, stored)


@pytest.mark.filterwarnings("ignore")
def test_ome_zarr_models_reads_the_metadata(expected):
    models = pytest.importorskip("ome_zarr_models", reason=APART)
    root = zarr.open_group(expected.url, mode="r", zarr_format=3)
    image = models.open_ome_zarr(root)
    assert type(image).__module__ == "ome_zarr_models.v05.image"
    assert image.labels.attributes.ome.labels == ["vertebrae"]
    assert type(models.open_ome_zarr(root["labels/vertebrae"])).__name__ == "ImageLabel"


@pytest.mark.filterwarnings("ignore")
def test_ome_zarr_py_reads_the_image(expected):
    io = pytest.importorskip("ome_zarr.io", reason=APART)
    reader = pytest.importorskip("ome_zarr.reader", reason=APART)
    nodes = [node for node in reader.Reader(io.parse_url(expected.url))() if node.data]
    assert tuple(sha256(np.asarray(node.data[0])) for node in nodes) == expected.sha256
    for node in nodes:
        at = place(node.metadata["coordinateTransformations"][0])
        np.testing.assert_allclose(at, expected.at_mm)


@pytest.mark.filterwarnings("ignore")
def test_napari_shows_the_image_in_place(expected):
    """The plugin for OME-Zarr gives the viewer layers, whose transforms place them in the world."""
    plugin = pytest.importorskip("napari_ome_zarr", reason=APART)
    layers = plugin.napari_get_reader(expected.url)(expected.url)
    assert [kind for _, _, kind in layers] == ["image", "labels"]
    found = tuple(sha256(np.asarray(data[0])) for data, _, _ in layers)
    assert found == expected.sha256
    kinds = pytest.importorskip("napari.layers", reason=APART)
    for (data, about, _), kind in zip(layers, (kinds.Image, kinds.Labels), strict=True):
        layer = kind(data, **about)
        np.testing.assert_allclose(layer.data_to_world(AT), expected.at_mm)
