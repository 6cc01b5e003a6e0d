"""The instant tier of sensitivity against the naive loop: how much sooner, and how alike the order."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator

import pandas as pd
from scipy.stats import spearmanr

import explorer as qx
from benchmarks.engine import naive_sweep
from benchmarks.table import Line, timed
from explorer.subject import make_subject

FORMATS = ("int8", "int4", "int3", "int2")
TIMES_SOONER, LIKENESS = 50.0, 0.9


def lines(options: argparse.Namespace) -> Iterator[Line]:
    """For each network: times sooner than the naive loop, and Spearman's correlation with it at each width."""
    for model in options.models:
        session = qx.Session(subject=make_subject(model, store_bytes=2 << 30))
        session.sensitivity(["int8"], method="instant", images=100)  # warm up allocator and kernels
        session.engine.store.clear()
        naive_seconds, naive = timed(lambda s=session: naive_sweep(s, options.images, FORMATS))
        seconds, table = _fastest(session, options.images)
        rows = f"{len(table)} rows, {options.images:,} images, naive {naive_seconds:.1f} s, instant {seconds:.3f} s"
        if bool(table["method"].eq("exact").all()):
            rows += ": the exact values"
        yield Line(
            f"{model}: instant tier, times sooner", naive_seconds / seconds, f">{TIMES_SOONER:g}", rows
        )
        table["naive"] = [
            naive[layer, name] for layer, name in zip(table["layer"], table["format"], strict=True)
        ]
        for name, part in table.groupby("format", sort=False):
            ratio = statistics.median(part["value"] / part["naive"])
            yield Line(
                f"{model}: instant tier, Spearman at {name}",
                float(spearmanr(part["value"], part["naive"])[0]),
                f">{LIKENESS:g}",
                f"{len(part)} layers; median of estimate / exact {ratio:.2f}",
            )


def _fastest(session: qx.Session, images: int) -> tuple[float, pd.DataFrame]:
    """The least seconds of three cold runs, and their table."""
    found = []
    for _ in range(3):
        session.engine.store.clear()
        found.append(
            timed(lambda: session.sensitivity(FORMATS, measure="kl", method="instant", images=images))
        )
    return min(found, key=lambda pair: pair[0])
