"""`evaluate`: what a model knows."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from direct_anneal.cli.shared import add_data_fields, quieten_transformers, require


def add_evaluate(commands: Any) -> None:
    """The command and its options; those not given are left out, so that `EvaluateConfig`'s defaults hold."""
    parser = commands.add_parser(
        "evaluate",
        help="score a model: bits per byte by domain",
        description="Score a model on held-out documents: bits per byte by domain, over whole documents.",
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(command=_evaluate)
    parser.add_argument("--model", metavar="DIR", help="checkpoint directory, or hub name")
    parser.add_argument("--data", nargs="+", action="extend", metavar="GLOB", help="held-out documents with text")
    parser.add_argument("--out", metavar="DIR", help="the run's directory")
    add_data_fields(parser)
    parser.add_argument("--max-length", type=int, metavar="T", help="tokens of a window (the context, at most 2048)")
    parser.add_argument("--device", help="cpu (default) or cuda")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the model (float32)")
    parser.add_argument("--batch-tokens", type=int, metavar="N", help="tokens of a batch (8192)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code that the checkpoint brings")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run in --out")


def _evaluate(options: dict[str, Any]) -> None:
    require(options, "evaluate", ("model", "data", "out"))
    from rich.console import Console
    from rich.table import Table

    from direct_anneal.evaluation import evaluate
    from direct_anneal.progress import for_stream

    quieten_transformers()
    record = evaluate(progress=for_stream(sys.stderr), **options)
    table = Table(title="Bits per byte")
    for heading in ("domain", "bits/byte", "± standard error", "documents", "bytes"):
        table.add_column(heading, justify="left" if heading == "domain" else "right")
    for name, score in record["domains"].items():
        error = "" if score["standard_error"] is None else f"{score['standard_error']:.4f}"
        counts = f"{score['num_documents']:,}", f"{score['num_bytes']:,}"
        table.add_row(name, f"{score['bits_per_byte']:.4f}", error, *counts)
    table.add_row("mean of domains", f"{record['mean_bits_per_byte']:.4f}", "", "", "")
    Console().print(table)
