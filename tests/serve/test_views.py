"""Tests of the data that a page gets to show a scan."""

import gzip
import json
import shutil
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
from http_client import fetch

import spinezarr
from spinezarr.errors import CorruptStoreError
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.serve.run import BackgroundServer
from spinezarr.serve.settings import ServeSettings
from spinezarr.store.audit_log import (
    SEVERITIES,
    AuditedScan,
    AuditLog,
    FindingRecord,
    scan_identity,
)
from spinezarr.testing import NiftiForm, write_nifti
from spinezarr.vertebrae import ANATOMICAL_ORDER, NAME_OF_VALUE, hex_color
from spinezarr.view.scan_view import shown_vertebrae, view_of
from spinezarr.view.windows import WINDOWS_HU


@pytest.fixture(scope="module")
def audited(ctspine1k_url, tmp_path_factory):
    """Copy the store, and keep an audit in it."""
    url = tmp_path_factory.mktemp("audited") / "own.zarr"
    shutil.copytree(ctspine1k_url, url)
    store = spinezarr.open(url)
    store.audit()
    return spinezarr.open(url)


@pytest.fixture(scope="module")
def served(audited):
    with BackgroundServer(ServeSettings(paths=(audited.url,))) as server:
        yield f"{server.url}/v1/own/scans"


def get_json(url):
    status, headers, body = fetch(url)
    assert (status, headers["content-type"]) == (200, "application/json"), body
    return json.loads(body)


def test_vertebrae_of_a_view_equal_those_of_the_mask(served, audited):
    for scan_id in audited.table.scan.to_numpy().tolist():
        scan, found = audited.scan(scan_id), get_json(f"{served}/{scan_id}/view")
        (mask,) = found["masks"]
        assert mask["name"] == "label"
        label, affine = scan.label.values, np.array(found["affine"])
        names = [vertebra["name"] for vertebra in mask["vertebrae"]]
        assert names == sorted(names, key=ANATOMICAL_ORDER.index)
        assert {v["value"] for v in mask["vertebrae"]} == set(np.unique(label[label > 0]).tolist())
        for vertebra in mask["vertebrae"]:
            inside = np.argwhere(label == vertebra["value"])
            assert vertebra["name"] == NAME_OF_VALUE[vertebra["value"]]
            assert vertebra["color"] == hex_color(vertebra["value"])
            assert vertebra["voxel_count"] == len(inside)
            volume = len(inside) * np.prod(scan.attrs["spacing_zyx_mm"]) / 1000
            assert vertebra["volume_ml"] == pytest.approx(volume)
            centroid = affine[:3] @ [*inside.mean(axis=0)[::-1], 1]
            np.testing.assert_allclose(vertebra["centroid_xyz_mm"], centroid, atol=1e-6)


def test_facts_of_a_view_equal_those_of_the_store(served, audited):
    found = get_json(f"{served}/liver_0/view")
    handle, row = audited._reader.scan("liver_0"), audited.table.sel(scan="liver_0")
    for name in ("split", "source", "label_state", "anomaly", "erratum", "content_checksum"):
        assert found[name] == str(row[name].item())
    assert found["shape_zyx"] == list(handle.image.shape_zyx)
    assert found["affine"] == handle.affine.tolist()
    assert not found["is_oblique"]
    assert found["windows"] == {name: list(window) for name, window in WINDOWS_HU.items()}
    x, y, z = np.linalg.solve(handle.affine, [*found["middle_mm"], 1])[:3].round().astype(int)
    assert audited.scan("liver_0").label.values[z, y, x] > 0


def test_the_view_of_an_unusual_scan_says_why(audited):
    scan = audited._reader.scan("liver_0")
    for columns, sidecar, told_of in (
        ({"anomaly": "L6", "erratum": "T12 is T11"}, {}, ("L6", "T12 is T11")),
        ({"other": "x"}, {"anomaly": "T13"}, ("T13", "")),
    ):
        update = {"columns": columns, "sidecar": sidecar}
        changed = replace(scan, attributes=scan.attributes.model_copy(update=update))
        found = view_of(changed, audited._engine, [], None)
        assert (found.anomaly, found.erratum) == told_of
        assert (found.previous, found.next) == (None, None)


@pytest.mark.parametrize("name", ["image", "label"])
def test_every_level_of_a_view_can_be_requested(served, audited, name):
    found = get_json(f"{served}/liver_0/view")
    assert [level["level"] for level in found["levels"]] == list(range(len(found["levels"])))
    assert found["levels"][0]["affine"] == found["affine"]
    assert found["levels"][0]["factor_zyx"] == [1, 1, 1]
    for level in found["levels"]:
        _, headers, body = fetch(f"{served}/liver_0/levels/{level['level']}?array={name}")
        dtype = np.dtype(found["image_dtype"] if name == "image" else "uint8")
        assert headers["x-spinezarr-dtype"] == dtype.name
        assert len(body) == np.prod(level["shape_zyx"]) * dtype.itemsize
        sizes = np.array(level["spacing_zyx_mm"]) / found["spacing_zyx_mm"]
        np.testing.assert_allclose(sizes, level["factor_zyx"])
    with BackgroundServer(ServeSettings(paths=(audited.url,))) as server:
        assert fetch(f"{server.url}/v1/own/scans/liver_0/levels/{len(found['levels'])}")[0] == 404


def test_mask_values_without_voxels_are_left_out(audited):
    facts = audited._reader.scan("liver_0").attributes
    changed = facts.model_copy(update={"other_labels": {"0": 5, "78": 2, "77": 0}})
    shown, before = list(shown_vertebrae(changed)), list(shown_vertebrae(facts))
    assert shown[:-1] == before
    assert (shown[-1].value, shown[-1].voxel_count) == (78, 2)


def test_previous_and_next_scan_follow_the_table(served, audited):
    names = audited.table.scan.to_numpy().tolist()
    found = [get_json(f"{served}/{name}/view") for name in names]
    assert [view["scan_id"] for view in found] == names
    assert [view["previous"] for view in found] == [None, *names[:-1]]
    assert [view["next"] for view in found] == [*names[1:], None]


def test_findings_of_a_view_equal_those_of_the_audit(served, audited):
    expected = audited.audit(write=False).by_scan()
    assert any(expected.values())
    for scan_id, findings in expected.items():
        view = get_json(f"{served}/{scan_id}/view")
        found = [(f["severity"], f["rule"], f["text"], f["vertebra"]) for f in view["findings"]]
        assert found == [(f.severity, f.rule, f.text, f.vertebra) for f in findings]
        ranks = [SEVERITIES.index(severity) for severity, *_ in found]
        assert ranks == sorted(ranks, reverse=True)
        places = [f["position_xyz_mm"] and tuple(f["position_xyz_mm"]) for f in view["findings"]]
        assert places == [f.position_xyz_mm for f in findings]
        assert view["audit"] == audited.table.audit.sel(scan=scan_id).item()


def test_findings_about_another_version_are_left_out(tmp_path, ingest_version):
    place = tmp_path / "own.zarr"
    ingest_version("before", place)
    with BackgroundServer(ServeSettings(paths=(str(place),))) as server:
        url = f"{server.url}/v1/own/scans/a/view"
        assert (get_json(url)["audit"], get_json(url)["findings"]) == ("", [])
        store = spinezarr.open(place)
        store.audit()
        before = get_json(url)
        assert before["audit"] in SEVERITIES
        assert before["findings"]
        (place / "audit" / "zarr.json").rename(place / "audit" / "kept")
        assert get_json(url)["findings"] == []
        (place / "audit" / "zarr.json").write_text("{")
        assert (get_json(url)["audit"], get_json(url)["findings"]) == ("", [])
        (place / "audit" / "kept").rename(place / "audit" / "zarr.json")
        assert get_json(url) == before
        ingest_version("after", place)
        after = get_json(url)
        assert after["content_checksum"] != before["content_checksum"]
        assert (after["audit"], after["findings"]) == ("", [])


@pytest.fixture(scope="module")
def odd_ones(tmp_path_factory):
    """Serve a scan without a mask, an oblique one, and one whose mask has unknown values."""
    folder, rng = tmp_path_factory.mktemp("odd_ones"), np.random.default_rng(2)
    shape, affine = (12, 14, 16), np.diag([2.0, 2, 2, 1])
    mask = np.zeros(shape, np.uint8)
    mask[2:5, 2:9, 2:7], mask[6:9, 2:9, 2:7], mask[10, 2, 2] = 20, 19, 77
    for name, form in {"oblique": 20.0, "plain": 0.0}.items():
        image = rng.integers(-900, 900, shape)
        write_nifti(folder / f"{name}_ct.nii", image, affine, NiftiForm("LPS", oblique_deg=form))
        label_form = NiftiForm("LPS", "uint8", oblique_deg=form)
        write_nifti(folder / f"{name}_seg.nii", mask, affine, label_form)
    for store, label in (("masked", "{scan}_seg.nii"), ("bare", None)):
        recipe = Recipe.from_pairs("{scan}_ct.nii", label, name=store)
        report = ingest(recipe, discover(recipe, str(folder)), str(folder / f"{store}.zarr"))
        assert not report.failed, report.failed
    with BackgroundServer(ServeSettings(paths=(str(folder),))) as server:
        yield f"{server.url}/v1"


def test_a_scan_without_a_mask_has_a_view(odd_ones):
    found = get_json(f"{odd_ones}/bare/scans/plain/view")
    assert (found["masks"], found["label_state"], found["is_oblique"]) == ([], "none", False)
    affine = np.array(found["affine"])
    np.testing.assert_allclose(found["middle_mm"], (affine @ [8, 7, 6, 1])[:3])


def test_unknown_mask_values_are_gray_and_last(odd_ones):
    found = get_json(f"{odd_ones}/masked/scans/oblique/view")
    assert found["is_oblique"]
    assert found["oblique_deg"] > 15
    vertebrae = found["masks"][0]["vertebrae"]
    assert [v["name"] for v in vertebrae] == ["T12", "L1", "value 77"]
    assert (vertebrae[2]["color"], vertebrae[2]["centroid_xyz_mm"]) == ("#d9d9d9", None)
    assert (vertebrae[2]["voxel_count"], vertebrae[2]["volume_ml"]) == (1, pytest.approx(0.008))
    np.testing.assert_allclose(
        vertebrae[1]["centroid_xyz_mm"], (np.array(found["affine"]) @ [4, 5, 3, 1])[:3], atol=1e-9
    )


def test_the_view_of_an_unreadable_mask_starts_in_the_middle_of_the_scan(audited, tmp_path):
    shutil.copytree(audited.url, tmp_path / "own.zarr")
    for path in (tmp_path / "own.zarr/scans/liver_0/label").rglob("*"):
        if path.is_file() and path.name != "zarr.json":
            path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(CorruptStoreError):
        spinezarr.open(tmp_path / "own.zarr").figure("liver_0")
    with BackgroundServer(ServeSettings(paths=(str(tmp_path),))) as server:
        found = get_json(f"{server.url}/v1/own/scans/liver_0/view")
        z, y, x = (n // 2 for n in found["shape_zyx"])
        np.testing.assert_allclose(
            found["middle_mm"], (np.array(found["affine"]) @ [x, y, z, 1])[:3]
        )


def test_views_of_unknown_scans_are_404(served):
    for scan_id in ("none", "..", "zarr.json"):
        assert fetch(f"{served}/{scan_id}/view")[0] == 404
    assert fetch(f"{served.replace('own', 'other')}/liver_0/view")[0] == 404


def test_a_view_is_compressed_and_not_sent_again_while_unchanged(served):
    url = f"{served}/liver_0/view"
    _, headers, body = fetch(url)
    assert "content-encoding" not in headers
    _, packed, data = fetch(url, accept_encoding="br, gzip;q=0.5")
    assert packed["content-encoding"] == "gzip"
    assert gzip.decompress(data) == body
    assert len(data) < len(body) / 2
    assert packed["etag"] != headers["etag"]
    with urllib.request.urlopen(url) as answer:  # noqa: S310
        assert answer.headers.get_all("vary") == ["Accept-Encoding", "Origin"]
    for refused in ("gzip;q=0", "gzip; q=0.000", "identity", "br", "gzipped"):
        found = fetch(url, accept_encoding=refused)
        assert (found[1]["etag"], found[2]) == (headers["etag"], body)
    status, fields, nothing = fetch(url, if_none_match=headers["etag"])
    assert (status, nothing, fields["etag"]) == (304, b"", headers["etag"])
    assert "content-type" not in fields
    assert fetch(url, if_none_match=packed["etag"])[0] == 200
    assert fetch(url, accept_encoding="gzip", if_none_match=packed["etag"])[::2] == (304, b"")
    assert fetch(url, if_match='"x"')[0] == 412


def test_a_finding_about_two_scans_is_left_out_once_the_other_has_changed(audited):
    one, other = (audited._reader.scan(name).attributes for name in ("liver_0", "HN_P001"))
    fields = {"severity": "error", "vertebra": None, "voxel_zyx": None, "position_xyz_mm": None}
    findings = tuple(
        FindingRecord(rule=rule, text=rule, facts={}, others=others, **fields)
        for rule, others in {"alone": {}, "same-image": {"HN_P001": scan_identity(other)}}.items()
    )
    kept = AuditedScan(identity=scan_identity(one), findings=findings)
    log = AuditLog(scans={"liver_0": kept})
    changed = other.model_copy(update={"split": "else"})
    for now, rules in ((other, ["alone", "same-image"]), (changed, ["alone"]), (None, ["alone"])):
        found = log.of_scan(one, {"HN_P001": now}.get)
        assert [finding.rule for finding in found.findings] == rules
    assert log.of_scan(other, {}.get) is None
    assert log.of_scan(one.model_copy(update={"split": "else"}), {"HN_P001": other}.get) is None
