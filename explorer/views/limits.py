"""What a server gives at most: sessions, bytes of a file that is uploaded, memory, threads.

One value for the process, set once before the server starts; a notebook leaves it as it is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields

from explorer.errors import JobError


@dataclass(frozen=True)
class Limits:
    """What a server gives at most; None is without a limit.

    Args:
        sessions: browser sessions at a time.
        upload: bytes of one uploaded file; None leaves each kind of file its own usual limit.
        memory: resident bytes of the process beyond which no further session begins.
        threads: of torch, dealt out to the jobs that run.

    Raises:
        JobError: for a number below one.
    """

    sessions: int | None = None
    upload: int | None = None
    memory: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise JobError(
                    f"The limit of {entry.name} must be a whole number of at least 1, not {value!r}."
                )

    @classmethod
    def of(cls, variables: Mapping[str, str]) -> Limits:
        """The limits that environment variables name.

        Raises:
            JobError: for what is no whole number of at least 1.

        >>> Limits.of({"EXPLORER_MAX_SESSIONS": "8", "EXPLORER_THREADS": "3"})
        Limits(sessions=8, upload=None, memory=None, threads=3)
        >>> Limits.of({"EXPLORER_MAX_SESSIONS": "many"})
        Traceback (most recent call last):
        ...
        explorer.errors.JobError: EXPLORER_MAX_SESSIONS must be a whole number of at least 1, not 'many'.
        """
        found = {}
        for name, variable in VARIABLES.items():
            text = variables.get(variable, "").strip()
            if text and (not text.isdecimal() or int(text) < 1):
                raise JobError(f"{variable} must be a whole number of at least 1, not {text!r}.")
            found[name] = int(text) if text else None
        return cls(**found)


VARIABLES = {
    "sessions": "EXPLORER_MAX_SESSIONS",
    "upload": "EXPLORER_MAX_UPLOAD",
    "memory": "EXPLORER_MAX_MEMORY",
    "threads": "EXPLORER_THREADS",
}
_limits: Limits | None = None
_guarded = False


def limits() -> Limits:
    """The limits of this process: those that were set, or those of its environment.

    Raises:
        JobError: for an environment variable that is no whole number of at least 1.
    """
    global _limits
    if _limits is None:
        _limits = Limits.of(os.environ)
    return _limits


def set_limits(wanted: Limits) -> None:
    """Let these be the limits of this process."""
    global _limits
    _limits = wanted


def mark_guarded() -> None:
    """Note that the server of this process keeps its limits, and has every route behind the login if there is one."""
    global _guarded
    _guarded = True


def is_guarded() -> bool:
    """Whether that is so."""
    return _guarded
