"""Contrast of the two themes, computed from the style sheet."""

import re

import pytest

from truing.web.pages import STATIC

CSS = (STATIC / "app.css").read_text(encoding="utf-8")
PAIR = re.compile(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)")
COLOURS = {name: (light, dark) for name, light, dark in PAIR.findall(CSS)}

# (above, below): WCAG 2.2 asks 4.5 of texts, and 3 of what bounds a control.
TEXTS = [
    *[(ink, on) for ink in ("ink", "faint", "accent") for on in ("page", "card", "soft")],
    *[("on-accent", "accent"), ("accent", "wash"), ("ink", "wash")],
    *[("bad", on) for on in ("page", "card", "bad-wash")],
    *[("good", on) for on in ("page", "card", "good-wash")],
]
EDGES = [(edge, on) for edge in ("edge", "accent") for on in ("page", "card")]


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_measured_rightly() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=5e-3)  # two digits given


@pytest.mark.parametrize("theme", [0, 1])
def test_all_texts_and_edges_stand_out(theme: int) -> None:
    weak = {
        (above, below): round(got, 2)
        for pairs, least in ((TEXTS, 4.5), (EDGES, 3.0))
        for above, below in pairs
        if (got := contrast(COLOURS[above][theme], COLOURS[below][theme])) < least
    }
    assert weak == {}


def test_every_colour_is_one_of_these() -> None:
    """A colour beside the table would escape the test."""
    table, rest = CSS.split("--gap:", 1)
    assert len(COLOURS) == table.count("light-dark(") - 1  # one stands in the comment
    assert re.findall(r"#[0-9a-fA-F]{3,8}\b(?![\w-]* *\{)", rest) == []
    used = set(re.findall(r"var\(--([\w-]+)\)", CSS)) - {"gap", "measure"}
    assert used == set(COLOURS)
    texts = re.findall(r"(?<![-\w])color: var\(--([\w-]+)\)", CSS)
    assert set(texts) <= {"ink", "faint", "accent", "on-accent", "bad", "good"}
