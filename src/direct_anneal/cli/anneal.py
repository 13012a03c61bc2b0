"""`anneal`: from a checkpoint and chosen documents to an annealed model."""

from __future__ import annotations

from typing import Any

from direct_anneal.cli.command import Command, Writes, quieten_transformers
from direct_anneal.config.anneal import AnnealConfig


def _anneal(options: dict[str, Any]) -> dict[str, Any]:
    from direct_anneal.train import anneal

    quieten_transformers()
    record = anneal(**options)
    ran = f"{record['num_steps']:,} steps, {record['num_tokens']:,} tokens, {record['seconds']:.0f} s"
    print(f"{options['out']}: annealed on {record['num_documents']['data']:,} documents ({ran}){_last(record)}")
    counts = {name: record[name] for name in ("num_documents", "num_steps", "num_tokens", "seconds")}
    loss = record["losses"][-1][1] if record["losses"] else None
    return {"command": "anneal", "out": str(options["out"]), **counts, "loss": loss}


def _last(record: dict[str, Any]) -> str:
    """Return a clause on the last loss, a mean over the steps since the one before it."""
    if not record["losses"]:  # as earlier versions left short runs
        return ""
    (before, *_), (step, loss, _) = [(0,), *record["losses"]][-2:]
    return f"; loss {loss:.3f} over the last {f'{step - before} steps' if step - before > 1 else 'step'}"


ANNEAL = Command(
    name="anneal",
    help="train on the chosen documents while the learning rate falls",
    description="Continue training a checkpoint on chosen documents while the learning rate falls to zero. An "
    "interrupted run goes on when the command is given again.",
    config=AnnealConfig,
    run=_anneal,
    writes=Writes(
        files=("*.json", "*.safetensors", "optimizer.pt"), only_with={"optimizer.pt": "keep_optimizer_state"}
    ),
)
