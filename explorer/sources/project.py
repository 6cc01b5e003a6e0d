"""A project: a folder of the user's in which the configurations tried and the steps of a page outlive the process.

Each network on each set of images has a folder of its own in it, named by a digest.  An entry is a file of JSON
with a digest of its contents, written whole or not at all; what fails the check is put aside with a warning, and
the other entries are not touched by it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from explorer.errors import ProjectError, RecipeError
from explorer.recipe import Recipe
from explorer.sources.files import atomic_write
from explorer.study import Trial

FORMAT, VERSION = "explorer-project", 1
_NAME = re.compile(r"[0-9a-f]{8,64}")
_LEFT = re.compile(r"\..*\.json\.[0-9a-f]{32}")
# What a killed process has left is cleared away when nobody can be writing it any more, seconds.
_OLD = 600
# The steps of so many browser tabs are kept; the one that was used longest ago goes first.
MOST_TABS = 64
# A trial is read before it is written, and several sessions may write the same one.
_lock = threading.Lock()


class _Other(Exception):
    """An entry that another version of the program has written."""


def pack(body: Mapping[str, Any]) -> str:
    """The text of an entry.

    >>> unpack(pack({"a": [1.5, None]}))
    {'a': [1.5, None]}
    """
    # Nothing is sorted: the order of a recipe's lines has a meaning.
    check = _check(json.dumps(body))
    return json.dumps({"format": FORMAT, "version": VERSION, "check": check, "body": body})


def unpack(text: str | bytes) -> Any:
    """What an entry says.

    Raises:
        ValueError: for what is no entry, or not the one that was written.
    """
    found = json.loads(text)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError("it is no entry of a project")
    if found.get("version") != VERSION:
        raise _Other(f"it has version {found.get('version')!r}, this program reads version {VERSION}")
    if _check(json.dumps(found.get("body"))) != found.get("check"):
        raise ValueError("its contents are not what was written")
    return found["body"]


def _check(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class Project:
    """What a folder holds of one network on one set of images.

    Args:
        folder: the user's; made if it is not there.
        key: a digest of the network and the images.
        about: what a person may want to read of them; written beside the entries.

    ``problems`` has a sentence for each entry that could not be read or written.

    Raises:
        ProjectError: for a folder that cannot be written to.
    """

    def __init__(self, folder: str | os.PathLike[str], key: str, about: Mapping[str, str]) -> None:
        if not _NAME.fullmatch(key):
            raise ValueError(f"A key is a digest, not {key!r}.")
        self.folder = Path(folder)
        self.problems: list[str] = []
        self._trials, self._steps = self.folder / key / "trials", self.folder / key / "steps"
        try:
            self._trials.mkdir(parents=True, exist_ok=True)
            self._steps.mkdir(exist_ok=True)
            if not (self.folder / key / "about.json").exists():
                atomic_write(self.folder / key / "about.json", json.dumps(dict(about), indent=2) + "\n")
            probe = self._trials / f".probe.json.{os.urandom(16).hex()}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise ProjectError(
                f"The project folder {os.fspath(folder)!r} cannot be used: {error.strerror or error}."
            ) from None

    # -- entries --------------------------------------------------------------------------------------

    def _read(self, path: Path) -> Any:
        """What a file says; None where there is none that can be read."""
        try:
            return unpack(path.read_bytes())
        except FileNotFoundError:
            return None
        except _Other as error:
            self._problem(f"The entry {str(path)!r} was not read: {error}.")
        except OSError as error:
            self._problem(f"The entry {str(path)!r} cannot be read: {error.strerror or error}.")
        except (ValueError, RecursionError) as error:
            self._damaged(path, error)
        return None

    def _damaged(self, path: Path, error: Exception) -> None:
        """Put a file aside, so that it is told of once and may still be looked at."""
        with contextlib.suppress(OSError):
            os.replace(path, path.with_name(path.name + ".damaged"))
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        self._problem(f"The entry {str(path)!r} is damaged and was put aside: {reason}.")

    def _write(self, path: Path, body: Mapping[str, Any]) -> bool:
        try:
            path.parent.mkdir(exist_ok=True)
            atomic_write(path, pack(body))
        except OSError as error:
            self._problem(f"The entry {str(path)!r} was not written: {error.strerror or error}.")
            return False
        return True

    def _problem(self, text: str) -> None:
        if text not in self.problems:
            self.problems.append(text)
            warnings.warn(text, RuntimeWarning, stacklevel=3)

    # -- trials ---------------------------------------------------------------------------------------

    def trials(self) -> list[Trial]:
        """All that was tried, in no order; clears away what killed processes have left."""
        found = []
        for path in sorted(self._trials.iterdir()):
            if path.suffix == ".json" and _NAME.fullmatch(path.stem):
                trial = self._trial(path)
                if trial is not None:
                    found.append(trial)
            elif _LEFT.fullmatch(path.name):
                with contextlib.suppress(OSError):
                    if time.time() - path.stat().st_mtime > _OLD:
                        path.unlink()
        return found

    def _trial(self, path: Path) -> Trial | None:
        body = self._read(path)
        if body is None:
            return None
        try:
            trial = Trial.from_dict(body)
            if trial.digest != path.stem:
                raise ValueError("it is that of another configuration")
        except (RecipeError, TypeError, KeyError, ValueError, AttributeError) as error:
            self._damaged(path, error)
            return None
        return trial

    def keep(self, trial: Trial) -> Trial:
        """Write a trial; what another session has found of the same configuration is joined to it."""
        path = self._trials / f"{trial.digest}.json"
        with _lock:
            before = self._trial(path)
            now = trial if before is None else before.merged(trial)
            if now != before:
                self._write(path, now.to_dict())
        return now

    # -- steps ----------------------------------------------------------------------------------------

    def steps(self, owner: str) -> tuple[list[Recipe], int] | None:
        """The steps of history that ``owner`` has made and the place of the present one; None for a new owner.

        Args:
            owner: a browser tab's digest.
        """
        folder = self._of(owner)
        path = folder / "steps.json"
        index = self._read(path)
        if index is None:
            return None
        recipes, at = list[Recipe](), 0
        try:
            for number, digest in enumerate(index["recipes"]):
                recipe = self._recipe(folder, digest)
                if recipe is not None:
                    recipes.append(recipe)
                    at += number < index["at"]
        except (TypeError, KeyError, ValueError) as error:
            self._damaged(path, error)
            return None
        return (recipes, min(at, len(recipes) - 1)) if recipes else None

    def _recipe(self, folder: Path, digest: str) -> Recipe | None:
        if not _NAME.fullmatch(digest):
            raise ValueError("it names no step")
        path = folder / f"{digest}.json"
        body = self._read(path)
        if body is None:
            return None
        try:
            recipe = Recipe.from_dict(body)
            if recipe.digest != digest:
                raise ValueError("it is that of another step")
        except (RecipeError, ValueError) as error:
            self._damaged(path, error)
            return None
        return recipe

    def keep_steps(self, owner: str, recipes: Sequence[Recipe], at: int) -> None:
        """Write the steps of history of ``owner``.

        First the recipes, then the list of them; then those that are not in it go.
        """
        folder, digests = self._of(owner), [recipe.digest for recipe in recipes]
        for recipe in recipes:
            path = folder / f"{recipe.digest}.json"
            if not path.exists() and not self._write(path, recipe.to_dict()):
                return
        if not self._write(folder / "steps.json", {"recipes": digests, "at": at}):
            return
        for path in folder.iterdir():
            if path.suffix == ".json" and path.stem not in {*digests, "steps"}:
                path.unlink(missing_ok=True)
        self._clear(folder)

    def _of(self, owner: str) -> Path:
        # It comes from a browser, and a name of a folder is made of it.
        if not _NAME.fullmatch(owner):
            raise ProjectError(f"{owner!r} is not the digest of a browser tab.")
        return self._steps / owner

    def _clear(self, mine: Path) -> None:
        """Forget the tabs that were used longest ago."""
        tabs = [path for path in self._steps.iterdir() if _NAME.fullmatch(path.name) and path != mine]
        for path in sorted(tabs, key=_age)[MOST_TABS - 1 :]:
            shutil.rmtree(path, ignore_errors=True)


def _age(path: Path) -> float:
    with contextlib.suppress(OSError):
        return -(path / "steps.json").stat().st_mtime
    return 0.0
