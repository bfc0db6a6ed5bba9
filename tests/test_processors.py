import ast
import os
import subprocess
import sys
from pathlib import Path

import dask.system
import pytest

import spinezarr
from spinezarr.processors import cpu_count, cpu_quota

PACKAGE = Path(spinezarr.__file__).parent
COUNTS = {"cpu_count", "process_cpu_count", "sched_getaffinity"}

needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system binds no process to processors"
)


def counted_elsewhere(source):
    """Return the lines that count processors by another module than spinezarr.processors."""
    if not any(name in source for name in COUNTS):  # parsing all modules takes seconds
        return []
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if (isinstance(node, ast.Attribute) and node.attr in COUNTS)
        or (
            isinstance(node, ast.ImportFrom)
            and node.module != "spinezarr.processors"
            and COUNTS & {alias.name for alias in node.names}
        )
    ]


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("import os\nos.cpu_count()", [2]),
        ("from os import cpu_count", [1]),
        ("import multiprocessing as m\n\nm.cpu_count()", [3]),
        ("from spinezarr.processors import cpu_count\ncpu_count()", []),
    ],
)
def test_the_check_finds_other_ways_to_count_processors(source, lines):
    assert counted_elsewhere(source) == lines


def test_only_one_module_counts_processors():
    found = {
        path.relative_to(PACKAGE).as_posix(): lines
        for path in PACKAGE.rglob("*.py")
        if (lines := counted_elsewhere(path.read_text())) and path.name != "processors.py"
    }
    assert found == {}


def on_one_processor(program):
    """Run a program that may use only one processor, and return its output."""
    bound = "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    done = subprocess.run(
        [sys.executable, "-c", bound + program], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@needs_affinity
def test_the_count_follows_the_affinity():
    assert on_one_processor("from spinezarr.processors import cpu_count\nprint(cpu_count())") == [
        "1"
    ]


@needs_affinity
@pytest.mark.long
@pytest.mark.skipif(cpu_count() < 2, reason="one processor looks the same either way")
def test_pools_follow_the_affinity(ctspine1k_url):
    program = f"""
import concurrent.futures.thread as thread
made = {{}}
plain = thread.ThreadPoolExecutor.__init__
def noted(self, max_workers=None, thread_name_prefix="", *rest, **named):
    made[thread_name_prefix] = max_workers
    plain(self, max_workers, thread_name_prefix, *rest, **named)
thread.ThreadPoolExecutor.__init__ = noted
import spinezarr
store = spinezarr.open({ctspine1k_url!r})
store.audit(scans=["liver_0"], write=False)
stream = store.patches(8)
next(iter(stream))
from spinezarr.serve.settings import ServeSettings
app = ServeSettings(paths=({ctspine1k_url!r},)).app()
limits = ServeSettings(paths=()).limits
print(stream.threads, made["spinezarr-audit"], made["spinezarr-read"], made["spinezarr-ome"])
print(limits.threads_per_batch, limits.batches_at_once)
"""
    assert on_one_processor(program) == ["1", "1", "1", "1", "1", "2"]


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3),
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "300000 100000"}, 3),
        ("0::/not/here\n", {"cpu.max": "50000 100000"}, 1),
        ("0::/\n", {}, None),
        (
            "5:memory:/job\n3:cpu,cpuacct:/job\n0::/\n",
            {
                "cpu,cpuacct/job/cpu.cfs_quota_us": "250000",
                "cpu,cpuacct/job/cpu.cfs_period_us": "100000",
                "cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            3,
        ),
    ],
)
def test_the_quota_of_control_groups_is_followed(groups, files, quota, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(groups, tmp_path) == quota


def test_the_count_is_that_of_dask():
    assert cpu_count() == dask.system.cpu_count()


def test_importing_the_package_loads_no_dask():
    program = "import sys, spinezarr.processors, spinezarr; print('dask' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
