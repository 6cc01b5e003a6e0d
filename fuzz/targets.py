"""The readers, each with small valid files to begin from and a way to damage them: one table, ``TARGETS``."""

from __future__ import annotations

import io
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save as save_safetensors
from torch import nn

from explorer.graph import Graph, capture
from explorer.recipe import PRESETS, Recipe
from explorer.sources import (
    Notes,
    Project,
    load_data,
    load_model,
    load_notes,
    load_recipe,
    read_foreign,
)
from explorer.sources.project import pack
from explorer.study import Outcome, Trial
from explorer.views.link import Link, state_of
from fuzz import mutate
from fuzz.law import CANARY

NAME = "file"


@dataclass(frozen=True)
class Target:
    """A reader.

    Args:
        name: in the table.
        corpus: gives valid small files, and hostile ones.
        read: reads the content of a file; the folder is empty, for readers of paths.
        mutate: does small damage to a file of this kind.
    """

    name: str
    corpus: Callable[[], list[bytes]]
    read: Callable[[bytes, Path], Any]
    mutate: mutate.Mutator = mutate.plain


def on_disk(suffix: str, read: Callable[[str], Any]) -> Callable[[bytes, Path], Any]:
    """A reader of paths as one of bytes."""

    def reads(data: bytes, folder: Path) -> Any:
        path = folder / f"{NAME}{suffix}"
        path.write_bytes(data)
        try:
            return read(str(path))
        finally:
            path.unlink(missing_ok=True)

    return reads


class _Touch:
    """Unpickled, it makes a folder in the present one."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (CANARY,)


def hostile() -> bytes:
    """A pickle that runs code where it is loaded without care; the law looks for what it makes."""
    return pickle.dumps(_Touch())


# -- recipes, notes, the page's address, projects -------------------------------------------------------------


def _recipes() -> list[Recipe]:
    long = Recipe.preset("w4a8").with_layer(
        "layer3.*", weight={"format": "nf4", "granularity": "subchannel:32"}
    )
    return [*(Recipe.preset(name) for name in PRESETS), long.with_layer("fc", input={"mode": "off"})]


def _notes() -> Notes:
    return Notes("ship it — once more", {"fc": "stays in float?", "layer1.0.conv1": "two\nlines"})


def _links() -> list[bytes]:
    recipes = _recipes()
    links = [
        Link("net", recipes[0]),
        Link("net", recipes[-1], "fc", "input", False, ("a", "b"), ("weight", "map"), _notes()),
    ]
    return [link.to_text().encode() for link in links]


def _read_link(data: bytes, folder: Path) -> Any:
    text = state_of("?state=" + data.decode("utf-8", "replace"))
    return text and Link.from_text(text)


KEY, TAB = "0" * 32, "f" * 32


def _entries() -> list[bytes]:
    outcome = Outcome(400, 1000, False, 0.9, (0.88, 0.92), 0.91, -0.01, (-0.02, 0.0), 0.1, (5,), (1, 2))
    trials = [Trial(recipe, 1000, 4000, 10, 40, outcome, 1.0, "name", 1.0) for recipe in _recipes()[-2:]]
    bodies = [trial.to_dict() for trial in trials] + [recipe.to_dict() for recipe in _recipes()[-2:]]
    bodies.append({"recipes": [_recipes()[-1].digest], "at": 0})
    return [pack(body).encode() for body in bodies]


def _read_entry(data: bytes, folder: Path) -> Any:
    """The same bytes as a trial, as a list of steps and as a step: one of them may be right."""
    try:
        body = json.loads(data)["body"]
    except (ValueError, TypeError, KeyError, RecursionError):
        body = None
    digests = {KEY}
    for part in (body, body.get("recipe") if isinstance(body, dict) else None):
        try:
            digests.add(Recipe.from_dict(part).digest)
        except Exception:  # what is wrong with it is for the reader to say
            continue
    (folder / "project").mkdir()
    try:
        project = Project(folder / "project", KEY, {})
        trials, steps = folder / "project" / KEY / "trials", folder / "project" / KEY / "steps" / TAB
        steps.mkdir(parents=True)
        for digest in digests:
            (trials / f"{digest}.json").write_bytes(data)
            (steps / f"{digest}.json").write_bytes(data)
        (steps / "steps.json").write_bytes(data)
        found = project.trials(), project.steps(TAB)
        (steps / "steps.json").write_text(pack({"recipes": sorted(digests), "at": 0}))
        return found, project.steps(TAB)
    finally:
        _remove(folder / "project")


def _remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


# -- checkpoints, images ------------------------------------------------------------------------------------


class Net(nn.Module):
    """Small, with a weight, running statistics and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3, bias=False)
        self.bn = nn.BatchNorm2d(2)
        self.fc = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.bn(self.stem(x)).mean((2, 3)))


@cache
def net() -> Net:
    """The network, with the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net().eval()


@cache
def graph() -> Graph:
    """It, captured."""
    return capture(net(), torch.zeros(2, 1, 4, 4))


def saved(value: Any) -> bytes:
    """What torch.save writes."""
    whole = io.BytesIO()
    torch.save(value, whole)
    return whole.getvalue()


def _checkpoints() -> list[bytes]:
    state = net().state_dict()
    wrapped = {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}
    old = io.BytesIO()
    torch.save(state, old, _use_new_zipfile_serialization=False)
    tied = {**state, "extra": state["fc.weight"].T.expand(4, 2, 3)}
    touch = saved({**state, "x": _Touch()})
    return [saved(state), saved(wrapped), saved(tied), old.getvalue(), touch, hostile()]


def _programs() -> list[bytes]:
    """As torch.export writes them; the last runs code where it is loaded by torch.export.load."""
    batch = torch.export.Dim("batch")
    free = torch.export.export(net(), (torch.randn(3, 1, 4, 4),), dynamic_shapes=({0: batch},))
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for program in (
            free,
            free.run_decompositions(),
            torch.export.export(net(), (torch.randn(3, 1, 4, 4),)),
        ):
            whole = io.BytesIO()
            torch.export.save(program, whole)
            found.append(whole.getvalue())
    with zipfile.ZipFile(io.BytesIO(found[0])) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    touch = [(name, hostile() if "sample_inputs" in name else content) for name, content in members]
    return [*found, mutate.zipped(touch)]


def _models() -> list[bytes]:
    """Float networks in ONNX: a convolution, and the arithmetic of shapes that exporters write."""
    from onnx import TensorProto, helper, numpy_helper

    def made(nodes: list[Any], held: list[Any], shape: list[Any], result: list[Any]) -> bytes:
        values = [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", shape), ("y", result))
        ]
        graph = helper.make_graph(nodes, "net", values[:1], values[1:], held)
        opset = helper.make_opsetid("", 17)
        return helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()

    def constant(name: str, array: Any) -> Any:
        return numpy_helper.from_array(np.asarray(array), name)

    state = {name: tensor.numpy() for name, tensor in net().state_dict().items() if tensor.dim()}
    first = made(
        [
            helper.make_node("Conv", ["x", "stem.weight"], ["a"], "/stem/Conv", kernel_shape=[3, 3]),
            helper.make_node("BatchNormalization", ["a", *(f"bn.{w}" for w in (
                "weight", "bias", "running_mean", "running_var"))], ["b"], "/bn/BatchNormalization"),
            helper.make_node("ReduceMean", ["b"], ["c"], axes=[2, 3], keepdims=0),
            helper.make_node("Gemm", ["c", "fc.weight", "fc.bias"], ["y"], "/fc/Gemm", transB=1),
        ],
        [constant(name, array) for name, array in state.items()],
        ["n", 1, 4, 4],
        ["n", 3],
    )  # fmt: skip
    second = made(
        [
            helper.make_node("Shape", ["x"], ["s"]),
            helper.make_node("Gather", ["s", "zero"], ["n"]),
            helper.make_node("Unsqueeze", ["n", "axis"], ["ns"]),
            helper.make_node("Concat", ["ns", "rest"], ["shape"], axis=0),
            helper.make_node("Reshape", ["x", "shape"], ["r"]),
            helper.make_node("MatMul", ["r", "w"], ["m"]),
            helper.make_node("Add", ["b", "m"], ["z"]),
            helper.make_node("Softmax", ["z"], ["y"], axis=-1),
        ],
        [constant("zero", np.int64(0)), constant("axis", np.array([0])), constant("rest", np.array([-1])),
         constant("w", np.eye(4, 3, dtype=np.float32)), constant("b", np.ones(3, np.float32))],
        ["n", 2, 2],
        ["n", 3],
    )  # fmt: skip
    return [first, second]


def _arrays() -> list[bytes]:
    kinds: list[dict[str, Any]] = [
        {"images": np.zeros((2, 4, 4), np.uint8), "labels": np.arange(2)},
        {"images": np.zeros((2, 1, 4, 4), np.float32), "labels": np.arange(2, dtype=np.uint8)},
        {"images": np.array([_Touch(), 1], object)},
    ]
    found = []
    for arrays in kinds:
        for save in (np.savez, np.savez_compressed):
            whole = io.BytesIO()
            save(whole, **arrays)
            found.append(whole.getvalue())
    return found


def _images() -> list[bytes]:
    found = []
    for mode in ("L", "RGB", "P", "RGBA", "1", "I;16", "CMYK"):
        for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
            whole = io.BytesIO()
            try:
                Image.new(mode, (5, 4)).save(whole, kind)
            except (OSError, KeyError, ValueError):  # this kind of file has no such pixels
                continue
            found.append(whole.getvalue())
    return found


def _read_image(data: bytes, folder: Path) -> Any:
    pictures = folder / "pictures"
    pictures.mkdir()
    try:
        (pictures / "one.png").write_bytes(data)
        return load_data(str(pictures)).read([0])
    finally:
        _remove(pictures)


# -- other tools' parameters ------------------------------------------------------------------------------------


def _encodings() -> list[bytes]:
    def old(bits: int) -> dict[str, Any]:
        return {"bitwidth": bits, "dtype": "int", "is_symmetric": "False", "max": 1.0, "min": -1.0, "offset": -128,
                "scale": 0.0078}  # fmt: skip

    listed = {"name": "fc.weight", "bw": 8, "dtype": "INT", "enc_type": "PER_CHANNEL", "is_sym": True,
              "offset": [-128] * 3, "scale": [0.1, 0.2, 0.3]}  # fmt: skip
    new = {"name": "stem.weight", "output_dtype": "int8", "y_scale": [0.1, 0.2], "axis": 0}
    block = {"name": "x", "output_dtype": "uint4", "y_scale": 0.1, "y_zero_point": 3, "block_size": 4}
    files = [
        {"version": "0.6.1", "activation_encodings": {"stem": {"input": {"0": old(8)}, "output": {"0": old(8)}}},
         "param_encodings": {"fc.weight": [old(4)], "fc.bias": [old(32)]}},
        {"version": "1.0.0", "activation_encodings": [], "param_encodings": [listed]},
        {"version": "2.0.0", "encodings": [new, block]},
    ]  # fmt: skip
    return [json.dumps(file).encode() for file in files]


def _quantized_states() -> list[bytes]:
    weight = net().fc.weight.detach()
    with warnings.catch_warnings():
        # That these types will go one day is no news: their files stay.
        warnings.simplefilter("ignore", UserWarning)
        channels = torch.quantize_per_channel(weight, torch.rand(3) + 0.1, torch.zeros(3), 0, torch.qint8)
        whole = torch.quantize_per_tensor(weight, 0.1, 3, torch.quint8)
    observed = {
        "stem.weight": torch.zeros(2, 1, 3, 3),
        "stem.weight_fake_quant.scale": torch.tensor([0.1, 0.2]),
        "stem.weight_fake_quant.zero_point": torch.zeros(2, dtype=torch.int32),
        "stem.activation_post_process.scale": torch.tensor([0.1]),
        "stem.activation_post_process.zero_point": torch.tensor([3]),
        "stem.activation_post_process.min_val": torch.tensor(-1.0),
        "stem.activation_post_process.max_val": torch.tensor(1.0),
    }
    packed = {"fc._packed_params._packed_params": (channels, None), "fc.scale": torch.tensor(0.1),
              "fc.zero_point": torch.tensor(3), "fc_input_scale_0": torch.tensor(0.1),
              "fc_input_zero_point_0": torch.tensor(3)}  # fmt: skip
    return [saved(packed), saved({"fc.weight": whole}), saved(observed), saved({"a": _Touch()}), hostile()]


def _quantized_models() -> list[bytes]:
    from onnx import TensorProto, helper, numpy_helper

    held = [
        numpy_helper.from_array(np.zeros((2, 1, 3, 3), np.int8), "stem.weight"),
        numpy_helper.from_array(np.array([0.1, 0.2], np.float32), "ws"),
        numpy_helper.from_array(np.zeros(2, np.int8), "wz"),
        numpy_helper.from_array(np.array(0.1, np.float32), "s"),
        numpy_helper.from_array(np.array(3, np.uint8), "z"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["stem.weight", "ws", "wz"], ["wd"], axis=0),
        helper.make_node("Conv", ["xd", "wd"], ["y"], "/stem/Conv", kernel_shape=[3, 3]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    model = helper.make_model(helper.make_graph(nodes, "net", values[:1], values[1:], held))
    integers = [
        helper.make_node(
            "QLinearConv", ["xq", "s", "z", "stem.weight", "ws", "wz", "s", "z"], ["y"], "/stem/Conv"
        )
    ]
    whole = helper.make_model(helper.make_graph(integers, "net", values[:1], values[1:], held))
    return [model.SerializeToString(), whole.SerializeToString()]


def _foreign(suffix: str) -> Callable[[bytes, Path], Any]:
    return lambda data, folder: read_foreign(f"{NAME}{suffix}", graph(), data)


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("recipe", lambda: [r.to_yaml().encode() for r in _recipes()], on_disk(".yaml", load_recipe),
               mutate.as_yaml),
        Target("recipe-json", lambda: [r.to_json().encode() for r in _recipes()], on_disk(".json", load_recipe),
               mutate.as_json),
        Target("notes", lambda: [_notes().to_yaml().encode()], on_disk(".yaml", load_notes), mutate.as_yaml),
        Target("link", _links, _read_link, mutate.as_link),
        Target("project", _entries, _read_entry, mutate.as_entry),
        Target("safetensors", lambda: [save_safetensors(net().state_dict())],
               on_disk(".safetensors", lambda path: load_model(net(), path)), mutate.as_safetensors),
        Target("checkpoint", _checkpoints, on_disk(".pt", lambda path: load_model(net(), path)), mutate.as_zip),
        Target("program", _programs, on_disk(".pt2", load_model), mutate.as_zip),
        Target("onnx", _models, on_disk(".onnx", load_model), mutate.as_onnx),
        Target("npz", _arrays, on_disk(".npz", lambda path: load_data(path).read([0])), mutate.as_zip),
        Target("image", _images, _read_image),
        Target("encodings", _encodings, _foreign(".encodings"), mutate.as_json),
        Target("foreign-state", _quantized_states, _foreign(".pt"), mutate.as_zip),
        Target("foreign-onnx", _quantized_models, _foreign(".onnx"), mutate.as_onnx),
    )
}  # fmt: skip
