"""`evaluate`: what a model knows."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from direct_anneal.cli.console import add_telling, progress_of
from direct_anneal.cli.shared import add_config, add_data_fields, quieten_transformers, require

if TYPE_CHECKING:
    from rich.table import Table


def add_evaluate(commands: Any) -> None:
    """The command and its options; those not given are left out, so that `EvaluateConfig`'s defaults hold."""
    parser = commands.add_parser(
        "evaluate",
        help="score a model: bits per byte by domain, benchmarks",
        description="Score a model: bits per byte by domain over whole documents, and benchmarks from local files.",
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(command=_evaluate)
    add_config(parser)
    parser.add_argument("--model", metavar="DIR", help="checkpoint directory, or hub name")
    parser.add_argument("--data", nargs="+", action="extend", metavar="GLOB", help="held-out documents with text")
    parser.add_argument("--out", metavar="DIR", help="the run's directory")
    parser.add_argument(
        "--benchmark",
        dest="benchmarks",
        action="append",
        metavar="NAME=FILE",
        help="winogrande, copa, piqa, sciq, arc_easy, gsm8k or humaneval from a JSONL file; may be given several times",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="the first N items of each benchmark alone")
    parser.add_argument("--run-generated-code", action="store_true", help="let humaneval run what the model wrote")
    add_data_fields(parser)
    parser.add_argument("--max-length", type=int, metavar="T", help="tokens of a window (the context, at most 2048)")
    parser.add_argument("--device", help="cpu (default) or cuda")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the model (float32)")
    parser.add_argument("--batch-tokens", type=int, metavar="N", help="tokens of a batch (8192)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code that the checkpoint brings")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run in --out")
    add_telling(parser)


def _evaluate(options: dict[str, Any]) -> dict[str, Any]:
    require(options, "evaluate", ("model", "out"))
    from rich.console import Console

    from direct_anneal.evaluate import evaluate

    quieten_transformers()
    record = evaluate(progress=progress_of(options), **options)
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
