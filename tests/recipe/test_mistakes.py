"""Every kind of mistake in a recipe is answered with its file, line and key."""

import re

import pytest

from spinezarr.errors import RecipeError
from spinezarr.recipe import Recipe

RECIPE = """\
name: mine
title: My dataset
licence: CC0-1.0
citation: none
layouts:
  flat:
    about: all in one folder
    image: "{folder}/{scan}_{kind:ct|mr}.nii.gz"
    label: "{folder}/{scan}_seg.nii.gz"
    mask: optional
    values: {"200": L1}
    centroids: {files: "{scan}.json", convention: verse}
    sidecar: "{folder}/{scan}.json"
  parts:
    about: a mask a vertebra
    image: "parts/{scan}/ct.nii.gz"
    label_parts: {file: "parts/{scan}/{part}.nii.gz", values: {l1: L1}}
    listed: {files: list.txt, entry: "{scan}"}
lookups:
  site: {of: folder, values: {"a*": Aachen, "{x}": "{x}"}}
splits: {files: split.txt, sections: {one: train}, entry: "{scan}.nii.gz"}
labels: {scheme: canonical, state: unknown, structures: {"30": left_hip}}
tables:
  clinic: {files: clinic.csv, key: Scan}
  folds: {files: fold.txt, find: "[0-9]+", set: {fold: "1"}}
ignore:
  - {path: "**/*.txt", because: no image}
"""

MISTAKES = [
    # what is replaced, by what, line, key, what else the answer holds
    ("title: My", "titel: My", 2, "titel", "did you mean 'title'?"),
    ("licence: CC0-1.0\n", "", 1, "licence", "this key is missing"),
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
        "    about: a mask a vertebra",
        "    about: x\n    label: y",
        15,
        "layouts.parts",
        "either 'label' or",
    ),
    ("{part}.nii.gz", "x.nii.gz", 17, "layouts.parts.label_parts", "does not name {part}"),
    ("values: {l1: L1}", "values: {}", 17, "layouts.parts.label_parts.values", "at least 1"),
    ("values: {l1: L1}", "values: {l1: L9}", 17, "layouts.parts.label_parts.values.l1", "'L9'"),
    ("    listed: {", '    values: {"1": L1}\n    listed: {', 15, "layouts.parts", "'values' goes"),
    ('entry: "{scan}"', 'entry: "{n}"', 18, "layouts.parts.listed.entry", "uses {n}"),
    ("of: folder", "ofs: folder", 20, "lookups.site.ofs", "did you mean 'of'?"),
    ('"{x}": "{x}"', '"{x}": "{y}"', 20, "lookups.site", "uses {y}"),
    ('"a*": Aachen', '"a{": Aachen', 20, "lookups.site.values", "stray '{'"),
    ('entry: "{scan}.nii', 'entry: "{name}.nii', 21, "splits.entry", "does not name {scan}"),
    ("{one: train}", "[one]", 21, "splits.sections", "['one']"),
    ("state: unknown", "state: maybe", 22, "labels.state", "'all-visible'"),
    ('{"30": left_hip}', '{"20": left_hip}', 22, "labels.structures", "20 is L1 in the"),
    ('{"30": left_hip}', '{"300": left_hip}', 22, "labels.structures", "from 1 to 255"),
    ("key: Scan", "key: Scan, find: x", 24, "tables.clinic", "either 'key'"),
    ("key: Scan", "key: Scan, header: [Id]", 24, "tables.clinic", "'Scan' is not in 'header'"),
    ("key: Scan", 'key: Scan, matches: "{n}"', 24, "tables.clinic.matches", "uses {n}"),
    ("key: Scan", 'key: Scan, delimiter: ", "', 24, "tables.clinic.delimiter", "at most 1"),
    ("files: clinic.csv, ", "", 24, "tables.clinic", "give 'files', 'shipped' or both"),
    ('find: "[0-9]+"', 'find: "[0-9"', 25, "tables.folds.find", "unterminated character set"),
    ('find: "[0-9]+"', 'find: "[0-9]+", split: part', 25, "tables.folds", "'part' is no column"),
    ("because: no image", "why: no image", 27, "ignore.0.why", "because"),
    ("tables:", 'scan_id: "{n}"\ntables:', 23, "scan_id", "uses {n}"),
    ("tables:", "labels: {}\ntables:", 23, None, "key 'labels' is given twice"),
    ("ignore:", "\tignore:", None, None, "is not valid YAML"),
]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("recipe") / "mine.yaml"


def test_the_recipe_without_a_mistake_loads(file):
    file.write_text(RECIPE)
    assert Recipe.load(str(file)).layouts.keys() == {"flat", "parts"}


@pytest.mark.parametrize(
    ("old", "new", "line", "key", "fragment"), MISTAKES, ids=[f"{m[1]}" for m in MISTAKES]
)
def test_a_mistake_is_answered_with_its_file_line_and_key(file, old, new, line, key, fragment):
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
