"""Print the figures: ``python -m benchmarks [engine,memory,...] [--images N] [--models a,b] [--large]``.

``python -m benchmarks peers --venvs FOLDER [--tools a,b]`` sets other tools' sensitivities beside ours.

Every figure is a ratio of two things done in the same run on the same machine, beside its bound; nothing here
passes or fails by a time, only by a result that differs.

A module of this package joins in with a function ``lines(options) -> Iterator[Line]`` and its name in ``MODULES``.
"""

from __future__ import annotations

import argparse
import importlib
import platform

import torch

from benchmarks.peers import TOOLS
from benchmarks.table import print_lines
from explorer.sources import ZOO

# ``peers`` is run only when it is named: it makes environments and installs other tools in them; so is ``serving``,
# which takes the whole machine.
MODULES = ("engine", "memory", "calibration", "sensitivity", "cluster", "page")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("modules", nargs="?", default=",".join(MODULES), help="default: %(default)s")
    parser.add_argument("--images", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--models", default=",".join(ZOO), help="default: %(default)s")
    parser.add_argument(
        "--large", action="store_true", help="networks of torchvision on images of 224 x 224 as well"
    )
    parser.add_argument("--venvs", help="where peers makes or finds an environment for each tool")
    parser.add_argument("--sessions", type=int, default=20, help="for serving, default: %(default)s")
    parser.add_argument("--tools", default=",".join(TOOLS), help="for peers, default: %(default)s")
    options = parser.parse_args()
    options.tools = [name for name in options.tools.split(",") if name]
    options.models = [name for name in options.models.split(",") if name]
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    for name in options.modules.split(","):
        print_lines(importlib.import_module(f"benchmarks.{name}").lines(options))


if __name__ == "__main__":
    main()
