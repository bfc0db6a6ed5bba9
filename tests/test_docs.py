import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import fork_server
import nibabel as nib
import numpy as np
import pytest
from http_client import fetch
from hub_server import HubServer
from server_process import server_process

import spinezarr
from spinezarr.geometry import Box
from spinezarr.store.blocks import BlockCoding
from spinezarr.store.scan_handle import ArraySpec
from spinezarr.stream.read.plan import ReadPlan, plan_reads

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "benchmarks" / "README.md",
    ROOT / "examples" / "README.md",
    ROOT / "ingest" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_CODE = {"", "text"}
SERVES = re.compile(r"spinezarr serve [^-\s]\S*[ ]*(#.*)?\n?")
"""A block whose server runs until it is stopped."""
NAMES_OF_OTHERS = {
    "blosc_getitem",
    "ijkToRasMatrix",
    "local_dir",
    "ngff_image_to_itk_image",
    "nibabel_image_to_ngff_image",
}
PARTS_OF_A_DECISION = [
    "Context",
    "Options considered",
    "Decision",
    "Measured figures",
    "Consequences",
]
FIXTURES = {
    "publish.md": "buckets",
    "s3.md": "buckets",
    "train-from-a-bucket.md": "buckets",
    "huggingface.md": "hub",
}
"""Servers that the blocks of a page use."""
MANY_COMMANDS = {
    "add-a-dataset.md",
    "cluster.md",
    "ctspine1k-baseline.md",
    "datasets.md",
    "migrate.md",
    "publish.md",
    "s3.md",
    "train-from-a-bucket.md",
    "training.md",
}
"""Pages whose blocks take long to run."""


def blocks(page):
    return BLOCK.findall(page.read_text())


def run_bash(code, folder, tools):
    environment = {**os.environ, "PATH": tools}
    command = ["bash", "-euo", "pipefail", "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


def run_server(code, folder):
    """Run a block that serves, at another port; request its page, and stop it."""
    command = code.partition("#")[0].split()
    with server_process(folder, *command[2:]) as server:
        for path in ("/", "/v1/stores"):
            status, _, body = fetch(f"{server.url}{path}")
            assert status == 200
        assert json.loads(body)["stores"], "the server must list a store"


@pytest.fixture(scope="module")
def tools():
    """Return the search path of programs, with a ``spinezarr`` that starts quickly."""
    return os.pathsep.join(
        [str(fork_server.command().parent), str(Path(sys.executable).parent), os.environ["PATH"]]
    )


@pytest.fixture(scope="module")
def working_folder(tmp_path_factory, tools):
    folder = tmp_path_factory.mktemp("docs")
    run_bash("spinezarr demo --out demo --scale 0.15 --samples 4", folder, tools)
    return folder


def make_targets():
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.fixture
def buckets(s3_server, working_folder, monkeypatch):
    """Set up a server, an empty bucket and a public one with files, for the pages on buckets."""
    own, public = s3_server.new_bucket(), s3_server.new_bucket()
    for path in (working_folder / "demo" / "raw").rglob("*"):
        if path.is_file():
            key = str(path.relative_to(working_folder / "demo"))
            s3_server.client.put_object(Bucket=public, Key=key, Body=path.read_bytes())
    anyone = {"Effect": "Allow", "Principal": "*", "Action": "s3:*"}
    arn = f"arn:aws:s3:::{public}"
    policy = {"Version": "2012-10-17", "Statement": [{**anyone, "Resource": [arn, f"{arn}/*"]}]}
    s3_server.client.put_bucket_policy(Bucket=public, Policy=json.dumps(policy))
    for name, text in s3_server.environment.items():
        monkeypatch.setenv(name, text)
    monkeypatch.setenv("BUCKET", own)
    monkeypatch.setenv("PUBLIC_BUCKET", public)


@pytest.fixture
def hub(monkeypatch):
    """Run a hub with an empty repository, for the page on Hugging Face."""
    from huggingface_hub import constants  # noqa: PLC0415  slow

    with HubServer("hf_secret") as server:
        server.add("lab/spine")
        for name, text in {
            "HF_ENDPOINT": server.url,
            "HF_TOKEN": server.token,
            "HF_HUB_DISABLE_XET": "1",
        }.items():
            monkeypatch.setenv(name, text)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        yield server
        assert not server.leaked


# LoadImaged creates all of MONAI's readers, and this one warns.
@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(
            page,
            id=str(page.relative_to(ROOT)),
            marks=[pytest.mark.long] if page.name in MANY_COMMANDS else [],
        )
        for page in PAGES
    ],
)
def test_every_block_of_a_page_runs(page, working_folder, tools, monkeypatch, request):
    monkeypatch.chdir(working_folder)
    if page.name in FIXTURES:
        request.getfixturevalue(FIXTURES[page.name])
    namespace = {}
    for language, code in blocks(page):
        if language == "python":
            exec(compile(code, str(page), "exec"), namespace)  # noqa: S102  that is the test
        elif language == "bash" and "make " in code:
            # Targets of the README are called by .ci/run, because a test cannot run itself.
            wanted = re.findall(r"^make ([\w-]+)", code, re.MULTILINE)
            assert wanted
            assert set(wanted) <= make_targets()
            if page.parent == ROOT:
                ci = (ROOT / ".ci" / "run").read_text()
                assert all(f"make {target}" in ci for target in wanted)
        elif language == "bash" and SERVES.fullmatch(code):
            run_server(code, working_folder)
        elif language == "bash":
            run_bash(code, working_folder, tools)
        elif language == "yaml":
            (working_folder / "block.yaml").write_text(code)
        else:
            assert language in NOT_CODE, f"no test knows how to run {language!r}"


def test_every_page_begins_with_its_readers():
    for page in PAGES:
        if not re.match(r"\d{3}-", page.name):  # the index of the decisions says it for all of them
            heading, first = page.read_text().split("\n\n", 2)[:2]
            assert heading.startswith("# "), page
            assert first.startswith("This page is for "), page


def test_readme_has_two_commands_for_a_fresh_machine():
    language, first = blocks(ROOT / "README.md")[0]
    assert language == "bash"
    commands = [line.split("#")[0].strip() for line in first.splitlines()]
    assert commands == ["make demo", "make test"]


def anchors_of(page):
    """Return the anchors that GitHub makes for the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_between_pages_have_a_target():
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
            if "://" not in target:
                path = page.parent / target if target else page
                assert path.exists(), f"{page}: {target}"
                assert not anchor or anchor in anchors_of(path), f"{page}: {target}#{anchor}"


def test_code_that_pages_name_exists():
    files = {path.name for part in ("spinezarr", "tests") for path in (ROOT / part).rglob("*")}
    for page in PAGES:
        text = page.read_text()
        for path in re.findall(r"`(spinezarr/[\w./]+)`", text):
            assert (ROOT / path).exists(), f"{page}: {path}"
        if page.parent.name in {"explanation", "decisions"}:
            for name in re.findall(r"`([\w/]+\.(?:py|js|c))`", text):
                assert name.rpartition("/")[2] in files, f"{page}: {name}"


def test_names_of_code_that_pages_explain_exist():
    code = [path for kind in ("py", "js", "c") for path in (ROOT / "spinezarr").rglob(f"*.{kind}")]
    words = {word for path in code for word in re.findall(r"\w+", path.read_text())}
    for folder in ("explanation", "decisions"):
        for page in sorted((ROOT / "docs" / folder).glob("*.md")):
            names = re.findall(r"`([A-Za-z]\w*)[()`.\[]", page.read_text())
            lacking = {name for name in names if re.search(r"[A-Z_]", name)} - words
            assert lacking <= NAMES_OF_OTHERS, f"{page}: no such name in spinezarr: {lacking}"


def test_each_folder_has_the_modules_that_the_page_names():
    page = ROOT / "docs" / "explanation" / "folders.md"
    rows = re.findall(r"^\| `(.+?)/?` \| (.+) \|$", page.read_text(), re.MULTILINE)
    for folder, text in rows:
        for name in re.findall(r"`(\w+\.(?:py|js|c))`", text):
            assert (ROOT / folder / name).exists(), f"{page}: {folder}/{name}"
    named = {folder for folder, _ in rows}
    packages = (path.parent for path in (ROOT / "spinezarr").rglob("__init__.py"))
    lacking = {str(path.relative_to(ROOT)) for path in packages} - named - {"spinezarr"}
    assert lacking <= {"spinezarr/cli"}, "folders without a row"


def test_the_example_of_a_plan_equals_the_planned_reads():
    page = ROOT / "docs" / "explanation" / "how-a-patch-is-read.md"
    shape, chunk, shard = (133, 512, 512), (64, 32, 32), (128, 512, 512)
    coding = BlockCoding(1 << 17, 1 << 15, 2, is_lz4=True, is_shuffled=True)
    array = ArraySpec("scan", "image", "", shape, np.dtype("i2"), chunk, shard, {}, "/", coding, {})
    starts = ((60, 24, 16), (62, 24, 24))
    plan = plan_reads([(array, Box.at(start, (8, 8, 16))) for start in starts])
    rows = re.findall(r"^\| `(\w+)`: [^|]+ \| (.+) \|$", page.read_text(), re.MULTILINE)
    told = {
        name: [[int(part) for part in cell.split(",")] for cell in cells.split(" | ")]
        for name, cells in rows
    }
    told["first_piece"].append([6])
    columns = {name for name, value in vars(ReadPlan).items() if isinstance(value, property)}
    assert told.keys() == columns - {"blocks", "shard_runs"}
    for name, values in told.items():
        found = getattr(plan, name)
        np.testing.assert_array_equal(np.reshape(values, found.shape), found, name)


def test_the_drawing_of_the_packages_has_their_layers():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = (
        contract["layers"]
        for contract in contracts["contracts"]
        if contract.get("containers") == ["spinezarr"]
    )
    (drawing,) = (
        code
        for language, code in blocks(ROOT / "docs" / "explanation" / "README.md")
        if language == "text"
    )
    rows = (row for row in drawing.splitlines() if not row.startswith(" "))
    drawn = [re.split(r" {2,}", row)[0] for row in rows]
    assert drawn == layers, "draw the layers of pyproject.toml in docs/explanation/README.md"


def test_every_decision_is_in_the_index():
    folder = ROOT / "docs" / "decisions"
    rows = re.compile(r"^\| \[(\d{3})\]\((.+?)\) \| (.+?) \|", re.MULTILINE)
    index = rows.findall((folder / "README.md").read_text())
    pages = sorted(path.name for path in folder.glob("*.md") if path.name != "README.md")
    assert [name for _, name, _ in index] == pages
    for count, (number, name, title) in enumerate(index, 1):
        assert number == name[:3] == f"{count:03}"
        text = (folder / name).read_text()
        assert text.startswith(f"# {number}. {title}\n")
        assert re.findall(r"^## (.+)", text, re.MULTILINE) == PARTS_OF_A_DECISION


@pytest.mark.long
def test_a_users_dataset_takes_ten_lines_and_no_code(working_folder, tools):
    start = (ROOT / "docs" / "how-to" / "add-a-dataset.md").read_text().partition("\n## ")[0]
    (recipe,) = (code for language, code in BLOCK.findall(start) if language == "yaml")
    assert len(recipe.splitlines()) <= 10
    commands = [code for language, code in BLOCK.findall(start) if language == "bash"]
    own = working_folder / "own"
    own.mkdir()
    (own / "demo").symlink_to(working_folder / "demo")
    (own / "block.yaml").write_text(recipe)
    for code in commands:
        run_bash(code, own, tools)
    store = spinezarr.open(own / "hospital.zarr")
    assert store.table.scan.to_numpy().tolist() == ["2023-11-02", "2024-01-15"]
    for scan_id, patient in (("2024-01-15", "P0007"), ("2023-11-02", "P0012")):
        stored = store.scan(scan_id)
        for array, kind in ((stored.image, "ct"), (stored.label, "mask")):
            file = nib.load(own / "hospital" / patient / f"{scan_id}_{kind}.nii.gz")
            closest = np.asanyarray(nib.as_closest_canonical(file).dataobj)
            np.testing.assert_array_equal(array, closest.transpose(2, 1, 0))
