"""With pseudonyms, no name of a scan, a patient or a file is in the store."""

import csv
import json
import stat
import string
import subprocess

import fork_server
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import spinezarr
from spinezarr.errors import UsageError
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.pseudonyms import MapLine, Pseudonyms, apply_pseudonyms, key_file, map_file
from spinezarr.ingestion.run import ingest
from spinezarr.ingestion.scan import ScanOptions
from spinezarr.recipe import Recipe
from spinezarr.testing import NiftiForm, write_nifti

RECIPE = """\
name: hidden
title: Hidden
license: none
citation: none
layouts:
  flat:
    description: flat
    image: "{patient}/{scan}_ct.nii"
    label: "{patient}/{scan}_seg.nii"
    mask: optional
    centroids: {files: "{patient}/{scan}.json", convention: verse}
    sidecar: "{patient}/{scan}_side.json"
    sidecar_keys: KVP
    constants: {site: A}
patient_id: "{patient}"
source: "{patient}"
splits: {files: split.txt, sections: {one: train, two: test}, entry: "{scan}"}
labels: {scheme: canonical, state: unknown}
tables:
  clinic: {files: clinic.csv, key: Scan, non_identifying: [Age, "T{n}_grade"]}
  half: {files: split.txt, scan_regex: visitB, constants: {half: second}}
"""
IMAGE = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
MASK = np.where(IMAGE > 30, 20, 0)


def write_scan(raw, patient, scan):
    folder = raw / patient
    write_nifti(folder / f"{scan}_ct.nii", IMAGE, np.eye(4), NiftiForm())
    write_nifti(folder / f"{scan}_seg.nii", MASK, np.eye(4), NiftiForm(dtype="uint8"))
    points = [{"direction": ["R", "A", "S"]}, {"label": 20, "X": 1, "Y": 1, "Z": 1}]
    (folder / f"{scan}.json").write_text(json.dumps(points))
    (folder / f"{scan}_side.json").write_text(json.dumps({"KVP": 120, "Name": patient}))


def write_lists(raw, scans):
    half = len(scans) // 2
    lines = ["one:", *(scan for _, scan in scans[:half]), "two:", *(s for _, s in scans[half:])]
    (raw / "split.txt").write_text("\n".join(lines))
    rows = [f"{scan},{patient},6{at},{at}" for at, (patient, scan) in enumerate(scans)]
    (raw / "clinic.csv").write_text("\n".join(["Scan,Name,Age,T1_grade", *rows]))


@pytest.fixture
def raw(tmp_path):
    scans = [("Doe_Jane", "visitA"), ("Doe_Jane", "visitB"), ("Roe_Rick", "visitC")]
    (tmp_path / "raw").mkdir()
    for patient, scan in scans:
        write_scan(tmp_path / "raw", patient, scan)
    write_lists(tmp_path / "raw", scans)
    (tmp_path / "hidden.yaml").write_text(RECIPE)
    return tmp_path / "raw"


def run(raw, out, chosen=None):
    recipe = Recipe.load(str(raw.parent / "hidden.yaml"))
    place = map_file(str(out), chosen)
    found, names = apply_pseudonyms(discover(recipe, str(raw)), recipe, str(out), place)
    report = ingest(recipe, found, str(out), options=ScanOptions(pseudonyms=names))
    assert not report.failed, report.failed
    return report


def lines_of(place):
    with place.open(newline="") as file:
        return [MapLine(**row) for row in csv.DictReader(file)]


def command(*arguments, cwd=None):
    words = [fork_server.command(), "ingest", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, check=False, text=True, cwd=cwd)


def pieces(texts, size=6):
    return {text[at : at + size] for text in texts for at in range(len(text) - size + 1)}


def test_the_store_contains_no_part_of_thirty_original_names(tmp_path, text_of_store):
    numbers = np.random.default_rng(3)
    words = ["".join(numbers.choice(list("QXZJKVWqxzjkvw"), 9)) for _ in range(50)]
    scans = [(words[at // 2], words[20 + at]) for at in range(30)]
    raw = tmp_path / "raw"
    for patient, scan in scans:
        write_scan(raw, patient, scan)
    write_lists(raw, scans)
    (tmp_path / "hidden.yaml").write_text(RECIPE)
    out = tmp_path / "s.zarr"
    done = command(tmp_path / "hidden.yaml", "--raw", raw, "--out", out, "--pseudonymize", "--json")
    assert done.returncode == 0, done.stderr
    stored = text_of_store(out)
    assert [piece for piece in pieces(words) if piece.encode() in stored] == []
    assert not any(word in done.stdout for word in words)
    table = spinezarr.open(out).table
    assert set(table.scan.to_numpy()) == set(json.loads(done.stdout)["done"])
    back = {line.pseudonym: line for line in lines_of(tmp_path / "s.zarr.pseudonyms.csv")}
    assert sorted((line.patient_id, line.scan_id) for line in back.values()) == sorted(scans)
    for row in table.scan.to_numpy():
        line = back[row]
        assert table.patient_id.sel(scan=row).item() == line.patient_pseudonym
        assert (raw / line.image).is_file()
        assert (raw / line.label).is_file()


def test_columns_that_identify_no_one_are_kept(raw, tmp_path):
    run(raw, tmp_path / "s.zarr")
    (line,) = [x for x in lines_of(tmp_path / "s.zarr.pseudonyms.csv") if x.scan_id == "visitB"]
    row = spinezarr.open(tmp_path / "s.zarr").table.sel(scan=line.pseudonym)
    assert (row.Age.item(), row.T1_grade.item(), row.KVP.item()) == ("61", "1", "120")
    assert (row.split.item(), row.split_index.item()) == ("test", -1)
    assert row.source.item().startswith("source-")
    assert row.half.item() == "second"
    assert "Name" not in row


def test_scans_of_one_patient_share_the_patient_pseudonym(raw, tmp_path):
    run(raw, tmp_path / "s.zarr")
    a, b, c = sorted(lines_of(tmp_path / "s.zarr.pseudonyms.csv"), key=lambda line: line.scan_id)
    assert a.patient_pseudonym == b.patient_pseudonym != c.patient_pseudonym
    assert len({a.pseudonym, b.pseudonym, c.pseudonym}) == 3
    for line in (a, b, c):
        assert line.pseudonym.startswith("scan-")
        assert line.patient_pseudonym.startswith("patient-")


def test_key_and_map_are_readable_only_by_their_owner(raw, tmp_path):
    run(raw, tmp_path / "s.zarr")
    for name in ("s.zarr.pseudonyms.csv", "s.zarr.pseudonyms.key"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "hidden.yaml", "raw", "s.zarr", "s.zarr.pseudonyms.csv", "s.zarr.pseudonyms.key",
    ]  # fmt: skip


def test_another_key_gives_other_ids_and_hashes(raw, tmp_path):
    run(raw, tmp_path / "a.zarr")
    run(raw, tmp_path / "b.zarr")
    a, b = (spinezarr.open(tmp_path / f"{name}.zarr").table for name in "ab")
    for column in ("scan", "patient_id", "image_sha256", "source"):
        assert not set(a[column].to_numpy()) & set(b[column].to_numpy())


def test_a_copy_of_the_key_gives_the_same_ids_in_another_store(raw, tmp_path):
    run(raw, tmp_path / "a.zarr")
    key = (tmp_path / "a.zarr.pseudonyms.key").read_bytes()
    (tmp_path / "b.zarr.pseudonyms.key").write_bytes(key)
    run(raw, tmp_path / "b.zarr")
    a, b = (spinezarr.open(tmp_path / f"{name}.zarr").table for name in "ab")
    assert a.identical(b)


def test_running_again_skips_updates_and_adds(raw, tmp_path):
    out, place = tmp_path / "s.zarr", tmp_path / "s.zarr.pseudonyms.csv"
    first = run(raw, out)
    written = place.stat().st_mtime_ns
    again = run(raw, out)
    assert (len(again.skipped), again.done, again.updated) == (3, (), ())
    assert place.stat().st_mtime_ns == written
    text = (raw / "clinic.csv").read_text()
    (raw / "clinic.csv").write_text(text.replace(",61,", ",62,"))
    assert len(run(raw, out).updated) == 1
    before = lines_of(place)
    write_scan(raw, "Roe_Rick", "visitD")
    assert len(run(raw, out).done) == 1
    added = lines_of(place)
    assert len(added) == 4
    assert {line.pseudonym for line in before} == set(first.done)
    assert set(before) < set(added)
    (raw / "Doe_Jane" / "visitA_ct.nii").unlink()
    assert len(run(raw, out).from_earlier_runs) == 1
    assert lines_of(place) == added


def test_a_changed_source_is_read_again(raw, tmp_path):
    run(raw, tmp_path / "s.zarr")
    (raw / "Roe_Rick" / "visitC_seg.nii").unlink()
    assert len(run(raw, tmp_path / "s.zarr").done) == 1


@pytest.mark.parametrize("lost", ["s.zarr.pseudonyms.csv", "s.zarr.pseudonyms.key"])
def test_the_error_names_a_lost_map_or_key(raw, tmp_path, lost):
    run(raw, tmp_path / "s.zarr")
    (tmp_path / lost).unlink()
    with pytest.raises(UsageError, match=rf"{lost}: is missing, and the store .* was made with"):
        run(raw, tmp_path / "s.zarr")
    assert not (tmp_path / lost).exists()


def test_a_map_without_its_key_is_refused(raw, tmp_path):
    run(raw, tmp_path / "s.zarr")
    (tmp_path / "s.zarr").rename(tmp_path / "away")
    (tmp_path / "s.zarr.pseudonyms.key").unlink()
    with pytest.raises(UsageError, match="Another key would give other pseudonyms"):
        run(raw, tmp_path / "s.zarr")


def damage(name, edit):
    def apply(tmp_path):
        path = tmp_path / name
        path.write_text(edit(path.read_text()))

    return apply


@pytest.mark.parametrize(
    ("apply", "reason"),
    [
        (damage("s.zarr.pseudonyms.key", lambda _: "00" * 32), "is not the key that the store"),
        (damage("s.zarr.pseudonyms.key", lambda text: text[:20]), "64 hexadecimal digits"),
        (damage("s.zarr.pseudonyms.key", lambda _: "zz"), "64 hexadecimal digits"),
        (damage("s.zarr.pseudonyms.csv", lambda text: text.replace("visitB", "x")), "line [234]: "),
        (
            damage("s.zarr.pseudonyms.csv", lambda text: text.replace("scan_id", "x")),
            "is not a map",
        ),
        (damage("s.zarr.pseudonyms.csv", lambda text: text + 'x,"'), "is not a map"),
    ],
)
def test_a_damaged_key_or_map_is_refused(raw, tmp_path, apply, reason):
    run(raw, tmp_path / "s.zarr")
    apply(tmp_path)
    with pytest.raises(UsageError, match=reason) as caught:
        run(raw, tmp_path / "s.zarr")
    assert "visit" not in str(caught.value)


def test_later_runs_must_use_pseudonyms_like_the_first(raw, tmp_path):
    recipe = Recipe.load(str(tmp_path / "hidden.yaml"))
    run(raw, tmp_path / "s.zarr")
    with pytest.raises(UsageError, match="was made with pseudonyms"):
        ingest(recipe, discover(recipe, str(raw)), str(tmp_path / "s.zarr"))
    ingest(recipe, discover(recipe, str(raw)), str(tmp_path / "t.zarr"))
    with pytest.raises(UsageError, match="was made without pseudonyms"):
        run(raw, tmp_path / "t.zarr")
    assert not (tmp_path / "t.zarr.pseudonyms.key").exists()


def test_the_map_may_lie_anywhere_but_in_the_store(raw, tmp_path, monkeypatch):
    out = tmp_path / "s.zarr"
    run(raw, out, str(tmp_path / "safe.csv"))
    assert (tmp_path / "safe.csv").is_file()
    assert (tmp_path / "safe.key").is_file()
    (tmp_path / "link").symlink_to(out)
    for inside in (out / "m.csv", out / "a" / ".." / "m.csv", tmp_path / "link" / "m.csv"):
        with pytest.raises(UsageError, match="lies inside the store"):
            map_file(str(out), str(inside))
    for place in ("s3://bucket/m.csv", "m.json", "m"):
        with pytest.raises(UsageError, match=r"expected a path on this machine, named \.csv"):
            map_file(str(out), place)
    monkeypatch.chdir(tmp_path)
    assert map_file("memory://bucket/deep/x.zarr/", None).name == "x.zarr.pseudonyms.csv"
    assert map_file("memory://bucket/deep/x.zarr", None).resolve().parent == tmp_path
    with pytest.raises(UsageError, match=r"cannot be written: .* --pseudonyms FILE"):
        run(raw, tmp_path / "u.zarr", str(tmp_path / "none" / "m.csv"))


def test_errors_of_the_command_explain_the_problem(raw, tmp_path):
    words = [tmp_path / "hidden.yaml", "--raw", raw, "--out", tmp_path / "s.zarr"]
    alone = command(*words, "--pseudonyms", tmp_path / "m.csv")
    assert (alone.returncode, "needs --pseudonymize" in alone.stderr) == (2, True)
    inside = command(*words, "--pseudonymize", "--pseudonyms", tmp_path / "s.zarr" / "m.csv")
    assert (inside.returncode, "lies inside the store" in inside.stderr) == (2, True)
    assert not (tmp_path / "s.zarr").exists()


def test_a_key_is_not_printed():
    names = Pseudonyms.new()
    assert names.key.hex() not in repr(names)
    assert repr(names.key) not in repr(ScanOptions(pseudonyms=names))
    assert key_file(map_file("x.zarr", None)).name == "x.zarr.pseudonyms.key"


@given(st.text(), st.text(), st.binary(min_size=32, max_size=32))
def test_pseudonyms_depend_only_on_key_kind_and_id(a, b, key):
    names = Pseudonyms(key)
    assert (names.of("scan", a) == names.of("scan", b)) == (a == b)
    assert names.of("scan", a)[5:] != names.of("patient", a)[8:]
    assert names.of("scan", a) == Pseudonyms(key).of("scan", a)
    assert names.of("scan", a) != Pseudonyms(key[::-1] + b"x").of("scan", a)
    assert set(names.of("scan", a)) <= set(string.ascii_lowercase + "234567-")


names_of_files = st.from_regex(r"[QXZJKVW][QXZJKVW!#=+]{4,11}", fullmatch=True)


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(names_of_files, names_of_files), min_size=1, max_size=3, unique=True))
def test_no_piece_of_any_name_is_in_the_store(tmp_path_factory, text_of_store, scans):
    folder = tmp_path_factory.mktemp("any")
    scans = list({scan: (patient, scan) for patient, scan in scans}.values())
    for patient, scan in scans:
        write_scan(folder / "raw", patient, scan)
    write_lists(folder / "raw", scans)
    (folder / "hidden.yaml").write_text(RECIPE)
    run(folder / "raw", folder / "s.zarr")
    stored = text_of_store(folder / "s.zarr")
    texts = [text for pair in scans for text in pair]
    assert [piece for piece in pieces(texts) if piece.encode() in stored] == []
    back = {(line.patient_id, line.scan_id) for line in lines_of(folder / "s.zarr.pseudonyms.csv")}
    assert back == set(scans)
