"""External faults cause a clear error for each affected scan, and all others are stored."""

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
def raw(crash_data, work):
    """Copy the files of the second version, to damage them."""
    return shutil.copytree(crash_data.folder / "raw2", work / "raw")


def words(crash_data, raw, url):
    return ["ingest", crash_data.folder / "recipe.yaml", "--raw", raw, "--out", url, "--json"]


def judge(files, url, crash_data):
    """Check that nothing is lost, mixed or left over after a run with a fault."""
    assert harm_after_kill(files, url, crash_data.references[REFERENCE]) == []
    assert left_over(files) == []


def failures(run):
    """Return the failed scans with their reasons, from the ``--json`` report."""
    assert "Traceback" not in run.output
    assert "Please report this" not in run.output
    text = run.output
    report = json.loads(text[text.index("{\n") : text.rindex("}") + 1])
    return {scan["scan_id"]: scan["reason"] for scan in report["failed"]}


def runs_well(crash_data, url, files, plan=None, raw=None):
    code, run = crash_data.driver.run(
        words(crash_data, raw or crash_data.folder / "raw2", url), url, plan
    )
    assert code == 0, run.output
    assert faults_at_end(files(), url, crash_data.references[REFERENCE]) == []


@contextmanager
def mounted(folder, *options):
    """Mount a file system in memory, which only root may do."""
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
    """Forbid writing in a folder and the folders below."""
    folders = [Path(folder) for folder, _, _ in os.walk(place)]
    for folder in folders:
        folder.chmod(0o555)
    yield
    for folder in folders:
        folder.chmod(0o755)


def test_a_full_disk_fails_single_scans_and_the_next_run_succeeds(crash_data, work):
    before = crash_data.stores[REFERENCE]
    with mounted(work / "disk", "size=64m") as remount:
        out = work / "disk" / "s.zarr"
        write_folder(before, out)
        used = shutil.disk_usage(work / "disk").used
        remount(f"size={(used >> 10) + 500}k")
        code, run = crash_data.driver.run(
            words(crash_data, crash_data.folder / "raw2", out), str(out)
        )
        assert code == 1, run.output
        failed = failures(run)
        assert failed
        message = f"{out}/scans/.*: No space left on device. Free some space there"
        assert all(re.match(message, reason) for reason in failed.values())
        judge(folder_files(out), str(out), crash_data)
        remount("size=64m")
        runs_well(crash_data, str(out), lambda: folder_files(out))


def test_a_limit_of_file_sizes_fails_single_scans(crash_data, disk):
    url = disk.new(crash_data.stores[REFERENCE])
    plan = Plan(largest_file_bytes=100_000)
    code, run = crash_data.driver.run(words(crash_data, crash_data.folder / "raw2", url), url, plan)
    assert code == 1, run.output
    failed = failures(run)
    assert set(failed) == {"new", "new-wide-values", "other-voxels", "no-mask-now"}
    message = f"{url}/scans/.*: File too large. Raise the limit of file sizes"
    assert all(re.match(message, reason) for reason in failed.values())
    judge(disk.files(url), url, crash_data)
    runs_well(crash_data, url, lambda: disk.files(url))


@pytest.mark.parametrize("start", ["nothing", REFERENCE])
def test_a_read_only_target_is_a_usage_error(crash_data, work, start):
    before = crash_data.stores[start]
    with mounted(work / "disk", "size=64m") as remount:
        out = work / "disk" / "s.zarr"
        write_folder(before, out)
        remount("ro")
        code, run = crash_data.driver.run(
            words(crash_data, crash_data.folder / "raw2", out), str(out)
        )
        assert code == 2, run.output
        assert "Traceback" not in run.output
        assert f"{out}: cannot be written" in run.output
        assert "ead-only file system" in run.output
        assert folder_files(out) == before


def test_a_target_without_write_permission_is_a_usage_error(crash_data, disk):
    url = disk.new(crash_data.stores[REFERENCE])
    plan = Plan(plain_user=True)
    with closed(url):
        code, run = crash_data.driver.run(
            words(crash_data, crash_data.folder / "raw2", url), url, plan
        )
    assert code == 2, run.output
    assert "Traceback" not in run.output
    assert f"{url}: cannot be written" in run.output
    assert disk.files(url) == crash_data.stores[REFERENCE]
    runs_well(crash_data, url, lambda: disk.files(url))


def test_a_scan_folder_without_write_permission_fails_that_scan(crash_data, disk):
    url = disk.new(crash_data.stores[REFERENCE])
    plan = Plan(plain_user=True)
    with closed(f"{url}/scans/other-voxels"):
        code, run = crash_data.driver.run(
            words(crash_data, crash_data.folder / "raw2", url), url, plan
        )
    assert code == 1, run.output
    failed = failures(run)
    assert set(failed) == {"other-voxels"}
    assert "Permission denied" in failed["other-voxels"]
    assert "scans/other-voxels" in failed["other-voxels"]
    judge(disk.files(url), url, crash_data)
    runs_well(crash_data, url, lambda: disk.files(url))


@pytest.mark.parametrize("name", ["new_ct.nii.gz", "other-voxels_seg.nii.gz"])
def test_a_source_without_read_permission_fails_its_scan(crash_data, disk, raw, name):
    url = disk.new(crash_data.stores[REFERENCE])
    (raw / name).chmod(0)
    plan = Plan(plain_user=True)
    code, run = crash_data.driver.run(words(crash_data, raw, url), url, plan)
    assert code == 1, run.output
    failed = failures(run)
    assert set(failed) == {name.partition("_")[0]}
    ((reason,)) = failed.values()
    assert name in reason
    assert "Permission denied" in reason
    judge(disk.files(url), url, crash_data)
    (raw / name).chmod(0o644)
    runs_well(crash_data, url, lambda: disk.files(url), plan, raw)


@pytest.mark.parametrize("name", ["new_ct.nii.gz", "other-voxels_seg.nii.gz"])
def test_a_source_that_vanishes_fails_its_scan(crash_data, disk, raw, name):
    url = disk.new(crash_data.stores[REFERENCE])
    run = crash_data.driver.start(
        words(crash_data, raw, url), url, Plan(pause_at="open scans/fewer-shards")
    )
    run.wait_until_paused()
    (raw / name).rename(raw.parent / name)
    run.resume()
    assert run.wait() == 1, run.output
    failed = failures(run)
    assert set(failed) == {name.partition("_")[0]}
    ((reason,)) = failed.values()
    assert name in reason
    judge(disk.files(url), url, crash_data)
    (raw.parent / name).rename(raw / name)
    runs_well(crash_data, url, lambda: disk.files(url), raw=raw)


def cut_short(path):
    """Cut a file to half of its length."""
    os.truncate(path, path.stat().st_size // 2)


def made_longer(path):
    """Append bytes to a file."""
    with path.open("ab") as file:
        file.write(bytes(999))


def emptied(path):
    """Empty a file."""
    os.truncate(path, 0)


@pytest.mark.parametrize("change", [cut_short, made_longer, emptied])
@pytest.mark.parametrize("name", ["other-voxels_ct.nii.gz", "other-voxels_seg.nii.gz"])
def test_a_source_that_changes_while_it_is_read_fails_its_scan(crash_data, disk, raw, name, change):
    url = disk.new(crash_data.stores[REFERENCE])
    # While the image's first shard is written, its file is open and the mask's header was read.
    plan = Plan(pause_at="open scans/other-voxels/image")
    run = crash_data.driver.start(words(crash_data, raw, url), url, plan)
    run.wait_until_paused()
    whole = (raw / name).read_bytes()
    change(raw / name)
    run.resume()
    code = run.wait()
    failed = failures(run)
    # The file may have been read completely before the change.
    assert (code, set(failed)) in [(0, set()), (1, {"other-voxels"})]
    assert all(name in reason for reason in failed.values())
    if change is made_longer and not failed:  # the scan's metadata have the file's new size
        assert left_over(disk.files(url)) == []
    else:
        judge(disk.files(url), url, crash_data)
    (raw / name).write_bytes(whole)
    runs_well(crash_data, url, lambda: disk.files(url), raw=raw)


def test_a_mask_replaced_while_its_scan_is_read_is_never_mixed(crash_data, disk, raw):
    url = disk.new(crash_data.stores[REFERENCE])
    name = "other-voxels_seg.nii.gz"
    ours = raw / name
    other = shutil.copy(crash_data.folder / "raw1" / name, raw.parent / "other")
    shutil.copy(ours, raw.parent / "kept")
    plan = Plan(pause_at="open scans/other-voxels/image")
    run = crash_data.driver.start(words(crash_data, raw, url), url, plan)
    run.wait_until_paused()
    Path(other).replace(ours)
    run.resume()
    run.wait()
    assert set(failures(run)) <= {"other-voxels"}
    assert left_over(disk.files(url)) == []
    (raw.parent / "kept").replace(ours)
    runs_well(crash_data, url, lambda: disk.files(url), raw=raw)


@pytest.fixture
def store(crash_data, bucket):
    """Return the store of the first version in a bucket."""
    place = BucketPlace(bucket, crash_data.driver)
    return place, place.new(crash_data.stores[REFERENCE])


def run_in_bucket(crash_data, bucket, url, before):
    bucket.set_rule(before)
    plan = Plan(environment=bucket.environment)
    ended = crash_data.driver.run(words(crash_data, crash_data.folder / "raw2", url), url, plan)
    bucket.set_rule()
    return ended


@pytest.mark.parametrize(
    ("action", "message"), [("refuse", "access is denied"), ("fail", "internal error")]
)
def test_a_bucket_that_refuses_writes_of_one_scan_fails_only_that_scan(
    crash_data, bucket, store, action, message
):
    place, url = store
    code, run = run_in_bucket(
        crash_data,
        bucket,
        url,
        lambda _, change: action if change[0] == "PUT" and "scans/new/" in change[1] else "pass",
    )
    assert code == 1, run.output
    failed = failures(run)
    assert set(failed) == {"new"}
    assert "scans/new/" in failed["new"]
    assert message in failed["new"]
    judge(place.files(url), url, crash_data)
    runs_well(crash_data, url, lambda: place.files(url), Plan(environment=bucket.environment))


@pytest.mark.parametrize(
    "refused",
    [
        "PUT .*/scans/other-voxels/image/zarr.json",
        "PUT .*/scans/no-mask-now/x/zarr.json",
        "PUT .*/scans/(fewer-shards|new)/zarr.json",
        r"POST .*\?delete",
    ],
)
def test_a_bucket_that_refuses_writes_after_publication_loses_nothing(
    crash_data, bucket, store, refused
):
    place, url = store
    code, run = run_in_bucket(
        crash_data,
        bucket,
        url,
        lambda _, change: "refuse" if re.match(refused, " ".join(change)) else "pass",
    )
    assert code == 1, run.output
    failures(run)
    assert harm_after_kill(place.files(url), url, crash_data.references[REFERENCE]) == []
    runs_well(crash_data, url, lambda: place.files(url), Plan(environment=bucket.environment))


@pytest.mark.parametrize("scan", ["new", "other-voxels"])
def test_a_lost_answer_to_the_last_write_does_no_harm(crash_data, bucket, store, scan):
    place, url = store
    cut = []

    def before(_, change):
        # The bucket does the write, but the client gets no answer and tries again.
        if change[0] == "PUT" and change[1].endswith(f"/scans/{scan}/zarr.json"):
            cut.append(change)
            return "pass then cut"
        return "pass"

    code, run = run_in_bucket(crash_data, bucket, url, before)
    assert cut
    assert code in {0, 1}, run.output
    assert set(failures(run)) <= {scan}
    assert harm_after_kill(place.files(url), url, crash_data.references[REFERENCE]) == []
    runs_well(crash_data, url, lambda: place.files(url), Plan(environment=bucket.environment))


def test_occasional_faults_of_a_bucket_do_no_harm(crash_data, bucket, store):
    place, url = store
    code, run = run_in_bucket(
        crash_data, bucket, url, lambda number, _: "fail" if number % 20 == 7 else "pass"
    )
    assert code == 0, run.output
    assert faults_at_end(place.files(url), url, crash_data.references[REFERENCE]) == []


def test_a_bucket_that_refuses_all_writes_is_an_error_and_unchanged(crash_data, bucket, store):
    place, url = store
    code, run = run_in_bucket(
        crash_data, bucket, url, lambda number, _: "refuse" if number else "pass"
    )
    assert code == 2, run.output
    assert "Traceback" not in run.output
    assert f"{url}: cannot be written" in run.output
    assert place.files(url) == crash_data.stores[REFERENCE]


@pytest.mark.parametrize("number_of_cut", [1, 30, 100])
def test_a_cut_network_is_an_error_and_does_no_harm(crash_data, bucket, store, number_of_cut):
    place, url = store
    cut = []

    def before(number, _):
        if number >= number_of_cut:
            cut.append(number)
        return "cut" if cut else "pass"

    code, run = run_in_bucket(crash_data, bucket, url, before)
    assert code in {1, 2}, run.output
    assert "Traceback" not in run.output
    assert "Please report this" not in run.output
    assert harm_after_kill(place.files(url), url, crash_data.references[REFERENCE]) == []
    runs_well(crash_data, url, lambda: place.files(url), Plan(environment=bucket.environment))
