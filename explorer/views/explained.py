"""What am I seeing: two sentences, the formula and the source for each view, by its name on the page.

A new view is one line here; ``tests/test_explained.py`` finds the views without one.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

from explorer.views import kit, theme


@dataclass(frozen=True)
class Explanation:
    """One view.

    Args:
        shown: what it shows, a sentence.
        read: how to read it, a sentence.
        formula: what is computed, plain text.
        source: where that is from.
    """

    shown: str
    read: str
    formula: str
    source: str


SCORE, LAYERS = "Scores", "Layers"

EXPLAINED: dict[str, Explanation] = {
    SCORE: Explanation(
        "How often the quantized network is right, how far it is from the float network on the same images, and what "
        "it takes to store and to run.",
        "While an interval of the difference holds zero, these images do not show that quantization changed "
        "anything.",
        "difference = (won - lost) / images; size = sum of bits of codes, scales and zero points; bit operations = "
        "MACs x weight bits x activation bits",
        "Wilson 1927 (interval of a share); Tango 1998 (interval of a paired difference); Yao et al. 2021, "
        "arXiv:2011.10680 (bit operations)",
    ),
    LAYERS: Explanation(
        "Every layer in the order of execution with the scheme of its weight and of its input.",
        "A click on a name chooses the layer, one on a cell changes it; a low SQNR says that little of the weight is "
        "left.",
        "SQNR = 10 log10(sum of x^2 / sum of (x - q(x))^2) dB",
        "Lin, Talathi and Annapureddy 2016, arXiv:1511.06393",
    ),
    "Histogram": Explanation(
        "The values of the chosen tensor before quantization (filled) and after it (outlined), and the levels that "
        "it may take.",
        "What lies beyond the dashed edges is clipped to them, everything else moves to the nearest level.",
        "q(x) = scale x (clip(round(x / scale) + zero point, qmin, qmax) - zero point)",
        "Jacob et al. 2018, arXiv:1712.05877; ONNX QuantizeLinear",
    ),
    "Number line": Explanation(
        "Each level of the tensor with the values that go to it above the line and their squared error below it.",
        "Grey levels are paid for and unused; hatched error is from clipping and asks for a wider range, plain error "
        "is from rounding and asks for a narrower one or more bits.",
        "error = sum over |x| <= c of (x - q(x))^2 (rounding) + sum over |x| > c of (x - q(x))^2 (clipping)",
        "Banner et al. 2019, arXiv:1810.05723",
    ),
    "Objective": Explanation(
        "What each way to choose the clipping range minimises, over the share of the full range that is kept.",
        "The lowest point of a curve is what its objective picks; where the points lie far apart, the choice of the "
        "objective matters for this tensor.",
        "cost(k) / cost(1) with the range k x [min, max]; for mse: cost(k) = sum of (x - q_k(x))^2",
        "Nagel et al. 2021, arXiv:2106.08295; Banner et al. 2019, arXiv:1810.05723 (aciq); Migacz 2017, GPU "
        "Technology Conference (kl)",
    ),
    "Conventions": Explanation(
        "The same tensor, format and bits under the arithmetic of several tools, which do not mean the same by int8.",
        "A row with codes that differ means that numbers from that tool may not be read by another one without its "
        "scale and zero point.",
        "onnx: scale = max|x| / 127; torch: max|x| / 127.5; aimet: max|x| / 127, codes from -128; nncf: one end "
        "moved so that zero is a level",
        "ONNX QuantizeLinear; PyTorch, AIMET and NNCF, their observers and quantizers (docs/architecture.md)",
    ),
    "Channels": Explanation(
        "The range of every channel as a bar, with the range that its scale gives it drawn over.",
        "Bars much shorter than the range that is kept waste their codes: a scale for each channel would serve them.",
        "effective bits of a channel = log2(number of codes that its values take)",
        "Krishnamoorthi 2018, arXiv:1806.08342; Nagel et al. 2019, arXiv:1906.04721",
    ),
    "Calibration": Explanation(
        "How the fixed range of an input settles as calibration images come, and how far it moves without some of "
        "them.",
        "If it still moves at the right end, take more images or an objective that does not hang on extremes.",
        "standard error = sqrt((n - 1) / n x sum of (range without part i - their mean)^2), n parts",
        "Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 11",
    ),
    "Sensitivity": Explanation(
        "How much the network suffers when one tensor of one layer is quantized and all else stays in float, by "
        "format.",
        "Bright cells are where bits are needed, dark ones where they can be saved; dotted cells are estimates.",
        "KL = mean over images of sum over classes of p log(p / q), p of the float network, q of the quantized one",
        "Kullback and Leibler 1951; Gluska and Grobman 2020, arXiv:2012.08420 (what each layer contributes)",
    ),
    "Estimates": Explanation(
        "Each value of the sensitivity map that is both estimated and measured, one against the other.",
        "Points near the dashed line say that the quick estimates can be trusted for this network; points below it "
        "are overestimates.",
        "estimate = mean of d' F d / 2, d the change of the class scores, F the Fisher matrix of the class "
        "distribution",
        "Theis et al. 2018, arXiv:1801.05787 (Fisher information in place of the Hessian); Horvitz and Thompson 1952 "
        "(weighted images)",
    ),
    "SQNR": Explanation(
        "What is left of each layer's weight (bar) and of its input (diamond) under the present recipe.",
        "About 6 dB are one bit; a bar that is much shorter than its neighbours is the first place to look.",
        "SQNR = 10 log10(sum of x^2 / sum of (x - q(x))^2) dB",
        "Lin, Talathi and Annapureddy 2016, arXiv:1511.06393",
    ),
    "Depth": Explanation(
        "Along the network: the error that each layer makes by itself, and the error that has gathered up to it.",
        "Where the gathered error falls much below the layer's own, it is inherited; where both fall, it is born "
        "there.",
        "local: 10 log10(signal / error) of the layer's output, its input being the float network's; cumulative: of "
        "the whole quantized network",
        "ONNX Runtime, quantization debugging (error of a tensor by itself and across models)",
    ),
    "Flips": Explanation(
        "The images whose class changed: lost are right in float and wrong after quantization, won the other way "
        "round.",
        "Equal numbers of both with no pattern among the pictures are chance; many lost of one class are not.",
        "difference of top-1 = (won - lost) / images; only these images tell the two networks apart",
        "McNemar 1947; Tango 1998",
    ),
    "History": Explanation(
        "Every configuration that was tried, its accuracy with its interval against its size or its bit operations, "
        "the present one in a ring.",
        "What lies below the steps is beaten by another configuration, by the estimates; a click brings one back, and "
        "two or more that are marked are compared image by image.",
        "on the steps: no other is as small and more accurate; difference = (right under a only - right under b "
        "only) / images",
        "Tango 1998 (interval of a paired difference)",
    ),
    "Diagnosis": Explanation(
        "What does not suit the network's tensors by simple rules, and a change for each, tried on images before it "
        "is offered.",
        "The verdict is measured and not assumed: a change that does not help says so.",
        "helps: the 95% interval of KL(with the change) - KL(without it), paired, lies below zero",
        "Nagel et al. 2019, arXiv:1906.04721; Krishnamoorthi 2018, arXiv:1806.08342",
    ),
    "Notes": Explanation(
        "What a reviewer has to say on the whole and on the chosen layer.",
        "It stays with this page's address, which brings the same recipe and notes to somebody else, and goes into the "
        "report.",
        "address: ?state=VERSION.TEXT, recipe, layer, views and notes, 6,000 characters at most",
        "docs/command-line.md (the report and its file of notes)",
    ),
}


def markup(name: str) -> str:
    """The explanation of a view, HTML; empty where there is none."""
    found = EXPLAINED.get(name)
    if found is None:
        return ""
    return (
        f"<b>{escape(name)}</b><p>{escape(found.shown)} {escape(found.read)}</p>"
        f"<p><code>{escape(found.formula)}</code></p><p><small>{escape(found.source)}</small></p>"
    )


CSS = (
    theme.TOKENS
    + """
button { font: 600 12px/20px inherit; width: 22px; height: 22px; padding: 0; border-radius: 50%; cursor: pointer;
  color: var(--faint); background: var(--card); border: 1px solid var(--line); }
button:hover { color: var(--ink); background: var(--wash); }
button:focus-visible { outline: 2px solid #CC79A7; outline-offset: 1px; }
[popover] { position: fixed; inset: auto; margin: 0; box-sizing: border-box; width: min(440px, calc(100vw - 16px));
  padding: 10px 14px; border: 1px solid var(--line); border-radius: 6px; color: var(--ink); background: var(--card);
  font-size: 12.5px; line-height: 18px; box-shadow: 0 4px 14px rgb(0 0 0 / 25%); }
p { margin: 6px 0 0; } code { font-size: 12px; overflow-wrap: anywhere; } small { color: var(--faint); }
"""
)


def ask(name: str = "") -> Any:
    """A question mark that explains a view."""
    made = kit.help(CSS)
    explain(made, name)
    return made


def explain(mark: Any, name: str) -> None:
    """Let a question mark explain another view; where there are no words it is not there."""
    mark.param.update(object=markup(name), title=f"What am I seeing? {name}")
