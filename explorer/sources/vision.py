"""torchvision, importable even where its compiled operators cannot be loaded.

torchvision declares shapes for its operators ``nms`` and ``qnms`` while it is being imported.  Where its
own compiled library does not fit the installed torch (a CPU build of one beside a CUDA build of the
other, say) those operators do not exist and the whole import fails, although every classification
network works without them.  Declaring the two operators lets the import succeed; detection networks,
which need their code, stay unavailable.

>>> from explorer.sources.vision import torchvision
>>> torchvision.models.resnet18.__name__
'resnet18'
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

from explorer.sources.factory import lacks_operators

_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []  # a declaration lives only as long as its Library object


def _import() -> ModuleType:
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if _declared or not lacks_operators(error):
            raise
    library = torch.library.Library("torchvision", "DEF")
    for schema in _OPERATORS:
        library.define(schema)
    _declared.append(library)
    # The failed import leaves some submodules behind; start again from nothing.
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    return importlib.import_module("torchvision")


torchvision = _import()
