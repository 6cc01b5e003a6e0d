"""Fuzz readers: ``python -m fuzz [TARGET ...] --seconds N [--engine atheris|hypothesis] [--out FOLDER]``.

Each target runs in a process of its own with a limit on its memory.  Exit code 0 when every law held, 1 when one
was broken; the bytes that broke it lie in the folder, and ``python -m fuzz TARGET --replay FILE`` reads them again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

# Address space beyond what is taken when a target starts, bytes: a reader that asks for more fails there and then.
ADDRESSES = 1 << 32


def main() -> int:
    """Run what the command line asks for; the exit code."""
    if "--engine=atheris-child" in sys.argv:
        _instrumented()
    from fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(TARGETS)} (default: all)")
    parser.add_argument("--seconds", type=float, default=60, help="for each target, default: %(default)s")
    parser.add_argument("--engine", help="atheris where it is installed (extra fuzz), else hypothesis")
    parser.add_argument("--out", type=Path, default=Path("fuzz-out"), help="default: %(default)s")
    parser.add_argument(
        "--replay", type=Path, metavar="FILE", help="read this file once, and show what happens"
    )
    options = parser.parse_args()
    for name in options.targets:
        if name not in TARGETS:
            parser.error(f"there is no target {name!r}; there are {', '.join(TARGETS)}")
    names = options.targets or list(TARGETS)
    if options.replay:
        return _replay(names[0], options.replay)
    if options.engine and options.engine.endswith("-child"):
        return _child(names[0], options.engine.removesuffix("-child"), options.seconds, options.out)
    engine = options.engine or ("atheris" if importlib.util.find_spec("atheris") else "hypothesis")
    return max([_apart(name, engine, options.seconds, options.out) for name in names])


def _apart(name: str, engine: str, seconds: float, out: Path) -> int:
    """Fuzz one target in a process of its own, which may end in any way."""
    from fuzz.engines import Tally

    tally_file = out / f"{name}.json"
    tally_file.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "fuzz",
        name,
        f"--engine={engine}-child",
        "--seconds",
        str(seconds),
        "--out",
        str(out),
    ]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if not tally_file.exists():
        print(f"{name:14} {engine:10} ended at once with {done.returncode}: {done.stderr[-2000:]}")
        return 1
    tally = Tally(**json.loads(tally_file.read_text()))
    print(tally.line(), flush=True)
    for found, message in tally.found.items():
        print(f"    {out / found}: {message}", flush=True)
    crashed = done.returncode < 0 or tally.seconds < seconds / 2
    if crashed:
        print(f"    the process ended with {done.returncode}: {done.stderr[-1500:]}", flush=True)
    return int(bool(tally.found) or crashed)


def _instrumented() -> None:
    """Load the explorer with its branches counted; before anything else imports it."""
    import atheris

    # Everything that is not the explorer's own is loaded plainly: counting in torch takes minutes.
    with atheris.instrument_imports(include=["explorer"], enable_loader_override=False):
        importlib.import_module("fuzz.targets")


def _child(name: str, engine: str, seconds: float, out: Path) -> int:
    from fuzz.engines import Runner, scratch, with_atheris, with_hypothesis
    from fuzz.targets import TARGETS

    target = TARGETS[name]
    with scratch() as folder:
        runner = Runner(target, engine, folder, out)
        for data in target.corpus():
            runner(data)  # imports what it needs
        _limit()
        if engine == "atheris":
            with_atheris(target, seconds, runner, out / "corpus" / name)
        else:
            with_hypothesis(target, seconds, runner)
    return 0


def _limit() -> None:
    import resource

    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (now + ADDRESSES, resource.RLIM_INFINITY))


def _replay(name: str, file: Path) -> int:
    from fuzz.engines import scratch
    from fuzz.law import Broken, attempt
    from fuzz.targets import TARGETS

    with scratch() as folder:
        for data in TARGETS[name].corpus():
            attempt(TARGETS[name], data, folder)
        try:
            read = attempt(TARGETS[name], file.read_bytes(), folder)
        except Broken as broken:
            print(f"The law is broken: {broken}")
            if broken.__cause__:
                raise broken.__cause__ from None
            return 1
    print("It is read." if read else "It is refused in a sentence.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
