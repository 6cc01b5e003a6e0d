"""A server for a team: nothing without the login, private recipes, limits, health, a log without secrets."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from tornado.httpclient import HTTPClientError, HTTPResponse
from tornado.websocket import websocket_connect

from tests.browsing import free_port, wait_until_up
from tests.visiting import asked, socket_request

ROOT = Path(__file__).parents[1]
PEOPLE = {"anna": "Sesam-Pass-1", "bert": "Sesam-Pass-2"}
# Names the routes in a file: what is not known here fails, so that nobody adds one that is not looked at.
SERVE = """
import json
from pathlib import Path
from explorer.views import serving
from explorer.views.app import serve
from explorer.views.limits import Limits

start = serving.Application.start

def told(self):
    rules = [rule.matcher.regex.pattern for rule in self.wildcard_router.rules]
    Path({routes!r}).write_text(json.dumps(rules))
    start(self)

serving.Application.start = told
serve(
    "fashion-lenet5", port={port}, show=False, images=200, most=Limits(sessions=2),
    panel=["--basic-auth", {people!r}, "--check-unused-sessions", "1000"],
)
"""
EXAMPLES = {
    "/favicon.ico$": "/favicon.ico",
    "/ws$": "/ws",
    "/metadata$": "/metadata",
    "/autoload.js$": "/autoload.js?bokeh-autoload-element=1&bokeh-app-path=/&bokeh-absolute-url=http://x/",
    "/?$": "/",
    "/static/(?!extensions/)(.*)$": "/static/js/bokeh.min.js",
    "/components/(.*)$": "/components/panel.layout.card/Card/_stylesheets/x.css",
    "/healthz$": "/healthz",
    "/login$": "/login",
    "/logout$": "/logout",
    "/static/extensions/(.*)$": "/static/extensions/panel/panel.min.js",
    "/static/(.*)$": "/static/js/bokeh.min.js",
}
FREE = {"/login", "/logout", "/healthz"}


@dataclass(frozen=True)
class Served:
    """A running server."""

    url: str
    log: Path
    routes: Path


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Start a server; gives what waits for it."""
    started: list[subprocess.Popen[bytes]] = []

    def start(command: list[str], url: str, **more: str) -> Callable[[], Path]:
        log = tmp_path_factory.mktemp("server") / "log.txt"
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("BOKEH_", "PANEL_"))
        }
        surroundings = {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, cwd=ROOT, env=surroundings, stdout=out, stderr=subprocess.STDOUT
            )
        started.append(process)

        def up() -> Path:
            wait_until_up(f"{url}healthz", process, log)
            return log

        return up

    yield start
    for process in started:
        process.terminate()
    for process in started:
        process.wait(20)


@pytest.fixture(scope="module")
def both(launch: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Served, Served, int]:
    """The command's server with names and passwords, ``panel serve`` with OAuth, and its provider's port."""
    folder = tmp_path_factory.mktemp("team")
    people, routes = folder / "People.json", folder / "routes.json"
    people.write_text(json.dumps(PEOPLE))
    ports = [free_port() for _ in range(3)]
    urls = [f"http://127.0.0.1:{port}/" for port in ports]
    script = SERVE.format(routes=str(routes), people=str(people), port=ports[0])
    first = launch([sys.executable, "-c", script], urls[0])
    provider = urls[2]
    panel = [sys.executable, "-m", "panel", "serve", "apps/main.py", "--plugins", "explorer.views.team"]
    second = launch(
        [*panel, "--port", str(ports[1]), "--address", "127.0.0.1", "--index", "main"], urls[1],
        PANEL_OAUTH_PROVIDER="generic", PANEL_OAUTH_KEY="the-client", PANEL_OAUTH_SECRET="the-Secret-of-OAuth-1",
        PANEL_COOKIE_SECRET="the-Secret-of-Cookies-2", PANEL_OAUTH_AUTHORIZE_URL=f"{provider}authorize",
        PANEL_OAUTH_TOKEN_URL=f"{provider}token", PANEL_OAUTH_USER_URL=f"{provider}user", EXPLORER_MAX_SESSIONS="3",
    )  # fmt: skip
    return Served(urls[0], first(), routes), Served(urls[1], second(), routes), ports[2]


@pytest.fixture(scope="module")
def team(both: tuple[Served, Served, int]) -> Served:
    """The server with names and passwords."""
    return both[0]


def cookies(response: HTTPResponse) -> dict[str, str]:
    """The header with which a browser sends back what it was given."""
    given = [line.split(";")[0] for line in response.headers.get_list("Set-Cookie")]
    return {"Cookie": "; ".join(pair for pair in given if not pair.endswith(("=", '=""')))}


async def log_in(url: str, name: str = "anna") -> dict[str, str]:
    body = urlencode({"username": name, "password": PEOPLE[name]})
    return cookies(await asked(f"{url}login", method="POST", body=body))


async def socket_status(url: str, token: str, **headers: str) -> int:
    """What the handshake of a websocket is answered with."""
    try:
        connection = await websocket_connect(
            socket_request(url, token, **headers), subprotocols=["bokeh", token]
        )
    except HTTPClientError as error:
        return error.code
    connection.close()
    return 101


def run(steps: Coroutine[Any, Any, None]) -> None:
    asyncio.run(steps)


def test_no_route_answers_without_the_login(team: Served) -> None:
    rules = set(json.loads(team.routes.read_text()))
    assert rules == set(EXAMPLES), "look at the new route, and give an example of it"

    async def steps() -> None:
        known = await log_in(team.url)
        forged = {"Cookie": "user=anna; id_token=e30; is_guest=1"}
        for path in [
            *EXAMPLES.values(),
            "/nowhere",
            "/static/extensions/nowhere",
            "/apps/main.py",
            "/admin",
            "/rest",
        ]:
            for headers in ({}, forged):
                for method in ("GET", "HEAD", "POST", "PUT", "OPTIONS", "DELETE", "PATCH"):
                    got = await asked(team.url + path[1:], method=method, headers=headers)
                    if path in FREE:
                        assert "sessions" not in got.body.decode()
                        continue
                    if path == "/" and method == "GET":
                        assert got.code == 302 and got.headers["Location"].startswith("./login?next=")
                    else:
                        assert got.code == 403, (method, path, got.code)
                    assert got.body in (b"", b"Not logged in.")
        # The examples are no empty words: who is logged in gets them.
        for path in set(EXAMPLES.values()) - {"/", "/ws", "/logout"}:
            got = await asked(team.url + path[1:], headers=known)
            if path.startswith("/components"):
                # Only what a widget lists is given away, and none of the page's lists a file.
                assert got.code == 403 and b"Not logged in" not in got.body
            else:
                assert got.code == 200, (path, got.code)

    run(steps())
