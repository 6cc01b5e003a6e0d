"""torchvision's networks by name: classification, segmentation, backbones of detectors, video."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from explorer.errors import ModelError, unknown
from explorer.sources.checkpoint import load_weights, read_checkpoint
from explorer.sources.hub import cached
from explorer.sources.loaded import LoadedModel, seeded
from explorer.sources.preprocess import Preprocess

# Frames in a clip where 16 would not do.
_FRAMES = {"swin3d_t": 32, "swin3d_s": 32, "swin3d_b": 32}
# Old files of DenseNets have a dot more than a name may have today.
_DENSE = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


def from_torchvision(spec: str, checkpoint: str | None = None, download: bool = False) -> LoadedModel:
    """The network ``NAME`` or ``NAME:WEIGHTS``.

    * Classification and video: scores (N, classes).
    * Segmentation: the scores of each pixel, ``out`` of the results.
    * Detectors: the backbone alone, whose feature maps are the results; ``output`` of a session chooses one.
      The boxes are found by code that depends on the values of tensors, which no graph can express.

    The weights come from torch.hub's cache on this machine, and are fetched only with ``download``; without
    WEIGHTS they are random.  ``checkpoint`` replaces them.  Raises ModelError and CheckpointError.
    """
    from explorer.sources.vision import torchvision  # takes seconds, and most sessions do without

    models = torchvision.models
    name, _, word = spec.partition(":")
    task = next((each for each, folder in _tasks(models).items() if name in models.list_models(folder)), None)
    if task is None:
        names = [name for folder in _tasks(models).values() for name in models.list_models(folder)]
        raise ModelError(unknown("torchvision network", name, names))
    entries = models.get_model_weights(name)
    if word and word not in entries.__members__:
        raise ModelError(unknown(f"set of {name} weights", word, entries.__members__))
    entry = entries[word] if word else None
    if download and (entry is None or checkpoint is not None):
        raise ModelError(
            f"There is nothing to download for torchvision:{spec}; without a checkpoint, "
            f"torchvision:{name}:{next(iter(entries.__members__))} would be."
        )
    load = checkpoint is None and entry is not None
    if checkpoint is None and entry is not None:
        cached(entry.url, f"The weights {entry.name} of {name}", download)
    module = seeded(lambda: _built(models, name, task, entry, load))
    if checkpoint is not None:
        state = read_checkpoint(checkpoint)
        if name.startswith("densenet"):
            state = {_DENSE.sub(r"\1\2", key): value for key, value in state.items()}
        load_weights(module, state, checkpoint)
    known = entry if entry is not None else entries.__members__.get("DEFAULT", next(iter(entries)))
    loaded = _TASKS[task](module, name, known)
    classes = tuple(entry.meta["categories"]) if entry is not None and task != "detection" else None
    return LoadedModel(
        f"torchvision:{spec}", loaded.module, loaded.example, loaded.preprocess,
        classes=classes, output=loaded.output,
    )  # fmt: skip


def _tasks(models: Any) -> dict[str, Any]:
    return {task: models if task == "classification" else getattr(models, task) for task in _TASKS}


def _built(models: Any, name: str, task: str, entry: Any, load: bool) -> nn.Module:
    builder = models.get_model_builder(name)
    options: dict[str, Any] = {"weights": entry if load else None}
    if load:
        options["progress"] = False
    if task in ("segmentation", "detection"):
        options["weights_backbone"] = None  # whose default is to download
    if name in ("googlenet", "inception_v3") and not load:
        # what their builders do themselves when they load weights; and they warn about this initialisation
        options |= {"init_weights": entry is None, "transform_input": entry is not None}
    if task == "segmentation" and entry is not None and not load and not name.startswith("lraspp"):
        options["aux_loss"] = True  # the published weights have this second head
    return builder(**options)


def _classifier(module: nn.Module, name: str, entry: Any) -> LoadedModel:
    preset = entry.transforms()
    side = int(preset.crop_size[0])
    step = _preprocess(preset, int(preset.resize_size[0]), side)
    return LoadedModel(name, module, torch.zeros(1, 3, side, side), step)


def _segmentation(module: nn.Module, name: str, entry: Any) -> LoadedModel:
    preset = entry.transforms()
    side = int(preset.resize_size[0])
    # torchvision leaves images as wide as they are; a batch here has one shape
    return LoadedModel(
        name, module, torch.zeros(1, 3, side, side), _preprocess(preset, side, side), output="out"
    )


def _detection(module: Any, name: str, entry: Any) -> LoadedModel:
    inside = module.transform
    side = int(inside.fixed_size[0] if inside.fixed_size else inside.min_size[0])
    step = Preprocess(tuple(inside.image_mean), tuple(inside.image_std), side, side, channels=3)
    return LoadedModel(name, _thawed(module.backbone), torch.zeros(1, 3, side, side), step)


def _video(module: nn.Module, name: str, entry: Any) -> LoadedModel:
    # Clips come as tensors that are ready for the network: Preprocess is for single images.
    side = int(entry.transforms().crop_size[0])
    return LoadedModel(name, module, torch.zeros(1, 3, _FRAMES.get(name, 16), side, side))


_TASKS: Mapping[str, Callable[[Any, str, Any], LoadedModel]] = {
    "classification": _classifier,
    "segmentation": _segmentation,
    "detection": _detection,
    "video": _video,
}


def _preprocess(preset: Any, resize: int, crop: int) -> Preprocess:
    return Preprocess(
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        resize=resize,
        crop=crop,
        channels=3,
        interpolation=str(preset.interpolation.value),
    )


def _thawed(module: nn.Module) -> nn.Module:
    """``module`` with BatchNorm for FrozenBatchNorm2d, which computes the same by arithmetic that cannot be folded."""
    for name, child in module.named_children():
        if type(child).__name__ != "FrozenBatchNorm2d":
            _thawed(child)
            continue
        frozen: dict[str, Tensor] = dict(child.named_buffers())
        norm = nn.BatchNorm2d(len(frozen["weight"]), eps=float(child.eps))  # type: ignore[arg-type]
        norm.load_state_dict(frozen, strict=False)
        setattr(module, name, norm)
    return module
