"""What goes wrong outside: a clear error for each scan it hits, the rest done, nothing lost."""

import json
import os
import re
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from killing.check import faults_at_end, folder_files, harm_after_kill, left_over, write_folder
from killing.driver import Plan
from killing.kills import BucketPlace

pytestmark = pytest.mark.long

REFERENCE = "version 1"


@pytest.fixture
def raw(shop, work):
    """Copy of the second version's files, to be harmed."""
    return shutil.copytree(shop.folder / "raw2", work / "raw")


def words(shop, raw, url):
    return ["ingest", shop.folder / "recipe.yaml", "--raw", raw, "--out", url, "--json"]


def judge(files, url, shop):
    """Nothing is lost, mixed or left over after a run that met a fault."""
    assert harm_after_kill(files, url, shop.references[REFERENCE]) == []
    assert left_over(files) == []


def failures(run):
    """Scans that failed, and why, as ``--json`` tells them."""
    assert "Traceback" not in run.output
    assert "Please report this" not in run.output
    text = run.output
    report = json.loads(text[text.index("{\n") : text.rindex("}") + 1])
    return {scan["scan_id"]: scan["reason"] for scan in report["failed"]}


def runs_well(shop, url, files, plan=None, raw=None):
    code, run = shop.driver.run(words(shop, raw or shop.folder / "raw2", url), url, plan)
    assert code == 0, run.output
    assert faults_at_end(files(), url, shop.references[REFERENCE]) == []


@contextmanager
def mounted(folder, *options):
    """Mount a file system in memory; only root may."""
    mount = shutil.which("mount")
    folder.mkdir()
    command = [mount, "-t", "tmpfs", "-o", ",".join(options), "tmpfs", folder]
    if mount is None or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a file system")
    try:
        yield lambda change: subprocess.run([mount, "-o", f"remount,{change}", folder], check=True)
    finally:
        subprocess.run([shutil.which("umount"), "-l", folder], check=True)


@contextmanager
def closed(place):
    """Let nobody write in a folder, nor in those below."""
    folders = [Path(folder) for folder, _, _ in os.walk(place)]
    for folder in folders:
        folder.chmod(0o555)
    yield
    for folder in folders:
        folder.chmod(0o755)


def test_a_full_disk(shop, work):
    before = shop.stores[REFERENCE]
    with mounted(work / "disk", "size=64m") as remount:
        out = work / "disk" / "s.zarr"
        write_folder(before, out)
        used = shutil.disk_usage(work / "disk").used
        remount(f"size={(used >> 10) + 500}k")
        code, run = shop.driver.run(words(shop, shop.folder / "raw2", out), str(out))
        assert code == 1, run.output
        failed = failures(run)
        assert failed
        said = f"{out}/scans/.*: No space left on device. Free some space there"
        assert all(re.match(said, reason) for reason in failed.values())
        judge(folder_files(out), str(out), shop)
        remount("size=64m")
        runs_well(shop, str(out), lambda: folder_files(out))


def test_files_that_may_not_grow(shop, disk):
    url = disk.new(shop.stores[REFERENCE])
    plan = Plan(largest_file_bytes=100_000)
    code, run = shop.driver.run(words(shop, shop.folder / "raw2", url), url, plan)
    assert code == 1, run.output
    failed = failures(run)
    assert set(failed) == {"new", "new-wide-values", "other-voxels", "no-mask-now"}
    said = f"{url}/scans/.*: File too large. Raise the limit of file sizes"
    assert all(re.match(said, reason) for reason in failed.values())
    judge(disk.files(url), url, shop)
    runs_well(shop, url, lambda: disk.files(url))


@pytest.mark.parametrize("start", ["nothing", REFERENCE])
def test_a_target_that_is_read_only(shop, work, start):
    before = shop.stores[start]
    with mounted(work / "disk", "size=64m") as remount:
        out = work / "disk" / "s.zarr"
        write_folder(before, out)
        remount("ro")
        code, run = shop.driver.run(words(shop, shop.folder / "raw2", out), str(out))
        assert code == 2, run.output
        assert "Traceback" not in run.output
        assert f"{out}: cannot be written" in run.output
        assert "ead-only file system" in run.output
        assert folder_files(out) == before


def test_a_target_where_others_may_write(shop, disk):
    url = disk.new(shop.stores[REFERENCE])
    plan = Plan(plain_user=True)
    with closed(url):
        code, run = shop.driver.run(words(shop, shop.folder / "raw2", url), url, plan)
    assert code == 2, run.output
    assert "Traceback" not in run.output
    assert f"{url}: cannot be written" in run.output
    assert disk.files(url) == shop.stores[REFERENCE]
    runs_well(shop, url, lambda: disk.files(url))


def test_one_scan_where_others_may_write(shop, disk):
    url = disk.new(shop.stores[REFERENCE])
    plan = Plan(plain_user=True)
    with closed(f"{url}/scans/other-voxels"):
        code, run = shop.driver.run(words(shop, shop.folder / "raw2", url), url, plan)
    assert code == 1, run.output
    failed = failures(run)
    assert set(failed) == {"other-voxels"}
    assert "Permission denied" in failed["other-voxels"]
    assert "scans/other-voxels" in failed["other-voxels"]
    judge(disk.files(url), url, shop)
    runs_well(shop, url, lambda: disk.files(url))


@pytest.mark.parametrize("name", ["new_ct.nii.gz", "other-voxels_seg.nii.gz"])
def test_a_source_that_may_not_be_read(shop, disk, raw, name):
    url = disk.new(shop.stores[REFERENCE])
    (raw / name).chmod(0)
    plan = Plan(plain_user=True)
    code, run = shop.driver.run(words(shop, raw, url), url, plan)
    assert code == 1, run.output
    failed = failures(run)
    assert set(failed) == {name.partition("_")[0]}
    ((reason,)) = failed.values()
    assert name in reason
    assert "Permission denied" in reason
    judge(disk.files(url), url, shop)
    (raw / name).chmod(0o644)
    runs_well(shop, url, lambda: disk.files(url), plan, raw)


@pytest.mark.parametrize("name", ["new_ct.nii.gz", "other-voxels_seg.nii.gz"])
def test_a_source_that_vanishes(shop, disk, raw, name):
    url = disk.new(shop.stores[REFERENCE])
    run = shop.driver.start(words(shop, raw, url), url, Plan(pause_at="open scans/fewer-shards"))
    run.wait_until_paused()
    (raw / name).rename(raw.parent / name)
    run.go_on()
    assert run.wait() == 1, run.output
    failed = failures(run)
    assert set(failed) == {name.partition("_")[0]}
    ((reason,)) = failed.values()
    assert name in reason
    judge(disk.files(url), url, shop)
    (raw.parent / name).rename(raw / name)
    runs_well(shop, url, lambda: disk.files(url), raw=raw)


def cut_short(path):
    """Leave half of a file."""
    os.truncate(path, path.stat().st_size // 2)


def made_longer(path):
    """Write more behind a file."""
    with path.open("ab") as file:
        file.write(bytes(999))


def emptied(path):
    """Leave nothing of a file."""
    os.truncate(path, 0)


@pytest.mark.parametrize("change", [cut_short, made_longer, emptied])
@pytest.mark.parametrize("name", ["other-voxels_ct.nii.gz", "other-voxels_seg.nii.gz"])
def test_a_source_that_changes_while_its_scan_is_read(shop, disk, raw, name, change):
    url = disk.new(shop.stores[REFERENCE])
    # The image's first shard is being written: its file is open, the mask's header was read.
    plan = Plan(pause_at="open scans/other-voxels/image")
    run = shop.driver.start(words(shop, raw, url), url, plan)
    run.wait_until_paused()
    whole = (raw / name).read_bytes()
    change(raw / name)
    run.go_on()
    code = run.wait()
    failed = failures(run)
    # What was read before the change may be all of it.
    assert (code, set(failed)) in [(0, set()), (1, {"other-voxels"})]
    assert all(name in reason for reason in failed.values())
    if change is made_longer and not failed:  # its record tells the file's new size
        assert left_over(disk.files(url)) == []
    else:
        judge(disk.files(url), url, shop)
    (raw / name).write_bytes(whole)
    runs_well(shop, url, lambda: disk.files(url), raw=raw)


def test_a_mask_that_is_replaced_while_its_scan_is_read(shop, disk, raw):
    url = disk.new(shop.stores[REFERENCE])
    name = "other-voxels_seg.nii.gz"
    ours = raw / name
    other = shutil.copy(shop.folder / "raw1" / name, raw.parent / "other")
    shutil.copy(ours, raw.parent / "kept")
    plan = Plan(pause_at="open scans/other-voxels/image")
    run = shop.driver.start(words(shop, raw, url), url, plan)
    run.wait_until_paused()
    Path(other).replace(ours)
    run.go_on()
    run.wait()
    assert set(failures(run)) <= {"other-voxels"}
    assert left_over(disk.files(url)) == []
    (raw.parent / "kept").replace(ours)
    runs_well(shop, url, lambda: disk.files(url), raw=raw)


@pytest.fixture
def store(shop, bucket):
    """The first version's store in a bucket."""
    place = BucketPlace(bucket, shop.driver)
    return place, place.new(shop.stores[REFERENCE])


def run_in_bucket(shop, bucket, url, before):
    bucket.rule(before)
    plan = Plan(environment=bucket.environment)
    ended = shop.driver.run(words(shop, shop.folder / "raw2", url), url, plan)
    bucket.rule()
    return ended


@pytest.mark.parametrize(
    ("action", "said"), [("refuse", "access is denied"), ("fail", "internal error")]
)
def test_a_bucket_that_refuses_one_scan(shop, bucket, store, action, said):
    place, url = store
    code, run = run_in_bucket(
        shop,
        bucket,
        url,
        lambda _, change: action if change[0] == "PUT" and "scans/new/" in change[1] else "pass",
    )
    assert code == 1, run.output
    failed = failures(run)
    assert set(failed) == {"new"}
    assert "scans/new/" in failed["new"]
    assert said in failed["new"]
    judge(place.files(url), url, shop)
    runs_well(shop, url, lambda: place.files(url), Plan(environment=bucket.environment))


@pytest.mark.parametrize(
    "refused",
    [
        "PUT .*/scans/other-voxels/image/zarr.json",
        "PUT .*/scans/no-mask-now/x/zarr.json",
        "PUT .*/scans/(fewer-shards|new)/zarr.json",
        r"POST .*\?delete",
    ],
)
def test_a_bucket_that_refuses_what_comes_after_the_switch(shop, bucket, store, refused):
    place, url = store
    code, run = run_in_bucket(
        shop,
        bucket,
        url,
        lambda _, change: "refuse" if re.match(refused, " ".join(change)) else "pass",
    )
    assert code == 1, run.output
    failures(run)
    assert harm_after_kill(place.files(url), url, shop.references[REFERENCE]) == []
    runs_well(shop, url, lambda: place.files(url), Plan(environment=bucket.environment))


@pytest.mark.parametrize("scan", ["new", "other-voxels"])
def test_the_answer_to_the_last_write_is_lost(shop, bucket, store, scan):
    place, url = store
    cut = []

    def before(_, change):
        # The bucket has done it when it is asked again; the client never hears of it.
        if change[0] == "PUT" and change[1].endswith(f"/scans/{scan}/zarr.json"):
            cut.append(change)
            return "pass then cut"
        return "pass"

    code, run = run_in_bucket(shop, bucket, url, before)
    assert cut
    assert code in {0, 1}, run.output
    assert set(failures(run)) <= {scan}
    assert harm_after_kill(place.files(url), url, shop.references[REFERENCE]) == []
    runs_well(shop, url, lambda: place.files(url), Plan(environment=bucket.environment))


def test_a_bucket_that_fails_now_and_then(shop, bucket, store):
    place, url = store
    code, run = run_in_bucket(
        shop, bucket, url, lambda number, _: "fail" if number % 20 == 7 else "pass"
    )
    assert code == 0, run.output
    assert faults_at_end(place.files(url), url, shop.references[REFERENCE]) == []


def test_a_bucket_that_refuses_all_writes(shop, bucket, store):
    place, url = store
    code, run = run_in_bucket(shop, bucket, url, lambda number, _: "refuse" if number else "pass")
    assert code == 2, run.output
    assert "Traceback" not in run.output
    assert f"{url}: cannot be written" in run.output
    assert place.files(url) == shop.stores[REFERENCE]


@pytest.mark.parametrize("number_of_cut", [1, 30, 100])
def test_a_network_that_is_cut(shop, bucket, store, number_of_cut):
    place, url = store
    cut = []

    def before(number, _):
        if number >= number_of_cut:
            cut.append(number)
        return "cut" if cut else "pass"

    code, run = run_in_bucket(shop, bucket, url, before)
    assert code in {1, 2}, run.output
    assert "Traceback" not in run.output
    assert "Please report this" not in run.output
    assert harm_after_kill(place.files(url), url, shop.references[REFERENCE]) == []
    runs_well(shop, url, lambda: place.files(url), Plan(environment=bucket.environment))
