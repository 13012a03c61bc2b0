"""Objects as people see them: one short line, and in a notebook HTML that domains cannot break out of."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from direct_anneal import GradientSketcher, Run, SelectConfig, SelectionProblem, Sketches, Spectrum, solve
from direct_anneal.solver import Quota
from direct_anneal.train import AnnealConfig

X = np.random.default_rng(0).normal(size=(30, 6))
PROBLEM = SelectionProblem(X, np.ones(30), num_selected=4, budget=6.0, forced_in=[1])
HOSTILE = "<script>alert(1)</script>"


class _Tags(HTMLParser):
    """Parser that lists the elements, and complains of such that are not closed in their order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self._open: list[str] = []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)
        if tag != "br":
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


@pytest.mark.parametrize(
    ("of", "says"),
    [
        (PROBLEM, "SelectionProblem(energy, 4 of 30 samples, R=6, budget 6, 1 forced_in)"),
        (
            SelectionProblem(
                X,
                np.ones(30),
                token_budget=9,
                num_tokens=np.full(30, 3),
                quotas=Quota(np.arange(30), ceilings={2: 1}),
                objective="descent",
                target=X[0],
            ),
            "SelectionProblem(descent, 9 tokens of 30 samples, R=6, budget inf, 1 quotas)",
        ),
        (
            SelectConfig(model="m", pool="p", validation=["v"], out="o", fraction=0.5, elbow=0.9),
            "SelectConfig(model='m', pool=('p',), validation=('v',), out='o', fraction=0.5, elbow=0.9)",
        ),
        (
            AnnealConfig(model="m", data="d", out="o", learning_rate=1e-3, epochs=1),
            "AnnealConfig(model='m', data=('d',), out='o', learning_rate=0.001, epochs=1.0)",
        ),
        (
            Sketches(torch.zeros(3, 8), torch.ones(3), torch.ones(3), torch.ones(3)),
            "Sketches(3 samples, R=8, mean loss 1)",
        ),
        (
            GradientSketcher(nn.Linear(3, 2), sketch_size=8),
            "GradientSketcher(Linear, 2 parameters of 8 entries, TwoSided to 8)",
        ),
    ],
)
def test_a_short_line(of: object, says: str) -> None:
    assert repr(of) == says


def test_a_selection_without_a_budget_says_so() -> None:
    selection = solve(SelectionProblem(X, np.ones(30), num_selected=4))
    assert "budget used 4, no limit" in repr(selection)
    assert "used 4, no limit" in selection._repr_html_()


def test_html_of_selection_spectrum_and_run(tmp_path: Path) -> None:
    selection, spectrum = solve(PROBLEM), Spectrum.from_sketches(X)
    assert "4 from 30 samples" in selection._repr_html_()
    assert "used 4 of 6" in selection._repr_html_()
    html = spectrum._repr_html_()
    assert {"svg", "rect"} <= _Tags(html).seen
    assert html.count("<rect") == 6
    entry = {"selected": 4, "pool": 30}
    manifest = {"composition": {"domains": {HOSTILE: entry, "code": entry}}, "warnings": [f"odd {HOSTILE}"]}
    html = Run(tmp_path / HOSTILE, selection, manifest)._repr_html_()
    assert "script" not in _Tags(html).seen
    assert html.count("&lt;script&gt;") == 3
