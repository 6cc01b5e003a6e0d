"""Programs of torch.export: the same numbers as torch's own loader gives, and nothing in a file is run."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import explorer as qx
from explorer.errors import ModelError
from explorer.graph import capture
from explorer.sources import load_model
from fuzz.law import CANARY
from fuzz.mutate import zipped
from fuzz.targets import _Touch
from tests.nets import Attention, Residual
from tests.small import images, tiny

# What torch says of its own ways of saving and loading.
pytestmark = pytest.mark.filterwarnings(
    "ignore:No complete tensor found:UserWarning", "ignore:`isinstance.treespec:FutureWarning"
)
FREE = ({0: Dim("batch")},)


class Kinds(nn.Module):
    """Convolutions of all dimensions, transposed and grouped, a tie, a mask that is expanded, no_grad, two results."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv1d(4, 4, 3, padding=1, groups=2)
        self.turned = nn.ConvTranspose2d(1, 2, 2, stride=2)
        self.three = nn.Conv3d(2, 2, 1)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("mask", torch.tensor([1.0, -1e9, 2.0, 0.0]).expand(3, 4))
        self.register_buffer("loose", torch.ones(4), persistent=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            shift = x.mean((1, 2), keepdim=True) + torch.tensor([0.5])
        y = self.turned(self.one(x - shift)[:, None])
        z = self.three(y[:, :, None])
        features = self.second(self.first(z.flatten(1)[:, :4])) * self.loose
        return {"out": features, "aux": torch.where(self.mask[0] < 0, features, features + 1)}


def saved(module: nn.Module, x: Tensor, folder: Path, decomposed: bool = False, free: bool = True) -> Path:
    program = torch.export.export(module.eval(), (x,), dynamic_shapes=FREE if free else None)
    path = folder / "net.pt2"
    torch.export.save(program.run_decompositions() if decomposed else program, path)
    return path


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build().eval()


@pytest.mark.parametrize("decomposed", [False, True], ids=["training", "core"])
@pytest.mark.parametrize(
    ("build", "shape"),
    [(Residual, (2, 8, 8)), (Attention, (6, 5)), (Kinds, (4, 4))],
    ids=["residual", "attention", "kinds"],
)
def test_the_same_as_torchs_own_loader(
    build: Callable[[], nn.Module], shape: tuple[int, ...], decomposed: bool, tmp_path: Path
) -> None:
    module = seeded(build)
    path = saved(module, torch.randn(3, *shape), tmp_path, decomposed)
    loaded = load_model(str(path))
    x = torch.randn(5, *shape)
    with torch.inference_mode():
        ours, theirs = loaded.module(x), torch.export.load(path).module()(x)
    pairs = [(ours[key], theirs[key]) for key in theirs] if isinstance(theirs, dict) else [(ours, theirs)]
    assert all(torch.equal(a, b) for a, b in pairs)
    state, known = loaded.module.state_dict(), module.state_dict()
    assert set(state) == set(known) and all(torch.equal(state[name], known[name]) for name in known)


@pytest.mark.parametrize("decomposed", [False, True], ids=["training", "core"])
def test_layers_have_the_users_names(decomposed: bool, tmp_path: Path) -> None:
    module, x = seeded(Attention), torch.randn(3, 6, 5)
    loaded = load_model(str(saved(module, x, tmp_path, decomposed)))
    assert loaded.example is not None
    graph, own = capture(loaded.module, loaded.example), capture(module, x)
    assert [layer.name for layer in graph.layers] == [layer.name for layer in own.layers]
    assert all("program.py" not in node.source for node in graph.nodes)
    if not decomposed:
        assert [node.op for node in graph.nodes] == [node.op for node in own.nodes]
        assert [node.module for node in graph.nodes if node.op != "aten.sym_size.int"] == [
            node.module for node in own.nodes if node.op != "aten.sym_size.int"
        ]


def test_a_session_on_a_program_gives_the_modules_numbers(tmp_path: Path) -> None:
    x, y = images()
    path = saved(tiny(), x[:3], tmp_path)
    theirs = qx.Session(str(path), data=(x, y)).evaluate("w4a8")
    ours = qx.Session(tiny(), data=(x, y)).evaluate("w4a8")
    assert (theirs.top1, theirs.kl) == (ours.top1, ours.kl)


def test_one_of_several_results_is_asked_for(tmp_path: Path) -> None:
    loaded = load_model(str(saved(seeded(Kinds), torch.randn(3, 4, 4), tmp_path)))
    assert loaded.example is not None
    with pytest.raises(ModelError, match="out"):
        capture(loaded.module, loaded.example)
    assert capture(loaded.module, loaded.example, output="out").layers


# --- the size of the batch


def test_a_program_of_one_batch_size_is_freed_where_it_does_not_hold_on_to_it(tmp_path: Path) -> None:
    module = seeded(Residual)
    loaded = load_model(str(saved(module, torch.randn(1, 2, 8, 8), tmp_path, free=False)))
    x = torch.randn(5, 2, 8, 8)
    assert loaded.example is not None and len(loaded.example) > 1
    with torch.inference_mode():
        assert torch.equal(loaded.module(x), module(x))


class Mixing(nn.Module):
    """What it says of one example depends on the others: over a batch of one it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x - x.mean(0))


def test_a_program_that_holds_on_to_its_batch_is_refused_with_the_way_out(tmp_path: Path) -> None:
    for module, x in ((Attention(), torch.randn(3, 6, 5)), (Mixing(), torch.randn(2, 4))):
        with pytest.raises(
            ModelError, match=r"batches of \d only; export it for any batch.*Dim\(\"batch\"\)"
        ):
            load_model(str(saved(module, x, tmp_path, free=False)))


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return self.fc(x) * self.seen


@pytest.mark.parametrize("decomposed", [False, True], ids=["training", "core"])
def test_a_program_that_keeps_state_counts_as_the_module_does(decomposed: bool, tmp_path: Path) -> None:
    module = load_model(str(saved(Counting(), torch.randn(3, 4), tmp_path, decomposed))).module
    x = torch.randn(2, 4)
    assert torch.allclose(module(x) * 2, module(x)) and module.state_dict()["seen"] == 2


# --- other kinds of program


class Two(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def test_several_inputs_are_refused(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(Two(), (torch.ones(2, 1), torch.ones(2, 1))), tmp_path / "net.pt2")
    with pytest.raises(ModelError, match="takes 2 inputs; it must take one tensor"):
        load_model(str(tmp_path / "net.pt2"))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda v: v + 1, lambda v: v - 1, (x,))


def test_operators_of_higher_order_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"operators that are not run: torch.ops.higher_order.cond; "):
        load_model(str(saved(Branching(), torch.ones(3, 2), tmp_path)))


# --- hostile files


@cache
def members() -> tuple[tuple[str, bytes], ...]:
    whole = io.BytesIO()
    torch.manual_seed(0)
    torch.export.save(torch.export.export(tiny(), (images()[0][:3],), dynamic_shapes=FREE), whole)
    with zipfile.ZipFile(whole) as archive:
        return tuple((info.filename, archive.read(info)) for info in archive.infolist())


def changed(part: str, change: Callable[[Any], Any]) -> list[tuple[str, bytes]]:
    """The archive with one member changed: JSON as a value, another as bytes."""
    found = []
    for name, content in members():
        if part in name and name.endswith(".json"):
            value = json.loads(content)
            change(value)
            content = json.dumps(value).encode()
        elif part in name:
            content = change(content)
        found.append((name, content))
    return found


def written(folder: Path, parts: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> str:
    path = folder / "net.pt2"
    path.write_bytes(zipped(parts, method))
    return str(path)


HOSTILE = pickle.dumps(_Touch())
CODE = f"__import__('os').mkdir('{CANARY}')"


def node(value: Any) -> Any:
    return value["graph_module"]["graph"]["nodes"][0]


def entry(value: Any) -> Any:
    return next(iter(value["config"].values()))


def opened(target: str, argument: str) -> Callable[[Any], None]:
    def change(value: Any) -> None:
        text = {"name": argument, "arg": {"as_string": CANARY}, "kind": 1}
        node(value).update(target=target, inputs=[*node(value)["inputs"][:1], text])

    return change


# Each would run code, or write a file, in a loader that trusts the file.
HARMFUL: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "pickled sample inputs": ("sample_inputs", lambda content: HOSTILE),
    "a pickled weight": ("weights_config", lambda v: entry(v).update(use_pickle=True)),
    "a custom object": (
        "constants_config",
        lambda v: v["config"].update(x={"path_name": "custom_obj_0", "is_param": False, "use_pickle": True,
                                        "tensor_meta": None}),
    ),
    "the text of a size": (
        "models/model.json",
        lambda v: v["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]["as_expr"].update(expr_str=CODE),
    ),
    "guards": ("models/model.json", lambda v: v.update(guards_code=[CODE])),
    "a node's name": ("models/model.json", lambda v: node(v).update(name=f"a = {CODE} #")),
    "a value's name": (
        "models/model.json", lambda v: node(v)["outputs"][0]["as_tensor"].update(name=f"a = {CODE} #"),
    ),
    "an operator that saves": ("models/model.json", opened("torch.ops.aten.save.default", "filename")),
    "an operator that opens": ("models/model.json", opened("torch.ops.aten.from_file.default", "filename")),
    "a function of torch": ("models/model.json", opened("torch.load", "f")),
    "a function of Python": ("models/model.json", opened("torch.os.mkdir", "path")),
    "another operator of Python": ("models/model.json", opened("_operator.attrgetter", "attr")),
}  # fmt: skip


@pytest.mark.parametrize("name", HARMFUL)
def test_nothing_in_a_file_is_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    part, change = HARMFUL[name]
    parts = [*changed(part, change), ("net/data/constants/custom_obj_0", HOSTILE)]
    if name == "a pickled weight":
        parts = [(n, HOSTILE if n.endswith("weights/weight_0") else content) for n, content in parts]
    root = members()[0][0].partition("/")[0]
    path = written(tmp_path, [(n.replace("net/data", f"{root}/data"), content) for n, content in parts])
    try:
        loaded = load_model(path)
        assert loaded.example is not None
        capture(loaded.module, loaded.example)
    except ModelError as error:
        assert str(error).isprintable()
    assert not (tmp_path / CANARY).exists()


def test_the_same_file_does_run_code_where_it_is_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, changed(*HARMFUL["pickled sample inputs"]))
    with pytest.raises(Exception):  # noqa: B017 - whatever it thinks of the folder that it has made
        torch.export.load(path)
    assert (tmp_path / CANARY).exists()


def test_what_is_no_program_is_refused(tmp_path: Path) -> None:
    whole = zipped(list(members()))
    cases: dict[str, bytes] = {
        "There is no file": b"",
        "damaged or no program": whole[: len(whole) // 2],
        "without compressing": zipped(list(members()), zipfile.ZIP_DEFLATED),
        r"holds no file models/model.json": zipped([("a/b", b"")]),
        "compiled code": zipped([("a/data/aotinductor/model/x.so", b"")]),
        "once each": zipped([*members(), members()[0]]),
        "another version": zipped(changed("archive_version", lambda content: b"7")),
        "schema 9": zipped(changed("models/model.json", lambda v: v["schema_version"].update(major=9))),
        "more than the file holds": zipped(
            changed(
                "weights_config", lambda v: entry(v)["tensor_meta"].update(sizes=[{"as_int": 1 << 30}] * 2)
            )
        ),
        "holds 1 NaN": zipped(changed("weights/weight_0", lambda content: b"\0\0\xc0\x7f" + content[4:])),
        "too large to run": zipped(
            changed(
                "models/model.json",
                lambda v: v["graph_module"]["graph"]["tensor_values"]["x"]["sizes"].__setitem__(
                    1, {"as_int": 1 << 39}
                ),
            )
        ),
    }
    for part, content in cases.items():
        path = tmp_path / ("net.pt2" if content else "none.pt2")
        if content:
            path.write_bytes(content)
        with pytest.raises(ModelError, match=part):
            load_model(str(path))
