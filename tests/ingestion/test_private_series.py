"""A store of a hospital tree holds only those fields of its series that the recipe uses."""

import pytest

from spinezarr.ingestion.discovery.dicom_folders import known_folders
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.pseudonyms import apply_pseudonyms, map_file
from spinezarr.ingestion.run import ingest
from spinezarr.ingestion.scan import ScanOptions
from spinezarr.recipe import Recipe
from spinezarr.testing import HOSPITAL_SCANS, write_hospital

RECIPE = """\
name: hospital
title: Hospital
license: none
citation: none
layouts:
  archive:
    description: "any"
    image: "{patient}/{date}/{rest:.+}/"
    series: {description: "*"}
scan_id: "{patient}_{date}_SCAN_ID"
labels: {scheme: canonical, state: unknown}
"""
FREE_TEXTS = [plan.description for plan in HOSPITAL_SCANS]
UIDS = ["2.25.120240115", "2.25.120231102"]


@pytest.fixture
def hospital(tmp_path):
    write_hospital(tmp_path / "raw")

    def recipe(scan_id):
        (tmp_path / "hospital.yaml").write_text(RECIPE.replace("SCAN_ID", scan_id))
        return Recipe.load(str(tmp_path / "hospital.yaml"))

    return tmp_path, recipe


def test_a_store_holds_no_free_text_and_only_the_fields_used_in_ids(hospital, bytes_of_store):
    folder, recipe = hospital
    recipe = recipe("{series_number}")
    found = discover(recipe, str(folder / "raw"))
    report = ingest(recipe, found, str(folder / "s.zarr"))
    assert len(report.done) == 3
    stored = bytes_of_store(folder / "s.zarr")
    for secret in (*FREE_TEXTS, "Br38f", "Br59f", "BONE"):
        assert secret.encode() not in stored
    # In one folder slices are named by their UIDs, and those names are not stored.
    assert not any(uid.encode() in stored for uid in [*UIDS, "2.25."])


def test_pseudonyms_hide_the_fields_that_ids_are_made_of(hospital, bytes_of_store):
    folder, recipe = hospital
    recipe = recipe("{kernel}_{series_uid}")
    out = str(folder / "s.zarr")
    for _ in range(2):
        found = discover(recipe, str(folder / "raw"), known=known_folders(out))
        keys = [scan.series.key for scan in found.scans]
        found, names = apply_pseudonyms(found, recipe, out, map_file(out, None))
        report = ingest(recipe, found, out, options=ScanOptions(pseudonyms=names))
        assert report.failed == ()
    assert len(report.skipped) == 3
    assert known_folders(out) == {}
    stored = bytes_of_store(folder / "s.zarr")
    for secret in (*FREE_TEXTS, *UIDS, *keys, "2.25.", "Br38f", "BONE", "P0007"):
        assert secret.encode() not in stored
