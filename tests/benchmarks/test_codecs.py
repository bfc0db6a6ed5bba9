import json
import subprocess
import sys
from pathlib import Path

import pytest

from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.store.layout import PROFILES
from spinezarr.testing import NiftiForm, PhantomSpec, make_phantom, write_nifti

pytestmark = pytest.mark.long

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "codecs.py"
PAIRS = Recipe.from_pairs("{scan}_ct.nii.gz", "{scan}_seg.nii.gz", name="pairs")


def run(*options):
    subprocess.run([sys.executable, SCRIPT, *options], check=True, capture_output=True)


def name_of(spec):
    shuffle = {"noshuffle": "-", "shuffle": "byte", "bitshuffle": "bit"}[spec.shuffle]
    blocks = f" {spec.blocksize // 1024}K" if spec.blocksize else ""
    return f"blosc {spec.cname} {spec.clevel} {shuffle}{blocks}"


def test_the_benchmark_of_codecs_reports_the_stored_bytes_of_a_store(tmp_path):
    phantom = make_phantom(PhantomSpec(shape_zyx=(60, 70, 80), spacing_zyx_mm=(3.0, 4.0, 4.0)))
    raw, figures, png = tmp_path / "raw", tmp_path / "out.json", tmp_path / "out.png"
    image, label = raw / "a_ct.nii.gz", raw / "a_seg.nii.gz"
    write_nifti(image, phantom.image, phantom.affine_xyz, NiftiForm())
    write_nifti(label, phantom.label, phantom.affine_xyz, NiftiForm(dtype="uint8"))
    run(f"{image},{label}", "--quick", "--rounds", "1", "--json", figures, "--png", png)
    rows = json.loads(figures.read_text())["rows"]
    assert {row["array"] for row in rows} == {"image", "label"}
    assert {"blosc lz4hc", "blosc zstd", "zstd", "pcodec"} <= {row["family"] for row in rows}
    for row in rows:
        speeds = [row["decode_mb_s"], *row["patches_s"].values()]
        assert all(0 < speed["min"] <= speed["median"] <= speed["max"] for speed in speeds)
        assert row["encode_mb_s"] > 0
    sizes = {(row["array"], row["codec"]): row["stored_bytes"] for row in rows}
    for name, profile in PROFILES.items():
        out = tmp_path / f"{name}.zarr"
        assert not ingest(PAIRS, discover(PAIRS, str(raw)), str(out), codec=name).failed
        for array in ("image", "label"):
            (shard,) = (out / "scans/a" / array / "c").rglob("0/0/0")
            assert sizes[array, name_of(getattr(profile, array))] == shard.stat().st_size
    second_png = tmp_path / "again.png"
    run("--again", figures, "--png", second_png)
    assert second_png.read_bytes() == png.read_bytes()
    assert png.read_bytes().startswith(b"\x89PNG")
