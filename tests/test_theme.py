"""Colours that stand alone in a figure can be told from what is behind them, in the light and in the dark."""

from __future__ import annotations

import pytest

from explorer.views import theme

GROUNDS = [
    (mode, palette[key])
    for mode, settings in theme.THEME.items()
    for palette in [settings["palette"]["background"]]
    for key in ("default", "paper")
]


def luminance(colour: str) -> float:
    """The relative luminance of WCAG 2.2, https://www.w3.org/TR/WCAG22/#dfn-relative-luminance."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colour", [theme.BEFORE, theme.AFTER, theme.RANGE, theme.NEUTRAL])
@pytest.mark.parametrize("mode, ground", GROUNDS)
def test_lines_and_marks_have_a_contrast_of_three(colour: str, mode: str, ground: str) -> None:
    assert contrast(colour, ground) >= 3


def test_the_measure_itself() -> None:
    assert contrast("#000000", "#FFFFFF") == pytest.approx(21)
    assert contrast("#767676", "#FFFFFF") == pytest.approx(4.54, abs=0.01)
