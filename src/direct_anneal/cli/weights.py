"""`weights`: a choice as the mixture of a trainer."""

from __future__ import annotations

from typing import Any

from direct_anneal.cli.command import Command, Writes
from direct_anneal.config.weights import WeightsConfig


def _weights(options: dict[str, Any]) -> dict[str, Any]:
    from direct_anneal.export.weights import weights

    table, snippet = weights(WeightsConfig(**options))
    print(snippet, end="")
    return {"command": "weights", "run": options["run"], "cells": table.to_pylist()}


WEIGHTS = Command(
    name="weights",
    help="print a choice as sampling weights for a trainer",
    description="Print which share of a choice comes from each source (and within it from each bucket of scores), as "
    "the configuration of a trainer's mixture.",
    config=WeightsConfig,
    run=_weights,
    writes=Writes(is_file=True),
    takes_file=False,
)
