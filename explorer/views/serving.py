"""What a server for a team adds to Panel's: every route behind the login, limits, a health endpoint, a discreet log.

``panel serve apps/main.py --plugins explorer.views.team`` and ``python -m explorer serve`` put it to work.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import Awaitable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import bokeh.server.server
import bokeh.server.tornado
import panel as pn
from bokeh.server.tornado import BokehTornado
from bokeh.server.util import check_allowlist
from bokeh.server.views.auth_request_handler import AuthRequestHandler
from bokeh.server.views.doc_handler import DocHandler
from bokeh.server.views.root_handler import RootHandler
from bokeh.server.views.session_handler import SessionHandler
from bokeh.server.views.ws import WSHandler
from bokeh.settings import settings
from bokeh.util.token import check_token_signature, get_session_id
from jinja2 import Environment, FileSystemLoader, Template
from panel.auth import BasicAuthProvider, OAuthProvider
from panel.io.resources import BASIC_LOGIN_TEMPLATE, ERROR_TEMPLATE, LOGOUT_TEMPLATE
from panel.io.server import ComponentResourceHandler
from tornado.httputil import HTTPServerRequest
from tornado.web import HTTPError, RequestHandler

from explorer.errors import JobError
from explorer.graph.memory import resident_bytes
from explorer.subject import shared_store
from explorer.views.discreet import be_discreet
from explorer.views.limits import limits, mark_guarded

access = logging.getLogger("explorer.access")
# Its settings are properties with setters of their own kind.
config: Any = pn.config
TEMPLATES = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True)
# Nobody has to send more to any route; files come in pieces through the websocket.
LARGEST_BODY = 1 << 20
# Of one message of a websocket: files are sent in pieces of 1 MiB (`kit.PIECE`), all else is smaller.
LARGEST_MESSAGE = 4 << 20
# Seconds between two looks whether a browser is still there.
PING, PATIENCE = 20, 20
# Seconds after which the page that says "busy" asks again.
AGAIN = 10
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    # The address holds the page's state.
    "Referrer-Policy": "same-origin",
}


def template(name: str) -> Template:
    """A page of its own, which takes nothing from any other route or host."""
    return TEMPLATES.get_template(f"{name}.html")


class Guard(RequestHandler):
    """What stands before every handler: known hosts and people only, and no more sessions than there is room for."""

    application: Application
    application_context: Any
    free = False  # whether it answers people that are not logged in

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.clear_header("Server")
        for name, value in HEADERS.items():
            self.set_header(name, value)

    def get_current_user(self) -> Any:
        return AuthRequestHandler.get_current_user(self)  # type: ignore[arg-type]

    def set_cookie(self, name: str, value: str | bytes, *rest: Any, **more: Any) -> None:
        more.setdefault("samesite", "Lax")
        more.setdefault("secure", self.request.protocol == "https")
        super().set_cookie(name, value, *rest, **more)

    async def prepare(self) -> None:
        if not self.application.knows_host(self.request.host):
            return self._refuse(403, "This server is not known by the name in the address.")
        if "\0" in unquote(self.request.path):
            return self._refuse(400, "No address has such a character in it.")
        provider = self.application.auth_provider
        if isinstance(self, AuthRequestHandler):
            await super().prepare()  # type: ignore[misc]
        elif provider.get_user_async is not None:
            self.current_user = await provider.get_user_async(self)  # type: ignore[arg-type]
        if self._finished:
            return None
        if not self.free and not self.current_user and not self._sent_to_login():
            return self._refuse(403, "Not logged in.")
        if isinstance(self, WSHandler):
            return self._check_socket()
        if not isinstance(self, AuthRequestHandler):
            found = super().prepare()
            if isinstance(found, Awaitable):
                await found
        return None

    def _sent_to_login(self) -> bool:
        """Whether the handler itself sends people to the login: pages do, when they are asked for."""
        return isinstance(self, DocHandler | RootHandler) and self.request.method == "GET"

    def _refuse(self, status: int, words: str) -> None:
        self.set_status(status)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish("" if isinstance(self, WSHandler) else words)

    def _check_socket(self) -> None:
        """A websocket needs a token that a page was given, and a session beyond the last needs room."""
        token = self.request.headers.get("Sec-WebSocket-Protocol", "").rpartition(",")[2].strip()
        application = self.application
        try:
            sound = check_token_signature(token, application.secret_key, application.sign_sessions)
            session = get_session_id(token) if sound else None
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            session = None
        if session is None:
            return self._refuse(403, "")
        known = any(held.id == session for held in self.application_context.sessions)
        return None if known or self.application.has_room else self._refuse(503, "")

    def write_error(self, status_code: int, **more: Any) -> None:
        if status_code != 503:
            super().write_error(status_code, **more)
            return
        self.set_header("Retry-After", str(AGAIN))
        self.set_header("Cache-Control", "no-store")
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish(template("busy").render(again=AGAIN, words=self.application.busy))

    def log_exception(self, *exception: Any) -> None:
        """Like Tornado's, without the query and the headers."""
        if isinstance(exception[1], HTTPError):
            return
        log = logging.getLogger("tornado.application")
        log.error("Uncaught exception %s %s", self.request.method, self.request.path, exc_info=exception)


class Room(Guard):
    """Before the handlers that make a session."""

    async def get_session(self) -> Any:
        """A new session, if there is room; never one that the address names.

        An address with a session in it would let who sent it look at the recipe of who opens it.
        """
        given = {"bokeh-session-id", "bokeh-token"} & set(self.request.arguments)
        if self.application.generate_session_ids and (given or "Bokeh-Session-Id" in self.request.headers):
            raise HTTPError(403, reason="An address must not name a session")
        if not self.application.has_room:
            raise HTTPError(503)
        return await super().get_session()  # type: ignore[misc]


class Components(Guard):
    """Before the files of widgets, which an address names by module and class: of modules that are in use only."""

    def parse_url_path(self, url_path: str) -> str:
        if url_path.split("/")[0] not in sys.modules:
            raise HTTPError(404)
        try:
            return super().parse_url_path(url_path)  # type: ignore[misc]
        except HTTPError:
            raise
        except Exception:  # whatever a name leads to that is no widget
            raise HTTPError(404) from None


class Socket(Guard):
    """Before the handler of websockets: a session ends with its browser."""

    connection: Any
    gone = False

    async def _async_open(self, token: str) -> None:
        await super()._async_open(token)  # type: ignore[misc]
        if self.gone and self.connection is not None:
            # It left while it was being connected: Bokeh would hold it to be there for ever.
            self.on_close()

    def on_close(self) -> None:
        self.gone = True
        # Told twice of a browser that left while it was being connected: one of both times there is no session.
        session = getattr(self.connection, "_session", None)
        if self.connection is None or session is not None:
            super().on_close()  # type: ignore[misc]
        # Bokeh's page does not connect again; so its place is free at once.
        if session is not None and not session.connection_count:
            session.request_expiration()
            self.application.io_loop.add_callback(self.application._cleanup_sessions)


class Health(RequestHandler):
    """Whether the server answers; to those who may see the page also how much it has to do."""

    def get(self) -> None:
        self.set_header("Cache-Control", "no-store")
        application = self.application
        found: dict[str, Any] = {"status": "ok"}
        if self.current_user and isinstance(application, Application):
            store = shared_store().facts
            found |= {
                "sessions": application.sessions,
                "sessions_limit": limits().sessions,
                "resident_bytes": resident_bytes(),
                "memory_limit": limits().memory,
                "store_bytes": store.bytes,
                "store_budget": store.budget,
                "uptime_seconds": round(time.monotonic() - application.begun),
            }
        self.write(found)

    head = get


ROUTES = [(r"/healthz", Health)]
GUARDS: dict[Any, type[Guard]] = {
    WSHandler: Socket,
    SessionHandler: Room,
    ComponentResourceHandler: Components,
}


@cache
def guarded(handler: Any, free: bool) -> type[RequestHandler]:
    """The handler with a guard before it."""
    before = next((guard for kind, guard in GUARDS.items() if issubclass(handler, kind)), Guard)
    return type(f"Guarded{handler.__name__}", (before, handler), {"free": free})


class Application(BokehTornado):
    """Bokeh's application for Tornado, with a guard before every route, whoever has added it."""

    def __init__(self, *args: Any, **more: Any) -> None:
        provider = more.get("auth_provider")
        if isinstance(provider, BasicAuthProvider):
            prepare_login(provider)
        if more.get("secret_key") is None:
            # Signed with a key of this process: only pages that it has sent can open a session.
            more.update(secret_key=secrets.token_bytes(32), sign_sessions=True)
        if more.get("cookie_secret") is None:
            more["cookie_secret"] = config.cookie_secret = secrets.token_urlsafe(32)
        more.setdefault("cross_origin_protection", True)
        more.setdefault("websocket_ping_interval", PING)
        more.setdefault("websocket_ping_timeout", PATIENCE)
        size = more.get("websocket_max_message_size_bytes", 0)
        if size == bokeh.server.tornado.DEFAULT_WEBSOCKET_MAX_MESSAGE_SIZE_BYTES:
            more["websocket_max_message_size_bytes"] = LARGEST_MESSAGE
        super().__init__(*args, **more)
        self.begun = time.monotonic()
        self._free = {Health, *(handler for _, handler in self.auth_provider.endpoints)}
        self._names = own_names()
        be_discreet()
        mark_guarded()

    def get_handler_delegate(
        self, request: HTTPServerRequest, target_class: type[RequestHandler], *rest: Any, **more: Any
    ) -> Any:
        """The one way to any handler, that for what is not found included."""
        request.connection.set_max_body_size(LARGEST_BODY)  # type: ignore[union-attr]
        target: Any = target_class
        return super().get_handler_delegate(request, guarded(target, target in self._free), *rest, **more)

    def client_lost(self, connection: Any) -> None:
        """Forget a connection when its socket knows that the browser has left.

        A ping that finds the socket closed comes before that at times; without its session the socket could not end it.
        """
        if getattr(connection._socket, "gone", True):
            super().client_lost(connection)

    def knows_host(self, host: str) -> bool:
        """Whether a browser may call this server so; else a foreign page could pass for a page of ours.

        It could by a name of its own that leads to this machine.  An address in digits cannot be taken so.
        """
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        name = name.strip("[]").lower()
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._names or check_allowlist(host.lower(), list(self._origins))
        return True

    @property
    def _origins(self) -> set[str]:
        return {*self.websocket_origins, *settings.allowed_ws_origin()}

    @property
    def sessions(self) -> int:
        """How many there are, those that are being made included."""
        return sum(
            len(context._sessions) + len(context._pending_sessions) for context in self.applications.values()
        )

    @property
    def has_room(self) -> bool:
        """Whether one more session may begin."""
        now, most = self.sessions, limits()
        if most.sessions is not None and now >= most.sessions:
            return False
        # The first is let in whatever the memory: what the process keeps it may never give back.
        return not now or most.memory is None or resident_bytes() < most.memory

    @property
    def busy(self) -> str:
        """Why there is no room, for people."""
        now, most = self.sessions, limits().sessions
        people = "1 browser is" if now == 1 else f"{now} browsers are"
        why = "as many as it has room for" if now == most else "and its memory is full"
        return f"{people} at work on this server, {why}."

    def log_request(self, handler: Any) -> None:
        """One line of JSON: no query, no cookie, no session."""
        status, request = handler.get_status(), handler.request
        told = (
            status >= 400
            or isinstance(handler, SessionHandler | WSHandler)
            or (handler.free and not isinstance(handler, Health))
        )
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "from": request.remote_ip,
            "user": getattr(handler, "_current_user", None) if self.auth_provider.endpoints else None,
            "method": request.method,
            "path": request.path[:200],
            "status": status,
            "ms": round(1000 * request.request_time(), 1),
        }
        access.log(logging.INFO if told else logging.DEBUG, json.dumps(line))


def own_names() -> set[str]:
    """What this machine is called, in small letters."""
    name = socket.gethostname().lower()
    return {"localhost", name, name.partition(".")[0]}


def prepare_login(provider: Any) -> None:
    """Pages for the login that ask no other host or route for anything, and names with passwords that can be read.

    Raises:
        JobError: when the file of names and passwords is not there or is something else.
    """
    # Each is taken if the user has not given another.
    for name, usual in (
        ("login", BASIC_LOGIN_TEMPLATE),
        ("logout", LOGOUT_TEMPLATE),
        ("error", ERROR_TEMPLATE),
    ):
        if getattr(provider, f"_{name}_template") is usual:
            setattr(provider, f"_{name}_template", template(name))
    if isinstance(provider, OAuthProvider):
        return
    if "PANEL_BASIC_AUTH" in os.environ:
        # Panel 1.9 turns it into small letters, a password as well as a path.
        config.basic_auth = os.environ["PANEL_BASIC_AUTH"]
    check_passwords(config.basic_auth)


def check_passwords(given: str) -> None:
    """Refuse a file of passwords that would be taken for the password itself, or that nobody could log in with.

    Raises:
        JobError: for these.

    >>> check_passwords("/etc/explorer/people.json")
    Traceback (most recent call last):
    ...
    explorer.errors.JobError: There is no file '/etc/explorer/people.json' of names and passwords.
    """
    path = Path(given)
    if not path.is_file():
        if "/" in given or os.sep in given or path.suffix:
            raise JobError(f"There is no file {given!r} of names and passwords.")
        return
    try:
        people = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JobError(
            f"The names and passwords in {given!r} cannot be read: {type(error).__name__}."
        ) from None
    sound = isinstance(people, dict) and all(isinstance(word, str) and word for word in people.values())
    if not sound or not people or not all(people):
        raise JobError(f"The file {given!r} must be a JSON object of names and passwords.")


def install() -> None:
    """Let Bokeh make its server from :class:`Application`; it has no option for that."""
    setattr(bokeh.server.server, BokehTornado.__name__, Application)
