import json
from unicodedata import normalize

import fsspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from spinezarr.errors import RecipeError, UsageError
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.discovery.images import choose_images, match_images
from spinezarr.ingestion.discovery.raw_folder import RawFolder
from spinezarr.recipe import Recipe
from spinezarr.text import to_printable

DISK = fsspec.filesystem("file")
HEAD = """\
name: mine
title: Mine
license: none
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
    return choose_images(recipe, raw, match_images(recipe, raw))


def pairs(chosen):
    assert not chosen.refused
    return taken(chosen)


def taken(chosen):
    return {paired.image.scan_id: (paired.image.path, *paired.masks) for paired in chosen.pairs}


LAYOUTS = """\
layouts:
  first:
    description: one
    image: "one/{scan}.nii"
    label: "one/masks/{scan}.nii"
  second:
    description: two
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
    assert {note.path for note in chosen.left_out} == {
        file for file in files if not file.startswith(taken)
    }


LISTED = """\
layouts:
  series:
    description: series
    image: "{base:(?:.*/)?}{scan}/{series}/"
    label: "**/{scan}_seg.nii"
    image_list: {files: "**/list.txt", entry: "{scan} {series}"}
"""


def test_the_image_that_a_list_names_is_taken(tmp_path, load):
    files = ["a/x/1", "a/y/1", "a/y/2", "a/z/1", "b/x/1", "b/y/1", "m/a_seg.nii", "list.txt"]
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfa   y\r\nc z\r\n")
    chosen = choice(load(LISTED), files, tmp_path)
    assert pairs(chosen) == {"a": ("a/y/", "m/a_seg.nii"), "b": ("b/x/",)}
    details = {note.path: note.detail for note in chosen.left_out}
    assert details["a/x/"] == "read from a/y/"
    assert details["b/y/"] == "read from b/x/"


def test_the_image_of_the_list_is_taken_even_if_another_has_a_mask(tmp_path, load):
    text = LISTED.replace('"**/{scan}_seg.nii"', '"{scan}/{series}_seg.nii"')
    (tmp_path / "list.txt").write_text("a y\n")
    files = ["a/x/1", "a/x_seg.nii", "a/y/1", "list.txt"]
    assert pairs(choice(load(text), files, tmp_path)) == {"a": ("a/y/",)}
    assert pairs(choice(load(text), files[:-1], tmp_path)) == {"a": ("a/x/", "a/x_seg.nii")}


TWICE = """\
layouts:
  flat:
    description: flat
    image: "{patient}/{scan}_ct.nii"
    label: "{patient}/{scan}_seg.nii"
"""
BOTH = ["P1/1_ct.nii", "P1/1_seg.nii", "P2/1_ct.nii", "P2/1_seg.nii"]


def test_two_images_with_one_id_are_refused_without_a_duplicate_key(load):
    other = ["P3/2_ct.nii", "P3/2_seg.nii"]
    chosen = choice(load(TWICE), [*BOTH, *other])
    assert taken(chosen) == {"2": tuple(other)}
    (refused,) = chosen.refused
    assert (refused.scan_id, refused.paths) == ("1", tuple(BOTH))
    message = refused.reason
    assert all(text in message for text in ("'1'", "P1/1_ct.nii", "P2/1_ct.nii"))
    assert 'e.g. "{patient}_{scan}"' in message
    assert set(pairs(choice(load(TWICE + 'scan_id: "{patient}_{scan}"\n'), BOTH))) == {
        "P1_1",
        "P2_1",
    }
    chosen = choice(load(TWICE + 'duplicate_key: "{scan}"\n'), ["P0/1_ct.nii", *BOTH])
    assert pairs(chosen) == {"1": ("P1/1_ct.nii", "P1/1_seg.nii")}
    assert {note.path for note in chosen.left_out} == {"P0/1_ct.nii", "P2/1_ct.nii", "P2/1_seg.nii"}


def test_ids_that_collide_across_layouts_are_refused(load):
    text = LAYOUTS.replace("description: one", "description: one\n    constants: {part: one}")
    text = text.replace("description: two", "description: two\n    constants: {part: two}")
    recipe = load(text + 'duplicate_key: "{part} {scan}"\n')
    chosen = choice(recipe, ["one/a.nii", "two/a.nii", "two/b.nii"])
    assert set(taken(chosen)) == {"b"}
    (refused,) = chosen.refused
    assert refused.scan_id == "a"
    assert "scan id 'a':\n  one/a.nii\n  two/a.nii" in refused.reason


@pytest.mark.parametrize("label", ["mask/{scan}*.nii", "**/*{scan}*seg.nii", "mask/*"])
def test_scans_that_would_share_a_mask_are_refused(load, label):
    recipe = load(
        f"layouts:\n  x: {{description: x, image: '{{scan}}_ct.nii', label: '{label}'}}\n"
    )
    files = ["1_ct.nii", "10_ct.nii", "mask/10_seg.nii"]
    chosen = choice(recipe, files)
    assert taken(chosen) == {}
    assert {scan.scan_id: scan.paths for scan in chosen.refused} == {
        "1": ("1_ct.nii", "mask/10_seg.nii"),
        "10": ("10_ct.nii", "mask/10_seg.nii"),
    }
    for scan in chosen.refused:
        assert "mask/10_seg.nii would belong" in scan.reason
        assert "  10_ct.nii\n  1_ct.nii" in scan.reason
    assert pairs(choice(recipe, files[1:])) == {"10": ("10_ct.nii", "mask/10_seg.nii")}


def test_mask_parts_are_found_by_their_file_names(load):
    recipe = load(
        "layouts:\n  x: {description: x, image: '{scan}/ct.nii', label_parts: "
        "{file: '{scan}/{part}.nii', values: {l1: L1, hip: '30', l2: L2}}}\n"
    )
    files = ["a/ct.nii", "a/hip.nii", "a/l1.nii", "b/ct.nii", "b/other.nii"]
    (a, b) = choice(recipe, files).pairs
    assert [(part.value, part.path) for part in a.parts] == [(20, "a/l1.nii"), (30, "a/hip.nii")]
    assert (a.has_expected_mask, b.has_expected_mask, b.parts) == (True, False, ())


def test_masks_named_through_a_lookup_are_not_taken_for_images(load):
    recipe = load(
        "layouts:\n  x: {description: x, image: '**/{scan}.nii', label: '{place}/{scan}.nii'}\n"
        "lookups:\n  place: {inputs: scan, values: {'liver*': label/Liver, '*': label}}\n"
    )
    files = ["ct/a.nii", "ct/liver1.nii", "label/a.nii", "label/Liver/liver1.nii"]
    assert pairs(choice(recipe, files)) == {
        "a": ("ct/a.nii", "label/a.nii"),
        "liver1": ("ct/liver1.nii", "label/Liver/liver1.nii"),
    }


def test_a_lookup_may_rewrite_its_own_input_once(load):
    recipe = load(
        "layouts:\n  x: {description: x, image: '{scan}.nii', label: 'm/{scan}.nii'}\n"
        "lookups:\n  scan: {inputs: scan, values: {'x{rest}': '{rest}'}}\n"
        "tables: {}\n"
    )
    assert pairs(choice(recipe, ["xx1.nii", "m/x1.nii", "m/1.nii"])) == {
        "x1": ("xx1.nii", "m/x1.nii")
    }


def test_lookups_may_use_only_those_above_them(load):
    layout = "layouts:\n  x: {description: x, image: '{scan}.nii'}\nscan_id: '{b}'\nlookups:\n"
    a = "  a: {inputs: scan, values: {'s{n}': '{n}'}}\n"
    b = "  b: {inputs: a, values: {'{n}': 'id{n}'}}\n"
    assert set(pairs(choice(load(layout + a + b), ["s1.nii", "t2.nii"]))) == {"id1"}
    with pytest.raises(RecipeError, match=r"scan_id uses \{b\}"):
        load(layout + b + a)


def test_a_lookup_named_part_does_not_replace_the_part_of_a_mask(load):
    recipe = load(
        "layouts:\n  x: {description: x, image: '{scan}/ct.nii', label_parts: "
        "{file: '{scan}/{part}.nii', values: {l1: L1}}}\n"
        "lookups:\n  part: {inputs: scan, values: {'*': train}}\nsplit: '{part}'\n"
    )
    assert pairs(choice(recipe, ["a/ct.nii", "a/l1.nii"])) == {"a": ("a/ct.nii", "a/l1.nii")}


@pytest.mark.parametrize(
    "name",
    [
        *[".a", "__a", "zarr.json", "a.partial", "a.old.partial", "a*", "a?", "a[1]", " a"],
        *["a\x7f", "a\x85", "a\u2028", "a\u202e"],
    ],
)
def test_an_id_that_is_no_valid_folder_name_fails_only_its_scan(load, name):
    recipe = load("layouts:\n  x: {description: x, image: '{scan}.nii', label: 'm/{scan}.nii'}\n")
    chosen = choice(recipe, [f"{name}.nii", f"m/{name}.nii", "b.nii", "m/b.nii"])
    assert taken(chosen) == {"b": ("b.nii", "m/b.nii")}
    (refused,) = chosen.refused
    assert refused.scan_id == to_printable(name)
    assert refused.paths == (f"{name}.nii", f"m/{name}.nii")
    assert f"scan id '{to_printable(name)}'" in refused.reason


@pytest.mark.parametrize(
    "name", ["1.3.6.1", "my scan (2)", "é", "zarr.jsonx", "partial", "a{1}", "-a", "_a", "a__b"]
)
def test_other_ids_are_used_unchanged(load, name):
    recipe = load("layouts:\n  x: {description: x, image: '{scan}.nii'}\n")
    assert set(pairs(choice(recipe, [f"{name}.nii"]))) == {name}


def test_the_error_names_an_image_that_also_matches_a_mask_template(tmp_path, load):
    recipe = load(
        "layouts:\n  x: {description: x, image: '{scan}/ct.nii', label: '{scan}/*.nii'}\n"
    )
    (tmp_path / "raw" / "s1").mkdir(parents=True)
    (tmp_path / "raw" / "s1" / "ct.nii").touch()
    with pytest.raises(UsageError, match=r"s1/ct.nii fits an image pattern and a mask template"):
        discover(recipe, str(tmp_path / "raw"))


ANY = """\
layouts:
  a:
    description: a
    image: ["{base:(?:.*/)?}{scan}_ct.nii", "{base:(?:.*/)?}{scan}/"]
    label: ["{base}{scan}_seg.nii", "**/{scan}_m.nii"]
    mask: optional
  b:
    description: b
    image: "{base:(?:.*/)?}{scan}.nii"
duplicate_key: "{scan}"
ignore: [{path: "**/i*", reason: ignored}]
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
def test_the_order_of_the_listing_does_not_change_the_scans(files, random):
    recipe = Recipe.model_validate_json(as_json(ANY))
    results = [choice(recipe, order) for order in (files, random.sample(files, len(files)))]
    assert results[0] == results[1]


def as_json(text):
    return json.dumps(yaml.safe_load(HEAD + text))


@settings(max_examples=150)
@given(trees)
def test_every_scan_is_taken_once_and_every_other_image_is_reported(files):
    recipe = Recipe.model_validate_json(as_json(ANY))
    raw = RawFolder.of_files(DISK, "raw", dict.fromkeys(files, 1))
    matched = match_images(recipe, raw)
    found = matched.images
    chosen = choose_images(recipe, raw, matched)
    taken = [paired.image.path for paired in chosen.pairs]
    assert len({paired.image.scan_id for paired in chosen.pairs}) == len(taken)
    assert (chosen.refused, matched.misnamed) == ((), ())
    assert {image.scan_id for image in found} == {p.image.scan_id for p in chosen.pairs}
    assert {image.path for image in found} <= {*taken, *(note.path for note in chosen.left_out)}
    assert {note.path for note in matched.ignored} == {
        f for f in files if f.split("/")[-1] == "i.dcm"
    }
    for paired in chosen.pairs:
        scan = paired.image.scan_id
        assert all(path.split("/")[-1].startswith(f"{scan}_") for path in paired.masks)


PAIR = "layouts:\n  x: {description: x, image: '{scan}_ct.nii.gz', label: '{scan}_seg.nii.gz'}\n"


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("a_ct.nii", "a_seg.nii.gz"),
        ("a_ct.nii.gz", "a_seg.nii"),
        ("a_ct.NII.GZ", "a_seg.Nii"),
        ("a_ct.nii.gz/a_ct.nii", "a_seg.nii/a_seg.nii"),
    ],
)
def test_unpacked_and_differently_capitalized_files_are_paired(load, image, mask):
    assert pairs(choice(load(PAIR), [image, mask])) == {"a": (image, mask)}


def test_files_unpacked_into_folders_of_their_own_names_are_paired(load):
    recipe = load(
        "layouts:\n  x:\n    description: x\n"
        "    image: '{base:(?:.*/)?}{scan:v\\d+}.{ext:nii|nii\\.gz}'\n"
        "    label: '{base}{scan}_seg.{ext}'\n"
    )
    files = ["t/v1.nii.gz/v1.nii", "t/v1_seg.nii.gz/v1_seg.nii", "t/v2.nii/v2.nii", "t/v2_seg.nii"]
    assert pairs(choice(recipe, files)) == {"v1": tuple(files[:2]), "v2": tuple(files[2:])}
    explicit = load("layouts:\n  x: {description: x, image: '{scan}.nii/{scan}.nii'}\n")
    assert pairs(choice(explicit, ["v1.nii/v1.nii"])) == {"v1": ("v1.nii/v1.nii",)}


def test_an_image_of_the_exact_name_is_preferred_to_its_copies(load):
    files = ["a_ct.nii", "a_ct.nii.gz", "a_seg.nii", "a_seg.nii.gz"]
    assert pairs(choice(load(PAIR), files)) == {"a": ("a_ct.nii.gz", "a_seg.nii.gz")}


@pytest.mark.parametrize(
    "files",
    [
        ["a_ct.nii", "a_ct.NII.GZ", "a_seg.nii.gz"],
        ["a_ct.nii.gz/a_ct.nii", "a_ct.nii", "a_seg.nii.gz"],
        ["a_ct.nii.gz", "a_seg.nii", "a_seg.NII"],
    ],
)
def test_two_copies_without_the_exact_name_are_refused(load, files):
    chosen = choice(load(PAIR), [*files, "b_ct.nii.gz", "b_seg.nii.gz"])
    assert set(taken(chosen)) == {"b"}
    (refused,) = chosen.refused
    assert refused.scan_id == "a"
    twins = [file for file in files if sum(other.startswith(file[:4]) for other in files) == 2]
    assert all(f"\n  {file}" in refused.reason for file in twins)


def test_an_image_is_not_its_own_mask(load):
    recipe = load("layouts:\n  x: {description: x, image: '{scan}.nii', label: '{scan}.nii.gz'}\n")
    chosen = choice(recipe, ["a.nii", "a.nii.gz", "b.nii", "b_1.NII"])
    found = {
        paired.image.scan_id: (paired.masks, paired.has_expected_mask) for paired in chosen.pairs
    }
    assert found == {"a": (("a.nii.gz",), True), "b": ((), False), "b_1": ((), False)}


def test_several_masks_that_fit_equally_are_refused_without_a_duplicate_key(load):
    text = "layouts:\n  x: {description: x, image: 'ct/{scan}.nii', label: '**/{scan}_*seg.nii'}\n"
    files = ["ct/a.nii", "new/a_seg.nii", "old/a_seg.nii", "old/a_1_seg.nii", "ct/b.nii"]
    files.append("new/b_seg.nii")
    chosen = choice(load(text), files)
    assert taken(chosen) == {"b": ("ct/b.nii", "new/b_seg.nii")}
    (refused,) = chosen.refused
    assert "3 files fit ct/a.nii equally well:\n  new/a_seg.nii\n  old/a_1_seg" in refused.reason
    assert {note.path for note in chosen.left_out} == {"old/a_1_seg.nii", "old/a_seg.nii"}
    chosen = choice(load(text + "duplicate_key: '{scan}'\n"), files)
    assert pairs(chosen)["a"] == ("ct/a.nii", "new/a_seg.nii")
    assert {(note.path, note.detail) for note in chosen.left_out} == {
        ("old/a_1_seg.nii", "ct/a.nii uses new/a_seg.nii"),
        ("old/a_seg.nii", "ct/a.nii uses new/a_seg.nii"),
    }
    ignoring = load(text + "ignore: [{path: 'old/*', reason: old}]\n")
    assert pairs(choice(ignoring, files))["a"] == ("ct/a.nii", "new/a_seg.nii")


def test_the_mask_of_the_first_template_is_taken_and_the_others_reported(load):
    recipe = load(
        "layouts:\n  x: {description: x, image: '{scan}.nii', label: ['m/{scan}', 'n/{scan}']}\n"
    )
    chosen = choice(recipe, ["a.nii", "m/a", "n/a"])
    assert pairs(chosen) == {"a": ("a.nii", "m/a")}
    assert [(note.path, note.detail) for note in chosen.left_out] == [("n/a", "a.nii uses m/a")]


@pytest.mark.parametrize(
    "key", ["centroids: {files: '{scan}*.json', convention: verse}", "sidecar: '{scan}*.json'"]
)
def test_several_sidecars_or_centroid_files_of_an_image_are_refused(load, key):
    recipe = load(f"layouts:\n  x:\n    description: x\n    image: '{{scan}}.nii'\n    {key}\n")
    chosen = choice(recipe, ["a.nii", "a.json", "a_1.json", "b.nii", "b.json"])
    (paired,) = chosen.pairs
    assert (paired.centroids or paired.sidecar, paired.image.scan_id) == ("b.json", "b")
    (refused,) = chosen.refused
    assert "2 files fit a.nii equally well:\n  a.json\n  a_1.json" in refused.reason


def test_names_that_differ_only_in_unicode_form_are_refused_as_one_scan(load):
    names = [normalize(form, "Müller") for form in ("NFC", "NFD")]
    chosen = choice(
        load(PAIR), [f"{name}_{kind}.nii.gz" for name in names for kind in ("ct", "seg")]
    )
    assert taken(chosen) == {}
    (refused,) = chosen.refused
    assert refused.scan_id == "Müller"
    assert "Their names differ only in the Unicode form of a letter" in refused.reason
    masks = [f"{name}_seg.nii.gz" for name in names]
    chosen = choice(load(PAIR), ["Müller_ct.nii.gz", *masks])
    (refused,) = chosen.refused
    assert "2 files fit Müller_ct.nii.gz equally well" in refused.reason


@given(
    st.lists(st.text("aüeé", min_size=1, max_size=3), unique=True, min_size=1, max_size=5),
    st.data(),
)
def test_scans_are_the_same_in_any_unicode_form(stems, data):
    form = data.draw(st.sampled_from(["NFC", "NFD"]))
    patterns = [normalize(form, pattern) for pattern in ("é/{scan}_ct.nii", "**/é/{scan}_seg.nii")]
    recipe = Recipe.from_pairs(*patterns, name="forms")
    names = [f"é/{stem}_{kind}.nii" for stem in stems for kind in ("ct", "seg")]
    files = [normalize(data.draw(st.sampled_from(["NFC", "NFD"])), name) for name in names]
    chosen = choice(recipe, files)
    assert pairs(chosen) == {stem: (files[2 * i], files[2 * i + 1]) for i, stem in enumerate(stems)}


def test_files_with_unprintable_names_fail_only_their_scans(tmp_path, load):
    for name in ("a\n_ct.nii.gz", "a\n_seg.nii.gz", "b_ct.nii.gz", "b_seg.nii.gz"):
        (tmp_path / name).touch()
    (tmp_path / "c\x1b").mkdir()
    (tmp_path / "c\x1b" / "d_ct.nii.gz").touch()
    (tmp_path / "d_seg.nii.gz").touch()
    recipe = load(PAIR.replace("'{scan}_ct", "'**/{scan}_ct"))
    raw = RawFolder.list(DISK, str(tmp_path))
    chosen = choose_images(recipe, raw, match_images(recipe, raw))
    assert taken(chosen) == {"b": ("b_ct.nii.gz", "b_seg.nii.gz")}
    reasons = {refused.scan_id: refused.reason for refused in chosen.refused}
    assert reasons == {
        r"a\x0a": r"a\x0a_ct.nii.gz: its path holds control characters or is not UTF-8, shown "
        "here as escapes. Rename it.",
        "d": r"c\x1b/d_ct.nii.gz: its path holds control characters or is not UTF-8, shown "
        "here as escapes. Rename it.",
    }


def test_a_series_in_a_folder_with_an_unprintable_name_fails_alone(tmp_path, load):
    for path in ("p\x07/a/1.dcm", "q/b/1.dcm", "q/b/2\x07.dcm"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    recipe = load("layouts:\n  x: {description: x, image: '{patient}/{scan}/'}\n")
    raw = RawFolder.list(DISK, str(tmp_path))
    chosen = choose_images(recipe, raw, match_images(recipe, raw))
    assert taken(chosen) == {"b": ("q/b/",)}
    (refused,) = chosen.refused
    assert (refused.scan_id, refused.paths) == ("a", (r"p\x07/a/",))
    assert refused.reason.startswith(r"p\x07/a/: its path holds control characters")


def test_a_mask_with_an_unprintable_name_fails_its_scan(tmp_path, load):
    (tmp_path / "m\x07").mkdir()
    for name in ("a_ct.nii.gz", "m\x07/a_seg.nii.gz", "b_ct.nii.gz", "b_seg.nii.gz"):
        (tmp_path / name).touch()
    recipe = load(PAIR.replace("'{scan}_seg", "'**/{scan}_seg"))
    raw = RawFolder.list(DISK, str(tmp_path))
    chosen = choose_images(recipe, raw, match_images(recipe, raw))
    assert set(taken(chosen)) == {"b"}
    (refused,) = chosen.refused
    assert refused.reason.startswith(r"m\x07/a_seg.nii.gz: its path holds control characters")


def test_a_mask_may_be_a_folder(load):
    recipe = load("layouts:\n  x: {description: x, image: '{scan}/ct/', label: '{scan}/seg/'}\n")
    files = ["p/ct/1.dcm", "p/ct/2.dcm", "p/seg/1.dcm", "q/ct/1.dcm"]
    chosen = choice(recipe, files)
    assert pairs(chosen) == {"p": ("p/ct/", "p/seg/"), "q": ("q/ct/",)}
    assert [paired.has_expected_mask for paired in chosen.pairs] == [True, False]
