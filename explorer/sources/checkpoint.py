"""Files of weights, of which no code is ever run, and putting them into a network."""

from __future__ import annotations

import json
import mmap
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from explorer.errors import CheckpointError, nearest
from explorer.sources.factory import describe, describe_type

CHECKPOINT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".index.json")
# Under these names training scripts keep a state_dict beside other things; the first that is there counts.
WRAPPERS = (
    "state_dict",
    "model",
    "model_state_dict",
    "net",
    "network",
    "weights",
    "ema",
    "model_ema",
    "ema_state_dict",
    "state_dict_ema",
)
# What DataParallel, torch.compile and modules that hold the network put before every name.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.")


def load_checkpoint(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """Put the weights of a file into ``module``; see ``read_checkpoint`` and ``load_weights``."""
    load_weights(module, read_checkpoint(path), str(path))


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, of a state_dict saved by torch, or of an index of several.

    A state_dict inside a larger dict, under a word of WRAPPERS, is found.  ``*.index.json`` is the list of
    shards that large checkpoints come with; the shards lie beside it.  Files are mapped into memory where
    their format allows it, so that tensors are read when they are used.  No code in a file is ever run.
    Raises CheckpointError.
    """
    file = Path(path).expanduser()
    try:
        if file.name.endswith(".index.json"):
            return _shards(file, str(path))
        if file.suffix == ".safetensors":
            return load_file(file)
        return _unwrapped(_torch_load(file), str(path))
    except CheckpointError:
        raise
    except FileNotFoundError as problem:
        names = [entry.name for entry in file.parent.glob("*") if entry.name.endswith(CHECKPOINT_SUFFIXES)]
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


def load_weights(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Put the tensors of ``state`` into ``module``; ``source`` names them in messages.

    A prefix of PREFIXES that every name has is taken off where the names then are those of the network.  The
    counters of BatchNorm and tensors that are tied to one that is there may be missing.  Raises
    CheckpointError, with the names, when others are, when ``state`` holds unknown ones, and for shapes that
    differ and values that are not finite.
    """
    if not state:
        raise CheckpointError(f"The checkpoint {source} holds no tensor.")
    own = module.state_dict(keep_vars=True)
    state = _without_prefix(own, state)
    missing, unexpected = _mismatch(own, state)
    differing = [
        f"{name} is {tuple(tensor.shape)} where the network has {tuple(own[name].shape)}"
        for name, tensor in state.items()
        if name in own and tensor.shape != own[name].shape
    ]
    if len(unexpected) == len(state):
        raise CheckpointError(
            f"The weights in {source} are of another network: none of their {len(state)} names is one of its "
            f"{len(own)} (missing {_first(missing, count=3)}; unexpected {_first(unexpected, count=3)})."
        )
    if missing or unexpected or differing:
        lists = (("missing", missing), ("unexpected", unexpected))
        parts = [f"{word} {_first(names)}" for word, names in lists if names]
        parts += [_first(differing, "; ")] if differing else []
        hint = nearest(missing[0], unexpected) if missing and unexpected else ""
        if unexpected and not missing:
            hint = nearest(unexpected[0], list(own))
        raise CheckpointError(f"The weights in {source} are of another network: {'; '.join(parts)}.{hint}")
    check_tensors(state, source, of=own)
    # Some networks ask for the version of their layout, which not every file says; the names are today's.
    versioned = OrderedDict(state)
    versioned._metadata = getattr(own, "_metadata", {})  # type: ignore[attr-defined]
    module.load_state_dict(versioned, strict=False)


def check_tensors(tensors: Mapping[str, Tensor], source: str, of: Mapping[str, Tensor] | None = None) -> None:
    """Refuse NaN and infinity, in parameters and running statistics where ``of`` says what is one.

    Raises CheckpointError.
    """
    for name, tensor in tensors.items():
        if of is not None and not isinstance(of[name], nn.Parameter) and "running_" not in name:
            continue
        if not tensor.is_floating_point():
            continue
        # torch.isfinite does not know the formats of one byte
        finite = torch.isfinite(tensor.float() if tensor.element_size() == 1 else tensor)
        if not bool(finite.all()):
            bad, count = int((~finite).sum()), tensor.numel()
            raise CheckpointError(
                f"The tensor {name} in {source} holds {bad:,} NaN or infinite values (of {count:,})."
            )


def _torch_load(file: Path) -> Any:
    is_zip = zipfile.is_zipfile(file)
    if is_zip:
        with zipfile.ZipFile(file) as archive:
            packed = [entry for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
        if packed:  # it might be a thousand times as large unpacked
            raise CheckpointError(
                f"The checkpoint {file} is compressed, which torch.save never does; save it with torch.save."
            )
    # map_location: a checkpoint written on a GPU is read anywhere
    if is_zip:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        # Mapped: a length in the pickle that is beyond the file's end asks for no memory.
        return torch.load(cast(IO[bytes], content), map_location="cpu", weights_only=True)


def _shards(file: Path, source: str) -> dict[str, Tensor]:
    index = json.loads(file.read_bytes())
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"The index {source} has no weight_map from names to files.")
    names = sorted({str(name) for name in places.values()})
    if strange := [name for name in names if Path(name).name != name or name.endswith(".index.json")]:
        raise CheckpointError(f"The index {source} names {strange[0]!r}; shards lie beside their index.")
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensors.update(read_checkpoint(file.with_name(name)))
    if lost := [str(name) for name in places if name not in tensors]:
        raise CheckpointError(f"The shards of {source} lack {_first(lost)}.")
    return tensors


def _unwrapped(state: object, source: str) -> dict[str, Tensor]:
    for _ in WRAPPERS:
        inner = [
            word for word in WRAPPERS if isinstance(state, Mapping) and isinstance(state.get(word), Mapping)
        ]
        if not inner:
            break
        assert isinstance(state, Mapping)
        state = state[inner[0]]
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"The checkpoint {source} holds {describe_type(state)}, not a state_dict.")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"The checkpoint {source} is no state_dict: {name!r} is {describe_type(value)}, not a tensor."
            )
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise CheckpointError(
                f"The tensor {name!r} in {source} is sparse, quantized or without values; save it as a plain one."
            )
    return {str(name): value for name, value in state.items()}


def _mismatch(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """The names that ``state`` lacks, and those that the network does not know."""
    there = {own[name].data_ptr() for name in state if name in own}
    missing = [
        name
        for name, tensor in own.items()
        if name not in state and not name.endswith("num_batches_tracked") and tensor.data_ptr() not in there
    ]
    return missing, [name for name in state if name not in own]


def _without_prefix(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """``state`` with as many prefixes taken off as bring its names nearest to the network's; none if none does."""
    tries = [state]
    while prefix := next(
        (each for each in PREFIXES if all(name.startswith(each) for name in tries[-1])), None
    ):
        tries.append({name.removeprefix(prefix): tensor for name, tensor in tries[-1].items()})
    return min(tries, key=lambda names: sum(map(len, _mismatch(own, names))))


def _first(words: list[str], separator: str = ", ", count: int = 5) -> str:
    more = len(words) - count
    return separator.join(words[:count]) + (f" and {more} more" if more > 0 else "")
