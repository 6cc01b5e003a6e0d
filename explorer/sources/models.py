"""Networks by name: the ones that ship, libraries', and the user's own with their checkpoints."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn, zeros

from explorer.errors import CheckpointError, ModelError, unknown
from explorer.sources.checkpoint import CHECKPOINT_SUFFIXES, check_tensors, load_checkpoint, load_weights
from explorer.sources.data import FASHION
from explorer.sources.efficientnet import PACKAGED
from explorer.sources.factory import call_factory, describe, describe_type, is_factory
from explorer.sources.files import shipped
from explorer.sources.loaded import LoadedModel, seeded
from explorer.sources.onnxmodel import load_onnx
from explorer.sources.program import load_program
from explorer.sources.steps import Program
from explorer.sources.timmmodels import from_timm
from explorer.sources.torchvisionmodels import from_torchvision
from explorer.sources.zoo import CLASSES, ZOO

# Each makes a network from what follows its name, a checkpoint or None, and whether it may download.
LIBRARIES: dict[str, Callable[[str, str | None, bool], LoadedModel]] = {
    "torchvision:": from_torchvision,
    "timm:": from_timm,
}

# Each reads a network from a file that holds all of it, and one input for it.
PROGRAMS: dict[str, Callable[[Path], tuple[Program, Tensor]]] = {".pt2": load_program, ".onnx": load_onnx}


def load_model(
    spec: Any, checkpoint: str | os.PathLike[str] | None = None, download: bool = False
) -> LoadedModel:
    """A network from its name, from a library, from the user's own Python, or from memory.

    ``spec`` is a name in ZOO or PACKAGED, ``torchvision:NAME[:WEIGHTS]``, ``timm:NAME[.TAG]``, a program saved by
    torch.export (``.pt2``), an ONNX model (``.onnx``), a factory ``file.py:name`` or ``package.module:name``, or an
    nn.Module, which is copied and itself left as it is.  ``checkpoint`` replaces the weights (see
    ``read_checkpoint``).  Weights that a name asks for come from the library's cache on this machine; with
    ``download`` the library may fetch them.  A network without weights gets random ones from seed 0.
    Raises ModelError, and CheckpointError for weights that are missing, damaged, not finite or of another
    network.

    >>> load_model(nn.Linear(2, 1)).name
    'Linear'
    """
    file = None if checkpoint is None else os.fspath(checkpoint)
    if isinstance(spec, nn.Module):
        _nothing_to_download(download, "a network in memory")
        loaded = _with_checkpoint(LoadedModel(type(spec).__name__, _copied(spec)), file)
    elif not isinstance(spec, (str, os.PathLike)):
        what = describe_type(spec)
        raise ModelError(f"The network is {what}; give a torch.nn.Module or a name.")
    else:
        loaded = _from_text(os.fspath(spec), file, download)
    loaded.module.eval()
    check_tensors(_own_tensors(loaded.module), f"the network {loaded.name}")
    return loaded


def _with_checkpoint(loaded: LoadedModel, checkpoint: str | None) -> LoadedModel:
    if checkpoint is not None:
        load_checkpoint(loaded.module, checkpoint)
    return loaded


def _nothing_to_download(download: bool, what: str) -> None:
    if download:
        raise ModelError(
            f"There is nothing to download for {what}; it is for weights that a library's name asks for, "
            "such as torchvision:resnet18:DEFAULT."
        )


def _from_text(spec: str, checkpoint: str | None, download: bool) -> LoadedModel:
    for prefix, make in LIBRARIES.items():
        if spec.startswith(prefix):
            return make(spec.removeprefix(prefix), checkpoint, download)
    _nothing_to_download(download, spec)
    if spec in ZOO:
        return _with_checkpoint(_from_zoo(spec, checkpoint is None), checkpoint)
    if spec in PACKAGED:
        return PACKAGED[spec](checkpoint)
    for suffix, read in PROGRAMS.items():
        if spec.endswith(suffix):
            program, example = read(Path(spec).expanduser())
            return _with_checkpoint(LoadedModel(spec, program, example), checkpoint)
    if spec.endswith(CHECKPOINT_SUFFIXES):
        raise ModelError(
            f"{spec} is a checkpoint, not a network; give the network, such as file.py:factory, "
            "and this file as its checkpoint."
        )
    if spec.endswith(".py"):
        raise ModelError(f"{spec} lacks the name of a function in it; write {spec}:NAME.")
    if not is_factory(spec):
        raise ModelError(
            unknown(
                "network",
                spec,
                [*ZOO, *PACKAGED, *(f"{prefix}NAME" for prefix in LIBRARIES), "FILE.py:FACTORY"],
            )
        )
    made = call_factory(spec, ModelError)
    if isinstance(made, LoadedModel):
        return _with_checkpoint(replace(made, module=_copied(made.module)), checkpoint)
    if not isinstance(made, nn.Module):
        raise ModelError(f"The factory {spec} returned {describe_type(made)}, not a torch.nn.Module.")
    return _with_checkpoint(LoadedModel(spec, _copied(made)), checkpoint)


def _from_zoo(name: str, with_weights: bool) -> LoadedModel:
    module = seeded(ZOO[name])
    if with_weights:
        load_weights(module, _shipped_weights(name), f"{name}.safetensors")
    return LoadedModel(
        name=name,
        module=module,
        example=zeros(1, 1, 28, 28),
        preprocess=FASHION,
        data="fashion-mnist",
        calibration="fashion-mnist-calibration",
        classes=CLASSES,
    )


def _shipped_weights(name: str) -> dict[str, Tensor]:
    try:
        return load_safetensors(shipped(f"{name}.safetensors", CheckpointError))
    except SafetensorError as problem:
        raise CheckpointError(f"The shipped weights of {name} are damaged: {describe(problem)}.") from problem


def _copied(module: nn.Module) -> nn.Module:
    """A copy on the CPU, so that nothing done here reaches the user's own network, nor the reverse."""
    try:
        return copy.deepcopy(module).cpu()
    except Exception as problem:
        name = type(module).__name__
        raise ModelError(f"The network {name} cannot be copied: {describe(problem)}.") from problem


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and running statistics: other buffers, such as masks, may well hold infinity."""
    buffers = {
        name: buffer
        for name, buffer in module.named_buffers()
        if name.rpartition(".")[2] in ("running_mean", "running_var")
    }
    return {**dict(module.named_parameters()), **buffers}
