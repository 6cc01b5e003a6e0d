"""The graph of a network, captured once, and the engine that evaluates it under recipes."""

from __future__ import annotations

from explorer.graph.capture import capture
from explorer.graph.disk import Disk
from explorer.graph.engine import Batch, Engine, Plan, plan
from explorer.graph.ir import Graph, Layer, Node
from explorer.graph.observe import Calibration
from explorer.graph.store import Store, StoreFacts

__all__ = [
    "Batch",
    "Calibration",
    "Disk",
    "Engine",
    "Graph",
    "Layer",
    "Node",
    "Plan",
    "Store",
    "StoreFacts",
    "capture",
    "plan",
]
