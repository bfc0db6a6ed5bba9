"""Tests replace no private constants of other modules.

A private constant that a test replaces is a setting without a name. It becomes a field of a
settings class, an argument of a constructor, or an injected clock.
"""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PRIVATE_CONSTANT = re.compile(r"(?:.*\.)?_[A-Z][A-Z0-9_]*")
WRITTEN = re.compile(r"""[."']_[A-Z]""")


def patched_constants(source):
    """Return the private constants of other modules that a test replaces."""
    found = []
    if not WRITTEN.search(source):  # parsing all tests takes seconds
        return found
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in {"setattr", "object", "patch"}:
                texts = [arg.value for arg in node.args[:2] if isinstance(arg, ast.Constant)]
                found += [text for text in texts if isinstance(text, str)]
        elif isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [target.attr for target in targets if isinstance(target, ast.Attribute)]
    return [name for name in found if PRIVATE_CONSTANT.fullmatch(name)]


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ('monkeypatch.setattr(lock, "_WATCH_S", 1)', ["_WATCH_S"]),
        ('patch.setattr("spinezarr.store.lock._WATCH_S", 1)', ["spinezarr.store.lock._WATCH_S"]),
        ("lock._WATCH_S = 1", ["_WATCH_S"]),
        ('monkeypatch.setattr(time, "monotonic", clock)', []),
        ("self._waiting = 1", []),
        ("_MOST_S = 1", []),
    ],
)
def test_a_patched_constant_is_found(source, names):
    assert patched_constants(source) == names


def test_no_test_patches_a_private_constant():
    found = {
        (path.relative_to(TESTS).as_posix(), name)
        for path in TESTS.rglob("*.py")
        for name in patched_constants(path.read_text())
    }
    assert not found, "replace these by a setting, an argument or a clock"
