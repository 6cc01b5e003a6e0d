"""EfficientNet-Lite0 on a folder of your own images: ``python docs/imagenet.py FOLDER [--recipe R]``.

The weights come from the extra ``imagenet``; nothing is downloaded.  A folder of class folders whose names are those
of ImageNet's classes gives accuracy; any other images give agreement with the float network.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence

import torch

import explorer as qx
from explorer.errors import ExplorerError
from explorer.sources import load_model
from explorer.study import Evaluation


def told(name: str, result: Evaluation) -> str:
    """An evaluation in a line."""
    low, high = result.top1_interval
    what = "agrees with float on" if result.agreement else "is right on"
    return (
        f"{name}: {what} {result.top1:.1%} of {result.images} images (95%: {low:.1%} to {high:.1%}), "
        f"{result.output_sqnr_db:.1f} dB, {result.size_bytes / 2**20:.1f} MiB "
        f"instead of {result.size_bytes_float / 2**20:.1f}"
    )


def told_words(seen: Counter[str]) -> str:
    return ", ".join(f"{word} ({count})" for word, count in seen.most_common(5))


def look(folder: str, recipes: Sequence[str], images: int | None) -> None:
    """What the float network sees, what each recipe changes, and which layers suffer most at four bits."""
    network = load_model("efficientnet-lite0")
    session = qx.Session(network, data=folder)
    names = network.classes or ()
    first = next(session.subject.evaluation.batches(images)).batch.images
    with torch.inference_mode():
        seen = Counter(names[index] for index in network.module(first).argmax(1).tolist())
    print(f"In {len(first)} images the float network sees", told_words(seen))
    for name in recipes:
        print(told(name, session.evaluate(qx.Recipe.preset(name), images=images)))
    rows = session.sensitivity(formats=["int4"], method="output", images=images).nsmallest(3, "value")
    print(
        "Least SQNR with int4 weights:",
        ", ".join(f"{row.layer} {row.value:.1f} dB" for row in rows.itertuples()),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", help="images, or folders of them")
    parser.add_argument("--recipe", nargs="+", default=["w8a8", "w4a8"], help="presets (default: w8a8 w4a8)")
    parser.add_argument("--limit", type=int, help="so many images (default: all)")
    options = parser.parse_args(arguments)
    try:
        look(options.folder, options.recipe, options.limit)
    except ExplorerError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
