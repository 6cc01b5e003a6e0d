"""What holds for every reader, whatever the bytes: a value or one sentence, little memory, soon, and nothing is run."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from explorer.errors import ExplorerError
from explorer.sources import collect

if TYPE_CHECKING:
    from fuzz.targets import Target

# A reader may take so much memory beyond what the process has, whatever a small file says, bytes: the least that
# collect.budget() allows, on a machine that has little free, as this one is made out to have.
MEMORY = 1 << 28
# So long, seconds.
PATIENCE = 20
LONGEST_MESSAGE = 1_000
# What a hostile file of the corpus tries to make in the folder where it lies.
CANARY = "it-was-run"
# Audit events of Python that no reader has a reason for.
_FORBIDDEN = {
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.startfile", "subprocess.Popen",
    "socket.connect", "socket.bind", "pickle.find_class", "ctypes.dlopen",
}  # fmt: skip


class Broken(AssertionError):
    """A reader that did not keep the law."""


class _Hang(BaseException):
    """Time is up; no reader's ``except Exception`` holds it."""


class _Watch:
    """Notes what is done by the thread that reads; one for the process, since hooks cannot be taken away."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.thread = 0
        self.seen: list[str] = []
        tempfile.gettempdir()  # writes a file to see whether it can, the first time
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is None or threading.get_ident() != self.thread:
            return
        if event in _FORBIDDEN:
            self.seen.append(f"{event} {args!r:.200}")
        elif event == "open" and isinstance(args[0], str | bytes) and _writes(args):
            path = os.path.realpath(os.fsdecode(args[0]))
            if not path.startswith(os.path.realpath(self.folder)) and path != "/dev/null":
                self.seen.append(f"writing {path}")


def _writes(args: tuple[Any, ...]) -> bool:
    mode, flags = args[1], args[2]
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool(isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


_watch: _Watch | None = None


def attempt(target: Target, data: bytes, folder: Path) -> bool:
    """Let a reader read some bytes; whether it made a value of them.

    Args:
        target: the reader.
        data: the content of a file.
        folder: empty before and after; what the reader needs on disk goes there.

    Raises:
        Broken: when the law is broken, from the error that broke it if there is one.
    """
    global _watch
    _watch = _watch or _Watch()
    before = _reset_peak()
    _watch.folder, _watch.thread, _watch.seen = folder, threading.get_ident(), []
    try:
        with _patience(), patch.object(collect, "free_bytes", lambda: 0), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(data, folder)
        read = True
    except ExplorerError as error:
        _check_sentence(error)
        read = False
    except _Hang:
        raise Broken(f"no answer in {PATIENCE} seconds") from None
    except Exception as error:
        raise Broken(f"{type(error).__name__}: {error}") from error
    finally:
        _watch.folder = None
    if _watch.seen:
        raise Broken(f"it did what no reader does: {_watch.seen[0]}")
    if (folder / CANARY).exists():
        (folder / CANARY).rmdir()
        raise Broken("code in the file was run")
    taken = _peak() - before
    if taken > MEMORY:
        raise Broken(f"it took {taken >> 20} MiB for a file of {len(data):,} bytes")
    return read


def _check_sentence(error: ExplorerError) -> None:
    text = str(error)
    if not text.endswith((".", "?", "!")) or not text.isprintable() or len(text) > LONGEST_MESSAGE:
        raise Broken(f"this is no sentence: {text[:300]!r}") from error
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            raise Broken(f"it asked for more memory than there is: {text}") from error
        cause = cause.__cause__ or cause.__context__


@contextmanager
def _patience() -> Iterator[None]:
    """Raise when it takes too long; only where there are alarms, and in the main thread."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def up(*_: Any) -> None:
        raise _Hang

    before = signal.signal(signal.SIGALRM, up)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _status(key: str) -> int:
    """A line of Linux's status of the process, bytes; 0 elsewhere."""
    try:
        with open("/proc/self/status") as file:
            return next((int(line.split()[1]) << 10 for line in file if line.startswith(key)), 0)
    except OSError:
        return 0


def _reset_peak() -> int:
    """Let the peak of memory begin anew; how much is taken now, bytes."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return _peak()
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")
