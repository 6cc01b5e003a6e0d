"""Searches hold a bounded amount of memory, whatever the layer."""

from __future__ import annotations

import subprocess
import sys

import pytest

# The process's own peak: what torch allocates is seen by no Python tool.
PEAK = """
import re, sys, torch
from explorer.recipe import TensorScheme
from explorer.tensor import fit_tensor

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10

weight = torch.randn(1000, 2000)
schemes = [TensorScheme("int4", grain, objective="mse") for grain in ("channel", "subchannel:48", "layer")]
schemes.append(TensorScheme("int4", "group:64", objective="kl"))
schemes += [
    TensorScheme(name, grain)
    for name, grain in (("kmeans4", "layer"), ("kmeans3", "channel"), ("basis3", "layer"), ("ternary", "subchannel:48"))
]
for scheme in schemes:
    fit_tensor(weight[:100], scheme, 0)
before = peak()
for scheme in schemes:
    fit_tensor(weight, scheme, 0)
print((peak() - before) / weight.numel())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's account of a process")
def test_a_search_fits_beside_the_layer() -> None:
    """For 25 million parameters 1 GiB would be 43 bytes for each; the whole weight at once took over 300."""
    run = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 43
