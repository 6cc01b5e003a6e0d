"""A server for a team: nothing without the login, private recipes, limits, health, a log without secrets."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlencode, urljoin, urlparse

import pytest
from tornado.httpclient import HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketClosedError

from tests.browsing import free_port, wait_until_up
from tests.loops import elsewhere
from tests.visiting import Visitor, asked, token_of

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
            wait_until_up(f"{url}healthz", process, log, 240)
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


async def raw(url: str, path: str, headers: dict[str, str], method: str = "GET") -> bytes:
    """What a server answers to this very path, up to where it waits for more: a client of HTTP would tidy it up."""
    where = urlparse(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    got = await reader.readuntil(b"\r\n\r\n")
    if headers.get("Connection") == "close":
        got += await reader.read()
    writer.close()
    await writer.wait_closed()
    return got


async def socket_status(url: str, token: str, **headers: str) -> int:
    """What the handshake of a websocket is answered with."""
    where = urlparse(url)
    usual = {
        "Host": where.netloc, "Origin": f"http://{where.netloc}", "Connection": "Upgrade", "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Protocol": f"bokeh, {token}",
    }  # fmt: skip
    got = await raw(url, f"{where.path}ws", {**usual, **headers})
    return int(got.split()[1])


def run(steps: Coroutine[Any, Any, None]) -> None:
    elsewhere(lambda: asyncio.run(steps))


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


def test_the_login(team: Served) -> None:
    async def steps() -> None:
        page = await asked(f"{team.url}login?error=<script>alert(1)</script>")
        words = page.body.decode()
        assert page.code == 200 and "<script>" not in words and "&lt;script&gt;" in words
        assert not re.search(r"(src|href)=\"(?!data:)", words), (
            "the login takes nothing from another route or host"
        )
        for body in (
            "username=anna&password=wrong",
            "username=anna",
            "username=&password=",
            "username=eve&password=",
        ):
            got = await asked(f"{team.url}login", method="POST", body=body)
            assert (
                got.code == 302
                and "error=" in got.headers["Location"]
                and not got.headers.get_list("Set-Cookie")
            )
        crossed = {"Origin": "http://example.org", "Sec-Fetch-Site": "cross-site"}
        right = urlencode({"username": "anna", "password": PEOPLE["anna"]})
        assert (await asked(f"{team.url}login", method="POST", body=right, headers=crossed)).code == 403
        # A body that nobody would send is refused by what it says of its size.
        large = {"Host": urlparse(team.url).netloc, "Content-Length": str(100 << 20)}
        assert (await raw(team.url, "/login", large, "POST")).startswith(b"HTTP/1.1 400")
        got = await asked(f"{team.url}login", method="POST", body=right)
        given = [
            line for line in got.headers.get_list("Set-Cookie") if line.startswith(("user=", "id_token="))
        ]
        given = [line for line in given if '=""' not in line]
        assert len(given) == 2 and all("HttpOnly" in line and "SameSite=Lax" in line for line in given)

    run(steps())


def test_foreign_pages_are_refused(team: Served) -> None:
    async def steps() -> None:
        known = await log_in(team.url)
        where = urlparse(team.url).netloc
        token = token_of((await asked(team.url, headers=known)).body.decode())
        assert await socket_status(team.url, token) == 403
        for foreign in (
            {"Origin": "http://example.org"},
            {"Origin": f"http://example.org:{urlparse(team.url).port}"},
            {"Origin": "null"},
            {"Origin": f"http://{where}.example.org"},
            {"Origin": "http://example.org", "Sec-Fetch-Site": "cross-site"},
            # A foreign name that leads to this machine.
            {"Origin": "http://example.org", "Host": "example.org"},
        ):
            assert await socket_status(team.url, token, **known, **foreign) == 403, foreign
        for wrong in ("abc", token[:-3], token.split(".")[0], "e30", "." * 50, "e30.e30"):
            assert await socket_status(team.url, wrong, **known) == 403
        assert (await asked(team.url, headers={**known, "Host": "example.org"})).code == 403
        for name in ("127.0.0.1:80", "[::1]:5006", "10.0.0.7", "localhost", socket.gethostname()):
            assert (await asked(f"{team.url}healthz", headers={"Host": name})).code == 200, name
        assert await socket_status(team.url, token, **known) == 101

    run(steps())


async def settled(url: str, headers: dict[str, str], sessions: int) -> None:
    """Wait until there are no more than so many sessions."""
    for _ in range(300):
        if json.loads((await asked(f"{url}healthz", headers=headers)).body)["sessions"] <= sessions:
            return
        await asyncio.sleep(0.1)
    raise AssertionError("The sessions stay.")


def test_recipes_are_private_and_a_full_house_says_so(team: Served) -> None:
    async def steps() -> None:
        anna, bert = await log_in(team.url), await log_in(team.url, "bert")
        await settled(team.url, anna, 0)
        one = await Visitor(team.url, anna).open()
        two = await Visitor(team.url, bert).open()
        # A third finds the house full.
        for path in ("", "autoload.js?bokeh-autoload-element=x", "?state=1.x"):
            full = await asked(team.url + path, headers=anna)
            assert full.code == 503 and int(full.headers["Retry-After"]) > 0
            words = full.body.decode()
            assert "2 browsers are at work on this server" in words and "<script" not in words
        health = json.loads((await asked(f"{team.url}healthz", headers=anna)).body)
        assert health["sessions"] == health["sessions_limit"] == 2 and health["resident_bytes"] > 1 << 20
        # What the one does the other does not see.
        menus = [visitor.named("Select", label="recipe") for visitor in (one, two)]
        one.change(menus[0], "value", "w4a8")
        layers = one.named("panel.models.tabulator.DataTabulator")
        await one.until(lambda: "int4" in json.dumps(one.models[layers]) or one.says("int4"))
        assert two.models[menus[1]]["value"] == "w8a8"
        # Nor by the name of its session in the address, whoever may have found it out.
        for name in ("bokeh-session-id", "bokeh-token"):
            got = await asked(f"{team.url}?{name}={one.session}", headers=bert)
            assert got.code == 403
        assert (await asked(team.url, headers={**bert, "Bokeh-Session-Id": one.session})).code == 403
        # Who vanishes without a word makes room.
        await one.leave(politely=False)
        await settled(team.url, bert, 1)
        again = await Visitor(team.url, anna).open()
        assert again.models[again.named("Select", label="recipe")]["value"] == "w8a8"
        await again.leave()
        # A message that is too long ends its session and no other.
        two.change(menus[1], "value", "x" * (5 << 20))
        await settled(team.url, bert, 0)
        await two.leave()

    run(steps())


PATHS = [
    "/static/../../../../../../etc/passwd",
    "/static/..%2f..%2f..%2f..%2f..%2f..%2fetc/passwd",
    "/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "/static/..%252f..%252f..%252fetc/passwd",
    "/static/..\\..\\..\\pyproject.toml",
    "/static//etc/passwd",
    "/static/js/../../../server/tornado.py",
    "/static/extensions/panel/../../../../../../../../etc/passwd",
    "/static/extensions/panel/..%2f..%2fconfig.py",
    "/static/extensions/panel//etc/passwd",
    "/static/extensions//etc/passwd",
    "/static/extensions/..%2fpanel/config.py",
    "/static/js/bokeh.min.js%00.png",
    "/static/%00",
    "/components/os/path/__css__/../../etc/passwd",
    "/components/explorer.views.kit/Drawn/_css/../kit.py",
    "/components/explorer.views.kit/Drawn/__module__/kit.py",
    "/components/antigravity/x/_css/y",
    "/components/.kit/x/_css/y",
    "/components//etc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/../../etc/passwd",
    "/apps/main.py",
    "/pyproject.toml",
    "/trials",
    "/steps/x.json",
    "/.git/config",
]


def test_no_path_leads_out(team: Served) -> None:
    async def steps() -> None:
        known = await log_in(team.url)
        where = urlparse(team.url)
        for path in PATHS:
            got = await raw(team.url, path, {"Host": where.netloc, "Connection": "close", **known})
            assert re.match(rb"HTTP/1.1 (400|403|404) ", got), (path, got[:200])
            for word in (b"root:", b"import ", b"[project]", b"repositoryformat"):
                assert word not in got, path

    run(steps())


class Provider(RequestHandler):
    """Somebody else's login, as OAuth has it: whoever asks is anna."""

    asked: list[dict[str, list[str]]]

    def get(self, step: str) -> None:
        if step == "user":
            assert self.request.headers["Authorization"] == "Bearer the-Access-Token-3"
            self.write({"email": "anna@example.org"})
            return
        query = parse_qs(self.request.query)
        self.asked.append(query)
        back = urlencode({"code": "the-Code-4", "state": query["state"][0]})
        self.redirect(f"{query['redirect_uri'][0]}?{back}")

    def post(self, step: str) -> None:
        said = parse_qs(self.request.body.decode())
        assert (said["code"], said["client_secret"]) == (["the-Code-4"], ["the-Secret-of-OAuth-1"])
        self.write({"access_token": "the-Access-Token-3", "token_type": "bearer"})


def test_oauth_by_panel_serve(both: tuple[Served, Served, int]) -> None:
    _, served, port = both
    origin = served.url.rstrip("/")

    async def steps() -> None:
        asks: list[Any] = []
        handler = type("Told", (Provider,), {"asked": asks})
        provider = HTTPServer(Application([(r"/(\w+)", handler)]))
        provider.listen(port, "127.0.0.1")
        for path in ("/static/js/bokeh.min.js", "/static/extensions/panel/panel.min.js", "/favicon.ico", "/main/ws",
                     "/main/metadata", "/main/autoload.js?bokeh-autoload-element=x", "/nowhere", "/ws"):  # fmt: skip
            assert (await asked(origin + path)).code == 403, path
        assert await socket_status(f"{origin}/main/", "abc.def") == 403
        health = await asked(f"{origin}/healthz")
        assert json.loads(health.body) == {"status": "ok"}
        # A state that nobody has asked for is refused.
        assert (await asked(f"{origin}/login?code=the-Code-4&state=e30")).code == 401
        jar: dict[str, str] = {}
        where = f"{origin}/"
        for _ in range(8):
            got = await asked(where, headers={"Cookie": "; ".join(f"{k}={v}" for k, v in jar.items())})
            for line in got.headers.get_list("Set-Cookie"):
                name, _, value = line.split(";")[0].partition("=")
                jar[name] = value
            assert got.code == 302 and b"Quantization" not in got.body
            where = urljoin(where, got.headers["Location"])
            if "user" in jar:
                break
        assert "the-Secret-of-OAuth-1" not in json.dumps(asks) and asks[0]["client_id"] == ["the-client"]
        known = {"Cookie": "; ".join(f"{k}={v}" for k, v in jar.items())}
        assert (await asked(f"{origin}/static/js/bokeh.min.js", headers=known)).code == 200
        health = await asked(f"{origin}/healthz", headers=known)
        assert json.loads(health.body)["sessions_limit"] == 3
        provider.stop()

    run(steps())


def test_the_log_has_no_secrets(both: tuple[Served, Served, int]) -> None:
    """After all that was asked above."""
    for served in both[:2]:
        log = served.log.read_text()
        for secret in (
            *PEOPLE.values(),
            "Secret",
            "the-Code",
            "the-Access",
            "eyJ",
            "state=",
            "bokeh-session-id=",
            "user=",
        ):
            assert secret not in log, secret
        assert "Traceback" not in log
        lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
        assert lines and all("?" not in line["path"] for line in lines)


@pytest.mark.parametrize(
    "options, words",
    [
        (["--cookie-secret", "x"], "set the environment variable PANEL_COOKIE_SECRET"),
        (["--oauth-secret", "x"], "set the environment variable PANEL_OAUTH_SECRET"),
        (["--basic-auth", "nowhere/people.json"], "There is no file 'nowhere/people.json'"),
        (["--basic-auth", "pyproject.toml"], "cannot be read"),
        (["apps/main.py"], "takes options only"),
        (["--num-procs", "2"], "leave --num-procs out"),
    ],
)
def test_options_that_do_not_do_what_they_seem_to(options: list[str], words: str) -> None:
    from explorer.errors import JobError
    from explorer.views.command import run as serve

    with pytest.raises(JobError, match=re.escape(words)):
        serve(lambda: None, "", options)


def test_a_file_that_is_too_large_is_refused_by_the_server_too() -> None:
    """Whatever a browser says of its size."""
    from explorer.views import kit
    from explorer.views.limits import Limits, limits, set_limits

    before = limits()
    set_limits(Limits(upload=3000))
    try:
        field = kit.upload("Load", ".yaml")
    finally:
        set_limits(before)
    assert field.max_file_size == 3000
    said: list[Any] = []
    field._send_msg = said.append
    piece = {"status": "upload_event", "name": "../../x.yaml", "mime_type": "", "total_chunks": 1000}
    for number in range(1, 1000):
        field._handle_msg({**piece, "chunk": number, "data": b"x" * 1024})
        held = field._file_buffer.values()
        assert sum(len(data) for one in held for data in one["chunks"].values()) <= 3000
    assert said and "larger than the 3,000 bytes" in said[0]["error"]
    assert field.value is None
    field._handle_msg({**piece, "total_chunks": 1, "chunk": 1, "data": b"version: 1"})
    field._handle_msg({"status": "finished"})
    assert field.value == b"version: 1" and field.filename == "../../x.yaml"


def test_a_ping_to_a_browser_that_left_leaves_the_session_to_its_socket() -> None:
    """The socket, told a moment later, ends the session, and there would be none."""
    from explorer.views import serving

    class Connection:
        _socket, detached = SimpleNamespace(gone=False), 0

        def send_ping(self) -> None:
            raise WebSocketClosedError

        def detach_session(self) -> None:
            self.detached += 1

    connection, application = Connection(), serving.Application.__new__(serving.Application)
    application._clients = {connection}
    application._keep_alive()
    assert connection.detached == 0 and application._clients == {connection}
    connection._socket.gone = True
    application.client_lost(connection)
    assert connection.detached == 1 and not application._clients


def test_a_page_whose_limits_nobody_keeps_stays_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    from bokeh.document import Document
    from panel.io.state import set_curdoc

    from explorer.errors import JobError
    from explorer.views import limits as kept
    from explorer.views.app import check_guard
    from explorer.views.limits import Limits, limits, set_limits

    monkeypatch.setattr(kept, "_guarded", False)  # another test may have served from this process
    before = limits()
    try:
        with set_curdoc(Document()):
            check_guard()
            set_limits(Limits(sessions=1))
            with pytest.raises(JobError, match="--plugins explorer"):
                check_guard()
    finally:
        set_limits(before)
