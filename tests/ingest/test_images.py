import json
import re

import fsspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from spinezarr.errors import RecipeError, UsageError
from spinezarr.ingest.discover import discover
from spinezarr.ingest.images import choose_images, match_images
from spinezarr.ingest.raw_folder import RawFolder
from spinezarr.recipe import Recipe

DISK = fsspec.filesystem("file")
HEAD = """\
name: mine
title: Mine
licence: none
citation: none
labels: {scheme: canonical, state: unknown}
"""


@pytest.fixture
def load(tmp_path):
    def load(text):
        (tmp_path / "mine.yaml").write_text(HEAD + text)
        return Recipe.load(str(tmp_path / "mine.yaml"))

    return load


def choice(recipe, files, root="raw"):
    raw = RawFolder.of_files(DISK, str(root), dict.fromkeys(files, 1))
    return choose_images(recipe, raw, match_images(recipe, raw)[0])


def pairs(chosen):
    return {paired.image.scan_id: (paired.image.path, *paired.masks) for paired in chosen.taken}


LAYOUTS = """\
layouts:
  first:
    about: one
    image: "one/{scan}.nii"
    label: "one/masks/{scan}.nii"
  second:
    about: two
    image: "two/{scan}.nii"
    label: "two/masks/{scan}.nii"
"""


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        (["one/a.nii", "one/masks/a.nii", "two/a.nii", "two/masks/a.nii"], "one"),
        (["one/a.nii", "two/a.nii", "two/masks/a.nii"], "two"),
        (["one/a.nii", "two/a.nii"], "one"),
        (["two/a.nii"], "two"),
    ],
)
def test_the_first_layout_with_the_mask_is_taken(load, files, taken):
    chosen = choice(load(LAYOUTS), files)
    (image, *masks) = pairs(chosen)["a"]
    assert image == f"{taken}/a.nii"
    assert masks == [file for file in files if file == f"{taken}/masks/a.nii"]
    assert {note.path for note in chosen.left} == {
        file for file in files if not file.startswith(taken)
    }


LISTED = """\
layouts:
  series:
    about: series
    image: "{base:(?:.*/)?}{scan}/{series}/"
    label: "**/{scan}_seg.nii"
    listed: {files: "**/list.txt", entry: "{scan} {series}"}
"""


def test_the_image_that_a_list_names_is_taken(tmp_path, load):
    files = ["a/x/1", "a/y/1", "a/y/2", "a/z/1", "b/x/1", "b/y/1", "m/a_seg.nii", "list.txt"]
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfa   y\r\nc z\r\n")
    chosen = choice(load(LISTED), files, tmp_path)
    assert pairs(chosen) == {"a": ("a/y/", "m/a_seg.nii"), "b": ("b/x/",)}
    details = {note.path: note.detail for note in chosen.left}
    assert details["a/x/"] == "taken from a/y/"
    assert details["b/y/"] == "taken from b/x/"


def test_the_list_counts_more_than_a_mask(tmp_path, load):
    text = LISTED.replace('"**/{scan}_seg.nii"', '"{scan}/{series}_seg.nii"')
    (tmp_path / "list.txt").write_text("a y\n")
    files = ["a/x/1", "a/x_seg.nii", "a/y/1", "list.txt"]
    assert pairs(choice(load(text), files, tmp_path)) == {"a": ("a/y/",)}
    assert pairs(choice(load(text), files[:-1], tmp_path)) == {"a": ("a/x/", "a/x_seg.nii")}


TWICE = """\
layouts:
  flat:
    about: flat
    image: "{patient}/{scan}_ct.nii"
    label: "{patient}/{scan}_seg.nii"
"""
BOTH = ["P1/1_ct.nii", "P1/1_seg.nii", "P2/1_ct.nii", "P2/1_seg.nii"]


def test_two_images_with_one_id_are_refused_unless_the_recipe_says_they_are_one(load):
    with pytest.raises(RecipeError) as caught:
        choice(load(TWICE), BOTH)
    message = str(caught.value)
    assert all(text in message for text in ("'1'", "P1/1_ct.nii", "P2/1_ct.nii"))
    assert 'e.g. "{patient}_{scan}"' in message
    assert set(pairs(choice(load(TWICE + 'scan_id: "{patient}_{scan}"\n'), BOTH))) == {
        "P1_1",
        "P2_1",
    }
    chosen = choice(load(TWICE + 'same_scan: "{scan}"\n'), ["P0/1_ct.nii", *BOTH])
    assert pairs(chosen) == {"1": ("P1/1_ct.nii", "P1/1_seg.nii")}
    assert {note.path for note in chosen.left} == {"P0/1_ct.nii", "P2/1_ct.nii", "P2/1_seg.nii"}


def test_ids_that_collide_across_layouts_are_refused(load):
    text = LAYOUTS.replace("about: one", "about: one\n    texts: {part: one}")
    text = text.replace("about: two", "about: two\n    texts: {part: two}")
    recipe = load(text + 'same_scan: "{part} {scan}"\n')
    with pytest.raises(RecipeError, match=r"scan id 'a':\n  one/a.nii\n  two/a.nii"):
        choice(recipe, ["one/a.nii", "two/a.nii"])


@pytest.mark.parametrize("label", ["mask/{scan}*.nii", "**/*{scan}*seg.nii", "mask/*"])
def test_a_mask_that_two_scans_would_share_is_refused(load, label):
    recipe = load(f"layouts:\n  x: {{about: x, image: '{{scan}}_ct.nii', label: '{label}'}}\n")
    files = ["1_ct.nii", "10_ct.nii", "mask/10_seg.nii"]
    with pytest.raises(RecipeError, match=r"mask/10_seg.nii would belong") as caught:
        choice(recipe, files)
    assert "  10_ct.nii\n  1_ct.nii" in str(caught.value)
    assert pairs(choice(recipe, files[1:])) == {"10": ("10_ct.nii", "mask/10_seg.nii")}


def test_several_images_of_one_file_are_one_scan_a_part(load):
    recipe = load(
        "layouts:\n  x: {about: x, image: '{scan}/ct.nii', label_parts: "
        "{file: '{scan}/{part}.nii', values: {l1: L1, hip: '30', l2: L2}}}\n"
    )
    files = ["a/ct.nii", "a/hip.nii", "a/l1.nii", "b/ct.nii", "b/other.nii"]
    (a, b) = choice(recipe, files).taken
    assert [(part.value, part.path) for part in a.parts] == [(20, "a/l1.nii"), (30, "a/hip.nii")]
    assert (a.whole, b.whole, b.parts) == (True, False, ())


def test_a_lookup_with_folders_in_it_is_known_to_name_masks(load):
    recipe = load(
        "layouts:\n  x: {about: x, image: '**/{scan}.nii', label: '{place}/{scan}.nii'}\n"
        "lookups:\n  place: {of: scan, values: {'liver*': label/Liver, '*': label}}\n"
    )
    files = ["ct/a.nii", "ct/liver1.nii", "label/a.nii", "label/Liver/liver1.nii"]
    assert pairs(choice(recipe, files)) == {
        "a": ("ct/a.nii", "label/a.nii"),
        "liver1": ("ct/liver1.nii", "label/Liver/liver1.nii"),
    }


def test_a_lookup_may_rewrite_the_text_it_reads_once(load):
    recipe = load(
        "layouts:\n  x: {about: x, image: '{scan}.nii', label: 'm/{scan}.nii'}\n"
        "lookups:\n  scan: {of: scan, values: {'x{rest}': '{rest}'}}\n"
        "tables: {}\n"
    )
    assert pairs(choice(recipe, ["xx1.nii", "m/x1.nii", "m/1.nii"])) == {
        "x1": ("xx1.nii", "m/x1.nii")
    }


def test_lookups_use_those_that_stand_before_them(load):
    layout = "layouts:\n  x: {about: x, image: '{scan}.nii'}\nscan_id: '{b}'\nlookups:\n"
    a = "  a: {of: scan, values: {'s{n}': '{n}'}}\n"
    b = "  b: {of: a, values: {'{n}': 'id{n}'}}\n"
    assert set(pairs(choice(load(layout + a + b), ["s1.nii", "t2.nii"]))) == {"id1"}
    with pytest.raises(RecipeError, match=r"scan_id uses \{b\}"):
        load(layout + b + a)


def test_a_part_is_no_lookup_of_that_name(load):
    recipe = load(
        "layouts:\n  x: {about: x, image: '{scan}/ct.nii', label_parts: "
        "{file: '{scan}/{part}.nii', values: {l1: L1}}}\n"
        "lookups:\n  part: {of: scan, values: {'*': train}}\nsplit: '{part}'\n"
    )
    assert pairs(choice(recipe, ["a/ct.nii", "a/l1.nii"])) == {"a": ("a/ct.nii", "a/l1.nii")}


@pytest.mark.parametrize(
    "name",
    [".a", "_a", "zarr.json", "a.partial", "a.old.partial", "a*", "a?", "a[1]", "a\x7f", " a"],
)
def test_an_id_that_cannot_name_a_folder_everywhere_is_refused(load, name):
    recipe = load("layouts:\n  x: {about: x, image: '{scan}.nii'}\n")
    with pytest.raises(RecipeError, match=re.escape(repr(name))):
        choice(recipe, [f"{name}.nii"])


@pytest.mark.parametrize("name", ["1.3.6.1", "my scan (2)", "é", "zarr.jsonx", "partial", "a{1}"])
def test_other_ids_are_taken_as_they_are(load, name):
    recipe = load("layouts:\n  x: {about: x, image: '{scan}.nii'}\n")
    assert set(pairs(choice(recipe, [f"{name}.nii"]))) == {name}


def test_an_image_that_counts_as_a_mask_is_named(tmp_path, load):
    recipe = load("layouts:\n  x: {about: x, image: '{scan}/ct.nii', label: '{scan}/*.nii'}\n")
    (tmp_path / "raw" / "s1").mkdir(parents=True)
    (tmp_path / "raw" / "s1" / "ct.nii").touch()
    with pytest.raises(UsageError, match=r"s1/ct.nii fits an image pattern and a mask's template"):
        discover(recipe, str(tmp_path / "raw"))


ANY = """\
layouts:
  a:
    about: a
    image: ["{base:(?:.*/)?}{scan}_ct.nii", "{base:(?:.*/)?}{scan}/"]
    label: ["{base}{scan}_seg.nii", "**/{scan}_m.nii"]
    mask: optional
  b:
    about: b
    image: "{base:(?:.*/)?}{scan}.nii"
same_scan: "{scan}"
ignore: [{path: "**/i*", because: ignored}]
"""
trees = st.lists(
    st.builds(
        "{}{}{}".format,
        st.sampled_from(["", "x/", "x/y/", "i/"]),
        st.sampled_from("stu"),
        st.sampled_from(["_ct.nii", "_seg.nii", "_m.nii", ".nii", "/1.dcm", "/i.dcm"]),
    ),
    unique=True,
    max_size=14,
)


@settings(max_examples=150)
@given(trees, st.randoms())
def test_the_order_of_the_listing_changes_nothing(files, random):
    recipe = Recipe.model_validate_json(as_json(ANY))
    results = [outcome(recipe, order) for order in (files, random.sample(files, len(files)))]
    assert results[0] == results[1]


def outcome(recipe, files):
    try:
        return choice(recipe, files)
    except RecipeError as problem:
        return str(problem)


def as_json(text):
    return json.dumps(yaml.safe_load(HEAD + text))


@settings(max_examples=150)
@given(trees)
def test_every_scan_is_taken_once_and_every_other_image_is_accounted_for(files):
    recipe = Recipe.model_validate_json(as_json(ANY))
    raw = RawFolder.of_files(DISK, "raw", dict.fromkeys(files, 1))
    found, ignored = match_images(recipe, raw)
    chosen = choose_images(recipe, raw, found)
    taken = [paired.image.path for paired in chosen.taken]
    assert len({paired.image.scan_id for paired in chosen.taken}) == len(taken)
    assert {image.scan_id for image in found} == {p.image.scan_id for p in chosen.taken}
    assert {image.path for image in found} <= {*taken, *(note.path for note in chosen.left)}
    assert {note.path for note in ignored} == {f for f in files if f.split("/")[-1] == "i.dcm"}
    for paired in chosen.taken:
        scan = paired.image.scan_id
        assert all(path.split("/")[-1].startswith(f"{scan}_") for path in paired.masks)
