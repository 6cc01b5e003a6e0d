"""Networks: the ones that ship, torchvision's, and the user's own with their checkpoints."""

from __future__ import annotations

import copy
import hashlib
import os
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from explorer.errors import CheckpointError, ModelError, nearest, unknown
from explorer.sources.data import FASHION
from explorer.sources.factory import call_factory, describe, describe_type, is_factory
from explorer.sources.files import shipped
from explorer.sources.preprocess import Preprocess
from explorer.sources.zoo import CLASSES, ZOO

CHECKPOINT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
WRAPPERS = ("state_dict", "model", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A network ready to be captured, with what is known about its inputs.

    ``module`` is in eval mode and on the CPU.  ``example`` is one input (1, C, H, W); ``data`` and
    ``calibration`` are the names of images that fit.  ``output`` is the result that is wanted where ``module``
    returns several.  A factory may return one, to say these things itself.
    """

    name: str
    module: nn.Module
    example: Tensor | None = None
    preprocess: Preprocess | None = None
    data: str | None = None
    calibration: str | None = None
    classes: tuple[str, ...] | None = None
    output: str | int | None = None


def load_model(spec: Any, checkpoint: str | os.PathLike[str] | None = None) -> LoadedModel:
    """A network from its name, from the user's own Python, or from memory.

    ``spec`` is a name in ZOO, ``torchvision:NAME`` or ``torchvision:NAME:WEIGHTS`` (the weights come from the
    local cache of torch.hub; nothing is ever downloaded), a factory ``file.py:name`` or
    ``package.module:name``, or an nn.Module, which is copied and itself left as it is.  ``checkpoint``
    replaces the weights (see ``read_checkpoint``).  A network without weights gets random ones from seed 0.
    Raises ModelError, and CheckpointError for weights that are missing, damaged, not finite or of another
    network.

    >>> load_model(nn.Linear(2, 1)).name
    'Linear'
    """
    if isinstance(spec, nn.Module):
        loaded = LoadedModel(type(spec).__name__, _copied(spec))
    elif not isinstance(spec, (str, os.PathLike)):
        what = describe_type(spec)
        raise ModelError(f"The network is {what}; give a torch.nn.Module or a name.")
    else:
        loaded = _from_text(os.fspath(spec), with_weights=checkpoint is None)
    if checkpoint is not None:
        load_weights(loaded.module, read_checkpoint(checkpoint), str(checkpoint))
    loaded.module.eval()
    _check_finite(_own_tensors(loaded.module), f"the network {loaded.name}")
    return loaded


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, or of a state_dict saved by torch.

    A state_dict inside a larger dict under "state_dict", "model" or "model_state_dict" is found, and the
    prefixes that DataParallel and torch.compile put before every name are taken off.  No code in the file
    is ever run.  Raises CheckpointError.
    """
    file = Path(path).expanduser()
    try:
        content = file.read_bytes() if file.suffix == ".safetensors" else None
        if content is not None:
            return load_safetensors(content)
        # map_location: a checkpoint written on a GPU is read anywhere
        state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as problem:
        names = [entry.name for entry in file.parent.glob("*") if entry.suffix in CHECKPOINT_SUFFIXES]
        raise CheckpointError(f"There is no checkpoint {path}.{nearest(file.name, names)}") from problem
    except pickle.UnpicklingError as problem:  # raised instead of running what is not tensors
        if "weights only" not in str(problem).lower():
            raise CheckpointError(f"The checkpoint {path} is damaged: {describe(problem)}.") from problem
        raise CheckpointError(
            f"The checkpoint {path} holds more than tensors, which is not read because that could run code; "
            "save module.state_dict() and give the network as file.py:factory."
        ) from problem
    except Exception as problem:  # what a damaged file raises is anybody's guess: zip, pickle, Unicode, ...
        raise CheckpointError(
            f"The checkpoint {path} is damaged or of another kind: {describe(problem)}."
        ) from problem
    return _unwrapped(state, str(path))


def load_weights(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Put the tensors of ``state`` into ``module``; ``source`` names them in messages.

    The counters of BatchNorm and tensors that are tied to one that is there may be missing.  Raises
    CheckpointError, with the names, when others are, when ``state`` holds unknown ones, and for shapes that
    differ and values that are not finite.
    """
    own = module.state_dict(keep_vars=True)
    there = {own[name].data_ptr() for name in state if name in own}
    missing = [
        name
        for name, tensor in own.items()
        if name not in state and not name.endswith("num_batches_tracked") and tensor.data_ptr() not in there
    ]
    unexpected = [name for name in state if name not in own]
    if missing or unexpected:
        lists = (("missing", missing), ("unexpected", unexpected))
        parts = [f"{word} {_first(names)}" for word, names in lists if names]
        hint = nearest(missing[0], unexpected) if missing else nearest(unexpected[0], list(own))
        raise CheckpointError(f"The weights in {source} are of another network: {'; '.join(parts)}.{hint}")
    differing = [
        f"{name} is {tuple(tensor.shape)} where the network has {tuple(own[name].shape)}"
        for name, tensor in state.items()
        if tensor.shape != own[name].shape
    ]
    if differing:
        raise CheckpointError(f"The weights in {source} are of another network: {_first(differing, '; ')}.")
    _check_finite(state, source, of=own)
    module.load_state_dict(state, strict=False)


def _from_text(spec: str, with_weights: bool) -> LoadedModel:
    if spec in ZOO:
        module = _seeded(ZOO[spec])
        if with_weights:
            load_weights(module, _shipped_weights(spec), f"{spec}.safetensors")
        return LoadedModel(
            name=spec,
            module=module,
            example=torch.zeros(1, 1, 28, 28),
            preprocess=FASHION,
            data="fashion-mnist",
            calibration="fashion-mnist-calibration",
            classes=CLASSES,
        )
    if spec.startswith("torchvision:"):
        return _from_torchvision(spec, with_weights)
    if spec.endswith(".pt2"):
        raise ModelError(
            f"{spec} is an exported program; these cannot be read yet, give file.py:factory instead."
        )
    if spec.endswith(CHECKPOINT_SUFFIXES):
        raise ModelError(
            f"{spec} is a checkpoint, not a network; give the network, such as file.py:factory, "
            "and this file as its checkpoint."
        )
    if spec.endswith(".py"):
        raise ModelError(f"{spec} lacks the name of a function in it; write {spec}:NAME.")
    if not is_factory(spec):
        raise ModelError(unknown("network", spec, [*ZOO, "torchvision:NAME", "FILE.py:FACTORY"]))
    made = call_factory(spec, ModelError)
    if isinstance(made, LoadedModel):
        return replace(made, module=_copied(made.module))
    if not isinstance(made, nn.Module):
        raise ModelError(f"The factory {spec} returned {describe_type(made)}, not a torch.nn.Module.")
    return LoadedModel(spec, _copied(made))


def _shipped_weights(name: str) -> dict[str, Tensor]:
    try:
        return load_safetensors(shipped(f"{name}.safetensors", CheckpointError))
    except SafetensorError as problem:
        raise CheckpointError(f"The shipped weights of {name} are damaged: {describe(problem)}.") from problem


def _from_torchvision(spec: str, with_weights: bool) -> LoadedModel:
    from explorer.sources.vision import torchvision  # takes seconds, and most sessions do without

    models = torchvision.models
    name, _, word = spec.removeprefix("torchvision:").partition(":")
    names = models.list_models(module=models)
    if name not in names:
        raise ModelError(unknown("torchvision classification network", name, names))
    entries = models.get_model_weights(name)
    if word and word not in entries.__members__:
        raise ModelError(unknown(f"set of {name} weights", word, entries.__members__))
    entry = entries[word] if word else None
    load = entry is not None and with_weights
    if load:
        _check_cached(name, entry)
    options: dict[str, Any] = {"weights": entry if load else None}
    if name in ("googlenet", "inception_v3") and not load:
        # what their builders do themselves when they load weights; and they warn about this initialisation
        options |= {"init_weights": entry is None, "transform_input": entry is not None}
    builder = models.get_model_builder(name)
    module = _seeded(lambda: builder(progress=False, **options) if load else builder(**options))
    known = entry if entry is not None else next((each for each in entries if each.name == "DEFAULT"), None)
    preset = (known or next(iter(entries))).transforms()
    side = int(preset.crop_size[0])
    preprocess = Preprocess(
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        resize=int(preset.resize_size[0]),
        crop=side,
        channels=3,
        interpolation=str(preset.interpolation.value),
    )
    classes = tuple(entry.meta["categories"]) if entry is not None else None
    return LoadedModel(spec, module, torch.zeros(1, 3, side, side), preprocess, classes=classes)


def _check_cached(name: str, entry: Any) -> None:
    """Refuse to load what torch.hub would download, or what is not what it says it is."""
    file = Path(torch.hub.get_dir(), "checkpoints", Path(entry.url).name)
    if not file.is_file():
        raise CheckpointError(
            f"The weights {entry.name} of {name} are not on this machine, and nothing is downloaded; "
            f"put {entry.url} into {file.parent}, or give the file as checkpoint."
        )
    wanted = re.search(r"-([0-9a-f]{8,})\.", file.name)
    if wanted and not hashlib.sha256(file.read_bytes()).hexdigest().startswith(wanted[1]):
        raise CheckpointError(
            f"The file {file} is damaged: its sha256 should begin with {wanted[1]}; fetch it again."
        )
    read_checkpoint(file)  # torchvision itself would run code that the file holds; this refuses such a file


def _seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def _copied(module: nn.Module) -> nn.Module:
    """A copy on the CPU, so that nothing done here reaches the user's own network, nor the reverse."""
    try:
        return copy.deepcopy(module).cpu()
    except Exception as problem:
        name = type(module).__name__
        raise ModelError(f"The network {name} cannot be copied: {describe(problem)}.") from problem


def _unwrapped(state: object, source: str) -> dict[str, Tensor]:
    for word in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(word), Mapping):
            state = state[word]
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"The checkpoint {source} holds {describe_type(state)}, not a state_dict.")
    strange = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        what = describe_type(state[strange[0]])
        raise CheckpointError(
            f"The checkpoint {source} is no state_dict: {strange[0]!r} is {what}, not a tensor."
        )
    named = {str(name): value for name, value in state.items()}
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in named):
            named = {name.removeprefix(prefix): value for name, value in named.items()}
    return named


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and running statistics: other buffers, such as masks, may well hold infinity."""
    buffers = {
        name: buffer
        for name, buffer in module.named_buffers()
        if name.rpartition(".")[2] in ("running_mean", "running_var")
    }
    return {**dict(module.named_parameters()), **buffers}


def _check_finite(tensors: Mapping[str, Tensor], source: str, of: Mapping[str, Tensor] | None = None) -> None:
    for name, tensor in tensors.items():
        if of is not None and not isinstance(of[name], nn.Parameter) and "running_" not in name:
            continue
        if tensor.is_floating_point() and not bool((finite := torch.isfinite(tensor)).all()):
            bad, count = int((~finite).sum()), tensor.numel()
            raise CheckpointError(
                f"The tensor {name} in {source} holds {bad:,} NaN or infinite values (of {count:,})."
            )


def _first(words: list[str], separator: str = ", ", count: int = 5) -> str:
    more = len(words) - count
    return separator.join(words[:count]) + (f" and {more} more" if more > 0 else "")
