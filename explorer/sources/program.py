"""Programs of ``torch.export.save`` (``.pt2``), read as data: nothing in a file is unpickled, evaluated or imported.

``torch.export.load`` unpickles sample inputs and custom objects, evaluates the text of symbolic sizes and makes
Python code of the names of nodes.  Here the archive's JSON is read by its schema (version 8, in
``torch/_export/serde/schema.py``) into a module that calls one operator after the other; operators come from a closed
set, tensors are raw bytes.  What results is captured like any other network.
"""

from __future__ import annotations

import json
import math
import operator
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from explorer.errors import ModelError, nearest
from explorer.graph.ir import Ref
from explorer.sources.collect import budget, in_words
from explorer.sources.factory import describe
from explorer.sources.steps import ROWS, Input, Program, Step, example_for, names_in, unchanged

SCHEMA, ARCHIVE = 8, b"0"
# The program's text, bytes: that of a network of ten thousand operators has some 20 MB.
LONGEST = 1 << 28
# Elements that a tensor may claim beyond those that the file holds, as one that is expanded does.
_EXPANDED = 1 << 20

# By the numbers of the schema.
_DTYPES: dict[int, torch.dtype] = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16,
    7: torch.float32, 8: torch.float64, 10: torch.complex64, 11: torch.complex128, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
_MEMORY = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
_STRIDED = 7

# What computes sizes.
_SYMBOLIC: dict[str, Callable[..., Any]] = {
    **{f"_operator.{word}": getattr(operator, word)
       for word in ("eq", "ne", "le", "ge", "lt", "gt", "neg", "pos", "mul", "add", "sub", "floordiv", "mod", "truediv",
                    "and_", "or_", "getitem")},
    **{f"torch.sym_{word}": getattr(torch, f"sym_{word}") for word in ("not", "int", "float", "ite", "max", "min")},
    "math.trunc": math.trunc,
    "math.ceil": math.ceil,
    "math.floor": math.floor,
}  # fmt: skip
# Operators that only check; the network is checked here as a whole.
_CHECKS = re.compile(
    r"torch\.ops\.aten\.(_assert_\w+|_functional_assert_\w+|sym_constrain_range\w*|_functional_sym_constrain\w*)\.\w+"
)
# Operators with a leading underscore are torch's own affair, but for these and those of the core set.
_PRIVATE = (
    "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d",
    "_convolution",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_unsafe_index",
    "_unsafe_view",
    "_upsample_bicubic2d_aa",
    "_upsample_bilinear2d_aa",
    "_weight_norm",
)
# Texts are words such as 'reflect'; what takes another text, such as the name of a file, is left alone.
_WORDS = (
    "approximate",
    "equation",
    "rounding_mode",
    "mode",
    "padding",
    "side",
    "indexing",
    "reduce",
    "interpolation",
    "ord",
)
_OPERATOR = re.compile(r"torch\.ops\.aten\.([a-z_][a-z0-9_]*)\.([A-Za-z0-9_]+)")
_WRAPPER = "torch.ops.higher_order.wrap_with_set_grad_enabled"
_FREE = (
    "export it for any batch: torch.export.export(module, (x,), "
    'dynamic_shapes=({0: torch.export.Dim("batch")},)).'
)
_SAVE_AGAIN = "save it again with torch.export.save of the present torch."


def load_program(path: Path) -> tuple[Program, Tensor]:
    """The network in a file, and one input for it (a few examples).

    Raises:
        ModelError: for what is damaged, too large, of another version or kind; for operators that are not known,
            custom objects, compiled code and pickled tensors; for several inputs, and a batch of one size only.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _checked(_Archive(archive, path), path.name)
    except ModelError:
        raise
    except FileNotFoundError:
        raise ModelError(
            f"There is no file {path}.{nearest(path.name, [p.name for p in path.parent.glob('*.pt2')])}"
        ) from None
    except OSError as problem:
        raise ModelError(f"The program {path} cannot be read: {problem.strerror or problem}.") from None
    except (
        Exception
    ) as problem:  # what a damaged file raises is anybody's guess: zip, JSON, missing fields, ...
        raise ModelError(
            f"{path} is damaged or no program of torch.export: {describe(problem)}."
        ) from problem


# -- the archive --------------------------------------------------------------------------------------------------


class _Archive:
    """The members of an archive: stored as they are, so that none is larger than the file."""

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self.archive, self.name = archive, path.name
        infos = archive.infolist()
        if any(info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 for info in infos):
            raise ModelError(
                f"{path} is no program of torch.export, which packs its files without compressing them."
            )
        if sum(info.file_size for info in infos) > path.stat().st_size:
            raise ModelError(f"{path} is damaged: its files claim more bytes than it has.")
        roots = {info.filename.partition("/")[0] for info in infos}
        self.members = {info.filename.partition("/")[2]: info for info in infos}
        if len(roots) != 1 or len(self.members) != len(infos):
            raise ModelError(
                f"{path} is no program of torch.export: its files do not lie in one folder, once each."
            )
        self._check_kind()

    def _check_kind(self) -> None:
        if "models/model.json" not in self.members:
            if any(name.startswith("data/aotinductor/") for name in self.members):
                raise ModelError(
                    f"{self.name} holds compiled code (AOTInductor), which is not run; save the program itself by "
                    "torch.export.save."
                )
            old = "serialized_exported_program.json" in {name.rpartition("/")[2] for name in self.members}
            also = f" of an older torch; {_SAVE_AGAIN}" if old else "."
            raise ModelError(
                f"{self.name} holds no file models/model.json: it is no program of torch.export{also}"
            )
        if self.bytes("archive_version") != ARCHIVE:
            raise ModelError(f"{self.name} is an archive of another version; {_SAVE_AGAIN}")
        if self.members["models/model.json"].file_size > LONGEST:
            raise ModelError(f"{self.name}: a program of more than {in_words(LONGEST)} of text is not read.")
        if self.members.get("byteorder") and self.bytes("byteorder") != b"little":
            raise ModelError(f"{self.name} was written on a machine of another byte order; {_SAVE_AGAIN}")

    def bytes(self, name: str) -> bytes:
        return self.archive.read(self.members[name])

    def json(self, name: str) -> Any:
        return json.loads(self.bytes(name))

    def tensors(self, kind: str) -> dict[str, Tensor]:
        """Those of ``weights`` or ``constants``, by the user's names."""
        config = f"data/{kind}/model_{kind}_config.json"
        if config not in self.members:
            if f"data/{kind}/model.pt" in self.members:
                raise ModelError(f"{self.name} keeps its {kind} pickled, as older torch did; {_SAVE_AGAIN}")
            return {}
        entries = self.json(config)["config"]
        needed = sum({e["path_name"]: self._size(kind, e) for e in entries.values()}.values())
        if needed > budget():
            raise ModelError(
                f"The {kind} in {self.name} take {in_words(needed)}, more than half of the free memory."
            )
        flats: dict[str, bytearray] = {}
        made: dict[str, Tensor] = {}
        found: dict[str, Tensor] = {}
        for name, entry in entries.items():
            if entry["use_pickle"] or entry.get("tensor_meta") is None:
                raise ModelError(
                    f"{self.name} holds {name!r} as a pickled or custom object, which is not read because that could "
                    "run code."
                )
            file = entry["path_name"]
            if file not in flats:
                flats[file] = bytearray(self.bytes(f"data/{kind}/{file}"))
            # Weights that are tied have one entry each and the same bytes.
            key = json.dumps([file, entry["tensor_meta"], entry["is_param"]])
            if key not in made:
                made[key] = _tensor(flats[file], entry, name)
            found[name] = made[key]
        return found

    def _size(self, kind: str, entry: Any) -> int:
        member = self.members.get(f"data/{kind}/{entry['path_name']}")
        return member.file_size if member is not None else 0


def _tensor(flat: bytearray, entry: Any, name: str) -> Tensor:
    meta = entry["tensor_meta"]
    dtype = _DTYPES.get(meta["dtype"])
    if dtype is None or meta["layout"] != _STRIDED:
        raise ModelError(f"The tensor {name!r} is of a type or layout that is not read.")
    size, stride = ([_whole(number) for number in meta[word]] for word in ("sizes", "strides"))
    whole = torch.frombuffer(flat, dtype=dtype) if flat else torch.empty(0, dtype=dtype)
    if min([0, *size, *stride]) < 0 or math.prod(size) > max(_EXPANDED, whole.numel()):
        raise ModelError(
            f"The tensor {name!r} claims to be {tuple(size)}, which is more than the file holds."
        )
    tensor = torch.as_strided(whole, size, stride, _whole(meta["storage_offset"]))
    real = tensor.is_floating_point() or tensor.is_complex()
    return nn.Parameter(tensor, requires_grad=False) if entry["is_param"] and real else tensor


def _whole(number: Any) -> int:
    found = number["as_int"]
    if not isinstance(found, int) or not -(1 << 40) < found < 1 << 40:
        raise ValueError(f"{found!r} is no size")
    return found


# -- the program --------------------------------------------------------------------------------------------------


def _checked(archive: _Archive, name: str) -> tuple[Program, Tensor]:
    program = archive.json("models/model.json")
    major = program["schema_version"]["major"]
    if major != SCHEMA:
        raise ModelError(
            f"{name} has schema {major} of torch.export, and schema {SCHEMA} is read; {_SAVE_AGAIN}"
        )
    graph, signature = program["graph_module"]["graph"], program["graph_module"]["signature"]
    tensors = {**archive.tensors("weights"), **archive.tensors("constants")}
    held, temporary, images, values = _inputs(signature["input_specs"], name)
    missing = [owner for owner in held.values() if owner not in tensors]
    if missing:
        raise ModelError(f"{name} is damaged: the tensor {missing[0]!r} is not in it.")
    if len(images) != 1:
        raise ModelError(
            f"The program {name} takes {len(images)} inputs; it must take one tensor, whose first axis is the batch."
        )
    image = _image(graph, images[0], name)
    steps = list(_steps(graph["nodes"], values, name))
    mutated, results = _outputs(program["graph_module"], values, name)
    owners = set(held.values())
    used = {owner: tensor for owner, tensor in tensors.items() if owner in owners}
    module = Program(used, held, temporary, image.name, steps, mutated, results).eval()
    with unchanged(module):
        return module, example_for(module, image, name, _FREE)


def _inputs(specs: Any, name: str) -> tuple[dict[str, str], list[str], list[str], dict[str, Any]]:
    """The value of each tensor of the module, those that no state_dict has, the inputs, and constants among them."""
    held: dict[str, str] = {}
    temporary, images = [], []
    values: dict[str, Any] = {}
    for spec in specs:
        ((kind, inner),) = spec.items()
        if kind == "user_input":
            ((form, argument),) = inner["arg"].items()
            if form == "as_tensor":
                images.append(argument["name"])
            elif form != "as_none":
                raise ModelError(
                    f"The program {name} takes an input that is no tensor; it must take one tensor."
                )
        elif kind in ("parameter", "buffer", "tensor_constant"):
            owner = inner[f"{kind}_name"]
            held[inner["arg"]["name"]] = owner
            if kind == "tensor_constant" or (kind == "buffer" and not inner["persistent"]):
                temporary.append(owner)
        elif kind == "constant_input":
            ((_, value),) = inner["value"].items()
            values[inner["name"]] = None if "as_none" in inner["value"] else value
        else:
            raise ModelError(
                f"The program {name} takes a custom object, which is not read because that could run code."
            )
    return held, temporary, images, values


def _image(graph: Any, value: str, name: str) -> Input:
    meta = graph["tensor_values"][value]
    dtype = _DTYPES.get(meta["dtype"])
    if dtype not in (torch.float32, torch.int32, torch.int64):
        raise ModelError(
            f"The program {name} takes {dtype}; the explorer gives float32, or whole numbers for tokens."
        )
    sizes: list[int | None] = []
    hints: list[int] = []
    for size in meta["sizes"]:
        if "as_int" in size:
            sizes.append(_whole(size))
            hints.append(_whole(size))
        else:
            hint = (size["as_expr"].get("hint") or {"as_int": ROWS})["as_int"]
            sizes.append(None)
            hints.append(_whole({"as_int": hint}))
    if not sizes or min(hints) < 1:
        raise ModelError(
            f"The program {name} takes an input without axes or of size 0; its first axis must be the batch."
        )
    return Input(value, dtype, tuple(sizes), tuple(hints))


def _outputs(module: Any, values: Mapping[str, Any], name: str) -> tuple[dict[str, str], Any]:
    """Buffers with their new values, and the user's results: one, a tuple, or a dictionary."""
    mutated: dict[str, str] = {}
    results: list[Any] = []
    for spec in module["signature"]["output_specs"]:
        ((kind, inner),) = spec.items()
        if kind == "buffer_mutation":
            mutated[inner["buffer_name"]] = inner["arg"]["name"]
        elif kind == "user_output":
            results.append(_argument(inner["arg"], values))
        elif kind not in ("user_input_mutation",):
            raise ModelError(f"The program {name} was saved for training; export the network for inference.")
    keys = _keys(module)
    if keys is not None and len(keys) == len(results):
        return mutated, dict(zip(keys, results, strict=True))
    return mutated, results[0] if len(results) == 1 else tuple(results)


def _keys(module: Any) -> list[str] | None:
    """The names of the results where the network returns a dictionary of tensors."""
    calls = module.get("module_call_graph") or [{}]
    signature = calls[0].get("signature")
    if not signature:
        return None
    tree = json.loads(signature["out_spec"])[1]
    plain = all(not child["children_spec"] for child in tree["children_spec"])
    if tree["type"] not in ("builtins.dict", "collections.OrderedDict") or not plain:
        return None
    keys = json.loads(tree["context"])
    return keys if isinstance(keys, list) and all(isinstance(key, str) for key in keys) else None


def _steps(nodes: Any, values: Mapping[str, Any], name: str) -> Iterator[Step]:
    refused: dict[str, None] = {}
    for node in nodes:
        target = node["target"]
        if _CHECKS.fullmatch(target):
            continue
        meta = node.get("metadata") or {}
        where = (_path(meta.get("nn_module_stack", "")), _line(meta.get("stack_trace", "")))
        if target == _WRAPPER:
            yield from _inner(node, values, name)
            continue
        call = _SYMBOLIC.get(target) or _operator(target)
        if call is None:
            refused[target] = None
            continue
        schema = getattr(call, "_schema", None)
        plain = [(each["name"], _argument(each["arg"], values), each.get("kind")) for each in node["inputs"]]
        if schema is None:
            args, kwargs = tuple(value for _, value, _ in plain), {}
        else:
            # By name: torch itself knows which of its operators' arguments stand where.
            args, kwargs = (), {word: value for word, value, _ in plain}
        outputs = [_result(each) for each in node["outputs"]]
        yield Step(call, args, kwargs, outputs[0] if len(outputs) == 1 else tuple(outputs), *where)
    if refused:
        more = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
        raise ModelError(
            f"The program {name} has operators that are not run: {', '.join(list(refused)[:5])}{more}; "
            "those of torch.ops.aten without effects elsewhere are."
        )


def _inner(node: Any, values: Mapping[str, Any], name: str) -> Iterator[Step]:
    """The steps inside of ``with torch.no_grad()``, which changes nothing here."""
    _, wrapped, *given = [each["arg"] for each in node["inputs"]]
    graph = wrapped["as_graph"]["graph"]
    prefix = f"{wrapped['as_graph']['name']}."
    for place, argument in zip(graph["inputs"], given, strict=True):
        yield Step(_same, (_argument(argument, values),), {}, prefix + _result(place), "", "")
    for step in _steps(graph["nodes"], values, name):
        args, kwargs = _renamed(step.args, prefix), _renamed(dict(step.kwargs), prefix)
        yield step._replace(args=args, kwargs=kwargs, result=_prefixed(step.result, prefix))
    outer = list(names_in(tuple(_result(each) for each in node["outputs"])))
    for inner, place in zip(graph["outputs"], outer, strict=True):
        yield Step(_same, (_renamed(_argument(inner, values), prefix),), {}, place, "", "")


def _same(value: Any) -> Any:
    return value


def _renamed(value: Any, prefix: str) -> Any:
    if isinstance(value, Ref):
        return Ref(prefix + value.node)
    if isinstance(value, tuple):
        return tuple(_renamed(item, prefix) for item in value)
    if isinstance(value, dict):
        return {key: _renamed(item, prefix) for key, item in value.items()}
    return value


def _prefixed(result: Any, prefix: str) -> Any:
    if isinstance(result, tuple):
        return tuple(_prefixed(each, prefix) for each in result)
    return None if result is None else prefix + result


def _operator(target: str) -> Callable[..., Any] | None:
    """The operator of torch that is meant; None for one that is not run."""
    match = _OPERATOR.fullmatch(target)
    packet = getattr(torch.ops.aten, match[1], None) if match else None
    if match is None or packet is None or match[2] not in packet.overloads():
        return None
    found = getattr(packet, match[2])
    private = match[1].startswith("_") and match[1] not in _PRIVATE and torch.Tag.core not in found.tags
    texts = [each.name for each in found._schema.arguments if "str" in str(each.type)]
    if private or not found._schema.returns or any(word not in _WORDS for word in texts):
        return None
    return _convolution if target == "torch.ops.aten.convolution.default" else found


class _Convolution:
    """The operator to which a decomposition takes all convolutions, as the one that was meant."""

    _schema = torch.ops.aten.convolution.default._schema

    def __call__(self, input: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any,
                 transposed: bool, output_padding: Any, groups: int) -> Tensor:  # fmt: skip
        dims = weight.dim() - 2
        if not transposed:
            plain = getattr(torch.ops.aten, f"conv{dims}d").default
            return plain(input, weight, bias, stride, padding, dilation, groups)
        turned = getattr(torch.ops.aten, f"conv_transpose{dims}d")
        call = turned.default if dims == 1 else turned.input
        return call(input, weight, bias, stride, padding, output_padding, groups, dilation)


_convolution = _Convolution()


def _argument(argument: Any, values: Mapping[str, Any]) -> Any:
    """An argument of the schema as a plain value, with references to other values."""

    def named(name: str) -> Any:
        return values[name] if name in values else Ref(name)

    def sized(item: Any) -> Any:
        ((form, value),) = item.items()
        return named(value) if form == "as_name" else value

    def tensor(item: Any) -> Any:
        return None if "as_none" in item else named(item["as_tensor"]["name"])

    ((form, value),) = argument.items()
    if form == "as_none":
        return None
    if form == "as_tensor":
        return named(value["name"])
    if form == "as_tensors":
        return tuple(named(item["name"]) for item in value)
    if form == "as_nested_tensors":
        return tuple(tuple(named(item["name"]) for item in items) for items in value)
    if form == "as_optional_tensor":
        return tensor(value)
    if form == "as_optional_tensors":
        return tuple(tensor(item) for item in value)
    if form in ("as_sym_int", "as_sym_float", "as_sym_bool"):
        return sized(value)
    if form in ("as_sym_ints", "as_sym_floats", "as_sym_bools"):
        return tuple(sized(item) for item in value)
    if form == "as_float":
        return float(value)  # infinities are written as texts
    if form == "as_floats":
        return tuple(float(item) for item in value)
    if form in ("as_int", "as_bool", "as_string"):
        return value
    if form in ("as_ints", "as_bools"):
        return tuple(value)
    if form == "as_complex":
        return complex(float(value["real"]), float(value["imag"]))
    if form == "as_scalar_type":
        return _DTYPES[value]
    if form == "as_memory_format":
        return _MEMORY[value]
    if form == "as_layout" and value == _STRIDED:
        return torch.strided
    if form == "as_device":
        return torch.device("cpu")  # wherever it was exported, it is run here
    raise ModelError(f"The program has an argument of the kind {form!r}, which is not read.")


def _result(output: Any) -> Any:
    """The name of a result, a tuple of them, or None for one that nobody reads."""
    ((form, value),) = output.items()
    if form == "as_tensor":
        return value["name"]
    if form == "as_tensors":
        return tuple(item["name"] for item in value)
    if form in ("as_sym_int", "as_sym_float", "as_sym_bool"):
        return value["as_name"]
    if form == "as_optional_tensor":
        return None if "as_none" in value else value["as_tensor"]["name"]
    if form == "as_optional_tensors":
        return tuple(None if "as_none" in item else item["as_tensor"]["name"] for item in value)
    if form == "as_none":
        return None
    raise ModelError(f"The program has a result of the kind {form!r}, which is not read.")


def _path(stack: str) -> str:
    """The innermost module of a stack as the schema has it: ``key,path,type`` with ``;`` between."""
    parts = stack.rpartition(";")[2].split(",")
    path = parts[1] if len(parts) > 2 else ""
    # Read with strict=True the path is Python's: L['self'].layer1[0].
    path = re.sub(r"^L\['self'\]\.?|_modules\['|\['?|'?\]", ".", path)
    path = ".".join(part for part in path.split(".") if part)
    return "" if path.startswith("_empty_nn_module_stack") else path


def _line(trace: str) -> str:
    places = re.findall(r'File "([^"]+)", line (\d+)', trace)
    own = [place for place in places if not re.search(r"(^|[/\\])torch[/\\]", place[0])]
    return f"{own[-1][0]}:{own[-1][1]}" if own else ""
