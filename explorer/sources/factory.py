"""Calling a function in the user's own Python: ``package.module:factory`` or ``path/to/file.py:factory``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from explorer.errors import ExplorerError, nearest

_Error = type[ExplorerError]
_SHIM = "explorer.sources.vision"
_lock = threading.RLock()  # the import system and torch's random numbers are shared by all threads
_neighbours: set[str] = set()  # modules that a user's file imported from its own folder


def is_factory(spec: str) -> bool:
    """Whether ``spec`` has the form of a factory, ``left:name``, with a Python name on the right.

    >>> is_factory("nets/mine.py:build"), is_factory("package.module:build"), is_factory("images/cats")
    (True, True, False)
    """
    left, colon, name = spec.rpartition(":")
    return bool(colon and left) and name.isidentifier()


def call_factory(spec: str, error: _Error) -> Any:
    """What the factory named by ``spec`` returns when called without arguments.

    A factory is any callable (a function, or a class such as a network), or an object that is used as it
    is.  The folder of a file is importable while it runs, as with ``python file.py``.  The random numbers
    of torch start from seed 0 and the caller's are left alone, so a network built twice has the same
    weights.  Raises ``error``, with the user's own error as its cause, when the module cannot be imported,
    has no such name, or the factory fails.
    """
    return _mended(spec, error, call=True)


def load_object(spec: str, error: _Error) -> Any:
    """What ``spec`` names, as it is: a function is not called.  Otherwise as :func:`call_factory`."""
    return _mended(spec, error, call=False)


def _mended(spec: str, error: _Error, call: bool) -> Any:
    left, _, name = spec.rpartition(":")
    try:
        return _call(left, name, error, call)
    except RuntimeError as problem:
        if not lacks_operators(problem):
            raise
        # The user's code imports torchvision where its compiled part does not load: mend that, try again.
        importlib.import_module(_SHIM)
        return _call(left, name, error, call)


def _call(left: str, name: str, error: _Error, call: bool) -> Any:
    is_file = left.endswith(".py")
    path = Path(left).expanduser()
    if is_file and not path.is_file():
        raise error(f"There is no file {left}.{_neighbour(path)}")
    folder = path.resolve().parent if is_file else None
    with _lock, _importable(folder), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        load = (lambda: _run_file(path)) if is_file else (lambda: importlib.import_module(left))
        module = _attempt(load, f"{left} cannot be imported", error)
        if not hasattr(module, name):
            public = [word for word in vars(module) if not word.startswith("_")]
            raise error(f"There is no {name!r} in {left}.{nearest(name, public)}")
        value = getattr(module, name)
        if not call or not callable(value) or isinstance(value, torch.nn.Module):
            return value
        torch.manual_seed(0)  # again: a module that is imported already draws no numbers
        return _attempt(value, f"The factory {name!r} in {left} failed", error)


def _attempt(action: Callable[[], Any], failed: str, error: _Error) -> Any:
    try:
        return action()
    except ExplorerError:
        raise
    except (Exception, SystemExit) as problem:
        if lacks_operators(problem) and _SHIM not in sys.modules:
            raise
        raise error(f"{failed}: {describe(problem)}.") from problem


def lacks_operators(problem: BaseException) -> bool:
    """Whether this is torchvision's complaint that its compiled operators are not there (see vision.py).

    >>> lacks_operators(RuntimeError("operator torchvision::nms does not exist"))
    True
    """
    return isinstance(problem, RuntimeError) and "operator torchvision::" in str(problem)


def describe(problem: BaseException) -> str:
    """An error in one line: its type and the first line of its text.

    >>> describe(ValueError("no such thing.\\nAnd more."))
    'ValueError: no such thing'
    """
    lines = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {lines[0].rstrip('.')}" if lines else type(problem).__name__


def describe_type(value: object) -> str:
    """A value's type with its article, for a message.

    >>> describe_type(3)
    'an int'
    """
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _run_file(path: Path) -> ModuleType:
    path = path.resolve()
    name = f"_explorer_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"no loader for {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class up by its module's name
    try:
        spec.loader.exec_module(module)
    except BaseException:  # a module that is half run is no module, whatever ended it
        del sys.modules[name]
        raise
    return module


@contextmanager
def _importable(folder: Path | None) -> Iterator[None]:
    """Let a file import its neighbours, always from its own folder and as they are on disk now."""
    if folder is None:
        yield
        return
    for name in _neighbours:
        sys.modules.pop(name, None)
    _neighbours.clear()
    before, paths = set(sys.modules), list(sys.path)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = paths
        for name in set(sys.modules) - before:
            top, origin = name.partition(".")[0], getattr(sys.modules[name], "__file__", None)
            # a file or a package in the folder itself, not what lies deeper, such as an environment
            if (
                top not in before
                and origin
                and (folder / top) in (*Path(origin).parents, Path(origin).with_suffix(""))
            ):
                _neighbours.add(name)


def _neighbour(path: Path) -> str:
    try:
        return nearest(path.name, [entry.name for entry in path.parent.glob("*.py")])
    except OSError:
        return ""
