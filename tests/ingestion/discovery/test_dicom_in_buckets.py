"""Trees of DICOM files in a bucket."""

from collections import Counter

import numpy as np
import pytest

import spinezarr
from spinezarr.ingestion.discovery.dicom_folders import known_folders
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.remote.filesystem import open_filesystem
from spinezarr.testing import HOSPITAL_SCANS, make_phantom, write_hospital

TREE = Recipe.from_pairs("{path:.+}/", None, name="tree")
BY_SERIES = Recipe.from_pairs(
    "{path:.+}/", None, name="tree", scan_id="{path|join}_{series_number}"
)


@pytest.fixture(scope="module")
def raw(s3_server, tmp_path_factory):
    """Return a hospital tree in a bucket, which no test may change."""
    folder = tmp_path_factory.mktemp("hospital")
    write_hospital(folder)
    bucket = s3_server.new_bucket()
    for path in folder.rglob("*"):
        if path.is_file():
            key = f"raw/{path.relative_to(folder)}"
            s3_server.client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())
    s3_server.client.put_object(Bucket=bucket, Key="raw/P0012/20231102/reports/9.txt", Body=b"")
    return f"s3://{bucket}/raw"


def test_series_of_a_bucket_are_scans(s3_server, raw, tmp_path):
    options, out = s3_server.storage_options, str(tmp_path / "s.zarr")
    found = discover(BY_SERIES, raw, options)
    assert len(found.scans) == 3
    report = ingest(BY_SERIES, found, out, raw_options=options)
    assert report.failed == ()
    store = spinezarr.open(out)
    for plan, scan_id in zip(HOSPITAL_SCANS, report.done, strict=True):
        expected = make_phantom(plan.spec).image[:: plan.thinned]
        np.testing.assert_array_equal(store.scan(scan_id).image, expected)


def test_few_requests_find_the_ct_folders_of_a_bucket(s3_server, raw, tmp_path, monkeypatch):
    asked = Counter()
    options, out = s3_server.storage_options, str(tmp_path / "s.zarr")
    fs, _ = open_filesystem(raw, options)  # the object that discovery uses, too
    whole = fs.cat_file

    def cat_file(path, **keys):
        asked[path.split("/raw/")[-1]] += 1
        return whole(path, **keys)

    monkeypatch.setattr(fs, "cat_file", cat_file)
    found = discover(TREE, raw, options)
    assert [scan.scan_id for scan in found.scans] == [
        "P0007_20240115_DICOM", "P0012_20231102_CT_series 302"
    ]  # fmt: skip
    by_folder = Counter(path.rsplit("/", 1)[0] for path in asked)
    assert by_folder == {
        "P0007/20240115/DICOM": 1,
        "P0012/20231102/CT/series 302": 1,
        **{f"{examination}/{folder}": count
           for examination in ("P0007/20240115", "P0012/20231102")
           for folder, count in (("MR", 3), ("reports", 2))},
    }  # fmt: skip
    assert set(asked.values()) == {1}
    ingest(TREE, found, out, raw_options=options)
    asked.clear()
    again = discover(TREE, raw, options, known=known_folders(out))
    assert asked == {}
    assert again.scans == found.scans
