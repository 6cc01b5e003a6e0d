"""timm's networks by name, where timm is installed (the extra ``timm``)."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from explorer.errors import CheckpointError, ModelError, unknown
from explorer.sources.checkpoint import load_checkpoint, read_checkpoint
from explorer.sources.factory import describe
from explorer.sources.hub import cached, place
from explorer.sources.loaded import LoadedModel, seeded
from explorer.sources.preprocess import Preprocess


def from_timm(spec: str, checkpoint: str | None = None, download: bool = False) -> LoadedModel:
    """The network ``NAME``, with random weights, or ``NAME.TAG``, with timm's own of that tag.

    The weights come from the caches of the Hugging Face hub and of torch.hub on this machine, and are fetched
    only with ``download``; ``checkpoint`` replaces them.  Preprocessing is timm's for the tag, but that images
    are cut square where timm would squash or pad them.  Raises ModelError and CheckpointError.
    """
    timm = _timm(spec)
    name, _, tag = spec.partition(".")
    if name not in (names := timm.list_models()):
        raise ModelError(unknown("timm network", name, names))
    tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{name}.*")]
    if tag and tag not in tags:
        raise ModelError(unknown(f"tag of {name}", tag, tags))
    if download and (not tag or checkpoint is not None):
        raise ModelError(
            f"There is nothing to download for timm:{spec}"
            + (f"; without a checkpoint, timm:{name}.{tags[0]} would be." if tags else ".")
        )
    options: dict[str, Any] = {"pretrained": False}
    if tag and checkpoint is None:
        file = _weights(spec, timm.get_pretrained_cfg(spec), download)
        # Of whatever kind the file was at its source, it is a state_dict now.
        options = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file), "custom_load": False}}
    module = _built(timm, spec, options)
    if checkpoint is not None:
        load_checkpoint(module, checkpoint)
    step = timm.data.resolve_model_data_config(module)
    channels, side = int(step["input_size"][0]), int(step["input_size"][-1])
    resize = side if step["crop_mode"] == "squash" else int(side / step["crop_pct"])
    preprocess = Preprocess(
        mean=tuple(step["mean"]),
        std=tuple(step["std"]),
        resize=resize,
        crop=side,
        channels=channels,
        interpolation=step["interpolation"],
    )
    classes = _classes(timm, module) if tag else None
    example = torch.zeros(1, *step["input_size"])
    return LoadedModel(f"timm:{spec}", module, example, preprocess, classes=classes)


def _timm(spec: str) -> Any:
    if importlib.util.find_spec("timm") is None:
        raise ModelError(
            f"timm:{spec} needs the package timm, which is not installed; "
            "pip install 'quantization-explorer[timm]'."
        )
    from explorer.sources import vision  # noqa: F401  timm imports torchvision, which this makes importable

    return importlib.import_module("timm")


def _built(timm: Any, spec: str, options: dict[str, Any]) -> nn.Module:
    try:
        with _quiet():
            return seeded(lambda: timm.create_model(spec, **options))
    except Exception as problem:  # what a network of somebody else's raises is anybody's guess
        error = CheckpointError if options["pretrained"] else ModelError
        raise error(f"timm cannot build {spec}: {describe(problem)}.") from problem


@contextmanager
def _quiet() -> Iterator[None]:
    """Without timm's remarks on where it loads from."""
    logger = logging.getLogger("timm")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _weights(spec: str, entry: Any, download: bool) -> Path:
    """The file of weights that timm would load, none of whose code is run."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    what, repository, url = f"The weights of timm:{spec}", entry.hf_hub_id, entry.url
    if url and url.endswith((".npz", ".npy")):
        url = None  # in another library's format; the hub has them in torch's
    wanted = [entry.hf_hub_filename] if entry.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    for name in wanted if repository else ():
        if isinstance(found := try_to_load_from_cache(repository, name), str):
            read_checkpoint(found)
            return Path(found)
    if url and (place(url).is_file() or not repository):
        return cached(url, what, download)
    if not repository:
        raise CheckpointError(f"{what} are not published in torch's format; give a file as checkpoint.")
    if not download:
        raise CheckpointError(
            f"{what} are not on this machine, and nothing is downloaded unless asked for; add --download "
            f"(download=True), or give the file {wanted[0]} of {repository} as checkpoint."
        )
    try:
        file = Path(hf_hub_download(repository, wanted[0]))
    except Exception as problem:  # no connection, no such file, no right to it: as many types as reasons
        raise CheckpointError(f"{what} could not be fetched: {describe(problem)}.") from problem
    read_checkpoint(file)
    return file


def _classes(timm: Any, module: Any) -> tuple[str, ...] | None:
    """What the classes are called, as far as timm knows: the first of each class's words."""
    subset = timm.data.infer_imagenet_subset(module)
    if subset is None:
        return None
    names = timm.data.ImageNetInfo(subset).label_descriptions()
    return tuple(name.partition(",")[0] for name in names) if len(names) == module.num_classes else None
