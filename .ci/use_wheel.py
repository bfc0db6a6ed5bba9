"""Run by `make wheel` with the Python of an environment that holds only the installed wheel."""

import subprocess
import sys
from pathlib import Path

import spinezarr
from spinezarr.recipe import Recipe
from spinezarr.resources import recipe_names
from spinezarr.stream.read.native import kernel
from spinezarr.testing import write_ctspine1k, write_verse_subjects

here = Path.cwd()
assert Path(spinezarr.__file__).is_relative_to(Path(sys.prefix)), spinezarr.__file__
assert kernel() is not None, "the wheel has no kernel that works"
recipes = {name: Recipe.load(name) for name in recipe_names()}
assert recipes["ctspine1k"].shipped_splits()
assert recipes["ctspine1k"].shipped_table("cases")
assert recipes["verse"].shipped_card().scans

command = str(Path(sys.executable).parent / "spinezarr")
write_ctspine1k(here / "data" / "CTSpine1K", scale=0.25)
subprocess.run([command, "init"], check=True)
write_verse_subjects(here / "data" / "VerSe")
for words in (
    ["ingest", "ctspine1k"],
    ["info", "ctspine1k"],
    ["audit", "ctspine1k", "--severity", "error"],
    ["ingest", "verse"],
    ["stats", "verse", "--format", "markdown"],
):
    subprocess.run([command, *words], check=True)
store = spinezarr.open("ctspine1k")
(batch,) = store.patches(16, batch_size=2, n_samples=2)
assert batch.image.shape == (2, 16, 16, 16)
print(f"{store!r} ingested and read from {here} with {spinezarr.__file__}")
