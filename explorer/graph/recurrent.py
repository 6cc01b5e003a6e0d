"""Recurrent networks as two matrix products for each layer and direction, the second a loop over time.

What comes in is multiplied by ``weight_ih`` for all steps at once, an ordinary linear layer.  The product of the
state with ``weight_hh`` reads what the step before has made; the loop is one node, so that its weight is one layer
with one scheme however long the sequence is, and ``quantize`` acts on the state before each product.

The formulas are those of ``torch.nn.LSTM``, ``GRU`` and ``RNN``, gates in their order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from explorer.graph.ir import Ref
from explorer.graph.site import Lowered, Site, aten

# What is done to the state (N, H) before it is multiplied.
Quantize = Callable[[Tensor], Tensor]


def _as_it_is(state: Tensor) -> Tensor:
    return state


def lstm_cell_state(gates: Tensor, cell: Tensor) -> Tensor:
    """The next cell state (N, H) from the gates (N, 4 H): input, forget, cell, output."""
    put, forget, new, _ = gates.chunk(4, -1)
    return forget.sigmoid() * cell + put.sigmoid() * new.tanh()


def lstm_hidden_state(gates: Tensor, cell: Tensor) -> Tensor:
    """The next hidden state (N, H) from the gates and the next cell state."""
    return gates.chunk(4, -1)[3].sigmoid() * cell.tanh()


def gru_hidden_state(outer: Tensor, inner: Tensor, hidden: Tensor) -> Tensor:
    """The next state (N, H) from both products (N, 3 H): reset, update, new."""
    (r, z, n), (hr, hz, hn) = outer.chunk(3, -1), inner.chunk(3, -1)
    new = (n + (r + hr).sigmoid() * hn).tanh()
    return (hidden - new) * (z + hz).sigmoid() + new


def lstm_states(
    outer: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    with_cells: bool = False,
    quantize: Quantize = _as_it_is,
) -> Tensor:
    """The states before, between and after all steps, (N, T + 1, H), or (N, T + 1, 2 H) with the cells' behind them.

    Args:
        outer: products of the inputs with ``weight_ih`` and their bias, (N, T, 4 H).
        hidden: the first state (N, H).
        cell: the first cell state (N, H).
        weight: ``weight_hh`` (4 H, H).
        bias: ``bias_hh`` (4 H,).
        with_cells: whether the cells' states are wanted, too.
        quantize: what is done to the state before each product.

    >>> lstm_states(torch.zeros(2, 3, 4), torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(4, 1), None).shape
    torch.Size([2, 4, 1])
    """
    states, cells = [hidden], [cell]
    for step in outer.unbind(1):
        gates = F.linear(quantize(states[-1]), weight, bias) + step
        cells.append(lstm_cell_state(gates, cells[-1]))
        states.append(lstm_hidden_state(gates, cells[-1]))
    found = torch.stack(states, 1)
    return torch.cat([found, torch.stack(cells, 1)], -1) if with_cells else found


def gru_states(
    outer: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, quantize: Quantize = _as_it_is
) -> Tensor:
    """The states of a GRU, (N, T + 1, H); the arguments as in :func:`lstm_states`."""
    states = [hidden]
    for step in outer.unbind(1):
        inner = F.linear(quantize(states[-1]), weight, bias)
        states.append(gru_hidden_state(step, inner, states[-1]))
    return torch.stack(states, 1)


def rnn_tanh_states(
    outer: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, quantize: Quantize = _as_it_is
) -> Tensor:
    """The states of an RNN with tanh, (N, T + 1, H); the arguments as in :func:`lstm_states`."""
    return _rnn(outer, hidden, weight, bias, quantize, torch.tanh)


def rnn_relu_states(
    outer: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, quantize: Quantize = _as_it_is
) -> Tensor:
    """The states of an RNN with ReLU, (N, T + 1, H); the arguments as in :func:`lstm_states`."""
    return _rnn(outer, hidden, weight, bias, quantize, torch.relu)


def _rnn(
    outer: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    quantize: Quantize,
    act: Callable[[Tensor], Tensor],
) -> Tensor:
    states = [hidden]
    for step in outer.unbind(1):
        states.append(act(F.linear(quantize(states[-1]), weight, bias) + step))
    return torch.stack(states, 1)


# For each of torch's operators the loop that stands for it.
LOOPS: dict[str, Callable[..., Tensor]] = {
    "lstm": lstm_states,
    "gru": gru_states,
    "rnn_tanh": rnn_tanh_states,
    "rnn_relu": rnn_relu_states,
}
# Every function that may be a node of a graph, by its name.
STEPS: dict[str, Callable[..., Tensor]] = {
    **{f"{name}_states": loop for name, loop in LOOPS.items()},
    "lstm_cell_state": lstm_cell_state,
    "lstm_hidden_state": lstm_hidden_state,
    "gru_hidden_state": gru_hidden_state,
}


def lower_recurrent(site: Site) -> Lowered:
    """``nn.LSTM``, ``nn.GRU`` or ``nn.RNN``, of any number of layers and one direction or two.

    Those whose state is projected (``proj_size``) stay as they are.
    """
    x, first, params, biases, layers, dropout, train, both, batch_first = site.node.args
    loop = LOOPS[site.node.op.split(".")[1]]
    is_lstm = loop is lstm_states
    begins = tuple(first) if is_lstm else (first,)
    directions = 2 if both else 1
    each = 4 if biases else 2
    if (train and dropout) or len(params) != layers * directions * each:
        return None
    if any(site.fixed(param) is None for param in params):
        return None
    with_cells = is_lstm and 2 in site.used
    size = site.graph.constants[params[1].node].shape[1]
    if not batch_first:
        x = site.add("first", aten.transpose.int, x, 0, 1)
    last: list[Ref] = []
    last_cells: list[Ref] = []
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            place = layer * directions + direction
            word = f"l{layer}" + ("_reverse" if direction else "")
            weight_ih, weight_hh, *rest = params[place * each : (place + 1) * each]
            bias_ih, bias_hh = rest or (None, None)
            outer = site.add(f"{word}_outer", aten.linear.default, x, weight_ih, bias_ih)
            if direction:
                outer = site.add(f"{word}_turned", aten.flip.default, outer, (1,))
            starts = [
                site.add(f"{word}_start{i}", aten.select.int, begin, 0, place)
                for i, begin in enumerate(begins)
            ]
            extra = (with_cells,) if is_lstm else ()
            reads = f"{site.node.name}_{word}_read"
            every = site.add(f"{word}_states", loop, outer, *starts, weight_hh, bias_hh, *extra, reads=reads)
            states = every
            if with_cells:
                states = site.add(f"{word}_hidden", aten.slice.Tensor, every, -1, 0, size)
                cells = site.add(f"{word}_cells", aten.slice.Tensor, every, -1, size, 2 * size)
                last_cells.append(site.add(f"{word}_last_cell", aten.select.int, cells, 1, -1))
            site.add(f"{word}_read", aten.slice.Tensor, states, 1, 0, -1)
            last.append(site.add(f"{word}_last", aten.select.int, states, 1, -1))
            found = site.add(f"{word}_out", aten.slice.Tensor, states, 1, 1, 1 << 62)
            if direction:
                found = site.add(f"{word}_back", aten.flip.default, found, (1,))
            outputs.append(found)
        x = outputs[0] if not both else site.add(f"l{layer}_both", aten.cat.default, tuple(outputs), -1)
    if not batch_first:
        x = site.add("out", aten.transpose.int, x, 0, 1)
    results = [x, site.add("last", aten.stack.default, tuple(last), 0)]
    if with_cells:
        results.append(site.add("last_cells", aten.stack.default, tuple(last_cells), 0))
    return tuple(results)


def lower_lstm_cell(site: Site) -> Lowered:
    """One step of an LSTM: two linear layers, and what the gates do."""
    x, (hidden, cell), *params = site.node.args
    gates = site.add("gates", aten.add.Tensor, *_two_products(site, x, hidden, params))
    state = site.add("cell", lstm_cell_state, gates, cell)
    return site.add("hidden", lstm_hidden_state, gates, state), state


def lower_gru_cell(site: Site) -> Lowered:
    """One step of a GRU: two linear layers, and what the gates do."""
    x, hidden, *params = site.node.args
    return site.add("", gru_hidden_state, *_two_products(site, x, hidden, params), hidden)


def lower_rnn_cell(site: Site) -> Lowered:
    """One step of an RNN: two linear layers, and a tanh or ReLU."""
    x, hidden, *params = site.node.args
    act = aten.tanh.default if "tanh" in site.node.op else aten.relu.default
    total = site.add("sum", aten.add.Tensor, *_two_products(site, x, hidden, params))
    return site.add("", act, total)


def _two_products(site: Site, x: Any, hidden: Any, params: Any) -> tuple[Ref, Ref]:
    weight_ih, weight_hh, bias_ih, bias_hh = (*params, None, None)[:4]
    outer = site.add("outer", aten.linear.default, x, weight_ih, bias_ih)
    return outer, site.add("inner", aten.linear.default, hidden, weight_hh, bias_hh)
