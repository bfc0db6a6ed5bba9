"""Bash completes commands, options and names, as it does for a user who presses Tab."""

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_scans import make_store

BASH = shutil.which("bash")
SPINEZARR = Path(sys.executable).parent / "spinezarr"
EVIL_NAMES = ["$(reboot)", "a b", "`id`", "x;y", "-rf", "q'q", "<b>"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("own"), ["box", "oblique", "bare"])


@pytest.fixture(scope="module")
def script():
    """Return the completion script that spinezarr prints for bash."""
    shell = [BASH, "--norc", "-c", f"{shlex.quote(str(SPINEZARR))} --show-completion; true"]
    done = subprocess.run(shell, capture_output=True, text=True, check=True)
    assert "complete -o default -F _spinezarr_completion spinezarr" in done.stdout
    return done.stdout


@pytest.fixture
def complete(script):
    """Return a function that returns what bash offers for the last word of a line."""

    def offer(*words, folder="."):
        quoted = " ".join(map(shlex.quote, ["spinezarr", *map(str, words)]))
        program = (
            f"{script}\nCOMP_WORDS=({quoted})\nCOMP_CWORD={len(words)}\n"
            "_spinezarr_completion spinezarr\n"
            'for word in "${COMPREPLY[@]}"; do printf "%s\\n" "$word"; done'
        )
        path = f"{SPINEZARR.parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            [BASH, "--norc", "-c", program],
            capture_output=True,
            text=True,
            check=True,
            cwd=folder,
            env={**os.environ, "PATH": path},
        )
        assert done.stderr == ""
        return done.stdout.splitlines()

    return offer


def test_commands_and_options_are_offered(complete):
    assert complete("in") == ["ingest", "info", "init"]
    assert complete("export", "") == ["nifti", "nnunet", "ome-zarr", "card"]
    assert complete("derive", "x", "--sc") == ["--scan", "--scratch", "--scheduler"]
    assert complete("--v") == ["--version"]
    assert complete("audit", "x", "--severity", "") == ["info", "warning", "error"]


def test_names_of_recipes_and_of_the_catalog_are_offered(complete, tmp_path):
    assert complete("ingest", "ctsp") == ["ctspine1k", "ctspine1k-verse", "ctspinopelvic1k"]
    (tmp_path / "catalog.yaml").write_text("datasets: {mine: {recipe: verse, store: s.zarr}}")
    assert complete("ingest", "mi", folder=tmp_path) == ["mine"]
    assert complete("ingest", "verse", "--codec", "") == ["balanced", "fast", "small"]


def test_names_of_a_store_are_offered(complete, store):
    assert complete("verify", store.url, "--scan", "") == ["bare", "box", "oblique"]
    assert complete("verify", store.url, "--scan", "o") == ["oblique"]
    assert complete("preview", store.url, "--layer", "") == ["label", "disc", "ribs"]
    assert "L1" in complete("stats", store.url, "--vertebra", "L")
    assert complete("audit", store.url, "--json", "--scan", "bo") == ["box"]


def test_nothing_is_offered_or_printed_where_there_is_no_store(complete, tmp_path):
    (tmp_path / "catalog.yaml").write_text("{{{")
    for url in ("nowhere", "s3://nowhere/x", tmp_path):
        assert complete("verify", url, "--scan", "", folder=tmp_path) == []
        assert complete("verify", url, "--split", "", folder=tmp_path) == []


def test_names_that_a_shell_would_run_are_not_offered(complete, store, tmp_path):
    copied = tmp_path / "s.zarr"
    shutil.copytree(store.url, copied)
    for name in EVIL_NAMES:
        (copied / "scans" / name).mkdir()
    assert complete("verify", copied, "--scan", "") == ["bare", "box", "oblique"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_the_same_words(shell, tmp_path):
    variables = {
        "_SPINEZARR_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": "spinezarr ver",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    done = subprocess.run(
        [SPINEZARR], capture_output=True, text=True, check=True, env={**os.environ, **variables}
    )
    assert "verify" in done.stdout
    assert "Check every byte of a store" in done.stdout


def test_completion_of_commands_is_quick(script):
    variables = {**os.environ, "_SPINEZARR_COMPLETE": "complete_bash"}
    variables |= {"COMP_WORDS": "spinezarr in", "COMP_CWORD": "1"}
    times = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([SPINEZARR], capture_output=True, check=True, env=variables)
        times.append(time.perf_counter() - started)
    assert min(times) < 1.5, times  # 0.3 s on an idle core
