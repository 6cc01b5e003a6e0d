"""A number for each layer as node data of Model Explorer.

The format is that of ``node_data_builder.py`` in https://github.com/google-ai-edge/model-explorer: an object with one
entry for each graph, in it ``results`` by node and a ``gradient`` from the smallest value (0) to the largest (1).
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from statistics import fmean

from explorer.errors import LayerError
from explorer.graph import Graph

# Model Explorer's name for the one graph of an exported program.
GRAPH = "graph"
# Cividis from its dark to its light end, in the colours of the page's maps.
COLOURS = ("#00224e", "#575d6d", "#a59c74", "#fee838")
INKS = ("#ffffff", "#ffffff", "#111111", "#111111")

# What a graph can be coloured by; the names are those of the fields of a LayerReport.
NODE_SCORES = {
    "weight_sqnr_db": "signal to quantization noise of the weight, dB",
    "input_sqnr_db": "the same of the input; takes an evaluation",
    "weight_bits": "bits of a weight's code",
    "input_bits": "bits of an input's code",
    "weight_bits_per_value": "bits of a weight with its share of scales and zero points",
    "size_bytes": "what the layer takes to store",
    "macs": "multiply-adds for one image",
    "parameters": "how many numbers the layer has",
}


def node_data(graph: Graph, values: Mapping[str, float]) -> str:
    """JSON for Model Explorer's "Add per-node data": the nodes of the layers with their values.

    It goes with the program of ``torch.export.export(module, ...)``, saved as ``.pt2`` as it is or after
    ``run_decompositions({})``: its nodes are called as those of ``graph``.  Model Explorer calls the graph of any such
    program ``graph``.  JSON has no infinite numbers and no NaN, so layers without a finite value have no entry.  A node
    that holds several layers (an attention, an LSTM) has the mean of theirs.

    Args:
        graph: the captured network.
        values: by the layers' names.

    Raises:
        LayerError: when no layer has a finite value, or a name is no layer's.
    """
    unknown = next((name for name in values if name not in graph.by_layer), None)
    if unknown is not None:
        raise LayerError(f"This network has no layer {unknown!r}.")
    numbers: dict[str, list[float]] = defaultdict(list)
    for name, value in values.items():
        if math.isfinite(value):
            node = graph.by_name[graph.by_layer[name].node]
            numbers[node.origin or node.name].append(float(value))
    found = {node: {"value": fmean(own)} for node, own in numbers.items()}
    if not found:
        raise LayerError("No layer has a finite value, so there is nothing for a graph to show.")
    stops = [
        {"stop": place / (len(COLOURS) - 1), "bgColor": colour, "textColor": ink}
        for place, (colour, ink) in enumerate(zip(COLOURS, INKS, strict=True))
    ]
    return json.dumps({GRAPH: {"results": found, "gradient": stops}}, indent=2) + "\n"
