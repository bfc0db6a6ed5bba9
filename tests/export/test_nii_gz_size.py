import gzip

import nibabel as nib
import numpy as np
import pytest

from spinezarr.export.nii_gz_size import estimate_nii_gz_bytes
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.store.reader import StoreReader
from spinezarr.stream.read.engine import Engine
from spinezarr.stream.read.fetch import fetcher_for

SHAPES = [(160, 150, 30), (70, 30, 1), (33, 44, 25)]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Return a store of three scans, one without mask, and their compressed sizes in bytes."""
    folder = tmp_path_factory.mktemp("sizes")
    rng = np.random.default_rng(0)
    sizes = {}
    for name, shape in zip("abc", SHAPES, strict=True):
        noise = 60 if name == "a" else 5
        image = rng.normal(0, noise, shape).astype("float32" if name == "c" else "int16")
        image[image > 2 * noise] = 0
        arrays = {"ct": image}
        if name != "b":
            arrays["seg"] = (rng.random(shape) > 0.9).astype(np.uint8) * 20
        sizes[name] = 0
        for kind, array in arrays.items():
            nib.save(nib.Nifti1Image(array, np.diag([1, 1, 2, 1])), folder / f"{name}_{kind}.nii")
            sizes[name] += len(gzip.compress(array.tobytes(order="F"), 6))
    text = (
        "name: sizes\ntitle: Sizes\nlicense: x\ncitation: x\n"
        "labels: {scheme: canonical, state: unknown}\n"
        "layouts: {x: {description: x, image: '{scan}_ct.nii', label: '{scan}_seg.nii', "
        "mask: optional}}"
    )
    (folder / "sizes.yaml").write_text(text)
    recipe = Recipe.load(str(folder / "sizes.yaml"))
    report = ingest(recipe, discover(recipe, str(folder)), str(folder / "s.zarr"))
    assert not report.failed
    return StoreReader(str(folder / "s.zarr")), sizes


@pytest.mark.parametrize("n_slices", [1, 3, 8, 1000])
@pytest.mark.parametrize("scans", ["a", "b", "c"])
def test_the_size_of_one_scan_is_estimated_from_a_few_slices(packed, scans, n_slices):
    reader, sizes = packed
    engine = Engine(fetcher_for(reader.objects))
    estimate = estimate_nii_gz_bytes(reader, engine, list(scans), n_slices=n_slices)
    assert estimate == pytest.approx(sizes[scans], rel=0.06)


def test_sizes_of_several_scans_are_added_up(packed):
    reader, sizes = packed
    engine = Engine(fetcher_for(reader.objects))
    estimate = estimate_nii_gz_bytes(reader, engine, ["a", "b", "c"], n_slices=9)
    assert estimate == pytest.approx(sum(sizes.values()), rel=0.25)
