"""Checks by hand how JupyterLab shows a scan: runs a notebook in Chromium, clicks into it.

JupyterLab is not part of the development environment. Install it into another environment, with
``pip install jupyterlab anywidget``. Then

``python tests/support/notebook_check.py STORE SCAN_ID --jupyter PATH/TO/jupyter --png OUT.png``

saves a screenshot. It exits with 0 if the widget was shown, described the clicked voxel, and
contacted no other host.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import nbformat
from playwright.sync_api import sync_playwright
from server_process import free_port

_DESCRIPTION = ".jp-OutputArea .widget-html-content"
"""Selector of the line that describes the clicked voxel."""


def _write_notebook(folder, store, scan_id):
    """Write a notebook, and a kernel specification of this environment."""
    kernel = folder / "kernels" / "here" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": command, "display_name": "here", "language": "python"}))
    code = f"import spinezarr\n\nspinezarr.open({store!r}).view({scan_id!r}, height_px=520)"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    notebook.metadata["kernelspec"] = {"name": "here", "display_name": "here"}
    (folder / "work").mkdir()
    nbformat.write(notebook, folder / "work" / "spine.ipynb")


def _start_jupyter(folder, jupyter, port):
    options = ("--ServerApp.token=", "--ServerApp.password=", "--LabApp.news_url=None")
    command = [jupyter, "lab", "--no-browser", "--allow-root", f"--port={port}", *options]
    environment = {**os.environ, "JUPYTER_PATH": str(folder), "JUPYTER_CONFIG_DIR": str(folder)}
    process = subprocess.Popen(
        command, cwd=folder / "work", env=environment, stderr=subprocess.DEVNULL
    )
    for _ in range(300):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api"):
                return process
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise TimeoutError("JupyterLab does not answer")


def _run_notebook(port, png):
    """Run the notebook and click into it; return contacted hosts, and the text before and after."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--headless=new", "--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        page.set_default_timeout(180_000)
        hosts, console = set(), []
        page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
        page.on("console", lambda message: console.append(message.text))
        page.goto(f"http://127.0.0.1:{port}/lab/tree/spine.ipynb?reset")
        page.locator(".jp-CodeCell .cm-content").first.click()
        page.wait_for_timeout(5000)
        page.keyboard.press("Control+Enter")
        canvas = page.locator(".jp-OutputArea canvas")
        canvas.wait_for()
        while not any("render_meshes" in line for line in console):  # this line comes last
            page.wait_for_timeout(1000)
        page.wait_for_timeout(15_000)
        page.screenshot(path=png, timeout=180_000)
        before = page.locator(_DESCRIPTION).first.inner_text()
        box = canvas.bounding_box()
        page.mouse.click(box["x"] + 0.35 * box["width"], box["y"] + 0.25 * box["height"])
        page.wait_for_timeout(15_000)
        after = page.locator(_DESCRIPTION).first.inner_text()
        browser.close()
    return hosts, before, after


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("scan_id")
    parser.add_argument("--jupyter", required=True)
    parser.add_argument("--png", default="notebook.png")
    options = parser.parse_args()
    port = free_port()
    with TemporaryDirectory() as name:
        folder = Path(name)
        _write_notebook(folder, str(Path(options.store).resolve()), options.scan_id)
        process = _start_jupyter(folder, options.jupyter, port)
        try:
            hosts, before, after = _run_notebook(port, options.png)
        finally:
            process.terminate()
            process.wait(30)
    sys.stdout.write(f"{before}\n{after}\n{sorted(filter(None, hosts))}\n")
    return int(before == after or not hosts <= {"127.0.0.1", None})


if __name__ == "__main__":
    sys.exit(main())
