"""Other tools' own sensitivity of each layer on the same network and images, each in an environment of its own."""

from __future__ import annotations

import argparse
import inspect
import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr

import explorer as qx
from benchmarks import peers_runner
from benchmarks.table import Line, timed
from explorer.sources import zoo
from explorer.sources.files import data_folder

MODEL, KIND = "fashion-resnet20", "ResNet20"
FORMATS = ("int8", "int4")
CALIBRATION = 512
TORCH = "torch>=2.11,<2.14"
_RUN_SECONDS, _INSTALL_SECONDS = 900, 1800


@dataclass(frozen=True)
class Tool:
    """Another tool.

    Args:
        packages: what pip installs for it besides torch; nothing for what torch itself brings.
        measures: what its numbers are.
    """

    packages: tuple[str, ...]
    measures: str


TOOLS = {
    "nncf": Tool(("nncf",), "its int8 weight quantizers one at a time, KL"),
    # What comes after the first they need without saying so.
    "modelopt": Tool(("nvidia-modelopt", "requests", "huggingface_hub"), "auto_quantize by KL"),
    "aimet": Tool(("aimet-torch",), "QuantAnalyzer, quantizers enabled one at a time, outputs 16 bits, KL"),
    "mct": Tool(
        ("model-compression-toolkit", "torchvision"), "mixed precision's own distance of activations"
    ),
    "torchao": Tool((), "n shadows: SQNR of the layer's own output, weights and activations int8"),
}


def environment(folder: Path, tool: Tool) -> Path:
    """The Python of a virtual environment that has the tool, made if it is not there.

    Raises:
        RuntimeError: when pip fails, with its last line.
    """
    if not tool.packages:
        return Path(sys.executable)
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    done = folder / "installed"
    if not done.exists():
        venv.create(folder, with_pip=True)
        command = [str(python), "-m", "pip", "install", "-q", TORCH, "safetensors", "numpy", *tool.packages]
        _checked(command, _INSTALL_SECONDS)
        done.touch()
    return python


def _checked(command: list[str], seconds: int) -> None:
    """Run a command.

    Raises:
        RuntimeError: when it fails or takes too long, with the last line of what it wrote.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"not finished after {seconds} seconds") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RuntimeError(lines[-1][:160] if lines else f"exit status {done.returncode}")


def write_images(session: qx.Session, images: int, path: Path) -> None:
    """The calibration and evaluation images, in the order and after the preprocessing that we use."""
    subject = session.subject
    streams = {
        "calibration": (subject.calibration_stream, CALIBRATION),
        "evaluation": (subject.evaluation, images),
    }
    np.savez(
        path,
        **{
            name: torch.cat([part.batch.images for part in stream.batches(count)]).numpy()
            for name, (stream, count) in streams.items()
        },
    )  # fmt: skip


def ask(python: Path, name: str, images: Path) -> dict[str, Any]:
    """Seconds and values of a tool."""
    out = images.with_name(f"{name}.json")
    runner, source = Path(peers_runner.__file__), inspect.getfile(zoo)
    weights = data_folder() / f"{MODEL}.safetensors"
    _checked([str(python), *map(str, (runner, name, source, KIND, weights, images, out))], _RUN_SECONDS)
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def compared(
    name: str, tool: Tool, found: dict[str, Any], session: qx.Session, images: int
) -> Iterator[Line]:
    """Seconds beside ours for the same formats, and how alike the orders are."""
    formats = [format_name for format_name in FORMATS if found["values"].get(format_name)]
    if not formats:
        yield Line(f"{name}: sensitivity", "nothing", None, "it ran, and named no layer and format")
        return
    for method in ("exact", "instant"):
        session.engine.store.clear()
        seconds, table = timed(lambda m=method: session.sensitivity(formats, method=m, images=images))
        yield Line(
            f"{name}: seconds / ours, {method}", found["seconds"] / seconds, None,
            f"{found['seconds']:.1f} s against {seconds:.2f} s for {len(table)} rows",
        )  # fmt: skip
        if method == "exact":
            exact = table
    for format_name in formats:
        theirs = pd.Series(found["values"][format_name])
        ours = exact[exact["format"] == format_name].set_index("layer")["value"]
        both = ours.index.intersection(theirs.index)
        yield Line(
            f"{name}: Spearman with our exact KL at {format_name}",
            float(spearmanr(ours[both], theirs[both])[0]) if len(both) > 2 else "no match",
            None,
            f"{len(both)} of {len(ours)} layers; {tool.measures}",
        )


def lines(options: argparse.Namespace) -> Iterator[Line]:
    """All tools that are asked for; one that cannot be installed or fails says why."""
    if not options.venvs:
        raise SystemExit("peers needs --venvs FOLDER, where environments are made or found.")
    session = qx.Session(MODEL, store_bytes=2 << 30)
    session.sensitivity(["int8"], images=100)  # warm up allocator and kernels
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images.npz"
        write_images(session, options.images, images)
        for name in options.tools:
            try:
                found = ask(environment(Path(options.venvs) / name, TOOLS[name]), name, images)
            except (RuntimeError, OSError, KeyError) as error:
                yield Line(f"{name}: sensitivity", "failed", None, str(error))
                continue
            yield from compared(name, TOOLS[name], found, session, options.images)
