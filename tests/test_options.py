"""Options against their annotations: what fits comes out in one form, everything else is one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from direct_anneal.config.anneal import AnnealConfig
from direct_anneal.config.features import ComputeConfig
from direct_anneal.config.files import ExportConfig
from direct_anneal.config.option import configuration, option
from direct_anneal.config.options import require_device
from direct_anneal.errors import InputError
from direct_anneal.path.config import PathConfig
from direct_anneal.selection.in_memory import SamplesConfig


def kept_as_given(name: str, value: object) -> object:
    return value


@configuration
class Wanted:
    """Options of every kind."""

    count: int = option(default=1, help="a number")
    share: float | None = option(default=None, help="a share")
    flag: bool = option(default=False, help="a flag")
    name: str = option(default="", help="a name")
    files: tuple[str, ...] = option(default=(), help="files")
    names: str | tuple[str, ...] | None = option(default="text", help="one name or several")
    kind: Literal["one", "two"] | None = option(default=None, help="a kind")
    edge: float | Literal["gap"] = option(default=0.5, help="an edge")
    quotas: Mapping[str, int | float] = option(default_factory=dict, settle=kept_as_given, help="quotas")


@pytest.mark.parametrize(
    ("given", "settled"),
    [
        ({"count": np.int64(3)}, 3),
        ({"share": 1}, 1.0),
        ({"share": np.float32(0.5)}, 0.5),
        ({"share": None}, None),
        ({"name": Path("a/b")}, "a/b"),
        ({"files": "a*"}, ("a*",)),
        ({"files": ["a", Path("b")]}, ("a", "b")),
        ({"names": "a"}, "a"),
        ({"names": ["a"]}, "a"),
        ({"names": ["a", "b"]}, ("a", "b")),
        ({"kind": "two"}, "two"),
        ({"edge": "gap"}, "gap"),
        ({"quotas": "whatever"}, "whatever"),  # its owner's to check
    ],
)
def test_what_fits_comes_out_in_one_form(given: dict[str, Any], settled: object) -> None:
    found = getattr(Wanted(**given), next(iter(given)))
    assert found == settled
    assert type(found) is type(settled)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"count": 4.5}, "count must be a whole number, got 4.5"),
        ({"count": True}, "count must be a whole number, got True"),
        ({"count": None}, "count must be a whole number, got None"),
        ({"share": "1e-1"}, r"share must be a number \(in YAML 0.1 or 1.0e-1\), got '1e-1'"),
        ({"flag": "no"}, "flag must be true or false, got 'no'"),
        ({"flag": 1}, "flag must be true or false, got 1"),
        ({"name": 0}, "name must be a text, got 0"),
        ({"files": ["a", 5]}, "files must be a text or a list of texts"),
        ({"names": ["a", 5]}, r"names must be a text or a list of texts, got \['a', 5\]"),
        ({"names": []}, r"names must be a text or a list of texts, got \[\]"),
        ({"kind": "three"}, "kind must be one or two, got three"),
        ({"kind": ["one"]}, "kind must be one or two"),
        ({"edge": "knee"}, "edge must be a number .* or gap, got 'knee'"),
        ({"edge": False}, "edge must be a number"),
        ({"share": float("nan")}, "share must be finite, got nan"),
        ({"edge": float("inf")}, "edge must be finite, got inf"),
    ],
)
def test_what_does_not_fit_is_named(given: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told) as refusal:
        Wanted(**given)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("device", ["tpu", "", "cuda:", "cuda:99", "cpu:0"])
def test_devices_that_are_not_there(device: str) -> None:
    with pytest.raises(InputError, match="device must be"):
        require_device(device)


def test_a_numbered_device_where_only_the_first_will_do() -> None:
    with pytest.raises(InputError, match="device must be cpu or cuda, got cuda:0"):
        require_device("cuda:0", numbered=False)


@pytest.mark.parametrize("seed", [-1, 2**32])
@pytest.mark.parametrize(
    "config",
    [
        partial(AnnealConfig, model="m", data="d", out="o", learning_rate=0.1, epochs=1),
        partial(ComputeConfig, model="m", pool="p", validation="v", out="o"),
        partial(ExportConfig, "r", to="hf", out="o"),
        PathConfig,
        partial(SamplesConfig, torch.nn.Linear(1, 1), [0], [0], len, num_selected=1),
    ],
)
def test_every_seed_is_one_that_numpy_takes(config: Callable[..., Any], seed: int) -> None:
    config(seed=2**32 - 1)
    with pytest.raises(InputError, match=f"^seed must be in 0..4294967295, got {seed}"):
        config(seed=seed)
