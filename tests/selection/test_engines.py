"""Engines, workers and places for features that cannot be had."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from direct_anneal.errors import InputError
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.selection import SelectConfig
from direct_anneal.selection.machine import check_machine
from direct_anneal.selection.sketching import ElsewhereBuilder, SketcherBuilder


def config(**options: Any) -> SelectConfig:
    return SelectConfig(**{"model": "m", "pool": "p", "validation": "v", "out": "o", "fraction": 0.5, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "dask"}, "engine must be local or ray, got dask"),
        ({"workers": 2}, "workers must be left out unless engine is ray, got 2"),
        ({"ray_address": "auto"}, "ray_address must be left out unless engine is ray, got auto"),
        ({"engine": "ray", "workers": 0}, "workers must be at least 1, got 0"),
        (
            {"engine": "ray", "device": "cuda:1"},
            "a GPU of its own, got cuda:1: pass cuda",
        ),
        ({"features": "nowhere://a"}, "a URL that fsspec can open, but nowhere://a"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("direct_anneal.distributed.connect.find_spec", lambda name: name)  # be Ray there or not
    with pytest.raises(InputError, match=message):
        check_machine(config(**options))


def test_without_ray_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("direct_anneal.distributed.connect.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"ray needs Ray, which is not installed: pip install 'direct-anneal\[ray\]'$"):
        check_machine(config(engine="ray"))


def test_where_workers_have_gpus_this_machine_needs_none_unless_it_runs_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("direct_anneal.distributed.connect.find_spec", lambda name: name)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    check_machine(config(engine="ray", device="cuda", objective="matching"))
    for options in ({}, {"engine": "ray", "curvature": "hessian"}, {"engine": "ray", "objective": "path"}):
        with pytest.raises(InputError, match="device must be there, got cuda"):
            check_machine(config(device="cuda", **options))


def test_where_and_how_a_run_computes_is_no_part_of_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("direct_anneal.distributed.connect.find_spec", lambda name: name)
    elsewhere = config(engine="ray", ray_address="a:1", workers=3, features="memory://a")
    assert elsewhere.defining == config().defining


class TestElsewhere:
    @pytest.fixture
    def builder(self, checkpoint: Path) -> SketcherBuilder:
        return SketcherBuilder(config(model=checkpoint, sketch_size=8), (np.arange(1, 9),))

    def test_the_same_model_and_version_are_used(self, builder: SketcherBuilder, checkpoint: Path) -> None:
        weights = Checkpoint(str(checkpoint)).weights_fingerprint()
        built = ElsewhereBuilder(builder, weights, importlib.metadata.version("direct-anneal"))()
        assert built.projection.sketch_size == 8

    @pytest.mark.parametrize("differing", ["weights", "version"])
    def test_others_are_refused(self, builder: SketcherBuilder, checkpoint: Path, differing: str) -> None:
        right = {
            "weights": Checkpoint(str(checkpoint)).weights_fingerprint(),
            "version": importlib.metadata.version("direct-anneal"),
        }
        with pytest.raises(InputError, match=r"must be the same on every machine, but is .* on .* and another where"):
            ElsewhereBuilder(builder, **{**right, differing: "another"})()
