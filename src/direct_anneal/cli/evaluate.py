"""`evaluate`: what a model knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from direct_anneal.cli.command import Command, Writes, quieten_transformers
from direct_anneal.config.evaluate import EvaluateConfig

if TYPE_CHECKING:
    from rich.table import Table


def _evaluate(options: dict[str, Any]) -> dict[str, Any]:
    from rich.console import Console

    from direct_anneal.evaluate import evaluate

    quieten_transformers()
    record = evaluate(**options)
    console = Console()
    if "domains" in record:
        console.print(_domains(record))
    if record["benchmarks"]:
        console.print(_scores(record["benchmarks"]))
    accuracies = {name: score["accuracy"] for name, score in record["benchmarks"].items()}
    mean = record.get("mean_bits_per_byte")
    return {"command": "evaluate", "out": str(options["out"]), "mean_bits_per_byte": mean, "benchmarks": accuracies}


def _scores(benchmarks: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(title="Benchmarks, zero-shot")
    for heading in ("benchmark", "right", "95 % interval", "chance", "items", ""):
        table.add_column(heading, justify="left" if heading in ("benchmark", "") else "right")
    for name, score in benchmarks.items():
        interval = f"{score['low']:.1%} to {score['high']:.1%}"
        remark = "within noise of chance" if score["near_chance"] else ""
        table.add_row(
            name, f"{score['accuracy']:.1%}", interval, f"{score['chance']:.1%}", str(score["num_items"]), remark
        )
    return table


def _domains(record: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(title="Bits per byte")
    for heading in ("domain", "bits/byte", "± standard error", "documents", "bytes"):
        table.add_column(heading, justify="left" if heading == "domain" else "right")
    for name, score in record["domains"].items():
        error = "" if score["standard_error"] is None else f"{score['standard_error']:.4f}"
        counts = f"{score['num_documents']:,}", f"{score['num_bytes']:,}"
        table.add_row(name, f"{score['bits_per_byte']:.4f}", error, *counts)
    table.add_row("mean of domains", f"{record['mean_bits_per_byte']:.4f}", "", "", "")
    return table


EVALUATE = Command(
    name="evaluate",
    help="score a model: bits per byte by domain, benchmarks",
    description="Score a model: bits per byte by domain over whole documents, and benchmarks from local files.",
    config=EvaluateConfig,
    run=_evaluate,
    writes=Writes(files=("evaluation.json", "options.json")),
)
