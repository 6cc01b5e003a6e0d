"""Capturing a network with ``torch.export``, once, into a :class:`Graph`."""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import re
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from explorer.errors import ModelError
from explorer.formats import check_finite
from explorer.graph.ir import Graph, Layer, Node, Ref, fill, redirect
from explorer.graph.ops import LAYER_OPS, LayerOp, reason_for

_BATCH_NORMS = ("aten._native_batch_norm_legit_no_training.default", "aten.batch_norm.default")
# A view asks for strides that only the layout at capture had; a reshape gives the same values for any.
_SAME_VALUES = {
    torch.ops.aten.view.default: torch.ops.aten.reshape.default,
    torch.ops.aten._unsafe_view.default: torch.ops.aten.reshape.default,
}


def capture(module: nn.Module, example: Tensor, fold: bool = True) -> Graph:
    """The graph of ``module``.

    The network is put through ``torch.export`` with a free batch size and made pure (no operator writes into
    its argument), so that a kept value is never overwritten.  What depends on parameters alone is computed
    here.  The result is compared with the module's own on the example.

    Args:
        module: in eval mode, on the CPU, from one tensor to one tensor (N, classes).
        example: one batch, its first axis the batch.
        fold: fold each BatchNorm into the convolution or linear layer before it.

    Raises:
        ModelError: when the network cannot be captured, with the reason and the line of its code.
        TensorError: when a weight holds NaN or infinity.

    >>> graph = capture(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval(), torch.zeros(1, 1, 2, 2))
    >>> [layer.name for layer in graph.layers]
    ['1']
    """
    if not isinstance(example, Tensor) or example.dim() == 0 or len(example) == 0:
        raise ModelError("The example input must be one tensor whose first axis is the batch.")
    if module.training:
        raise ModelError("The network is in training mode; call .eval() on it first.")
    for name, tensor in module.state_dict().items():
        if isinstance(tensor, Tensor):
            check_finite(tensor, f"weight {name!r}")
    # A batch of one is special to torch.export: it would be taken for a constant.
    pair = example if len(example) > 1 else torch.cat([example, example])
    with torch.inference_mode():
        expected = _only_tensor(_call(module, pair), "result")
    program = _export(module, pair)
    graph = _shapes(_fold_constants(_read(program, pair)), pair)
    if fold:
        graph = _shapes(_fold_batch_norm(graph), pair)
    graph = replace(graph, layers=_layers(graph))
    _compare(graph, pair, expected)
    return graph


def _call(module: nn.Module, example: Tensor) -> Any:
    try:
        return module(example)
    except Exception as error:
        raise ModelError(
            f"The network fails on an input of shape {tuple(example.shape)}: {_first_line(error)}{_where(error)}"
        ) from error


def _only_tensor(value: Any, what: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, tuple | list) and len(value) == 1 and isinstance(value[0], Tensor):
        return value[0]
    kind = type(value).__name__
    raise ModelError(
        f"The network's {what} is a {kind}; it must be one tensor. "
        "Wrap the network in a module that returns the tensor wanted."
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    line = next((line.strip() for line in text.splitlines() if line.strip()), text)
    return line if line.endswith((".", "!", "?")) else line + "."


def _where(error: BaseException) -> str:
    """The deepest line of the user's code in a traceback."""
    place = ""
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not re.search(r"[/\\](torch|explorer)[/\\]", file) and not file.startswith("<"):
            place = f" (at {file}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return place


# torch.export keeps state of its own for the whole process, and so does what silences it.
_exporting = threading.Lock()


def _export(module: nn.Module, pair: Tensor) -> ExportedProgram:
    """The exported program, pure.

    Plain tracing is tried first.  It takes ``len(x)`` for a number, where reading the code itself
    (``strict=True``) sees the batch size; so that is tried next.
    """
    first: Exception | None = None
    for strict in (False, True):
        try:
            with _exporting, _silence():
                program = torch.export.export(
                    module, (pair,), dynamic_shapes=({0: Dim("batch")},), strict=strict
                )
                return program.run_decompositions({})
        except Exception as error:
            first = first or error
    assert first is not None
    raise ModelError(
        f"torch.export cannot capture this network: {_export_reason(first, module, pair)}"
    ) from first


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """No remarks and dumps about torch's own internals; what concerns the user comes as an error."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _export_reason(error: Exception, module: nn.Module, pair: Tensor) -> str:
    text = str(error)
    places = re.findall(r'File "([^"]+)", line (\d+)', text)
    own = [place for place in places if not re.search(r"[/\\]torch[/\\]", place[0])]
    place = f" (at {own[-1][0]}, line {own[-1][1]})" if own else _where(error)
    if "Constraints violated" in text or "specialized" in text.lower():
        # The export does not say where; the code itself fails there on a batch of another size.
        try:
            with torch.inference_mode():
                module(torch.cat([pair, pair[:1]]))
        except Exception as failure:
            place = _where(failure)
        return f"its code fixes the batch size; it must work for any number of images at once.{place}"
    if "data-dependent" in text:
        return f"its code branches on the values of a tensor, which one graph cannot express.{place}"
    return _first_line(error) + place


def _argument(value: Any) -> Any:
    if isinstance(value, torch.fx.Node):
        return Ref(value.name)
    if isinstance(value, list | tuple):
        return tuple(_argument(item) for item in value)
    if isinstance(value, dict):
        return {key: _argument(item) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(_argument(value.start), _argument(value.stop), _argument(value.step))
    return value


def _source(node: torch.fx.Node) -> str:
    trace = node.meta.get("stack_trace") or ""
    places = re.findall(r'File "([^"]+)", line (\d+)', trace)
    return f"{places[-1][0]}:{places[-1][1]}" if places else ""


def _read(program: ExportedProgram, pair: Tensor) -> Graph:
    """The program as nodes and constants, as it is."""
    signature = program.graph_signature
    if len(signature.user_outputs) != 1:
        raise ModelError(
            f"The network has {len(signature.user_outputs)} results; it must have one. "
            "Wrap it in a module that returns the tensor wanted."
        )
    owners = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    constants: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    nodes: list[Node] = []
    images = ""
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name in owners:
                owner = owners[node.name]
                tensor = program.state_dict.get(owner, program.constants.get(owner))
                if not isinstance(tensor, Tensor):
                    raise ModelError(
                        f"The network keeps {owner!r}, which is not a tensor, and cannot be captured."
                    )
                constants[node.name] = tensor.detach()
                sources[node.name] = owner
            elif node.name in signature.user_inputs:
                images = images or node.name
        elif node.op == "call_function":
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            nodes.append(
                Node(
                    node.name,
                    _SAME_VALUES.get(node.target, node.target),
                    _argument(node.args),
                    _argument(dict(node.kwargs)),
                    stack[-1][0] if stack else "",
                    _source(node),
                )
            )
        elif node.op not in ("output", "get_attr"):
            raise ModelError(f"torch.export made a node of kind {node.op!r}, which is not understood.")
        elif node.op == "get_attr":
            raise ModelError(
                "The network branches on its data (torch.cond or similar), which is not supported."
            )
    output = str(signature.user_outputs[0])
    if output not in {node.name for node in nodes}:
        raise ModelError(
            "The network returns its input or a parameter unchanged; there is nothing to quantize."
        )
    return Graph(tuple(nodes), images, output, constants, sources, (), len(pair), tuple(pair.shape[1:]))


def _fold_constants(graph: Graph) -> Graph:
    """Compute every node that depends on constants alone."""
    constants = dict(graph.constants)
    sources = dict(graph.sources)
    nodes: list[Node] = []
    values: dict[str, Any] = dict(constants)
    for node in graph.nodes:
        if node.inputs and all(name in values for name in node.inputs) and node.name != graph.output:
            with torch.inference_mode():
                value = node.target(*fill(node.args, values), **fill(dict(node.kwargs), values))
            values[node.name] = value
            if isinstance(value, Tensor):
                # A view would keep the whole parameter alive and share its memory.
                constants[node.name] = value.clone()
                source = next((sources[name] for name in node.inputs if name in sources), "")
                if source:
                    sources[node.name] = source
        else:
            nodes.append(node)
    return _prune(replace(graph, nodes=tuple(nodes), constants=constants, sources=sources))


def _prune(graph: Graph) -> Graph:
    """Without nodes and constants that the output does not need."""
    needed = {graph.output}
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update(node.inputs)
    return replace(
        graph,
        nodes=tuple(node for node in graph.nodes if node.name in needed),
        constants={name: tensor for name, tensor in graph.constants.items() if name in needed},
        sources={name: source for name, source in graph.sources.items() if name in needed},
    )


def run(graph: Graph, images: Tensor) -> dict[str, Any]:
    """The value of every node, computed plainly; the reference for the engine."""
    values: dict[str, Any] = {**graph.constants, graph.input: images}
    with torch.inference_mode():
        for node in graph.nodes:
            values[node.name] = node.target(*fill(node.args, values), **fill(dict(node.kwargs), values))
    return values


def _shapes(graph: Graph, pair: Tensor) -> Graph:
    values = run(graph, pair)
    nodes = (
        replace(node, shape=tuple(values[node.name].shape)) if isinstance(values[node.name], Tensor) else node
        for node in graph.nodes
    )
    return replace(graph, nodes=tuple(nodes))


def _constant(graph: Graph, node: Node, index: int | None) -> str | None:
    """The name of the constant that stands at ``index`` among the node's arguments, if one does."""
    if index is None or index >= len(node.args):
        return None
    value = node.args[index]
    return value.node if isinstance(value, Ref) and value.node in graph.constants else None


def _fold_batch_norm(graph: Graph) -> Graph:
    """Each BatchNorm whose input is a layer used nowhere else becomes part of that layer's weight and bias.

    ``gamma * (W x + b - mean) / sqrt(var + eps) + beta`` is a layer with ``W' = W * gamma / sqrt(var + eps)`` and
    ``b' = (b - mean) * gamma / sqrt(var + eps) + beta`` (Jacob et al., 2018, arXiv:1712.05877, section 3.2).
    """
    consumers = Counter(name for node in graph.nodes for name in node.inputs)
    consumers[graph.output] += 1
    constants = dict(graph.constants)
    sources = dict(graph.sources)
    renamed: dict[str, str] = {}
    nodes: dict[str, Node] = {}
    for original in graph.nodes:
        node = replace(
            original, args=redirect(original.args, renamed), kwargs=redirect(dict(original.kwargs), renamed)
        )
        # The functional BatchNorm has three results, of which the first is the one wanted.
        if original.target is operator.getitem and original.args[0].node in renamed:
            renamed[node.name] = node.args[0].node
            continue
        if original.op in _BATCH_NORMS and isinstance(node.args[0], Ref):
            before = nodes.get(node.args[0].node)
            kind = LAYER_OPS.get(before.op) if before is not None else None
            weight = (
                _constant(graph, before, kind.weight) if before is not None and kind is not None else None
            )
            uses = consumers[original.args[0].node] if isinstance(original.args[0], Ref) else 0
            # A BatchNorm's channels lie second; a linear layer's features lie last.
            if kind is not None and kind.op == "linear" and before is not None and len(before.shape) != 2:
                kind = weight = None
            numbers = _batch_norm_numbers(graph, node)
            if (
                before is not None
                and kind is not None
                and weight
                and kind.bias == 2
                and uses == 1
                and numbers
            ):
                bias = _constant(graph, before, kind.bias)
                if bias is None and len(before.args) > 2 and before.args[2] is not None:
                    nodes[node.name] = node
                    continue
                factor, mean, beta = numbers
                axis = kind.axis
                old = constants[weight]
                if old.shape[axis] != len(factor):
                    # A grouped transposed convolution: axis 1 counts the channels of one group only.
                    nodes[node.name] = node
                    continue
                view = [1] * old.dim()
                view[axis] = -1
                old_bias = constants[bias].double() if bias else torch.zeros_like(mean)
                new_weight, new_bias = f"{before.name}_folded_weight", f"{before.name}_folded_bias"
                constants[new_weight] = (old.double() * factor.view(view)).to(old.dtype)
                constants[new_bias] = ((old_bias - mean) * factor + beta).to(old.dtype)
                sources[new_weight] = sources.get(weight, weight)
                sources[new_bias] = sources[new_weight].removesuffix("weight") + "bias"
                args = (before.args[0], Ref(new_weight), Ref(new_bias), *before.args[3:])
                nodes[before.name] = replace(before, args=args)
                renamed[node.name] = before.name
                continue
        nodes[node.name] = node
    output = renamed.get(graph.output, graph.output)
    folded = replace(graph, nodes=tuple(nodes.values()), constants=constants, sources=sources, output=output)
    return _prune(folded)


def _batch_norm_numbers(graph: Graph, node: Node) -> tuple[Tensor, Tensor, Tensor] | None:
    """Factor, mean and shift of a BatchNorm in eval mode, float64 (channels,); None when one is not constant."""
    # (input, weight, bias, mean, var, momentum, eps) or (input, weight, bias, mean, var, training, momentum, eps, ...)
    native = node.op.startswith("aten._native")
    if not native and node.args[5]:
        return None
    eps = node.args[6] if native else node.args[7]
    mean, var = (_constant(graph, node, index) for index in (3, 4))
    if mean is None or var is None:
        return None
    means, variances = graph.constants[mean].double(), graph.constants[var].double()
    gamma, beta = (_constant(graph, node, index) for index in (1, 2))
    factor = (graph.constants[gamma].double() if gamma else torch.ones_like(means)) / (variances + eps).sqrt()
    return factor, means, graph.constants[beta].double() if beta else torch.zeros_like(means)


def _layer_name(source: str) -> str:
    """The user's name of the layer that owns a parameter.

    >>> _layer_name("layer1.0.conv1.weight"), _layer_name("attn.in_proj_weight"), _layer_name("scale")
    ('layer1.0.conv1', 'attn.in_proj', 'scale')
    >>> _layer_name("conv.parametrizations.weight.original1"), _layer_name("rnn.weight_ih_l0")
    ('conv', 'rnn')
    """
    # torch.nn.utils.parametrizations keeps what a weight is made of below its module.
    source = source.split(".parametrizations.")[0] + ".weight" if ".parametrizations." in source else source
    head, _, last = source.rpartition(".")
    # A recurrent module has many weights and is one layer.
    if re.fullmatch(r"(weight|bias)_(ih|hh|hr)_l\d+(_reverse)?", last) and head:
        return head
    if last in ("weight", "bias") and head:
        return head
    stem = re.sub(r"_(weight|bias)$", "", last)
    return f"{head}.{stem}" if head else stem


def _numel(graph: Graph, *names: str | None) -> int:
    return sum(graph.constants[name].numel() for name in names if name is not None)


def _layers(graph: Graph) -> tuple[Layer, ...]:
    """Every place where a recipe can act, and every parameter that no recipe reaches, with the reason."""
    taken: Counter[str] = Counter()
    found: list[Layer] = []

    def unique(name: str) -> str:
        taken[name] += 1
        return name if taken[name] == 1 else f"{name}@{taken[name]}"

    def shape_of(name: str) -> tuple[int, ...]:
        if name == graph.input:
            return (graph.example_batch, *graph.example_shape)
        return tuple(graph.constants[name].shape) if name in graph.constants else graph.by_name[name].shape

    for node in graph.nodes:
        kind = LAYER_OPS.get(node.op)
        layer = _product_layer(graph, node, kind, shape_of) if kind is not None else None
        if layer is not None:
            found.append(replace(layer, name=unique(layer.name)))
            continue
        owned = [name for name in node.inputs if name in graph.sources]
        if owned:
            source = graph.sources[owned[0]]
            short = node.op.removeprefix("aten.").split(".")[0].strip("_")
            short = "batch_norm" if "batch_norm" in short else short
            found.append(
                Layer(
                    unique(_layer_name(source)), node.name, short, owned[0], 0, (), 1,
                    tuple(graph.constants[owned[0]].shape), _numel(graph, *owned), 0, reason_for(node.op),
                )
            )  # fmt: skip
    return tuple(found)


def _product_layer(graph: Graph, node: Node, kind: LayerOp, shape_of: Any) -> Layer | None:
    weight = _constant(graph, node, kind.weight)
    operands = [node.args[index] for index in kind.inputs if index < len(node.args)]
    axis = kind.axis
    if kind.weight is None:
        # x @ W with a parameter W is a linear layer whose output channels are W's last axis.
        fixed = [index for index in kind.inputs if _constant(graph, node, index) is not None]
        if len(fixed) == 1 and fixed[0] == kind.inputs[1] and kind.op == "matmul":
            weight = _constant(graph, node, fixed[0])
            axis = graph.constants[weight].dim() - 1 if weight else axis
            operands = operands[:1]
        elif fixed:
            return None
    elif weight is None:
        return None
    inputs = tuple(operand.node for operand in operands if isinstance(operand, Ref))
    shapes = tuple(shape_of(name) for name in inputs)
    weight_shape = tuple(graph.constants[weight].shape) if weight else None
    operand_shapes = shapes if kind.weight is not None or weight_shape is None else (*shapes, weight_shape)
    macs = kind.macs(operand_shapes, weight_shape, node.shape) // graph.example_batch
    if weight:
        name = _layer_name(graph.sources.get(weight, weight))
    else:
        name = f"{node.module}.{kind.op}" if node.module else kind.op
    bias = _constant(graph, node, kind.bias)
    first = weight_shape if weight_shape is not None else shapes[0][1:]
    return Layer(
        name, node.name, kind.op if kind.weight is not None or weight is None else "linear",
        weight, axis, inputs, kind.channel, first, _numel(graph, weight, bias), macs,
    )  # fmt: skip


def _compare(graph: Graph, pair: Tensor, expected: Tensor) -> None:
    result = run(graph, pair)[graph.output]
    if not isinstance(result, Tensor) or result.shape != expected.shape:
        raise ModelError("The captured network gives a result of another shape than the module itself.")
    if result.dim() != 2:
        raise ModelError(
            f"The network's result has shape {tuple(result.shape)}; it must be (images, classes). "
            "Wrap the network in a module that returns the scores of the classes."
        )
    error = float((result - expected).abs().max())
    size = float(expected.abs().max())
    if not error <= 1e-3 * max(size, 1e-3):
        raise ModelError(
            f"The captured network differs from the module itself by {error:.3g} (results reach {size:.3g}); "
            "it may draw random numbers or keep state between calls."
        )
