"""The error of every kind of mistake in a recipe names file, line and key."""

import re

import pytest

from spinezarr.errors import RecipeError
from spinezarr.recipe import Recipe

RECIPE = """\
name: mine
title: My dataset
license: CC0-1.0
citation: none
layouts:
  flat:
    description: all in one folder
    image: "{folder}/{scan}_{kind:ct|mr}.nii.gz"
    label: "{folder}/{scan}_seg.nii.gz"
    mask: optional
    values: {"200": L1}
    centroids: {files: "{scan}.json", convention: verse}
    sidecar: "{folder}/{scan}.json"
  parts:
    description: a mask a vertebra
    image: "parts/{scan}/ct.nii.gz"
    label_parts: {file: "parts/{scan}/{part}.nii.gz", values: {l1: L1}}
    image_list: {files: list.txt, entry: "{scan}"}
  dicom:
    description: folders of slices
    image: "dicom/{scan}/"
    series: {number: [2, 3], kernel: "B*", slice_thickness_mm: [0, 1.5], min_slices: 20}
    label: "dicom/{scan}_{series_number}.nii.gz"
lookups:
  site: {inputs: folder, values: {"a*": Aachen, "{x}": "{x}"}}
splits: {files: split.txt, sections: {one: train}, entry: "{scan}.nii.gz"}
labels: {scheme: canonical, state: unknown, structures: {"30": left_hip}}
tables:
  clinic: {files: clinic.csv, key: Scan}
  folds: {files: fold.txt, scan_regex: "[0-9]+", constants: {fold: "1"}}
ignore:
  - {path: "**/*.txt", reason: no image}
"""

MISTAKES = [
    # replaced text, new text, line, key, further text of the error
    ("number: [2, 3]", "number: [two]", 22, "layouts.dicom.series.number", "'two'"),
    ("number: [2, 3]", "numbers: 2", 22, "layouts.dicom.series.numbers", "did you mean 'number'?"),
    ('kernel: "B*"', 'kernel: "B{"', 22, "layouts.dicom.series.kernel", "stray '{'"),
    ("[0, 1.5]", "[2, 1.5]", 22, "layouts.dicom.series", "[2.0, 1.5] is no range"),
    ("[0, 1.5]", "[1.5]", 22, "layouts.dicom.series.slice_thickness_mm", "missing"),
    ("min_slices: 20", "min_slices: 1", 22, "layouts.dicom.series.min_slices", "2"),
    ("dicom/{scan}/", "dicom/{scan}", 20, "layouts.dicom", "end 'dicom/{scan}' with '/'"),
    ("dicom/{scan}/", "{kernel}/{scan}/", 20, "layouts.dicom", "names {kernel}, which 'series'"),
    ("_{series_number}.nii", "_{series}.nii", 23, "layouts.dicom.label", "uses {series}"),
    ("_{series_number}.nii", "_{scan|upper}.nii", 23, "layouts.dicom.label", "no filter 'upper'"),
    ("title: My", "titel: My", 2, "titel", "did you mean 'title'?"),
    ("license: CC0-1.0\n", "", 1, "license", "this key is missing"),
    ("name: mine", "name: My Data", 1, "name", "'My Data'"),
    ("title: My dataset", "title: 2020-13-45", None, None, "Put texts in quotes"),
    ("citation: none", "citation: !!bool maybe", None, None, "Put texts in quotes"),
    ("title: My dataset", "title: no", 2, "title", "found False"),
    ("mask: optional", "mask: perhaps", 10, "layouts.flat.mask", "'optional'"),
    ("{scan}_{kind:ct|mr}", "{scan_{kind:ct|mr}", 8, "layouts.flat.image", "stray '{'"),
    ("{kind:ct|mr}", "{kind:(ct|mr}", 8, "layouts.flat.image", "unterminated"),
    ("{kind:ct|mr}", "{kind:ct)(mr}", 8, "layouts.flat.image", "unbalanced"),
    ('image: "{folder}', 'image: "./{folder}', 8, "layouts.flat.image", "neither '/' in front"),
    ('label: "{folder}', 'label: "/{folder}', 9, "layouts.flat.label", "neither '/' in front"),
    ('label: "{folder}', 'label: "../{folder}', 9, "layouts.flat.label", "'.' or '..'"),
    ('label: "{folder}/', 'label: "{folder}\\\\', 9, "layouts.flat.label", "'/' between"),
    ('label: "{folder}', 'label: "{fodler}', 9, "layouts.flat.label", "folder, kind, scan, site"),
    ('image: "parts/{scan}/ct.nii.gz"', "image: []", 16, "layouts.parts.image", "at least 1"),
    ('values: {"200": L1}', "values: {200: L1}", 11, None, "'200'"),
    ('{"200": L1}', '{"0": L1}', 11, "layouts.flat.values", "from 1 to 65535"),
    ('{"200": L1}', '{"0200": L1}', 11, "layouts.flat.values", "'0200' is no mask value"),
    ('{"200": L1}', '{"65536": L1}', 11, "layouts.flat.values", "from 1 to 65535"),
    ('{"200": L1}', '{"200": L7}', 11, "layouts.flat.values.200", "'L7' is neither a vertebra"),
    ('{"200": L1}', '{"200": "256"}', 11, "layouts.flat.values.200", "a value from 1 to 255"),
    ("convention: verse", "convention: Verse", 12, "layouts.flat.centroids.convention", "'lml'"),
    ('files: "{scan}.json"', 'files: "{n}.json"', 12, "layouts.flat.centroids.files", "uses {n}"),
    ('sidecar: "{folder}', 'sidecar: "{n}', 13, "layouts.flat.sidecar", "uses {n}"),
    (
        "    description: a mask a vertebra",
        "    description: x\n    label: y",
        15,
        "layouts.parts",
        "either 'label' or",
    ),
    ("{part}.nii.gz", "x.nii.gz", 17, "layouts.parts.label_parts", "does not name {part}"),
    ("values: {l1: L1}", "values: {}", 17, "layouts.parts.label_parts.values", "at least 1"),
    ("values: {l1: L1}", "values: {l1: L9}", 17, "layouts.parts.label_parts.values.l1", "'L9'"),
    (
        "    image_list: {",
        '    values: {"1": L1}\n    image_list: {',
        15,
        "layouts.parts",
        "'values' goes",
    ),
    ('entry: "{scan}"', 'entry: "{n}"', 18, "layouts.parts.image_list.entry", "uses {n}"),
    ("inputs: folder", "inptus: folder", 25, "lookups.site.inptus", "did you mean 'inputs'?"),
    ('"{x}": "{x}"', '"{x}": "{y}"', 25, "lookups.site", "uses {y}"),
    ('"a*": Aachen', '"a{": Aachen', 25, "lookups.site.values", "stray '{'"),
    ('entry: "{scan}.nii', 'entry: "{name}.nii', 26, "splits.entry", "does not name {scan}"),
    ("{one: train}", "[one]", 26, "splits.sections", "['one']"),
    ("state: unknown", "state: maybe", 27, "labels.state", "'all-visible'"),
    ('{"30": left_hip}', '{"20": left_hip}', 27, "labels.structures", "20 is L1 in the"),
    ('{"30": left_hip}', '{"300": left_hip}', 27, "labels.structures", "from 1 to 255"),
    ("key: Scan", "key: Scan, scan_regex: x", 29, "tables.clinic", "either 'key'"),
    ("key: Scan", "key: Scan, header: [Id]", 29, "tables.clinic", "'Scan' is not in 'header'"),
    ("key: Scan", 'key: Scan, matches: "{n}"', 29, "tables.clinic.matches", "uses {n}"),
    ("key: Scan", 'key: Scan, delimiter: ", "', 29, "tables.clinic.delimiter", "at most 1"),
    ("files: clinic.csv, ", "", 29, "tables.clinic", "give 'files', 'shipped' or both"),
    (
        'scan_regex: "[0-9]+"',
        'scan_regex: "[0-9"',
        30,
        "tables.folds.scan_regex",
        "unterminated character set",
    ),
    (
        'scan_regex: "[0-9]+"',
        'scan_regex: "[0-9]+", split: part',
        30,
        "tables.folds",
        "'part' is no column",
    ),
    ("reason: no image", "why: no image", 32, "ignore.0.why", "reason"),
    ("tables:", 'scan_id: "{n}"\ntables:', 28, "scan_id", "uses {n}"),
    ("tables:", "labels: {}\ntables:", 28, None, "key 'labels' is given twice"),
    ("ignore:", "\tignore:", None, None, "is not valid YAML"),
]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("recipe") / "mine.yaml"


def test_the_recipe_without_a_mistake_loads(file):
    file.write_text(RECIPE)
    assert Recipe.load(str(file)).layouts.keys() == {"flat", "parts", "dicom"}


@pytest.mark.parametrize(
    ("old", "new", "line", "key", "fragment"), MISTAKES, ids=[f"{m[1]}" for m in MISTAKES]
)
def test_the_error_of_a_mistake_names_file_line_and_key(file, old, new, line, key, fragment):
    assert old in RECIPE
    file.write_text(RECIPE.replace(old, new, 1))
    with pytest.raises(RecipeError) as caught:
        Recipe.load(str(file))
    message = str(caught.value)
    assert message.startswith(str(file))
    assert fragment in message
    if line is not None:
        assert re.search(rf"line {line}\b", message), message
    if key is not None:
        assert re.search(rf"line {line}, {re.escape(key)}\b", message), message
