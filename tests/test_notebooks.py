import re

import nbformat
import pytest
from notebooks import FOLDER, execute

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MAX_BYTES = 400_000


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def is_text(cell):
    return cell.cell_type == "markdown"


def kinds(cell):
    """Return the forms of the outputs of a cell that do not depend on the machine."""
    outputs = [output for output in cell.outputs if output.output_type != "stream"]
    return [sorted(output.data) for output in outputs]


def has_text(cell):
    return any(output.output_type == "stream" for output in cell.outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_small_with_the_outputs_of_one_run(path):
    assert path.stat().st_size < MAX_BYTES
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any("image/jpeg" in forms for cell in cells for forms in kinds(cell))
    for cell in cells:
        assert not [o for o in cell.outputs if o.get("name") == "stderr"], cell.source
        assert "/tmp/" not in str(cell.outputs), cell.source  # noqa: S108  the text, not a file


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_its_kept_outputs_are_of_the_same_kind(path, tmp_path):
    kept, now = nbformat.read(path, as_version=4), execute(path, tmp_path)
    for old, new in zip(code_cells(kept), code_cells(now), strict=True):
        assert kinds(old) == kinds(new), old.source
        assert has_text(old) == has_text(new), old.source


def test_links_of_notebooks_have_a_target():
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            for target in re.findall(r"\]\(([^)#]+)", cell.source if is_text(cell) else ""):
                assert "://" in target or (path.parent / target).exists(), f"{path}: {target}"
