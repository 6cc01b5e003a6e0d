"""Which of a network's tensors is meant by a name in another tool's file.

Names come from the same module but have been through an exporter, so they are compared piece by piece.  What
no name settles is settled by the weights themselves, and what they do not settle by shape and order.  Each
placement says how it was found, and what has no place says why.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from explorer.errors import ParametersError
from explorer.graph import Graph, Layer
from explorer.study.foreign import ForeignParameters, ForeignTensor, Place
from explorer.study.metrics import ErrorSums

# What quantizers and exporters put behind a tensor's name.
_ENDINGS = re.compile(
    r"(_quantized|_quant|_(De)?[qQ]uantizeLinear(_Input|_Output)?|_scale|_zero_point|_fake_quant|_DQ|_QDQ|_q|_dq|_int"
    r"|_[io]nput_\d+|_output_\d+)+$"
)
_INPUT = re.compile(r"^(input|inputs|x|image|images|data|pixel_values|quant)([._]\d+)?$")
# Weights that are ours differ by quantization only; those of another training have nothing in common with them.
_KNOWN_DB = 10.0
# Operators that hand on the values that they get.
_HANDING_ON = (
    "view",
    "reshape",
    "flatten",
    "permute",
    "transpose",
    "clone",
    "unsqueeze",
    "squeeze",
    "alias",
    "dropout",
)


@dataclass(frozen=True, eq=False)
class Found:
    """Something that a file has parameters for.

    Args:
        tensor: the parameters.
        role: ``weight``, ``input``, or ``output`` for what a module gives.
        hints: names of the module that it belongs to, the surest first.
        index: which input.
        site: the operator that it stands at; all of one site belong to one layer.
        turned: the weight lies there with its two axes exchanged.
        outward: its axis is that of the output channels, wherever that lies.
    """

    tensor: ForeignTensor
    role: str
    hints: tuple[str, ...]
    index: int = 0
    site: int | None = None
    turned: bool = False
    outward: bool = False


def module_path(name: str) -> str:
    """The dotted path of the module that a name in a file belongs to.

    >>> module_path("/layer1/layer1.0/conv1/Conv_output_0"), module_path("layer1.0.conv1.weight_quantized")
    ('layer1.0.conv1', 'layer1.0.conv1')
    >>> module_path("/features/features.1/block/block.0/block.0.2/Conv")
    'features.1.block.0.2'
    >>> module_path("model.fc.bias"), module_path("/fc/Gemm")
    ('model.fc', 'fc')
    """
    if "/" in name:
        path = ""
        # An exporter's scope repeats the path of a member of a container, whole or from the container on:
        # layer1/layer1.0/conv1, features/features.1/block/block.0.
        for piece in name.strip("/").split("/")[:-1]:
            parts = path.split(".")
            ends = (".".join(parts[start:]) for start in range(len(parts) if path else 0))
            known = next((end for end in ends if piece.startswith(end + ".")), None)
            path = (
                piece
                if not path
                else f"{path}.{piece}"
                if known is None
                else path + piece.removeprefix(known)
            )
        return re.sub(r"_\d+$", "", path) if re.search(r"[a-zA-Z]_\d+$", path) else path
    name = _ENDINGS.sub("", name)
    return re.sub(r"[._](weight|bias)$", "", name)


def place(
    graph: Graph, found: Iterable[Found], left: Iterable[tuple[str, str]], source: str, tool: str
) -> ForeignParameters:
    """Everything that was found at its place in ``graph``."""
    return _Placing(graph, list(found), list(left)).done(source, tool)


class _Placing:
    """The work of :func:`place`."""

    def __init__(self, graph: Graph, found: list[Found], left: list[tuple[str, str]]) -> None:
        self.graph, self.found, self.left = graph, found, left
        self.layers = [layer for layer in graph.layers if layer.quantizable]
        self.tensors: dict[Place, ForeignTensor] = {}
        self.how: dict[Place, str] = {}

    def done(self, source: str, tool: str) -> ForeignParameters:
        for layer, how, parts in self._sites():
            for part in parts:
                self._put(part, layer, part.role, part.index, how)
        for part in self.found:
            if part.site is None:
                self._alone(part)
        order = {layer.name: i for i, layer in enumerate(self.layers)}
        places = sorted(self.tensors, key=lambda p: (order[p[0]], p[1] != "weight", p[2]))
        return ForeignParameters(
            source,
            tool,
            {p: self.tensors[p] for p in places},
            {p: self.how[p] for p in places},
            tuple(self.left),
        )

    # -- operators of a graph ---------------------------------------------------------------------

    def _sites(self) -> Iterator[tuple[Layer, str, list[Found]]]:
        sites: dict[int, list[Found]] = {}
        for part in self.found:
            if part.site is not None:
                sites.setdefault(part.site, []).append(part)
        free = {layer.name: layer for layer in self.layers}
        for ways in (self._by_name, self._by_values, self._by_order):
            for number, layer, how in ways(sites, free):
                free.pop(layer.name, None)
                yield layer, how, sites.pop(number)
        for parts in sites.values():
            for part in parts:
                self.left.append(
                    (part.tensor.name, f"no layer is called {_quoted(part.hints)} or has such a weight")
                )

    def _by_name(
        self, sites: dict[int, list[Found]], free: dict[str, Layer]
    ) -> Iterator[tuple[int, Layer, str]]:
        for number, parts in list(sites.items()):
            hints = [hint for part in parts for hint in part.hints]
            for hint in dict.fromkeys(hints):
                layer = self._named(hint, free.values())
                if layer is not None and self._fits(parts, layer):
                    yield number, layer, f"named {hint!r}"
                    break

    def _by_values(
        self, sites: dict[int, list[Found]], free: dict[str, Layer]
    ) -> Iterator[tuple[int, Layer, str]]:
        for number, parts in list(sites.items()):
            best: tuple[float, Layer] | None = None
            for layer in free.values():
                ratio = self._likeness(parts, layer)
                if ratio is not None and (best is None or ratio > best[0]):
                    best = ratio, layer
            if best is not None and best[0] >= _KNOWN_DB:
                yield number, best[1], f"its weight is this one's (SQNR {best[0]:.0f} dB)"

    def _by_order(
        self, sites: dict[int, list[Found]], free: dict[str, Layer]
    ) -> Iterator[tuple[int, Layer, str]]:
        """Where as many operators as layers are left of one shape, one after the other."""
        left = list(free.values())
        for shape in dict.fromkeys(layer.shape for layer in left if layer.weight):
            layers = [layer for layer in left if layer.weight and layer.shape == shape]
            numbers = [
                number
                for number, parts in sites.items()
                if any(_turned(part, layers[0]) is not None for part in parts if part.role == "weight")
            ]
            if len(layers) == len(numbers):
                for number, layer in zip(numbers, layers, strict=True):
                    yield (
                        number,
                        layer,
                        "the only one left of this shape" if len(layers) == 1 else "by shape and order only",
                    )

    def _likeness(self, parts: Sequence[Found], layer: Layer) -> float | None:
        """The SQNR of the file's weight against ours, dB; None where they cannot be compared."""
        if layer.weight is None:
            return None
        ours = self.graph.constants[layer.weight].float()
        for part in parts:
            if part.role == "weight" and part.tensor.values is not None:
                turned = _turned(part, layer)
                if turned is not None and turned.values is not None:
                    return ErrorSums.of(ours, turned.values).sqnr_db
        return None

    def _fits(self, parts: Sequence[Found], layer: Layer) -> bool:
        weights = [part for part in parts if part.role == "weight"]
        return all(layer.weight is not None and _turned(part, layer) is not None for part in weights)

    # -- names without a graph --------------------------------------------------------------------

    def _alone(self, part: Found) -> None:
        name = part.tensor.name
        if part.role == "output":
            self._output(part)
            return
        for hint in part.hints:
            layers = self._all_named(hint)
            if layers:
                # One weight used twice is one weight; of inputs it is not known which is meant.
                for layer in layers if part.role == "weight" else layers[:1]:
                    self._put(part, layer, part.role, part.index, f"named {hint!r}")
                return
        self.left.append((name, f"no layer is called {_quoted(part.hints)}"))

    def _output(self, part: Found) -> None:
        """What a module gives is the input of those that come after it."""
        for hint in part.hints:
            modules = {node.module for node in self.graph.nodes if node.module and _same(hint, node.module)}
            modules = modules & {hint} or modules
            if len(modules) == 1:
                takers = self._takers([node.name for node in self.graph.nodes if node.module in modules][-1])
                how = f"the output of {hint!r}"
                reason = f"the output of {hint!r} goes to no layer as it is"
                break
        else:
            if not any(_INPUT.match(word) for word in (part.tensor.name, *part.hints)):
                reason = f"there is no module called {_quoted(part.hints)}"
                takers, how = [], ""
            else:
                takers, how = self._takers(self.graph.input), "called as a network's input is"
                reason = "the network's input goes to no layer as it is"
        for layer, index in takers:
            self._put(part, layer, "input", index, how)
        if not takers:
            self.left.append((part.tensor.name, reason))

    def _takers(self, node: str) -> list[tuple[Layer, int]]:
        """The layers that get the value of ``node``, perhaps in another shape, and as which input."""
        same = {node}
        for other in self.graph.nodes:
            words = other.op.removeprefix("aten.").split(".")[0].strip("_")
            if words in _HANDING_ON and other.inputs[:1] and other.inputs[0] in same:
                same.add(other.name)
        return [
            (layer, index) for layer in self.layers for index, name in enumerate(layer.inputs) if name in same
        ]

    # -- both -------------------------------------------------------------------------------------

    def _all_named(self, hint: str) -> list[Layer]:
        layers = [layer for layer in self.layers if _same(hint, self._plain(layer))]
        exact = [layer for layer in layers if self._plain(layer) == hint]
        chosen = exact or layers
        # A short name may end many: then it names none.
        return chosen if len({self._plain(layer) for layer in chosen}) == 1 else []

    def _named(self, hint: str, free: Iterable[Layer]) -> Layer | None:
        names = {layer.name for layer in free}
        return next((layer for layer in self._all_named(hint) if layer.name in names), None)

    @staticmethod
    def _plain(layer: Layer) -> str:
        return layer.name.partition("@")[0]

    def _put(self, part: Found, layer: Layer, role: str, index: int, how: str) -> None:
        tensor = part.tensor
        where: Place = (layer.name, role, index)
        if where in self.tensors:
            self.left.append((tensor.name, f"the {role} of {layer.name!r} has parameters already"))
            return
        if role == "input" and index >= len(layer.inputs):
            self.left.append((tensor.name, f"the layer {layer.name!r} has {len(layer.inputs)} inputs"))
            return
        if role == "weight" and layer.weight is None:
            self.left.append((tensor.name, f"the layer {layer.name!r} has no weight"))
            return
        try:
            self.tensors[where] = (
                self._weight(part, layer) if role == "weight" else self._input(tensor, layer, index)
            )
        except ParametersError as error:
            self.left.append((tensor.name, str(error)))
            return
        self.how[where] = how

    def _weight(self, part: Found, layer: Layer) -> ForeignTensor:
        assert layer.weight is not None
        ours = self.graph.constants[layer.weight].float()
        tensor = _turned(part, layer)
        if tensor is None:
            assert part.tensor.values is not None
            there = tuple(part.tensor.values.shape)
            raise ParametersError(f"its weight has the shape {there} where {layer.name!r} has {layer.shape}")
        if part.outward and tensor.axis is not None:
            tensor = replace(tensor, axis=layer.axis)
        tensor = tensor.fitted(layer.shape)
        if tensor.values is not None:
            ratio = ErrorSums.of(ours, tensor.values).sqnr_db
            if ratio < _KNOWN_DB:
                note = (
                    f"the weights there are not ours (SQNR {ratio:.0f} dB): "
                    "of another training, or BatchNorm is folded in one of the two"
                )
                tensor = replace(tensor, note="; ".join(filter(None, (tensor.note, note))))
        return tensor

    def _input(self, tensor: ForeignTensor, layer: Layer, index: int) -> ForeignTensor:
        name, graph = layer.inputs[index], self.graph
        node = graph.by_name.get(name)
        shape = node.shape if node is not None else (graph.example_batch, *graph.example_shape)
        return tensor.fitted(tuple(shape))


def _turned(part: Found, layer: Layer) -> ForeignTensor | None:
    """A weight's parameters as they lie on the weight of ``layer``; None where its shape is another one."""
    turn = part.turned and len(layer.shape) == 2 and layer.op != "matmul"
    tensor = part.tensor.transposed() if turn else part.tensor
    return tensor if tensor.values is None or tuple(tensor.values.shape) == layer.shape else None


def _same(hint: str, path: str) -> bool:
    """Whether two dotted paths are one, or one ends the other: a wrapper's name stands before it.

    A number alone, the place in a container, is the end of many and no name.

    >>> _same("model.fc", "fc"), _same("layer1.0", "0"), _same("fc", "fc1")
    (True, False, False)
    """
    short, long = sorted((hint, path), key=len)
    return hint == path or (long.endswith("." + short) and not short.partition(".")[0].isdigit())


def _quoted(hints: Sequence[str]) -> str:
    return " or ".join(map(repr, dict.fromkeys(hints))) or "so"
