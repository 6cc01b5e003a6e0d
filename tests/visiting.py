"""A visitor of the page without a browser: Bokeh's own protocol over a websocket; for tests and benchmarks."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlparse

from bokeh.protocol import Protocol
from bokeh.protocol.message import Message
from bokeh.protocol.receiver import Receiver
from bokeh.util.token import get_session_id
from tornado.httpclient import AsyncHTTPClient, HTTPRequest, HTTPResponse
from tornado.websocket import WebSocketClosedError, websocket_connect

LONG = 120.0


async def asked(url: str, **more: Any) -> HTTPResponse:
    """One request, whatever comes of it; where it leads is not followed."""
    more.setdefault("request_timeout", LONG)
    request = HTTPRequest(url, follow_redirects=False, allow_nonstandard_methods=True, **more)
    client = AsyncHTTPClient(force_instance=True)
    try:
        return await client.fetch(request, raise_error=False)
    finally:
        client.close()


def token_of(page: str) -> str:
    """What lets a browser that was given this page open its session."""
    found = re.search(r'"token":"([^"]+)"', page)
    assert found, page[:2000]
    return found.group(1)


def socket_request(url: str, token: str, **headers: str) -> HTTPRequest:
    """The request for the websocket of the page at ``url``, as that page makes it."""
    where = urlparse(url)
    origin = f"{where.scheme}://{where.netloc}"
    return HTTPRequest(f"{url.replace('http', 'ws', 1)}ws", headers={"Origin": origin, **headers})


class Visitor:
    """One session of the page at ``url``.

    ``models`` holds the page's models by id, as plain values, and follows what the server changes of attributes;
    ``heard`` is all that the server has said since the last change of ours.
    """

    def __init__(self, url: str, headers: dict[str, str] | None = None) -> None:
        self.url, self.headers = url, headers or {}
        self.models: dict[str, dict[str, Any]] = {}
        self.heard: list[Any] = []
        self._protocol, self._changed = Protocol(), asyncio.Event()

    async def open(self) -> Visitor:
        """Load the page, open its session and read it."""
        page = await asked(self.url, headers=self.headers)
        assert page.code == 200, (page.code, page.body[:500])
        token = token_of(page.body.decode())
        self.session = get_session_id(token)
        self._socket = await websocket_connect(
            socket_request(self.url, token, **self.headers), subprotocols=["bokeh", token]
        )
        await self._message()
        await self._send(self._protocol.create("PULL-DOC-REQ"))
        reply = await self._message()
        while reply.msgtype != "PULL-DOC-REPLY":
            reply = await self._message()
        self._note(reply.content)
        self._reader = asyncio.ensure_future(self._read())
        # What a browser says once it has drawn the page.
        self.change(self.named("Drawn"), "ready", True)
        return self

    async def _message(self) -> Message[Any]:
        receiver, message = Receiver(self._protocol), None
        while message is None:
            fragment = await self._socket.read_message()
            if fragment is None:
                raise ConnectionError("The server has closed the connection.")
            message = await receiver.consume(fragment)
        return message

    async def _read(self) -> None:
        while True:
            try:
                message = await self._message()
            except ConnectionError:
                return
            if message.msgtype == "PATCH-DOC":
                self.heard += message.content["events"]
                self._note(message.content)
                self._changed.set()

    def _note(self, content: Any) -> None:
        """Gather models, wherever they stand, and changes of their attributes."""
        if isinstance(content, list):
            for part in content:
                self._note(part)
        elif isinstance(content, dict):
            if content.get("type") == "object" and "id" in content:
                self.models[content["id"]] = {"type": content["name"], **content.get("attributes", {})}
            if content.get("kind") == "ModelChanged" and content["model"]["id"] in self.models:
                self.models[content["model"]["id"]][content["attr"]] = content["new"]
            for part in content.values():
                self._note(part)

    async def _send(self, message: Message[Any]) -> None:
        for part in (message.header_json, message.metadata_json, message.content_json):
            await self._socket.write_message(part)

    def named(self, kind: str, **attributes: Any) -> str:
        """The id of the first model of a type (with a number behind it) that has these attributes."""
        for name, model in self.models.items():
            if re.fullmatch(rf"{kind}\d*", model["type"]) and attributes.items() <= model.items():
                return name
        raise KeyError(
            f"no {kind} with {attributes}; there are {sorted({m['type'] for m in self.models.values()})}"
        )

    def change(self, model: str, attribute: str, value: Any) -> None:
        """Do what a browser does when a widget changes."""
        self.heard = []
        event = {"kind": "ModelChanged", "model": {"id": model}, "attr": attribute, "new": value}
        self.say(events=[event])

    def say(self, events: list[dict[str, Any]]) -> None:
        """Send changes of the document."""
        header = self._protocol.create("PULL-DOC-REQ").header | {"msgtype": "PATCH-DOC"}
        message = Message(header, {}, {"events": events})
        self._last = asyncio.ensure_future(self._send(message))

    async def until(self, found: Callable[[], Any], seconds: float = LONG) -> Any:
        """Wait until something is so."""
        end = time.monotonic() + seconds
        while not (value := found()):
            self._changed.clear()
            left = end - time.monotonic()
            assert left > 0, f"not so within {seconds} s"
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except TimeoutError:
                continue
        return value

    def says(self, words: str) -> bool:
        """Whether some text of the page has these words in it."""
        return any(
            words in text
            for model in self.models.values()
            for text in model.values()
            if isinstance(text, str)
        )

    async def leave(self, politely: bool = True) -> None:
        """Close the session, or vanish."""
        self._reader.cancel()
        with contextlib.suppress(WebSocketClosedError):
            await self._last
        stream = self._socket.protocol.stream if self._socket.protocol is not None else None
        if stream is not None and not politely:
            stream.close()
        self._socket.close()
        while stream is not None and not stream.closed():
            await asyncio.sleep(0.01)
