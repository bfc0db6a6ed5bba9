"""Runs of ``derive`` can be repeated, interrupted, and made from and into any place."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_scans import ingest_raw, make_label, write_scan

import spinezarr
from spinezarr.errors import UsageError

MASK = np.random.default_rng(1).integers(0, 3, (26, 21, 24)).astype(np.uint8)


def derive(own, out, **options):
    return spinezarr.open(own.url).derive(out=out, **options)


def shards(store):
    """Return the times of the files that hold shards and chunks of scans."""
    files = [path for path in Path(store, "scans").rglob("*") if path.is_file()]
    times = {path: path.stat().st_mtime_ns for path in files if path.name != "zarr.json"}
    assert times
    return times


def test_a_second_run_skips_what_is_done(own, tmp_path):
    out = tmp_path / "derived.zarr"
    first = derive(own, out, spacing_mm=2)
    assert (set(first.done), first.exit_code) == ({"box", "oblique", "bare"}, 0)
    before = shards(out)
    again = derive(own, out, spacing_mm=2.0)
    assert (again.done, again.updated, set(again.skipped)) == ((), (), set(first.done))
    (out / "ingest" / "zarr.json").unlink()  # without the ledger, stored scans are compared
    again = derive(own, out, spacing_mm=(2, 2, 2))
    assert (again.done, again.updated, set(again.skipped)) == ((), (), set(first.done))
    assert shards(out) == before


def change_label(own):
    label = make_label("box")
    label[5, 7, 9] = 19
    write_scan(own.raw, "box", label)
    ingest_raw(own.raw, own.url)
    store = spinezarr.open(own.url)
    assert store.scan("box").label[5, 7, 9] == 19


def change_centroids(own):
    path = own.raw / "box.json"
    points = json.loads(path.read_text())
    points[-1]["X"] += 1
    path.write_text(json.dumps(points))
    ingest_raw(own.raw, own.url)


def change_mask(own):
    spinezarr.open(own.url).write_labels("box", "ribs", MASK, scheme={1: "left rib", 2: "rib 2"})


def change_names(own):
    store = spinezarr.open(own.url)
    values = store.scan("box").ribs.to_numpy()
    store.write_labels("box", "ribs", values, scheme={1: "rib", 2: "other rib"})


def remove_mask(own):
    spinezarr.open(own.url).remove_labels("ribs", scans="box")


CHANGES = [change_label, change_centroids, change_mask, change_names, remove_mask]


@pytest.mark.parametrize(
    ("change", "with_ledger"), [*((change, True) for change in CHANGES), (change_label, False)]
)
def test_a_changed_source_is_derived_again(own, tmp_path, change, with_ledger):
    """The result is that of a fresh run."""
    out = tmp_path / "derived.zarr"
    # The hashes of masks depend on the scan, too, so one case has none.
    options = {"spacing_mm": 2} if with_ledger else {"spacing_mm": 2, "layers": ()}
    derive(own, out, **options)
    kept = spinezarr.open(out)
    own_mask = np.zeros(kept.scan("box").image.shape, np.uint8)
    kept.write_labels("box", "prediction", own_mask)
    change(own)
    if not with_ledger:
        (out / "ingest" / "zarr.json").unlink()
    report = derive(own, out, **options)
    assert (report.done, set(report.skipped)) == (("box",), {"oblique", "bare"})
    derive(own, tmp_path / "fresh.zarr", **options)
    found, fresh = spinezarr.open(out), spinezarr.open(tmp_path / "fresh.zarr")
    assert found.verify().faults == ()
    # A mask that was added to the derived store stays, as the image is the same.
    for name in fresh.scan("box").data_vars:
        np.testing.assert_array_equal(found.scan("box")[name], fresh.scan("box")[name])
    assert {*found.scan("box").data_vars} == {*fresh.scan("box").data_vars, "prediction"}
    skipped = {"manifest", "metadata_crc32c", "masks"}
    ours, theirs = (
        {key: value for key, value in store.scan("box").attrs.items() if key not in skipped}
        for store in (found, fresh)
    )
    assert ours == theirs


def test_a_new_version_lies_beside_the_old_one_until_it_is_whole(own, tmp_path):
    out = tmp_path / "derived.zarr"
    derive(own, out, scans="box")
    # Now the separators of the mask and of the scan differ.
    spinezarr.open(out).write_labels("box", "ribs", MASK, scheme={1: "left rib", 2: "right rib"})
    before = shards(out)
    change_label(own)
    (shard,) = (path for path in shards(own.url) if "box/ribs/c" in str(path))
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    report = derive(own, out, scans="box")
    assert [scan.scan_id for scan in report.failed] == ["box"]
    assert shards(out) == before
    assert spinezarr.open(out).verify().faults == ()
    content[100] ^= 1
    shard.write_bytes(content)
    assert derive(own, out, scans="box").done == ("box",)
    assert not shards(out).keys() & before.keys()
    assert spinezarr.open(out).verify().faults == ()


def test_facts_without_voxels_are_updated(own, tmp_path):
    out = tmp_path / "derived.zarr"
    derive(own, out, crop="spine", scans=["box", "oblique"])
    before = shards(out)
    (own.raw / "split.txt").write_text("two:\nbox\n")
    (own.raw / "clinic.csv").write_text("Scan,Age\nbox,62\noblique,40\n")
    ingest_raw(own.raw, own.url)
    report = derive(own, out, crop="spine", scans=["box", "oblique"])
    assert set(report.updated) == {"box", "oblique"}
    table = spinezarr.open(out).table
    assert table.split.to_numpy().tolist() == ["test", ""]
    assert table.Age.sel(scan="box") == "62"
    assert shards(out) == before
    assert spinezarr.open(out).verify().faults == ()


def test_a_store_is_derived_in_one_way(own, tmp_path):
    out = tmp_path / "derived.zarr"
    derive(own, out, spacing_mm=2, scans="box")
    with pytest.raises(UsageError, match=r"derived \(resampled to 2 x 2 x 2 mm .*3 x 3 x 3 mm"):
        derive(own, out, spacing_mm=3)
    with pytest.raises(UsageError, match=r"derived .*, not scans that were ingested"):
        ingest_raw(own.raw, out)
    with pytest.raises(UsageError, match=r"were ingested, not scans .*\(copied"):
        derive(own, shutil.copytree(own.url, tmp_path / "copy.zarr"))
    with pytest.raises(UsageError, match="is the store that is read"):
        derive(own, f"{own.url}/")
    # A derived store can be derived again, and says both.
    report = spinezarr.open(out).derive(out=tmp_path / "twice.zarr", crop="spine")
    assert "2 x 2 x 2 mm" in report.derivation
    assert "; then cropped to the spine" in report.derivation


def test_scans_that_cannot_be_derived_do_not_stop_the_others(own, tmp_path):
    shard = next(Path(own.url, "scans", "oblique", "image").rglob("c/0/0/0"))
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    out = tmp_path / "derived.zarr"
    report = derive(own, out, crop="spine")
    assert (report.done, report.exit_code) == (("box",), 1)
    reasons = {scan.scan_id: scan.reason for scan in report.failed}
    assert "it has no mask, so there is no spine to crop to" in reasons["bare"]
    assert "crc32c" in reasons["oblique"]
    assert {path.name for path in (out / "scans").iterdir()} == {"zarr.json", "box"}
    derived = spinezarr.open(out)
    assert derived.table.scan.to_numpy().tolist() == ["box"]
    assert derived.verify().faults == ()
    content[100] ^= 1
    shard.write_bytes(content)
    report = derive(own, out, crop="spine")
    assert (report.done, report.skipped) == (("oblique",), ("box",))


def test_licenses_are_kept_and_respected(own, tmp_path):
    recipe = own.raw.parent / "nd.yaml"
    text = (own.raw.parent / "small.yaml").read_text()
    recipe.write_text(text.replace("license: CC0-1.0", "license: CC BY-NC-ND 4.0"))
    url, out = tmp_path / "nd.zarr", tmp_path / "derived.zarr"
    spinezarr.ingest(recipe, raw=own.raw, out=url)
    with pytest.raises(UsageError, match="allows no derivatives"):
        spinezarr.open(url).derive(out=out, spacing_mm=2)
    report = spinezarr.open(url).derive(out=out, spacing_mm=2, include_restricted=True)
    assert len(report.done) == 3
    derived = spinezarr.open(out)
    assert derived.scan("box").attrs["license"] == derived.attrs["license"] == "CC BY-NC-ND 4.0"
    with pytest.raises(UsageError, match="allows no derivatives"):
        derived.export_nifti(out=tmp_path / "nifti")


def test_masks_keep_their_licenses_and_lose_their_comparisons(own, tmp_path):
    store, out = spinezarr.open(own.url), tmp_path / "derived.zarr"
    label = store.scan("box").label.to_numpy()
    store.write_labels("box", "net", label, license="CC BY-NC-ND 4.0")
    store.write_labels("box", "open", label, license="MIT")
    store = spinezarr.open(own.url)
    store.compare(layer="open", scans="box", save=True)
    assert store.scan("box").attrs["masks"]["open"]["comparison"]["dice"] == 1
    report = derive(own, out, scans="box")
    assert report.left_out_masks == {"net": {"box": "CC BY-NC-ND 4.0"}}
    outcomes = {layer.name: (layer.done, layer.skipped) for layer in report.layers}
    assert outcomes == dict.fromkeys(("disc", "open", "ribs"), (("box",), ()))
    derived = spinezarr.open(out)
    masks = derived.scan("box").attrs["masks"]
    assert (set(masks), masks["open"].get("comparison")) == ({"disc", "open", "ribs"}, None)
    assert np.isnan(derived.table.mask_dice.sel(mask="open", scan="box"))
    report = derive(own, out, scans="box", include_restricted=True)
    assert (report.done, report.left_out_masks) == (("box",), {})
    assert "net" in spinezarr.open(out).scan("box")
    report = derive(own, out, scans="box")  # the mask is removed again
    assert (report.done, report.exit_code) == (("box",), 0)
    assert "net" not in spinezarr.open(out).scan("box")
    assert derive(own, out, scans="box").skipped == ("box",)


def test_stores_may_be_on_a_web_server_and_in_a_bucket(own, tmp_path, serve, s3_server):
    address, _ = serve(Path(own.url).parent)
    url = address.replace("//", "//anna:secret@") + "/small.zarr"
    expected = tmp_path / "derived.zarr"
    derive(own, expected, spacing_mm=2)
    out = f"s3://{s3_server.new_bucket()}/derived.zarr"
    options = s3_server.storage_options
    source = spinezarr.open(url)
    report = source.derive(out=out, spacing_mm=2, storage_options=options)
    assert (len(report.done), report.failed) == (3, ())
    derived, local = spinezarr.open(out, storage_options=options), spinezarr.open(expected)
    for name in report.done:
        scan = derived.scan(name)
        for variable in scan.data_vars:
            np.testing.assert_array_equal(scan[variable], local.scan(name)[variable])
        assert scan.attrs["derived_from"]["store"] == f"{address}/small.zarr"
    assert derived.info()["derived_from"] == f"{address}/small.zarr"
    assert derived.verify().faults == ()
    again = source.derive(out=out, spacing_mm=2, storage_options=options)
    assert len(again.skipped) == 3
    # From the bucket to a disk, and further.
    copied = derived.derive(out=tmp_path / "copied.zarr", scans="box")
    assert copied.done == ("box",)
    copy = spinezarr.open(tmp_path / "copied.zarr").scan("box")
    np.testing.assert_array_equal(copy.image, local.scan("box").image)


def test_an_interrupted_run_keeps_finished_scans_and_can_be_continued(
    own, tmp_path, differing_files
):
    """Ctrl-C raises KeyboardInterrupt at any moment; this one comes amid the second scan."""
    out = tmp_path / "derived.zarr"

    moments = []

    def interrupt(progress):
        if progress.scans_done == 1 and progress.scan:
            moments.append(progress.done)
            if len(moments) == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        derive(own, out, spacing_mm=2, on_progress=interrupt)
    store = spinezarr.open(out)
    (finished,) = store.table.scan.to_numpy().tolist()
    assert {path.name for path in (out / "scans").iterdir()} == {"zarr.json", finished}
    assert store.verify().faults == ()
    report = derive(own, out, spacing_mm=2)
    assert (len(report.done), report.skipped) == (2, (finished,))
    derive(own, tmp_path / "fresh.zarr", spacing_mm=2)
    assert differing_files(out, tmp_path / "fresh.zarr") == []


def test_a_mask_that_is_removed_from_the_source_meanwhile_fails_only_its_scan(own, tmp_path):
    out = tmp_path / "derived.zarr"

    def remove(progress):
        other = spinezarr.open(own.url)
        if "disc" in other.scan("box"):
            other.remove_labels("disc", scans="box")

    report = derive(own, out, on_progress=remove)
    (failed,) = report.failed
    assert failed.scan_id == "box"
    assert "lost a mask, while it was derived. Run the same command again" in failed.reason
    assert derive(own, out).done == ("box",)


def test_no_scan_one_scan_and_scans_without_a_vertebra(small, tmp_path):
    store, out = spinezarr.open(small.url), tmp_path / "derived.zarr"
    with pytest.raises(UsageError, match="has no scan to derive that meets all"):
        store.derive(out=out, scans=[])
    with pytest.raises(UsageError, match=r"no scan meets all conditions .scan 'oblique', split"):
        store.derive(out=out, split="train", scans="oblique")
    assert not out.exists()
    report = store.derive(out=out, crop="spine", scans=["empty", "bare"])
    reasons = {scan.scan_id: scan.reason for scan in report.failed}
    assert (report.exit_code, report.done) == (1, ())
    assert reasons["empty"].startswith("its mask shows no vertebra")
    assert reasons["bare"].startswith("it has no mask")
    derived = spinezarr.open(out)  # a store without a scan
    assert derived.table.sizes["scan"] == 0
    assert derived.verify().faults == ()
    with pytest.raises(UsageError, match="has no scan to derive"):
        derived.derive(out=tmp_path / "again.zarr")
    assert store.derive(out=out, crop="spine", scans="voxel").done == ("voxel",)
    np.testing.assert_array_equal(
        spinezarr.open(out).scan("voxel").image, store.scan("voxel").image
    )


@pytest.mark.long
def test_workers_derive_the_same_store(own, tmp_path, monkeypatch):
    derive(own, tmp_path / "one.zarr", spacing_mm=2, crop="spine", scans=["box", "oblique"])
    monkeypatch.chdir(tmp_path)
    store = spinezarr.open("small.zarr")
    options = {"spacing_mm": 2, "crop": "spine", "scans": ["box", "oblique"]}
    report = store.derive(out="two.zarr", workers=3, **options)  # more workers than scans
    assert (set(report.done), report.failed) == ({"box", "oblique"}, ())
    one, two = spinezarr.open("one.zarr"), spinezarr.open("two.zarr")
    for name in report.done:
        assert one.scan(name).equals(two.scan(name))
