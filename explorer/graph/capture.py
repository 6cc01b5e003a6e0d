"""Capturing a network with ``torch.export``, once, into a :class:`Graph`."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from explorer.errors import ModelError
from explorer.formats import check_finite
from explorer.graph.images import with_images
from explorer.graph.ir import Graph, Node, Ref
from explorer.graph.layers import find_layers
from explorer.graph.lower import lower
from explorer.graph.passes import fold_batch_norm, fold_constants, prune, with_shapes
from explorer.graph.repeat import check_repeatable
from explorer.graph.results import Chosen, choose
from explorer.graph.results import at as result_at
from explorer.graph.walk import run as run  # tests read it from here
from explorer.graph.walk import walk

# A view asks for strides that only the layout at capture had; a reshape gives the same values for any.
_SAME_VALUES = {
    torch.ops.aten.view.default: torch.ops.aten.reshape.default,
    torch.ops.aten._unsafe_view.default: torch.ops.aten.reshape.default,
}


def capture(module: nn.Module, example: Tensor, fold: bool = True, output: str | int | None = None) -> Graph:
    """The graph of ``module``.

    The network is put through ``torch.export`` with a free batch size and made pure (no operator writes into
    its argument), so that a kept value is never overwritten.  What depends on parameters alone is computed
    here.  The result is compared with the module's own on the example.

    Args:
        module: in eval mode, on the CPU, from one tensor to one, or to a tuple, list, dict or dataclass of several.
        example: one batch, its first axis the batch.
        fold: fold each BatchNorm into the convolution or linear layer before it.
        output: the name or index of the result that is wanted (``"out"``, ``0``, ``"features.1"``), where the module
            returns several; what the others alone need is left out.

    Raises:
        ModelError: when the network cannot be captured, or does not give the same twice, with the reason and the
            line of its code.
        TensorError: when a weight holds NaN or infinity.

    >>> graph = capture(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval(), torch.zeros(1, 1, 2, 2))
    >>> [layer.name for layer in graph.layers]
    ['1']
    """
    if not isinstance(example, Tensor) or example.dim() == 0 or len(example) == 0:
        raise ModelError("The example input must be one tensor whose first axis is the batch.")
    if module.training:
        raise ModelError("The network is in training mode; call .eval() on it first.")
    # But for running statistics a buffer is no weight: a mask of attention holds infinity.
    masks = {name for name, _ in module.named_buffers() if "running_" not in name}
    for name, tensor in module.state_dict().items():
        if isinstance(tensor, Tensor) and name not in masks:
            check_finite(tensor, f"weight {name!r}")
    # A batch of one is special to torch.export: it would be taken for a constant.
    pair = example if len(example) > 1 else torch.cat([example, example])
    with torch.inference_mode():
        returned = _call(module, pair)
    path = choose(returned, output)
    expected = result_at(returned, path)
    program = _export(Chosen(module, path) if path else module, pair)
    graph = with_shapes(fold_constants(_read(program, pair, Chosen.PREFIX if path else "")), pair)
    lowered = lower(graph)
    if lowered is not graph:
        graph = with_shapes(prune(lowered), pair)
    if fold:
        graph = with_shapes(fold_batch_norm(graph), pair)
    graph = with_images(graph, pair)
    graph = replace(graph, layers=find_layers(graph, _aliases(module)))
    check_repeatable(graph, pair)
    _compare(graph, pair, expected)
    return graph


def _aliases(module: nn.Module) -> dict[str, list[str]]:
    """All names of each parameter that has several, by each of them."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: found for found in names.values() if len(found) > 1 for name in found}


def _call(module: nn.Module, example: Tensor) -> Any:
    try:
        return module(example)
    except Exception as error:
        raise ModelError(
            f"The network fails on an input of shape {tuple(example.shape)}: {_first_line(error)}{_where(error)}"
        ) from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    line = next((line.strip() for line in text.splitlines() if line.strip()), text)
    return line if line.endswith((".", "!", "?")) else line + "."


# Files that are not the user's code.
_OURS = re.compile(r"[/\\](torch|explorer)[/\\]")


def _where(error: BaseException) -> str:
    """The deepest line of the user's code in a traceback."""
    place = ""
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not _OURS.search(file) and not file.startswith("<"):
            place = f" (at {file}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return place


# torch.export keeps state of its own for the whole process, and so does what silences it.
_exporting = threading.Lock()
# A batch that is larger than usual lengths of heads and small feature maps.
_MANY = 36


def _export(module: nn.Module, pair: Tensor) -> ExportedProgram:
    """The exported program, pure.

    Plain tracing is tried first.  It takes ``len(x)`` for a number, where reading the code itself
    (``strict=True``) sees the batch size; so that is tried next.  torch's own code may look whether some batch size
    makes two lengths the same; it does not for larger batches, and gives the same operators, so that comes last.
    """
    first: Exception | None = None
    many = torch.cat([pair] * (_MANY // len(pair) + 1))
    for strict, example in ((False, pair), (True, pair), (False, many)):
        try:
            with _exporting, _silence(), _slow_attention():
                batch = Dim("batch", min=len(example) if example is many else None)
                program = torch.export.export(module, (example,), dynamic_shapes=({0: batch},), strict=strict)
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


@contextlib.contextmanager
def _slow_attention() -> Iterator[None]:
    """torch's encoder layer in single steps, not as one operator."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _export_reason(error: Exception, module: nn.Module, pair: Tensor) -> str:
    text = str(error)
    places = re.findall(r'File "([^"]+)", line (\d+)', text)
    own = [place for place in places if not _OURS.search(place[0])]
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


def _read(program: ExportedProgram, pair: Tensor, prefix: str) -> Graph:
    """The program as nodes and constants, as it is; ``prefix`` comes before the names that the user knows."""
    signature = program.graph_signature
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
                        f"The network keeps {owner.removeprefix(prefix)!r}, which is no tensor; it cannot be captured."
                    )
                constants[node.name] = tensor.detach()
                # a number or table that the code makes is nobody's parameter
                if node.name not in signature.inputs_to_lifted_tensor_constants:
                    sources[node.name] = owner.removeprefix(prefix)
            elif node.name in signature.user_inputs:
                images = images or node.name
        elif node.op == "call_function":
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            module = (stack[-1][0] + ".").removeprefix(prefix).removesuffix(".") if stack else ""
            # A network read from a file says itself what the user called the modules that it was made from.
            said = (node.meta.get("custom") or {}).get("explorer")
            nodes.append(
                Node(
                    node.name,
                    _SAME_VALUES.get(node.target, node.target),
                    _argument(node.args),
                    _argument(dict(node.kwargs)),
                    *(said or (module, _source(node))),
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


def _compare(graph: Graph, pair: Tensor, expected: Tensor) -> None:
    result = next(value for node, value in walk(graph, pair) if node.name == graph.output)
    if not isinstance(result, Tensor) or result.shape != expected.shape:
        raise ModelError("The captured network gives a result of another shape than the module itself.")
    if result.dim() == 0 or len(result) != len(pair) or not result.is_floating_point():
        kind = str(result.dtype).removeprefix("torch.")
        raise ModelError(
            f"The network's result is {kind} of shape {tuple(result.shape)} for {len(pair)} images; it must be real "
            "numbers with one result for each image along the first axis, such as (images, classes). "
            "Wrap the network in a module that returns them."
        )
    error = float((result - expected).abs().max())
    size = float(expected.abs().max())
    if not error <= 1e-3 * max(size, 1e-3):
        raise ModelError(
            f"The captured network differs from the module itself by {error:.3g} (results reach {size:.3g}); "
            "it may draw random numbers or keep state between calls."
        )
