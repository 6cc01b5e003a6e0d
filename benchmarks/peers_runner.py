"""Another tool's own sensitivity of each layer; runs in that tool's environment, without this project's package.

``python peers_runner.py TOOL ZOO CLASS WEIGHTS IMAGES OUT``: ``ZOO`` is the file of the networks, ``CLASS`` the one
wanted, ``IMAGES`` an .npz with ``calibration`` and ``evaluation``.  Writes seconds and, for each format and layer, a
number that grows as things get worse.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

Values = dict[str, dict[str, float]]
FORMATS = {"int8": 8, "int4": 4}
BATCH = 200


def divergence(model: Callable[[Tensor], Tensor], images: Tensor, floats: Tensor) -> float:
    """The mean Kullback-Leibler divergence of a model's classes from the float network's scores."""
    with torch.no_grad():
        result = torch.cat([model(part) for part in images.split(BATCH)])
    log_p, log_q = floats.double().log_softmax(1), result.double().log_softmax(1)
    return float((log_p.exp() * (log_p - log_q)).sum(1).mean())


def scores(model: nn.Module, images: Tensor) -> Tensor:
    """The float network's result (images, classes)."""
    with torch.no_grad():
        return torch.cat([model(part) for part in images.split(BATCH)])


def nncf(model: nn.Module, calibration: Tensor, evaluation: Tensor) -> Values:
    """NNCF's int8 weight quantizers switched on one at a time; its own ranking knows OpenVINO and ONNX only."""
    # It compiles operators when they are first used, which takes minutes on a busy machine.
    os.environ.setdefault("NNCF_EXTENSION_LOAD_TIMEOUT", "0")
    import nncf as tool

    floats = scores(model, evaluation)
    layers = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    data = tool.Dataset([part for part in calibration.split(BATCH)])
    quantized = tool.quantize(
        model, data, subset_size=len(calibration) // BATCH + 1, fast_bias_correction=None
    )
    quantizers = {n: m for n, m in quantized.named_modules() if hasattr(m, "disable_quantization")}
    for module in quantizers.values():
        module.disable_quantization()
    found = {}
    for name, module in quantizers.items():
        # A hook's name holds the weight's, with colons for dots.
        layer = next((known for known in layers if f"{known}.weight" in name.replace(":", ".")), None)
        if layer is not None:
            module.enable_quantization()
            found[layer] = divergence(quantized, evaluation, floats)
            module.disable_quantization()
    return {"int8": found}


def modelopt(model: nn.Module, calibration: Tensor, evaluation: Tensor) -> Values:
    """ModelOpt's ``auto_quantize`` by divergence: its scores."""
    import modelopt.torch.quantization as tool

    def config(bits: int) -> dict[str, Any]:
        return {
            "quant_cfg": [
                {"quantizer_name": "*", "enable": False},
                {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": bits, "axis": 0}, "enable": True},
            ],
            "algorithm": "max",
        }

    parts = list(evaluation.split(BATCH))
    _, state = tool.auto_quantize(
        model,
        constraints={"effective_bits": 8.0},
        quantization_formats=[config(bits) for bits in FORMATS.values()],
        data_loader=parts,
        forward_step=lambda net, batch: net(batch),
        num_calib_steps=1,
        num_score_steps=len(parts),
        method="kl_div",
    )
    found: Values = {name: {} for name in FORMATS}
    for stats in state["candidate_stats"].values():
        for recipe, score in zip(stats["formats"], stats["scores"], strict=True):
            for name, bits in FORMATS.items():
                if f"effective-bits: {float(bits)}" in str(recipe):
                    found[name][stats["module_names"][0]] = float(score)
    return found


def aimet(model: nn.Module, calibration: Tensor, evaluation: Tensor) -> Values:
    """AIMET's ``QuantAnalyzer``: each layer's quantizers enabled alone, outputs with 16 bits."""
    from aimet_torch.batch_norm_fold import fold_all_batch_norms
    from aimet_torch.common.defs import QuantScheme
    from aimet_torch.quant_analyzer import QuantAnalyzer

    floats = scores(model, evaluation)
    example = calibration[:1]
    fold_all_batch_norms(model, tuple(example.shape), dummy_input=example)
    analyzer = QuantAnalyzer(
        model, example, lambda net: scores(net, calibration), lambda net: -divergence(net, evaluation, floats)
    )
    found: Values = {}
    for name, bits in FORMATS.items():
        with tempfile.TemporaryDirectory() as folder:
            sim = analyzer._create_quantsim_and_encodings(
                QuantScheme.post_training_tf, bits, 16, config_file=None
            )
            result = analyzer.perform_per_layer_analysis_by_enabling_quantizers(sim, folder)
        found[name] = {layer: -float(value) for layer, value in result.items()}
    return found


def mct(model: nn.Module, calibration: Tensor, evaluation: Tensor) -> Values:
    """The Model Compression Toolkit's mixed precision: its mapping of nodes and candidates to sensitivity."""
    import model_compression_toolkit as tool
    from model_compression_toolkit.core.common.mixed_precision import mixed_precision_search_manager as search

    manager, seen = search.MixedPrecisionSearchManager, {}
    plain = manager._build_sensitivity_mapping

    def watched(self: Any, *rest: Any, **more: Any) -> Any:
        mapping = plain(self, *rest, **more)
        seen.update(
            {node: list(zip(node.candidates_quantization_cfg, v, strict=True)) for node, v in mapping.items()}
        )
        return mapping

    manager._build_sensitivity_mapping = watched
    memory = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    tool.ptq.pytorch_post_training_quantization(
        model,
        lambda: ([part.numpy()] for part in evaluation.split(BATCH)),
        target_resource_utilization=tool.core.ResourceUtilization(weights_memory=0.7 * memory),
        core_config=tool.core.CoreConfig(
            mixed_precision_config=tool.core.MixedPrecisionQuantizationConfig(num_of_images=len(evaluation))
        ),
    )
    found: Values = {name: {} for name in FORMATS}
    for node, pairs in seen.items():
        for candidate, value in pairs:
            for name, bits in FORMATS.items():
                attributes = candidate.weights_quantization_cfg.get_attr_config("weight")
                if attributes.weights_n_bits == bits:
                    found[name][node.name.removesuffix("_bn").replace("_", ".")] = float(value)
    return found


def torchao(model: nn.Module, calibration: Tensor, evaluation: Tensor) -> Values:
    """torch.ao's n shadows: the SQNR of each layer's own output, weights and activations in int8."""
    from torch.ao.ns import _numeric_suite_fx as tool
    from torch.ao.quantization import get_default_qconfig
    from torch.ao.quantization.backend_config import get_native_backend_config

    multi = tool.QConfigMultiMapping().set_object_type(nn.Conv2d, [get_default_qconfig()])
    multi = multi.set_object_type(nn.Linear, [get_default_qconfig()])
    shadows = tool.prepare_n_shadows_model(model, (calibration[:1],), multi, get_native_backend_config())
    scores(shadows, calibration)
    shadows = tool.convert_n_shadows_model(shadows)
    tool.loggers_set_enabled(shadows, True)
    tool.loggers_set_save_activations(shadows, False)
    scores(shadows, evaluation)
    found = {}
    for subgraph in tool.extract_results_n_shadows_model(shadows).values():
        for entry in (e for sides in subgraph.values() for e in _flat(sides)):
            if entry.get("comparisons"):
                found[entry["fqn"]] = -float(np.mean([float(c) for c in entry["comparisons"]]))
    return {"int8": found}


def _flat(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, dict) and "fqn" in value:
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [entry for item in items for entry in _flat(item)]


TOOLS: dict[str, Callable[[nn.Module, Tensor, Tensor], Values]] = {
    "nncf": nncf,
    "modelopt": modelopt,
    "aimet": aimet,
    "mct": mct,
    "torchao": torchao,
}


def load(zoo: str, kind: str, weights: str) -> nn.Module:
    """The network from the file of its class and its weights."""
    spec = importlib.util.spec_from_file_location("zoo", zoo)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["zoo"] = module
    spec.loader.exec_module(module)
    net: nn.Module = getattr(module, kind)()
    net.load_state_dict(load_file(weights))
    return net.eval()


def main() -> None:
    tool, zoo, kind, weights, images, out = sys.argv[1:]
    model = load(zoo, kind, weights)
    with np.load(images) as arrays:
        calibration, evaluation = (torch.from_numpy(arrays[name]) for name in ("calibration", "evaluation"))
    scores(model, evaluation[:BATCH])  # warms up
    begun = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        values = TOOLS[tool](model, calibration, evaluation)
    found = {"seconds": time.perf_counter() - begun, "values": values}
    Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
