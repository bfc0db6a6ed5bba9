import pytest
from packaging.requirements import Requirement

from spinezarr.measure.machine import check_memory, check_shared_memory
from spinezarr.measure.versions import check_package, check_versions
from spinezarr.processors import MemoryLimit, memory_limit

GB = 10**9


def write_group(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"memory.{name}").write_text(f"{text}\n")


def test_the_tightest_memory_limit_of_the_enclosing_groups_counts(tmp_path):
    stat = "anon 5\ninactive_file 100"
    write_group(tmp_path / "a" / "b", max="max", current=600, stat=stat)
    write_group(tmp_path / "a", max=1000, current=700, stat=stat)
    assert memory_limit("0::/a/b\n", tmp_path) == MemoryLimit(1000, 400)
    write_group(tmp_path / "a" / "b", max=650, current=600, stat=stat)
    assert memory_limit("0::/a/b\n", tmp_path) == MemoryLimit(650, 150)


def test_memory_limits_of_version_1_are_read_and_huge_ones_are_none(tmp_path):
    groups = "5:cpu,cpuacct:/x\n4:memory:/job\n0::/\n"
    files = {"usage_in_bytes": 9000, "stat": "total_inactive_file 1000\ninactive_file 7"}
    write_group(tmp_path / "memory", limit_in_bytes=9223372036854771712, **files)
    assert memory_limit(groups, tmp_path) is None
    write_group(tmp_path / "memory" / "job", limit_in_bytes=8500, **files)
    assert memory_limit(groups, tmp_path) == MemoryLimit(8500, 500)
    write_group(tmp_path / "memory" / "job", limit_in_bytes=7000, **files)
    assert memory_limit(groups, tmp_path) == MemoryLimit(7000, 0)


@pytest.mark.parametrize("groups", ["", "0::/nowhere\n"])
def test_no_group_is_no_limit(groups, tmp_path):
    assert memory_limit(groups, tmp_path) is None


def test_little_memory_has_advice_and_enough_has_none():
    little = check_memory(8 * GB, GB // 2, True)
    assert little.status == "note"
    assert "prefetch_bytes" in little.advice
    assert "control group" in little.found
    assert check_memory(8 * GB, 4 * GB, False).advice == ""


def test_the_shared_memory_of_a_container_is_too_small_for_pytorch_alone():
    small = check_shared_memory(64 << 20, has_torch=True)
    assert small.status == "note"
    assert "--shm-size" in small.advice
    assert check_shared_memory(64 << 20, has_torch=False).status == "ok"
    assert check_shared_memory(5 << 30, has_torch=True).status == "ok"
    assert check_shared_memory(None, has_torch=True).status == "ok"


@pytest.mark.parametrize(
    ("text", "optional", "status"),
    [
        ("numpy>=2.0", False, "ok"),
        ("numpy>=99", False, "broken"),
        ("numpy>=99", True, "note"),
        ("no-such-package>=1", False, "broken"),
    ],
)
def test_a_package_is_compared_with_its_requirement(text, optional, status):
    finding = check_package(Requirement(text), optional=optional)
    assert finding.status == status
    assert finding.advice == ("" if status == "ok" else f"Run: pip install '{text}'")


def test_the_minimums_are_those_of_the_project_and_are_met_here():
    found = {finding.name: finding for finding in check_versions()}
    assert found["Python"].needed == ">= 3.11"
    assert found["zarr"].needed == ">= 3.1.6"
    assert {name for name, finding in found.items() if finding.status == "broken"} == set()
    extras = found["extras"].figures
    assert "all" not in {*extras["installed"], *extras["not_installed"]}
    assert {"s3", "http", "dicom"} <= {*extras["installed"], *extras["not_installed"]}
