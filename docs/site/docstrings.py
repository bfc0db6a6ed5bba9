"""How do docstrings and signatures of the code become text of the site?

Docstrings use the roles of Sphinx, such as :meth:`patches`, and footnotes of numpydoc.
"""

import re
from typing import Any, Final

from griffe import Extension, Function, GriffeError, Object

__all__ = ["TextOfTheSite"]

_ROLE: Final = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`(~?)([\w.]+)(?:\(\))?`")
_FOOTNOTE: Final = re.compile(r"^\.\. \[(\d+)\] ", re.MULTILINE)
_CITATION: Final = re.compile(r" ?\[(\d+)\]_")
_DRAW_OPTIONS: Final = "Unpack[DrawOptions]"


class TextOfTheSite(Extension):
    """Makes links of roles, and names the options of streams in signatures."""

    def on_object(self, *, obj: Object, **_: Any) -> None:  # noqa: ANN401  arguments of griffe
        """Replace the roles in a docstring. A link leads nowhere if the site lacks its target."""
        if obj.docstring is not None:
            text = _ROLE.sub(lambda role: _link(role[2], obj, role[1]), obj.docstring.value)
            # Citations of footnotes of the module would be numbers without a meaning.
            cited = r" [\1]" if _FOOTNOTE.search(text) else ""
            obj.docstring.value = _CITATION.sub(cited, _FOOTNOTE.sub(r"[\1] ", text))

    def on_function(self, *, func: Function, **_: Any) -> None:  # noqa: ANN401
        """Show the options of a stream with their defaults, as ``help()`` does."""
        for parameter in tuple(func.parameters):
            if str(parameter.annotation) == _DRAW_OPTIONS:
                store, module = func.parent, func.module
                del func.parameters[parameter.name]
                for name in module.members["DrawOptions"].members:
                    func.parameters.add(store.members["_draw"].parameters[name])


def _link(target: str, obj: Object, tilde: str) -> str:
    name = target.rpartition(".")[2] if tilde else target
    return f'<autoref optional identifier="{_path(target, obj)}"><code>{name}</code></autoref>'


def _path(target: str, obj: Object) -> str:
    """Return the whole path of a name that a docstring uses."""
    try:
        return obj.resolve(target)
    except GriffeError:
        return target
