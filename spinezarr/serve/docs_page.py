"""How is the description of a server shown to people, as one page without scripts?"""

import hashlib
import json
from base64 import b64encode
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, Final

__all__ = ["page", "policy"]

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8885; --faint: #8881; --get: #1a6fb5; --post: #2e7d32; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; }
h2 { margin: 2.5rem 0 .5rem; border-bottom: 1px solid var(--line); }
code, pre { font: .9em ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
pre { padding: .75rem; background: var(--faint); overflow-x: auto; }
details { border: 1px solid var(--line); border-radius: 6px; margin: .5rem 0;
  padding: .4rem .75rem; }
summary { cursor: pointer; }
summary code { font-weight: 600; }
.method { display: inline-block; min-width: 3.2rem; text-align: center; border-radius: 4px;
  color: #fff; background: var(--get); font-size: .75rem; font-weight: 700; margin-right: .5rem; }
.post { background: var(--post); }
.about { opacity: .75; margin-left: .5rem; }
table { border-collapse: collapse; width: 100%; margin: .25rem 0 1rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0;
  border-top: 1px solid var(--line); }
th { font-weight: 600; white-space: nowrap; }
td:first-child { white-space: nowrap; }
""".strip()
_METHODS: Final = ("get", "post")
_REF: Final = "#/components/schemas/"


def policy() -> str:
    """Return the ``Content-Security-Policy`` of the page, which allows its own style only."""
    style = b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def page(document: Mapping[str, Any]) -> str:
    """Return the HTML of the page.

    Parameters
    ----------
    document
        The OpenAPI document, see :func:`spinezarr.serve.openapi.document`.
    """
    info = document["info"]
    return "".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>",
            f"<p>{escape(info['description'])} ",
            'For programs: <a href="/v1/openapi.json"><code>/v1/openapi.json</code></a>.</p>',
            *_access(document),
            *_groups(document),
            *_schemas(document["components"]["schemas"]),
            "</body></html>\n",
        ]
    )


def _access(document: Mapping[str, Any]) -> Iterator[str]:
    if "securitySchemes" in document["components"]:
        yield (
            "<p>The server requires a token: <code>Authorization: Bearer TOKEN</code>, or the "
            "password of <code>http://any:TOKEN@…</code>.</p>"
        )
    else:
        yield (
            "<p>The server requires no token. It answers only requests that name its own "
            "machine.</p>"
        )


def _groups(document: Mapping[str, Any]) -> Iterator[str]:
    for tag in document["tags"]:
        yield f"<h2>{escape(tag['name'])}</h2>"
        for path, item in document["paths"].items():
            for method in _METHODS:
                if method in item and tag["name"] in item[method]["tags"]:
                    yield from _operation(method, path, item[method])


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f'<details id="{escape(operation["operationId"])}"><summary>'
    yield f'<span class="method {method}">{method.upper()}</span><code>{escape(path)}</code>'
    yield f'<span class="about">{escape(operation["summary"])}</span></summary>'
    if operation["parameters"]:
        yield "<table><tr><th>parameter</th><th>in</th><th>values</th><th></th></tr>"
        for parameter in operation["parameters"]:
            suffix = ", required" if parameter.get("required") else ""
            yield (
                f"<tr><td><code>{escape(parameter['name'])}</code></td>"
                f"<td>{escape(parameter['in'])}{suffix}</td>"
                f"<td>{_values(parameter['schema'])}</td>"
                f"<td>{_text(parameter.get('description', ''))}</td></tr>"
            )
        yield "</table>"
    if "requestBody" in operation:
        for kind, content in operation["requestBody"]["content"].items():
            yield f"<p>Body: <code>{escape(kind)}</code>, {_values(content['schema'])}</p>"
    yield "<table><tr><th>status</th><th>meaning</th><th>body</th></tr>"
    for status, answer in operation["responses"].items():
        yield f"<tr><td><code>{status}</code></td><td>{_text(answer['description'])}</td><td>"
        kinds = answer.get("content", {}).items()
        yield "<br>".join(
            f"<code>{escape(kind)}</code>"
            + (f" {_values(content['schema'])}" if "$ref" in content.get("schema", ()) else "")
            for kind, content in kinds
        )
        yield "</td></tr>"
    yield "</table></details>"


def _schemas(schemas: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>Values</h2>"
    for name, schema in sorted(schemas.items()):
        yield f'<details id="schema-{escape(name)}"><summary><code>{escape(name)}</code>'
        yield f'<span class="about">{_text(schema.get("description", ""))}</span></summary>'
        yield "<table><tr><th>field</th><th>values</th><th></th></tr>"
        required = schema.get("required", ())
        for field, values in schema.get("properties", {}).items():
            suffix = "<br>required" if field in required else ""
            yield (
                f"<tr><td><code>{escape(field)}</code>{suffix}</td><td>{_values(values)}</td>"
                f"<td>{_text(values.get('description', ''))}</td></tr>"
            )
        yield "</table></details>"


def _text(text: str) -> str:
    """Return text as HTML; words between backticks become code."""
    parts = escape(" ".join(text.split())).replace("``", "`").split("`")
    return "".join(
        f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts)
    )


def _values(schema: Mapping[str, Any]) -> str:
    """Describe the values that a schema allows, in a few words of HTML."""
    if "$ref" in schema:
        name = escape(schema["$ref"].removeprefix(_REF))
        return f'<a href="#schema-{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(map(_values, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return ", ".join(f"<code>{escape(_value_text(value))}</code>" for value in values)
    kind = schema.get("type", "any")
    if kind == "array":
        return _list(schema)
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"by name: {_values(schema['additionalProperties'])}"
    return escape(kind) + _bounds(schema)


def _list(schema: Mapping[str, Any]) -> str:
    items = schema.get("prefixItems")
    if items is None:
        return f"list of {_values(schema.get('items', {}))}"
    descriptions = [_values(item) for item in items]
    if len(set(descriptions)) == 1:
        return f"{len(descriptions)} times {descriptions[0]}"
    return f"[{', '.join(descriptions)}]"


def _bounds(schema: Mapping[str, Any]) -> str:
    signs = {
        "minimum": "≥",
        "exclusiveMinimum": "&gt;",
        "maximum": "≤",
        "exclusiveMaximum": "&lt;",
    }
    bounds = [
        f"{sign} {_value_text(schema[name])}" for name, sign in signs.items() if name in schema
    ]
    return f" {', '.join(bounds)}" if bounds else ""


def _value_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
