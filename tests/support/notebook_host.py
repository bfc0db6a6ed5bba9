"""A page that shows a widget of ipyniivue, as notebooks do: it runs its script with its state."""

import base64
import json
import math

__all__ = ["show_widget"]

_URL = "http://127.0.0.1/notebook/"
"""Address of the page. The browser never requests it, because the test answers."""
_PAGE = """<!doctype html>
<html lang="en"><head><link rel="icon" href="data:,"></head>
<body style="margin: 0; background: #fff">
<div id="widget"></div>
<script type="module">
import widget from "./widget.js";
const toView = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
const states = JSON.parse(await (await fetch("./models.json")).text(), (_, value) =>
  typeof value?.base64 === "string" ? toView(value.base64) : value);
globalThis.sent = [];
class Model {
  constructor(state) { this.state = state; }
  get(name) { return this.state[name]; }
  set(name, value) { this.state[name] = value; }
  on() {}
  off() {}
  save_changes() {}
  send(content) { globalThis.sent.push(content); }
}
const toModel = ([id, state]) => [id, new Model(state)];
const models = Object.fromEntries(Object.entries(states).map(toModel));
const manager = { get_model: async (id) => models[id] };
for (const model of Object.values(models)) model.widget_manager = manager;
const model = Object.values(models)[0];
await widget.initialize({ model });
await widget.render({ model, el: document.querySelector("#widget") });
</script></body></html>
"""


def _plain(value):
    """Return a part of a state as JSON has it."""
    if isinstance(value, bytes | memoryview):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value


def show_widget(page, widget):
    """Show a widget, and wait until all its volumes are drawn."""
    states = {
        part.model_id: _plain({k: v for k, v in part.get_state().items() if k != "_esm"})
        for part in (widget, *widget.volumes)
    }
    files = {
        "": (_PAGE, "text/html"),
        "widget.js": (str(widget._esm), "text/javascript"),
        "models.json": (json.dumps(states), "application/json"),
    }

    def answer(route):
        body, content_type = files[route.request.url.removeprefix(_URL)]
        route.fulfill(body=body, content_type=content_type)

    page.route(f"{_URL}**", answer)
    page.goto(_URL)
    page.wait_for_function(
        "n => globalThis.sent?.filter(({ event }) => event === 'image_loaded').length >= n",
        arg=len(widget.volumes),
    )
    page.wait_for_timeout(500)  # the last volume is drawn after its message
