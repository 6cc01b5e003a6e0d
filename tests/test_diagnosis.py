"""Diagnosis: each rule on a tensor that must set it off and on one that must not; what changes do, measured anew."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import explorer as qx
from explorer.cli import main
from explorer.recipe import PRESETS, Recipe, TensorScheme
from explorer.study import RULES, Diagnosis
from explorer.study.rules import Facts, groups_of, shape_of
from explorer.subject import Subject, make_subject
from explorer.tensor import fit_tensor
from tests.small import images, tiny

FACTORY = """
from tests.small import tiny, images

def net():
    return tiny()

def data():
    return images()
"""
PLAIN = {"format": "int8", "granularity": "layer", "objective": "minmax"}


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def facts(tensor: Tensor, scheme: TensorScheme, which: str = "weight", **more: object) -> Facts:
    """The facts of a tensor (channels, rest), the reach of images its first axis."""
    params = fit_tensor(tensor, scheme, 0)
    values, weights = scheme.grain.matrix(tensor, 0)
    shape = shape_of(values, weights, params, *torch.aminmax(values, dim=1))
    reach = tensor.abs().amax(1).double().numpy()
    group = groups_of(scheme, len(reach))
    step = params.scale.double().numpy()[group] if scheme.granularity != "token" else reach
    return Facts(
        "layer", which, scheme, reach, group, step, **vars(shape),
        **{"image_reach": reach if which == "input" else np.empty(0), **more},
    )  # fmt: skip


def scaled(*factors: float) -> Tensor:
    return normal(len(factors), 500) * torch.tensor(factors)[:, None]


def outlier(size: float) -> Tensor:
    x = normal(4, 5000)
    x[1, 7] = size
    return x


S = TensorScheme(**PLAIN)
# For each rule: facts that set it off, facts that do not, and the first change that it then proposes.
CASES = {
    "channel_ranges": (
        facts(scaled(1, 1, 0.005), S),
        facts(scaled(1, 1, 0.3), S),
        {"granularity": "channel"},
    ),
    "heavy_tail": (facts(outlier(60), S), facts(normal(4, 5000), S), {"objective": "mse"}),
    "one_sided": (
        facts(normal(4, 500).abs() - 0.05, S),
        facts(normal(4, 500).abs(), S),  # never negative: the convention takes unsigned codes by itself
        {"symmetric": False},
    ),
    "mean_shift": (
        facts(normal(4, 500), dataclasses.replace(S, format="int3"), shift=0.2, constant=0.6),
        facts(normal(4, 500), S, shift=0.01, constant=0.6),
        {"granularity": "channel"},
    ),
    "unused_codes": (facts(outlier(900), S), facts(normal(4, 5000), S), {"objective": "mse"}),
    "saturating": (
        facts(normal(4, 5000), dataclasses.replace(S, objective="percentile:80")),
        facts(normal(4, 5000), dataclasses.replace(S, objective="percentile:99")),
        {"objective": "minmax"},
    ),
    "unsteady_range": (
        facts(scaled(*[1.0] * 9, 6), S, "input"),
        facts(scaled(*[1.0] * 10), S, "input"),
        {"mode": "dynamic", "objective": "minmax", "granularity": "layer"},
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_speaks_when_it_must_and_is_silent_when_it_must_not(name):
    bad, good, change = CASES[name]
    rule = RULES[name]
    assert rule.speaks(bad) and not rule.speaks(good)
    assert next(iter(rule.fields(bad))) == change
    assert any(letter.isdigit() for letter in rule.says(bad)), "evidence without a number"
    other = next((tensor for tensor in ("weight", "input") if tensor not in rule.tensors), None)
    assert other is None or not rule.speaks(dataclasses.replace(bad, tensor=other))


@pytest.mark.parametrize("name", RULES)
def test_a_rule_proposes_nothing_that_the_scheme_has_already(name):
    bad, _, _ = CASES[name]
    for fields in RULES[name].fields(bad):
        changed = dataclasses.replace(bad.scheme, **fields)
        assert changed != bad.scheme
        again = dataclasses.replace(bad, scheme=changed, group=groups_of(changed, len(bad.reach)))
        assert fields not in list(RULES[name].fields(again))


def test_narrow_ranges_are_told_by_the_bits():
    some = scaled(1, 1, 0.1)
    assert RULES["channel_ranges"].speaks(facts(some, dataclasses.replace(S, format="int4")))
    assert not RULES["channel_ranges"].speaks(facts(some, S))
    each = dataclasses.replace(S, granularity="channel")
    assert not RULES["channel_ranges"].speaks(facts(scaled(1, 1, 0.001), each))


def test_the_numbers_of_a_shape_are_what_they_say():
    x = outlier(60)
    f = facts(x, S)
    magnitude = x.abs().flatten()
    assert f.tail == pytest.approx(60 / float(magnitude.quantile(0.999)), rel=0.01)
    assert f.kurtosis == pytest.approx(float((x**4).mean() / (x**2).mean() ** 2), rel=1e-4)
    f = facts(normal(4, 5000), dataclasses.replace(S, objective="percentile:80"))
    codes = qx.quantize(normal(4, 5000), dataclasses.replace(S, objective="percentile:80")).codes
    assert f.used == pytest.approx(len(codes.unique()) / 255)
    assert math.isnan(facts(normal(2, 20), S).used), "too few values to tell"


class Wide(nn.Module):
    """A convolution net whose first layer has a channel of 1/300 of the others' range, made good after it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.mid = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 4)
        self.register_buffer("gain", torch.tensor([1.0, 1.0, 300.0, 1.0]).view(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x)) * self.gain
        return self.fc(torch.relu(self.mid(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def wide() -> qx.Session:
    torch.manual_seed(0)
    net = Wide().eval().requires_grad_(False)
    net.stem.weight[2] /= 300
    net.stem.bias[2] /= 300
    net.fc.weight *= 8
    x, y = images(250)
    recipe = Recipe.preset("w8a8").with_default(weight=PLAIN)
    return qx.Session(net, data=(x, y), recipe=recipe, store_bytes=1 << 25)


@pytest.fixture(scope="module")
def found(wide: qx.Session) -> list[Diagnosis]:
    return list(wide.diagnose_steps(images=150))


def test_answers_come_better_and_better(found):
    assert found[0].findings and all(each.kl_delta is None for each in found[0].findings)
    assert found[1].findings[-1].output_after is not None
    assert found[-1].complete and found[-1].images == 150 and found[-1].tensors == 6
    assert [d.images for d in found] == sorted(d.images for d in found)
    assert all(each.verdict != "not tried" for each in found[-1].findings)


def test_the_cause_is_found_and_its_remedy_measured_best(wide, found):
    best = found[-1].findings[0]
    assert (
        "channel_ranges" in best.rules
        and best.layers == ("stem",)
        and best.fields == {"granularity": "channel"}
    )
    assert best.verdict == "helps" and best.sqnr_after is not None
    deltas = [each.kl_delta for each in found[-1].findings]
    assert deltas == sorted(deltas)


def test_an_effect_is_that_of_two_evaluations(wide, found):
    """The paired difference is what evaluating the recipe with and without the change gives."""
    for finding in (found[-1].findings[0], found[-1].findings[-1]):
        before = wide.evaluate(images=150)
        after = wide.evaluate(finding.apply(wide.recipe), images=150)
        assert finding.kl_delta == pytest.approx(after.kl - before.kl, abs=1e-9)
        assert finding.top1_delta == pytest.approx(after.top1 - before.top1)
        assert finding.size_delta == after.size_bytes - before.size_bytes
        low, high = finding.kl_interval
        assert low <= finding.kl_delta <= high and finding.images == 150
        assert found[-1].kl == pytest.approx(before.kl)
        if len(finding.layers) == 1 and finding.tensor == "weight":
            layers = {each.name: each for each in after.layers}
            assert finding.sqnr_after == pytest.approx(layers[finding.layers[0]].weight_sqnr_db)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return make_subject(tiny(), data=images(), store_bytes=1 << 24)


def test_a_healthy_recipe_has_nothing_to_mend():
    session = qx.Session(tiny(), data=images(), recipe="w8a8", store_bytes=1 << 24)
    session.recipe = session.recipe.with_default(weight={"granularity": "channel"})
    found = session.diagnose(images=60)
    assert found.complete and not [each for each in found.findings if "channel_ranges" in each.rules]


def test_outliers_of_an_activation_are_found():
    x, y = images(120)
    x = x.clamp(-2, 2)
    x[5, 0, 0, 0] = 200.0
    fields = {"format": "uint8", "granularity": "layer", "symmetric": False, "objective": "minmax"}
    recipe = Recipe.preset("w8a8").with_default(input=fields)
    session = qx.Session(tiny(), data=(x, y), recipe=recipe, store_bytes=1 << 24)
    found = session.diagnose(images=120).findings
    mine = [each for each in found if each.layers == ("stem",) and each.tensor == "input"]
    assert {rule for each in mine for rule in each.rules} >= {"heavy_tail", "unsteady_range", "unused_codes"}
    best = next(each for each in found if each.verdict == "helps")
    assert best.tensor == "input" and "stem" in best.layers


def test_what_does_not_fit_is_not_proposed():
    session = qx.Session(tiny(), data=images(), recipe="fp32", store_bytes=1 << 24)
    found = session.diagnose(images=30)
    assert found.complete and not found.findings and not found.tensors


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_be_diagnosed(subject, preset):
    """Whatever the formats and granularities are: what is proposed fits the recipe and is measured."""
    session = qx.Session(subject=subject, recipe=preset)
    found = session.diagnose(images=20)
    assert found.complete
    for finding in found.findings:
        changed = finding.apply(session.recipe)
        assert changed != session.recipe and finding.made(changed) and not finding.made(session.recipe)
        assert finding.verdict != "not tried" and finding.images == 20


def test_the_command_line_tells_it(tmp_path, capsys):
    model = tmp_path / "mine.py"
    model.write_text(FACTORY)
    command = [
        "diagnose",
        "--model",
        f"{model}:net",
        "--data",
        f"{model}:data",
        "--recipe",
        "w2a8",
        "--limit",
        "60",
    ]
    assert main([*command, "--json", f"{tmp_path}/out.json"]) == 0
    out = json.loads((tmp_path / "out.json").read_text())
    assert out["complete"] and out["images"] == 60 and out["findings"]
    assert set(out["findings"][0]) >= {
        "rules",
        "layers",
        "tensor",
        "evidence",
        "fields",
        "kl_delta",
        "verdict",
    }
    text = capsys.readouterr().out
    assert out["findings"][0]["change"] in text and "95% interval" in text


@pytest.fixture(scope="module")
def mobilenet() -> qx.Session:
    recipe = Recipe.preset("w8a8").with_default(weight=PLAIN)
    return qx.Session("fashion-mobilenet", recipe=recipe, calibration_images=64)


def test_depthwise_layers_under_one_scale_starve(mobilenet):
    """What the shipped depthwise network is for: its channels differ 100-fold, and one scale leaves some nothing."""
    one = mobilenet.channels("features.3.conv.0")
    each = mobilenet.channels("features.3.conv.0", scheme={"format": "int8", "granularity": "channel"})
    assert one.ratio > 100 and one.starved > 5 and each.starved == 0
    assert each.sqnr_db.min() > one.sqnr_db.min() + 20


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_the_shipped_depthwise_network_is_mended_by_a_scale_for_each_channel(mobilenet, bits):
    recipe = mobilenet.recipe.with_default(weight={"format": bits})
    found = mobilenet.diagnose(recipe, images=40)
    # At 4 bits 8 bits in all layers do as well.
    best = next(each for each in found.findings[:2] if each.fields == {"granularity": "channel"})
    assert "channel_ranges" in best.rules and best.verdict == "helps"
    mended = mobilenet.evaluate(best.apply(recipe), images=40)
    assert found.kl + best.kl_delta == pytest.approx(mended.kl, abs=1e-6)
    assert mended.kl < 0.3 * found.kl
