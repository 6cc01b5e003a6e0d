"""Write the tables of architectures.md: ``python docs/make_architectures.py [--only NAME,NAME] [--seconds N]``.

A row that has been written stays when others are made.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import platform
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from explorer.errors import ExplorerError
from explorer.graph import Graph, capture
from explorer.graph.capture import run
from explorer.graph.layers import find_layers
from explorer.graph.passes import BATCH_NORMS, fold_batch_norm, with_shapes
from explorer.sources import LoadedModel, load_model

PAGE = Path(__file__).with_name("architectures.md")
COLUMNS = ["network", "input", "captured", "layers", "in float", "BatchNorms", "unfolded", "folded"]
COLUMNS += ["seconds", "peak / weights"]


@dataclass(frozen=True)
class Case:
    """A network by name, at another size than its own where that would take long, and which of its results."""

    name: str
    side: int | None = None
    output: str | int | None = None


def _cases(prefix: str, names: str, side: int | None = None, output: str | int | None = None) -> list[Case]:
    return [Case(prefix + name, side, output) for name in names.split()]


NETWORKS = {
    "torchvision: classification": _cases(
        "torchvision:",
        """alexnet vgg11 squeezenet1_1 googlenet inception_v3 resnet18 resnext50_32x4d densenet121 mobilenet_v2
        mobilenet_v3_small mnasnet1_0 shufflenet_v2_x1_0 efficientnet_b0 efficientnet_v2_s regnet_y_400mf convnext_tiny
        vit_b_32 swin_t swin_v2_t maxvit_t""",
    ),
    "torchvision: segmentation": _cases(
        "torchvision:",
        "fcn_resnet50 deeplabv3_mobilenet_v3_large lraspp_mobilenet_v3_large",
        224,
        "out",
    ),
    "torchvision: backbones of detectors": _cases(
        "torchvision:",
        "fasterrcnn_mobilenet_v3_large_fpn retinanet_resnet50_fpn ssdlite320_mobilenet_v3_large",
        320,
        "0",
    ),
    "torchvision: video": _cases("torchvision:", "r3d_18"),
    "Other": _cases("", "efficientnet-lite0"),
    "timm: convolutional": _cases(
        "timm:",
        """resnest14d lcnet_100 mobilenetv4_conv_small ghostnetv2_100 repvgg_a0 hrnet_w18_small eca_nfnet_l0
        selecsls42b convnextv2_atto starnet_s1 mambaout_femto""",
    ),
    "timm: attention, mixers and hybrids": _cases(
        "timm:",
        """vit_tiny_patch16_224 deit_tiny_patch16_224 cait_xxs24_224 coat_tiny levit_128s mobilevit_xxs
        edgenext_xx_small efficientvit_b0 pvt_v2_b0 poolformer_s12 mixer_s32_224 resmlp_12_224 halonet26t""",
    ),
}


@dataclass(frozen=True)
class Findings:
    """What capturing a network came to; ``refusal`` is empty where it worked."""

    case: Case
    shape: tuple[int, ...]
    refusal: str = ""
    layers: int = 0
    floats: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    norms: int = 0
    left: int = 0
    unfolded: float = 0.0
    folded: float = 0.0
    seconds: float = 0.0
    peak: float = 0.0
    weights: float = 0.0


def examine(case: Case) -> Findings:
    """Load a network, capture it with and without folding, and set its results beside eager's."""
    _libraries()
    before = _memory("VmRSS")
    loaded = load_model(case.name)
    assert loaded.example is not None
    shape = tuple(loaded.example.shape[1:])
    shape = shape if case.side is None else (*shape[:-2], case.side, case.side)
    batch = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    try:
        module = _settled(loaded, batch)
        begun = time.perf_counter()
        plain = capture(module, batch, False, case.output)
        seconds = time.perf_counter() - begun
    except ExplorerError as error:
        return Findings(case, shape, _without_places(str(error)))
    # The kernel counts some pages late: a peak may be said to lie below what is held.
    peak = max(_memory("VmHWM") - before, 0.0)
    # what capture does itself when it folds, without exporting the network a second time
    graph = with_shapes(fold_batch_norm(plain), batch)
    layers = find_layers(graph)
    expected = _result(module, batch, case.output)
    return Findings(
        case,
        shape,
        layers=sum(layer.quantizable for layer in layers),
        floats=dict(Counter(layer.op for layer in layers if not layer.quantizable)),
        reasons={layer.op: layer.reason for layer in layers if not layer.quantizable},
        norms=_norms(plain),
        left=_norms(graph),
        unfolded=_difference(plain, batch, expected),
        folded=_difference(graph, batch, expected),
        seconds=seconds,
        peak=peak,
        weights=sum(tensor.numel() * tensor.element_size() for tensor in module.parameters()) / 2**20,
    )


def _settled(loaded: LoadedModel, batch: Tensor) -> nn.Module:
    """The network with no matrix of zeros, and with the batch's own statistics in every BatchNorm."""
    generator = torch.Generator().manual_seed(0)
    for parameter in loaded.module.parameters():
        if parameter.dim() > 1 and not bool(parameter.any()):  # some begin so; all results would be zero
            nn.init.normal_(parameter, std=0.02, generator=generator)
    norms = [each for each in loaded.module.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    if norms and loaded.name != "efficientnet-lite0":  # which has been trained
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.train()
            norm.momentum = None  # a plain average instead of a moving one
        with torch.no_grad():
            loaded.module(batch)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval()
            norm.momentum = momentum
    return loaded.module


def _result(module: nn.Module, batch: Tensor, output: str | int | None) -> Tensor:
    with torch.inference_mode():
        result = module(batch)
    return result if isinstance(result, Tensor) else result[output]


def _norms(graph: Graph) -> int:
    return sum(node.op in BATCH_NORMS for node in graph.nodes)


def _difference(graph: Graph, batch: Tensor, expected: Tensor) -> float:
    return float((run(graph, batch)[graph.output] - expected).abs().max() / expected.abs().max())


def _memory(word: str) -> float:
    """A line of this process's status, MiB: VmRSS is what it holds now, VmHWM the most that it ever held."""
    found = re.search(rf"^{word}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def _without_places(text: str) -> str:
    return re.sub(r"/\S*/site-packages/", "", text)


def row(found: Findings) -> str:
    """A line of the table."""
    name = found.case.name.removeprefix("torchvision:").removeprefix("timm:")
    size = " x ".join(map(str, found.shape))
    if found.refusal:
        return _line([name, size, found.refusal, *("" for _ in COLUMNS[3:])])
    floats = ", ".join(f"{count} {op}" for op, count in sorted(found.floats.items()))
    norms = f"{found.norms}, {found.left} left" if found.left else str(found.norms)
    errors = ("equal" if error == 0 else f"{error:.0e}" for error in (found.unfolded, found.folded))
    return _line(
        [
            *(name, size, "yes", str(found.layers), floats, norms if found.norms else "", *errors),
            *(f"{found.seconds:.1f}", f"{found.peak:.0f} / {found.weights:.0f}"),
        ]
    )


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def measured(case: Case, seconds: int) -> Findings:
    """``examine`` in a process of its own, which may fail, or be ended, by itself."""
    processes = multiprocessing.get_context("fork")  # with the libraries that are imported already
    mine, theirs = processes.Pipe(duplex=False)
    process = processes.Process(target=_send, args=(case, theirs))
    process.start()
    theirs.close()
    try:
        if not mine.poll(seconds):
            return Findings(case, (), f"ended after {seconds} s")
        found = mine.recv()
        return found if isinstance(found, Findings) else Findings(case, (), f"failed: {found}")
    except EOFError:
        process.join()
        return Findings(case, (), f"the process ended with {process.exitcode}")
    finally:
        process.kill()
        process.join()


def _send(case: Case, to: Connection) -> None:
    torch.set_num_threads(1)
    try:
        to.send(examine(case))
    except Exception as error:  # is a finding too
        to.send(_without_places(f"{type(error).__name__}: {error}".splitlines()[0]))


def tables(text: str) -> dict[str, dict[str, str]]:
    """The rows that the page has: heading -> network -> line."""
    found: dict[str, dict[str, str]] = {}
    heading = ""
    for line in text.splitlines():
        heading = line.removeprefix("## ") if line.startswith("## ") else heading
        if line.startswith("| ") and not line.startswith(("| network", "| ---", "| operator")):
            found.setdefault(heading, {})[line.split(" | ")[0].removeprefix("| ")] = line
    return found


def every(rows: dict[str, dict[str, str]]) -> list[str]:
    """The lines of all networks that were captured."""
    return [line for heading in NETWORKS for line in rows.get(heading, {}).values() if " | yes | " in line]


def page(text: str, rows: dict[str, dict[str, str]]) -> str:
    """The page with these rows; what comes before the first heading stays."""
    parts = [text.partition("\n## ")[0].rstrip()]
    for heading in [*NETWORKS, REASONS]:
        if rows.get(heading):
            first = COLUMNS if heading != REASONS else ["operator", "why it stays in float"]
            lines = [_line(first), _line(["---"] * len(first)), *rows[heading].values()]
            parts.append(f"## {heading}\n\n" + "\n".join(lines))
    versions = ", ".join(f"{library.__name__} {library.__version__}" for library in (torch, *_libraries()))
    parts.append(f"_{platform.machine()}, {versions}._")
    return "\n\n".join(parts) + "\n"


REASONS = "Reasons for staying in float"


def _libraries() -> list[Any]:
    """torchvision and timm: the first import is ours, which mends what the second needs."""
    return [importlib.import_module("explorer.sources.vision").torchvision, importlib.import_module("timm")]


def chosen(only: str | None) -> Iterator[tuple[str, Case]]:
    """The networks asked for, all by default, each with its heading."""
    wanted = set(only.split(",")) if only else None
    for heading, cases in NETWORKS.items():
        for case in cases:
            if wanted is None or case.name in wanted or heading in wanted:
                yield heading, case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", help="names or headings, with commas between them (default: all)")
    parser.add_argument("--seconds", type=int, default=600, help="for one network (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    _libraries()
    for heading, case in tqdm(list(chosen(options.only))):
        found = measured(case, options.seconds)
        rows = tables(PAGE.read_text())
        line = row(found)
        rows.setdefault(heading, {})[line.split(" | ")[0].removeprefix("| ")] = line
        reasons = {operator: _line([operator, reason]) for operator, reason in found.reasons.items()}
        reasons = rows.get(REASONS, {}) | reasons
        used = {
            word.split()[1]
            for line in every(rows)
            for word in line.split(" | ")[4].split(", ")
            if word.strip()
        }
        rows[REASONS] = {operator: reasons[operator] for operator in sorted(used)}
        # in the order of NETWORKS, whichever was measured first
        order = [each.name.partition(":")[2] or each.name for each in NETWORKS[heading]]
        rows[heading] = {name: rows[heading][name] for name in order if name in rows[heading]}
        PAGE.write_text(page(PAGE.read_text(), rows))


if __name__ == "__main__":
    main()
