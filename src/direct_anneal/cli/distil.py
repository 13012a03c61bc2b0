"""`distil`: a run as a scorer that needs no model."""

from __future__ import annotations

from typing import Any

from direct_anneal.cli.command import Command, Writes, quieten_transformers
from direct_anneal.config.distil import DistilConfig
from direct_anneal.progress import current_progress


def _distil(options: dict[str, Any]) -> dict[str, Any]:
    from direct_anneal.distill.pipeline import distil

    quieten_transformers()
    card = distil(DistilConfig(**options), current_progress())
    kept = card["held_out"]
    print(
        f"{options['out']}: distilled from {card['documents']:,} documents. On documents left out of the fit, "
        f"the rank correlation with the run is {kept['rank_correlation']:.2f}, and {kept['overlap']:.0%} of the run's "
        f"choice is found again ({kept['overlap_by_chance']:.0%} by chance)"
    )
    return {"command": "distil", "out": options["out"], **card}


DISTIL = Command(
    name="distil",
    help="distil a run into a scorer that needs no model",
    description="Fit a linear model on hashed n-grams to a run's scores, for pools too large for a language model. Its "
    "card says how well it agrees with the run on documents that it was not fitted to.",
    config=DistilConfig,
    run=_distil,
    writes=Writes(files=("scorer.json", "scorer.safetensors")),
    takes_file=False,
)
