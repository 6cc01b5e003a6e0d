"""Where the bytes come from: atheris, which follows the code's branches, or hypothesis, which is always there."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from fuzz.law import Broken, attempt
from fuzz.targets import Target


@dataclass
class Tally:
    """What came of fuzzing one target.

    ``found`` has for each broken law its first message; the bytes lie beside under the same name.
    """

    target: str
    engine: str
    seconds: float = 0.0
    executions: int = 0
    read: int = 0
    found: dict[str, str] = field(default_factory=dict)

    def line(self) -> str:
        return (
            f"{self.target:14} {self.engine:10} {self.seconds:6.0f} s {self.executions:9,} executions, "
            f"{self.read:,} read, {self.executions - self.read:,} refused, {len(self.found)} laws broken"
        )


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder, in memory where the system has such a place."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        yield Path(folder)


class Runner:
    """Tries bytes on a target and keeps what breaks the law in ``out``."""

    def __init__(self, target: Target, engine: str, folder: Path, out: Path) -> None:
        self.target, self.folder, self.out = target, folder, out
        self.tally = Tally(target.name, engine)
        self._start = self._written = time.monotonic()
        out.mkdir(parents=True, exist_ok=True)

    def __call__(self, data: bytes) -> None:
        self.tally.executions += 1
        try:
            self.tally.read += attempt(self.target, data, self.folder)
        except Broken as broken:
            self._keep(data, broken)
        self.tally.seconds = time.monotonic() - self._start
        if time.monotonic() - self._written > 2:
            self.write()

    def _keep(self, data: bytes, broken: Broken) -> None:
        error = broken.__cause__
        frames = traceback.extract_tb(error.__traceback__) if error else []
        where = next((f"{f.filename}:{f.lineno}" for f in reversed(frames) if "explorer" in f.filename), "")
        kind = f"{type(error).__name__} {where}" if error else str(broken)[:30]
        name = f"{self.target.name}-{hashlib.sha256(kind.encode()).hexdigest()[:10]}"
        if name not in self.tally.found:
            self.tally.found[name] = f"{broken} ({where})"
            (self.out / name).write_bytes(data)
            self.write()

    def write(self) -> None:
        """The tally as JSON: the process may end in any way."""
        self._written = time.monotonic()
        (self.out / f"{self.target.name}.json").write_text(json.dumps(asdict(self.tally), indent=2) + "\n")


def with_hypothesis(target: Target, seconds: float, runner: Runner, examples: int = 200) -> None:
    """Mutations of the corpus, and now and then any bytes, for so many seconds; every round has its own seed."""
    corpus = target.corpus()
    end, number = time.monotonic() + seconds, 0
    while number == 0 or time.monotonic() < end:
        number += 1

        @seed(number)
        @settings(
            max_examples=examples,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(
            st.integers(0, len(corpus) - 1),
            st.integers(0, 1 << 32),
            st.integers(0, 4),
            st.binary(max_size=200),
        )
        def each(chosen: int, number: int, times: int, any_bytes: bytes) -> None:
            if seconds and time.monotonic() > end:
                return
            runner(mutated(target, corpus[chosen], number, times) if times or number % 50 else any_bytes)

        each()
    runner.write()


def mutated(target: Target, data: bytes, number: int, times: int) -> bytes:
    """The data after so many changes, which ``number`` decides."""
    rng = Random(number)
    for _ in range(times):
        data = target.mutate(data, rng)
    return data


def with_atheris(target: Target, seconds: float, runner: Runner, corpus_folder: Path) -> None:
    """libFuzzer's search guided by the branches taken in the explorer; does not return."""
    import sys

    import atheris

    corpus = target.corpus()
    corpus_folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(corpus):
        (corpus_folder / f"seed-{number}").write_bytes(data)
        runner(data)

    def custom(data: bytes, max_size: int, number: int) -> bytes:
        rng = Random(number)
        found: Any = data
        if rng.random() < 0.1:
            found = rng.choice(corpus)
        if rng.random() < 0.3:
            return bytes(atheris.Mutate(bytes(found), max_size))
        return target.mutate(bytes(found), rng)[:max_size]

    largest = max(1 << 14, 4 * max(map(len, corpus)))
    options = [
        f"-max_total_time={int(seconds)}", "-rss_limit_mb=0", "-timeout=120", f"-max_len={largest}",
        "-print_final_stats=0", "-verbosity=0", "-detect_leaks=0", str(corpus_folder),
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options], runner, custom_mutator=custom)
    atheris.Fuzz()
