"""The limits that a user sets are applied by the readers."""

import json
import re

import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from typer.testing import CliRunner

from spinezarr.cli.main import app
from spinezarr.formats.limits import Limits
from spinezarr.ingestion.discovery.annotations import read_companion_files
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.recipe import Recipe
from spinezarr.testing import NiftiForm, write_nifti

VALUES = np.zeros((12, 10, 10), np.int16)


def ingest(tmp_path, *options):
    for name in ("a_ct", "a_seg"):
        write_nifti(tmp_path / "raw" / f"{name}.nii", VALUES, np.eye(4), NiftiForm())
    words = ["ingest", "pairs", "--raw", tmp_path / "raw", "--out", tmp_path / "s.zarr", "--json"]
    words += ["--image", "{scan}_ct.nii", "--label", "{scan}_seg.nii", *options]
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, json.loads(result.stdout)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            ["--max-axis-voxels", 11],
            "expected at most 11 along an axis. If that is true, raise --max-axis-voxels",
        ),
        (
            ["--max-volume-gb", 2.3e-6],
            "expected at most 0.0 GB. If that is true, raise --max-volume-gb",
        ),
    ],
)
def test_a_scan_over_a_limit_fails_and_names_the_option(options, reason, tmp_path):
    code, report = ingest(tmp_path, *options)
    assert code == 1
    (failed,) = report["failed"]
    assert re.search(
        rf"a_ct\.nii: its header names \(10, 10, 12\) voxels.*{reason}", failed["reason"]
    )


def test_a_scan_at_the_limits_is_ingested(tmp_path):
    code, report = ingest(tmp_path, "--max-axis-voxels", 12, "--max-volume-gb", 2.4e-6)
    assert (code, report["done"]) == (0, ["a"])


def test_a_sidecar_or_table_over_its_limit_fails_no_scan(tmp_path):
    raw = tmp_path / "raw"
    write_nifti(raw / "a.nii", VALUES, np.eye(4), NiftiForm())
    (raw / "a.json").write_text('{"key": "text"}')
    recipe = Recipe.from_pairs("{scan}.nii", None, name="x")
    known = recipe.layouts["pairs"].model_copy(
        update={"sidecar": ("{scan}.json",), "sidecar_keys": ("key",)}
    )
    recipe = recipe.model_copy(update={"layouts": {"pairs": known}})
    (source,) = discover(recipe, str(raw)).scans
    fs = LocalFileSystem()
    assert read_companion_files(fs, str(raw), source, Limits(annotation_bytes=15)).sidecar
    companions = read_companion_files(fs, str(raw), source, Limits(annotation_bytes=14))
    assert not companions.sidecar
    assert "was ignored: " in companions.notes[0]
    assert "more than 14 bytes" in companions.notes[0]
