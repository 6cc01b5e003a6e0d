"""Write the tables of formats.md: ``python docs/make_tables.py [--images N] [--only resnet20,mobilenet,network]``.

Every figure between the markers comes from here; the sentences around them do not.  A table that has been
written stays when another one is made.
"""

from __future__ import annotations

import argparse
import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

import explorer as qx
from explorer.calibrate import OBJECTIVES
from explorer.cost import cost
from explorer.errors import ExplorerError
from explorer.formats import FORMATS, spelled
from explorer.recipe import PRESETS
from explorer.scheme import TensorScheme
from explorer.study import Evaluation
from explorer.subject import make_subject

PAGE = Path(__file__).with_name("formats.md")
FLOAT = qx.Recipe.preset("fp32")
# Of the widths in between the tables would say the same in more lines.
WIDTHS = (8, 6, 4, 3, 2, 1)
# What these are for is few bits.
NARROW = ("log", "apot", "kmeans")
GRAINS = ("layer", "channel", "subchannel:32")
# A running average of one batch is its extremes; sqnr picks what mse picks; a share of the range is what a hand
# drags; what is learned from the network's own loss has a table of its own, for it takes its time.
NOT_HERE = ("moving_average", "sqnr", "clip", "cross_entropy")


@dataclass(frozen=True)
class Case:
    """One way to quantize all weights."""

    format: str
    grain: str
    objective: str
    scale: str = "float"

    @property
    def recipe(self) -> qx.Recipe:
        """Weights as the case says, inputs in float.

        Raises:
            ExplorerError: when the four do not go together.
        """
        weight = TensorScheme(self.format, self.grain, objective=self.objective, scale=self.scale)
        return FLOAT.with_default(weight=weight)


def formats() -> list[str]:
    """The formats of a table: signed, scaled or fitted, of the widths above."""
    return [
        name
        for name, number in FORMATS.items()
        if number.scaled
        and number.bits in WIDTHS
        and not name.startswith("uint")
        and not (name.startswith(NARROW) and number.bits > 4)
    ]


def objectives() -> list[str]:
    """The objectives that look at one tensor or one layer, with their usual number."""
    found = []
    for name, entry in OBJECTIVES.items():
        word = name.partition(":")[0]
        if word not in NOT_HERE:
            found.append(f"{word}:{spelled(entry.parameter.usual)}" if entry.parameter else name)
    return found


def bits_a_weight(session: qx.Session, recipe: qx.Recipe) -> float:
    """Bits that a weight takes, with its part of scales, zero points and codebooks."""
    costs = cost(session.graph, recipe).layers.values()
    weights = sum(
        session.graph.constants[layer.weight].numel()
        for layer in session.graph.layer_at.values()
        if layer.weight is not None
    )
    return 8 * sum(layer.payload + layer.metadata for layer in costs) / weights


def drop(found: Evaluation) -> str:
    """The difference to float in points, with half the width of its interval."""
    low, high = found.delta_interval
    return f"{100 * found.delta:+.1f} ± {50 * (high - low):.1f}"


def session_of(model: str) -> qx.Session:
    return qx.Session(subject=make_subject(model, store_bytes=1 << 30))


def resnet20(images: int) -> Iterator[str]:
    """Formats x granularities x objectives on fashion-resnet20, weights only."""
    session, goals = session_of("fashion-resnet20"), objectives()
    yield from _heading(["format", "granularity", "bits a weight", *goals])
    for name in tqdm(formats(), desc="formats"):
        for grain in GRAINS:
            cells, bits, seen = [], 0.0, {}
            for goal in goals:
                try:
                    recipe = Case(name, grain, goal).recipe
                    chosen = recipe.default.weight.objective
                    if chosen not in seen:
                        seen[chosen] = drop(session.evaluate(recipe, images=images))
                        bits = bits_a_weight(session, recipe)
                    # A format that fits its own levels has one objective, however it is spelled.
                    cells.append(seen[chosen] if chosen == goal else "")
                except ExplorerError:
                    cells.append("")
            if any(cells):
                yield _row([name, grain, f"{bits:.2f}", *cells])


def presets(images: int) -> Iterator[str]:
    """Every preset on fashion-resnet20 and fashion-mobilenet, weights and inputs."""
    sessions = [session_of("fashion-resnet20"), session_of("fashion-mobilenet")]
    yield from _heading(["preset", "bits a weight", *(f"{s.model_name}" for s in sessions)])
    for name in tqdm(PRESETS, desc="presets"):
        recipe = qx.Recipe.preset(name)
        bits = bits_a_weight(sessions[0], recipe)
        cells = []
        for session in sessions:
            try:
                cells.append(drop(session.evaluate(recipe, images=images)))
            except ExplorerError as error:
                cells.append(f"refused: {error}")
        yield _row([name, f"{bits:.2f}", *cells])


def network(images: int) -> Iterator[str]:
    """Ranges chosen by the whole network's loss, beside those chosen by the tensor and by the layer."""
    session = session_of("fashion-resnet20")
    yield from _heading(["weights, by channel", "objective", "top-1, points to float", "KL to float, nats"])
    for name in ("int4", "int3"):
        for goal in ("minmax", "mse", "output", "cross_entropy"):
            found = session.evaluate(Case(name, "channel", goal).recipe, images=images)
            yield _row([name, goal, drop(found), f"{found.kl:.4f}"])


def mobilenet(images: int) -> Iterator[str]:
    """What one scale for a whole weight does to fashion-mobilenet."""
    session = session_of("fashion-mobilenet")
    widths = ("int8", "int6", "int5", "int4")
    yield from _heading(["weights", *(f"{name}" for name in widths)])
    for label, grain, goal in (
        ("one scale a layer, minmax", "layer", "minmax"),
        ("one scale a layer, mse", "layer", "mse"),
        ("one scale a channel, minmax", "channel", "minmax"),
    ):
        cells = []
        for name in widths:
            found = session.evaluate(Case(name, grain, goal).recipe, images=images)
            cells.append(f"{100 * found.top1:.1f}% ({drop(found)})")
        yield _row([label, *cells])


def depthwise(images: int) -> Iterator[str]:
    """Why: how far apart the channels of a weight are, layer by layer; no image is looked at."""
    session = session_of("fashion-mobilenet")
    reports = {
        grain: session.layers(Case("int6", grain, "minmax").recipe).set_index("name")
        for grain in ("layer", "channel")
    }
    columns = (
        "shape",
        "widest / narrowest channel",
        "median channel: codes of 63",
        "SQNR by layer, dB",
        "by channel",
    )
    yield from _heading(["layer", *columns])
    for layer in session.graph.layer_at.values():
        if layer.weight is None:
            continue
        weight = session.graph.constants[layer.weight].movedim(layer.axis, 0).flatten(1)
        width = weight.abs().amax(1)
        ratio = float(width.max() / width.clamp(min=1e-12).min())
        codes = 1 + 2 * torch.round(31 * width.median() / width.max())
        shape = reports["layer"].loc[layer.name, "shape"]
        noise = [f"{reports[grain].loc[layer.name, 'weight_sqnr_db']:.1f}" for grain in ("layer", "channel")]
        yield _row([layer.name, str(shape), f"{ratio:,.1f}", f"{int(codes)}", *noise])


def _heading(cells: list[str]) -> Iterator[str]:
    yield _row(cells)
    yield _row(["---", *("--:" for _ in cells[1:])])


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


TABLES: dict[str, Callable[[int], Iterator[str]]] = {
    table.__name__: table for table in (mobilenet, depthwise, resnet20, presets, network)
}


def write(name: str, images: int) -> None:
    """Put a table between its markers on the page."""
    lines = "\n".join(TABLES[name](images))
    machine = f"{platform.machine()}, torch {torch.__version__}"
    note = f"_{images:,} test images; {machine}._" if name != "depthwise" else f"_{machine}._"
    begin, end = f"<!-- {name}: written by make_tables.py -->", f"<!-- end of {name} -->"
    text = PAGE.read_text()
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"{PAGE.name} has no place for the table {name!r}: {begin}")
    PAGE.write_text(pattern.sub(lambda _: f"{begin}\n{lines}\n\n{note}\n{end}", text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--only", default=",".join(TABLES), help="default: %(default)s")
    options = parser.parse_args()
    for name in options.only.split(","):
        write(name, options.images)


if __name__ == "__main__":
    main()
