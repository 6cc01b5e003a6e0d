"""A server's log without what could be used or read by somebody else: sessions, tokens, queries, files' contents."""

from __future__ import annotations

import logging
import re
import sys

# What stands for what was left out.
GONE = "…"
_SECRETS = [
    # A query: the state of a page, the code that an OAuth provider has sent.
    (re.compile(r"\?[^\s\"'<>]*=[^\s\"'<>]*"), "?" + GONE),
    # What a browser has sent: changes of the recipe, pieces of a file with its name.
    (re.compile(r"\bcontent: \{.*", re.DOTALL), f"content: {GONE}"),
    # Fields that an OAuth provider answers with.
    (
        re.compile(
            r"(['\"]?\b(?:\w+_token|\w+_secret|password|cookie)['\"]?\s*[:=]\s*)['\"]?[^\s'\",}]+", re.I
        ),
        r"\1" + GONE,
    ),
    # Names of sessions and signed tokens are long, and random; digests in hexadecimal digits have no capitals.
    (re.compile(r"(?=[\w-]*\d)(?=[\w-]*[a-z])(?=[\w-]*[A-Z])[\w-]{40,}(?:\.[\w-]{20,})*"), GONE),
]


def discreet(text: str) -> str:
    """The text without queries, contents of messages, tokens and names of sessions.

    >>> discreet("404 GET /?state=1.eJyrVkrLL1ayUoqOBQAR2gNS (10.0.0.7)")
    '404 GET /?… (10.0.0.7)'
    >>> discreet("the answer was {'access_token': 'abc', 'kind': 'bearer'}")
    "the answer was {'access_token': …', 'kind': 'bearer'}"
    >>> discreet("weights of sha256 " + "0f" * 32) == "weights of sha256 " + "0f" * 32
    True
    """
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


class Discreet(logging.Formatter):
    """Writes what another formatter writes, tracebacks included, without secrets."""

    def __init__(self, before: logging.Formatter) -> None:
        super().__init__()
        self.before = before

    def format(self, record: logging.LogRecord) -> str:
        return discreet(self.before.format(record))


def be_discreet() -> None:
    """Let every handler of this process's logs write without secrets, and the log of requests be lines of JSON."""
    loggers = [logging.getLogger(name) for name in ("", "panel", "bokeh", "tornado")]
    for handler in [handler for logger in loggers for handler in logger.handlers]:
        if not isinstance(handler.formatter, Discreet):
            handler.setFormatter(Discreet(handler.formatter or logging.Formatter()))
    access = logging.getLogger("explorer.access")
    if not access.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(Discreet(logging.Formatter("%(message)s")))
        access.addHandler(handler)
        access.propagate = False
        access.setLevel(logging.INFO)
