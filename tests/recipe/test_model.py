import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinezarr.errors import RecipeError
from spinezarr.recipe import Lookup, Recipe, Splits, fill_template
from spinezarr.resources import recipe_names, recipe_path, resource

RECIPE = """\
name: mine
title: My dataset
license: CC0-1.0
citation: none
layouts:
  flat:
    description: all in one folder
    image: "{folder}/{scan}.nii.gz"
    label: "{folder}/{scan}_seg.nii.gz"
lookups:
  site: {inputs: folder, values: {"a*": Aachen, b: Bonn}}
splits:
  files: split.txt
  sections: {one: train}
  entry: "{scan}.nii.gz"
labels: {scheme: canonical, state: unknown}
"""


def test_the_first_matching_pattern_of_a_lookup_is_used():
    lookup = Lookup(inputs="scan", values={"liver_*": "MSD", "*_1": "one", "CTC-*": "COLONOG"})
    assert lookup.get({"scan": "liver_1"}) == "MSD"
    assert lookup.get({"scan": "x_1"}) == "one"
    assert lookup.get({"scan": "CTC-10", "folder": "liver_1"}) == "COLONOG"
    assert lookup.get({"scan": "my liver_2"}) is None
    assert lookup.get({"folder": "liver_1"}) is None


@pytest.fixture
def recipe_file(tmp_path):
    return tmp_path / "mine.yaml"


def load(path, text):
    path.write_text(text)
    return Recipe.load(str(path))


def refusal(path, text):
    with pytest.raises(RecipeError) as caught:
        load(path, text)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_single_string_may_replace_a_list(recipe_file):
    recipe = load(recipe_file, RECIPE)
    assert recipe.layouts["flat"].image == ("{folder}/{scan}.nii.gz",)
    assert recipe.layouts["flat"].label == ("{folder}/{scan}_seg.nii.gz",)
    assert recipe.splits.files == ("split.txt",)


def test_templates_are_filled_with_texts_and_looked_up_values(recipe_file):
    recipe = load(recipe_file, RECIPE)
    texts = recipe.resolve_lookups({"folder": "ab", "scan": "{x}"})
    assert fill_template("{site}:{scan}:{scan}", texts) == "Aachen:{x}:{x}"
    assert fill_template("{site}", recipe.resolve_lookups({"folder": "c"})) is None
    assert fill_template("plain", recipe.resolve_lookups({})) == "plain"


@pytest.mark.parametrize(
    ("old", "new", "fragments"),
    [
        ("title: My", "titel: My", ["line 2, titel: unknown key; did you mean 'title'?"]),
        ("license: CC0-1.0\n", "", ["license: this key is missing"]),
        ("name: mine", "name: My Data", ["line 1, name: ", "'My Data'"]),
        ("state: unknown", "state: maybe", ["line 16, labels.state", "'all-visible'", "'maybe'"]),
        (
            "    description: all",
            "    descripton: all",
            ["line 7, layouts.flat.descripton", "'description'"],
        ),
        ("  files:", "  file:", ["line 13, splits.file", "did you mean 'files'?"]),
        (
            "inputs: folder,",
            "for: folder,",
            ["line 11, lookups.site.for", "known keys: inputs, values"],
        ),
        ('image: "{folder}/', 'image: "{folder/', ["line 8, layouts.flat.image", "stray '{'"]),
        ('label: "{folder}/', 'label: "{folder/', ["line 9, layouts.flat.label", "stray '{'"]),
        ('entry: "{scan}', 'entry: "{scan', ["line 15, splits.entry", "stray '{'"]),
        ('"a*": Aachen', '"a{": Aachen', ["line 11, lookups.site.values", "stray '{'"]),
        ("name: mine", "name: mine\nname: x", ["line 2: key 'name' is given twice"]),
        ("title: My dataset", "title: [", ["is not valid YAML"]),
    ],
)
def test_the_error_of_an_invalid_recipe_says_where_and_why(recipe_file, old, new, fragments):
    assert old in RECIPE
    message = refusal(recipe_file, RECIPE.replace(old, new))
    assert all(fragment in message for fragment in fragments), message


def test_a_recipe_needs_a_layout(recipe_file):
    text = re.sub(r"layouts:\n(  .*\n)+", "layouts: {}\n", RECIPE)
    assert "line 5, layouts: " in refusal(recipe_file, text)


@pytest.mark.parametrize(
    ("old", "new", "used_by"),
    [
        ("labels:", 'scan_id: "{scam}"\nlabels:', "scan_id"),
        ("labels:", 'patient_id: "p{scam}"\nlabels:', "patient_id"),
        ("labels:", 'source: "{scam}"\nlabels:', "source"),
        ('label: "{folder}', 'label: "{scam}', "layouts.flat.label"),
    ],
)
def test_a_template_with_an_undefined_name_is_refused(recipe_file, old, new, used_by):
    message = refusal(recipe_file, RECIPE.replace(old, new))
    assert re.search(rf"line \d+, {used_by} uses {{scam}}", message)
    assert "folder, scan, site" in message


def test_a_lookup_defines_its_name_only_if_its_input_is_defined(recipe_file):
    text = RECIPE.replace("inputs: folder", "inputs: nothing")
    load(recipe_file, text)
    message = refusal(recipe_file, text.replace('label: "{folder}', 'label: "{site}'))
    assert "uses {site}" in message


def test_split_entries_must_contain_the_scan_field(recipe_file):
    message = refusal(recipe_file, RECIPE.replace('entry: "{scan}', 'entry: "{name}'))
    assert "splits.entry" in message
    assert "{scan}" in message


def test_a_pair_of_patterns_is_a_recipe():
    recipe = Recipe.from_pairs("{scan}_ct.nii", "{scan}_seg.nii", name="mine", license="CC0-1.0")
    assert recipe.layouts["pairs"].image == ("{scan}_ct.nii",)
    assert recipe.layouts["pairs"].label == ("{scan}_seg.nii",)
    assert (recipe.name, recipe.license) == ("mine", "CC0-1.0")
    assert Recipe.from_pairs("{scan}.nii", None, name="mine").layouts["pairs"].label == ()


@pytest.mark.parametrize(
    ("image", "label", "name", "fragment"),
    [
        ("{scan.nii", "{scan}_seg.nii", "mine", "stray '{'"),
        ("{scan}.nii", "{scan_seg.nii", "mine", "stray '{'"),
        ("{scan}.nii", "{patient}_seg.nii", "mine", "uses {patient}"),
        ("*.nii", "x_seg.nii", "mine", "uses {scan}"),
        ("{scan}.nii", "{scan}_seg.nii", "My Data", "My Data"),
    ],
)
def test_a_pair_of_patterns_that_is_no_recipe_is_refused(image, label, name, fragment):
    with pytest.raises(RecipeError, match=re.escape(fragment)):
        Recipe.from_pairs(image, label, name=name)


def test_the_shipped_recipes_load():
    assert "ctspine1k" in recipe_names()
    for name in recipe_names():
        assert Recipe.load(name).name == name


def test_the_error_of_an_unknown_recipe_lists_the_shipped_ones():
    with pytest.raises(RecipeError, match=r"no recipe 'ctspine2k'.*ctspine1k"):
        recipe_path("ctspine2k")
    with pytest.raises(RecipeError, match=r"gone\.yaml: no such recipe file"):
        recipe_path("gone.yaml")


def test_the_shipped_recipe_covers_the_prefixes_of_all_scans():
    recipe = Recipe.load("ctspine1k")
    names = recipe.splits.parse(resource(f"ingest/{recipe.splits.shipped}").read_text(), "shipped")
    sources = [
        fill_template(recipe.source, recipe.resolve_lookups({"scan": name})) for name in names
    ]
    assert {source: sources.count(source) for source in set(sources)} == {
        "COLONOG": 784,
        "MSD-T10": 150,
        "COVID-19": 40,
        "HNSCC-3DCT-RT": 31,
    }


SPLITS = Splits(
    files=("s.txt",),
    sections={"trainset": "train", "test_public": "validation", "test_private": "test"},
    entry="{scan}.nii.gz",
)
line_ends = st.sampled_from(["\n", "\r\n", "\n\n", "\r\n\r\n", " \n", "\r\n\t\n"])
scan_names = st.from_regex(r"[a-z][a-z0-9_. -]{0,8}[a-z0-9]", fullmatch=True)


@given(st.data(), st.lists(scan_names, unique=True, max_size=9))
def test_line_ends_blank_lines_and_colons_do_not_matter_to_splits(data, names):
    sections = data.draw(st.permutations(list(SPLITS.sections)))
    listed = {name: data.draw(st.sampled_from(sections)) for name in names}
    text, expected = data.draw(st.sampled_from(["", "\n", "\r\n \r\n"])), {}
    for section in sections:
        text += section + data.draw(st.sampled_from([":", ""])) + data.draw(line_ends)
        members = [name for name in names if listed[name] == section]
        for position, name in enumerate(members):
            text += f"{name}.nii.gz" + data.draw(line_ends)
            expected[name] = (SPLITS.sections[section], position)
    if data.draw(st.booleans()):
        text = text.rstrip()
    assert SPLITS.parse(text, "s.txt") == expected


def test_splits_of_an_empty_file_list_nothing():
    assert SPLITS.parse("", "s.txt") == {}


@pytest.mark.parametrize(
    ("text", "line", "fragments"),
    [
        ("a.nii.gz\ntrainset:\n", 1, ["is neither", "trainset, test_public"]),
        ("trainset:\na.nii.gz\n\nvalset:\n", 4, ["neither a section header"]),
        ("trainset:\r\na.nii\r\n", 2, ["an entry like '{scan}.nii.gz'"]),
        ("trainset:\nsub/a.nii.gz\n", 2, ["nor an entry"]),
        ("trainset:\n.nii.gz\n", 2, ["nor an entry"]),
        ("trainset:\na.nii.gz\na.nii.gz\n", 3, ["its scan is already listed"]),
        ("trainset:\na.nii.gz\ntest_public:\na.nii.gz", 4, ["its scan is already listed"]),
    ],
)
def test_the_error_of_a_wrong_split_file_quotes_its_line(text, line, fragments):
    with pytest.raises(RecipeError) as caught:
        SPLITS.parse(text, "s.txt")
    assert str(caught.value).startswith(f"s.txt, line {line}: ")
    assert all(fragment in str(caught.value) for fragment in fragments)
