"""A browser, servers to look at, and the rule that no page asks another host or fails in silence."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlparse

import pytest

from tests.browsing import FLAGS, free_port, wait_until_up

playwright = pytest.importorskip("playwright.sync_api")

ROOT = Path(__file__).parents[2]
HERE = {"127.0.0.1", "localhost"}
LONG = 90_000


def environment() -> dict[str, str]:
    """The surroundings without what would change where Panel takes its files from."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BOKEH_", "PANEL_"))}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """Start a server process, ended when the tests are over; gives its log."""
    started: list[subprocess.Popen[bytes]] = []

    def start(command: list[str], url: str, cwd: Path = ROOT, **more: str) -> Path:
        log = tmp_path_factory.mktemp("server") / "log.txt"
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, cwd=cwd, env={**environment(), **more}, stdout=out, stderr=subprocess.STDOUT
            )
        started.append(process)
        wait_until_up(url, process, log)
        return log

    yield start
    for process in started:
        process.terminate()
    for process in started:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


SERVE = """
import explorer.session as session
from explorer.study import instant
from explorer.views.app import serve

evaluate_steps = session.evaluate_steps

def failing(engine, plan, floats, recipe, *rest, **more):
    if any(config.weight.format == "int7" for config in plan.configs.values()):
        raise RuntimeError("no room for int7")
    return evaluate_steps(engine, plan, floats, recipe, *rest, **more)

session.evaluate_steps = failing
# Otherwise nothing of so small a network is estimated.
instant._AFFORDABLE = 0
serve("fashion-lenet5", port={port}, show=False, images=600)
"""


@pytest.fixture(scope="session")
def served(launch: Callable[..., Path]) -> tuple[str, Path]:
    """The page of a small network on a few images, and the server's log; int7 cannot be evaluated."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    return url, launch([sys.executable, "-c", SERVE.format(port=port)], url)


@pytest.fixture(scope="session")
def server(served: tuple[str, Path]) -> str:
    """Where it is."""
    return served[0]


@pytest.fixture(scope="session")
def log(served: tuple[str, Path]) -> Path:
    """What it says."""
    return served[1]


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    """One browser for all tests: what it has loaded it keeps, while each page is a session of its own."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not path:
        pytest.skip("Chromium is neither on the path nor named by the environment variable CHROMIUM")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield browser.new_context(viewport={"width": 1440, "height": 900})
        browser.close()


def keep(pages: list[object], name: str) -> None:
    """Pictures of the pages as a test has left them, in the folder that the variable SCREENSHOTS names."""
    folder = os.environ.get("SCREENSHOTS")
    if not folder:
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    plain = re.sub(r"[^\w-]+", "-", name).strip("-")
    for number, page in enumerate(page for page in pages if not page.is_closed()):
        # A page that cannot be drawn any more has failed its test already.
        with contextlib.suppress(playwright.Error):
            path = Path(folder) / f"{plain}-{number}.jpg"
            page.screenshot(path=path, type="jpeg", quality=70, timeout=LONG / 9)


@pytest.fixture
def new_page(chromium: object, request: pytest.FixtureRequest) -> Iterator[Callable[[], object]]:
    """Open pages of separate sessions; afterwards none may have failed or asked another host."""
    pages, outside, errors = [], [], []

    def asked(request: object) -> None:
        url = urlparse(request.url)
        if url.scheme in ("http", "https", "ws", "wss") and url.hostname not in HERE:
            outside.append(request.url)

    def open_page() -> object:
        page = chromium.new_page()
        pages.append(page)
        page.set_default_timeout(LONG / 2)
        page.on("request", asked)
        page.on("websocket", lambda socket: asked(socket))
        page.on("pageerror", lambda error: errors.append(str(error)))
        return page

    yield open_page
    keep(pages, request.node.name)
    for page in pages:
        page.close()
    assert not outside, f"other hosts were asked: {outside[:5]}"
    assert not errors, f"errors in the page: {errors[:3]}"


@pytest.fixture
def open_page(new_page: Callable[[], object], server: str) -> Callable[[], object]:
    """Open the small network's page and wait until it is evaluated."""

    def go() -> object:
        page = new_page()
        page.goto(server)
        page.get_by_text("Evaluated on 600 images").wait_for()
        # The estimates come last, and the list of layers draws itself anew with them.
        page.locator('.tabulator-cell[tabulator-field="sens"]', has_text="~").first.wait_for()
        return page

    return go
