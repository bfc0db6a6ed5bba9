"""Runs the notebooks of the documentation again, and keeps their outputs.

``python tests/support/notebooks.py`` runs all of them, and with the name ``train`` that one alone.
"""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbclient
import nbformat

__all__ = ["FOLDER", "execute"]

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
PICTURES = ("--InlineBackend.figure_formats=jpeg",)
"""Slices of CT take a fifth of the bytes of PNG."""


def execute(path, folder):
    """Return a notebook with the outputs of a run in an empty folder.

    A cell that fails raises ``CellExecutionError``.
    """
    notebook = nbformat.read(path, as_version=4)
    # Cells call spinezarr by its name.
    commands = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    client = nbclient.NotebookClient(
        notebook,
        timeout=1800,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        extra_arguments=list(PICTURES),
    )
    return client.execute(env={**os.environ, "PATH": commands})


def main():
    wanted = sys.argv[1:] or [path.stem for path in sorted(FOLDER.glob("*.ipynb"))]
    for name in wanted:
        path = FOLDER / f"{name}.ipynb"
        with TemporaryDirectory() as folder:
            notebook = execute(path, folder)
        notebook.metadata = {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
        nbformat.write(notebook, path)
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
