"""A browser that opens pages, and records their errors."""

import shutil
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect, sync_playwright
from timeouts import TIMEOUT_S

CHROMIUM = shutil.which("chromium")
TIMEOUT_MS = TIMEOUT_S * 1000
_FLAGS = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage"]
_SLOW_DRIVER = "GL Driver Message (OpenGL, Performance"
"""Warning of Chromium when a screenshot reads pixels that WebGL drew."""

expect.set_options(timeout=TIMEOUT_MS)


@pytest.fixture(scope="module")
def chromium():
    """Run Debian's Chromium for the tests of a module.

    While its driver lives, its event loop runs in this thread, and tests that use asyncio could
    not run.
    """
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed. On Debian: apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium):
    """Return a tab of 1280 x 720; its errors, and requests to other hosts, fail the test.

    A test removes the errors that it expects from ``page.logged_errors``.
    """
    context = chromium.new_context(viewport={"width": 1280, "height": 720}, locale="en-US")
    tab = context.new_page()
    tab.set_default_timeout(TIMEOUT_MS)
    tab.logged_errors = []
    tab.on(
        "console",
        lambda message: (
            tab.logged_errors.append(message.text)
            if message.type in {"error", "warning"} and _SLOW_DRIVER not in message.text
            else None
        ),
    )
    tab.on("pageerror", lambda problem: tab.logged_errors.append(str(problem)))
    hosts = set()
    tab.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
    yield tab
    context.close()
    assert not tab.logged_errors
    assert hosts <= {"127.0.0.1", "", None}, hosts
