"""`anneal`: from a checkpoint and chosen documents to an annealed model."""

from __future__ import annotations

import argparse
from typing import Any

from direct_anneal.cli.console import add_telling, progress_of
from direct_anneal.cli.shared import add_config, add_data_fields, quieten_transformers, require


def add_anneal(commands: Any) -> None:
    """The command and its options; those not given are left out, so that `AnnealConfig`'s defaults hold."""
    parser = commands.add_parser(
        "anneal",
        help="train on the chosen documents while the learning rate falls",
        description="Continue training from a checkpoint on chosen documents, the learning rate falling to zero.",
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(command=_anneal)
    add_config(parser)
    data = parser.add_argument_group("what goes in, and where it comes out")
    data.add_argument("--model", metavar="DIR", help="checkpoint directory, or hub name")
    data.add_argument(
        "--data", nargs="+", action="extend", metavar="GLOB", help="the chosen documents, such as RUN/selected.jsonl"
    )
    data.add_argument("--out", metavar="DIR", help="directory of the annealed model")
    data.add_argument("--mix", nargs="+", action="extend", metavar="GLOB", help="random documents to mix in")
    data.add_argument("--mix-share", type=float, metavar="X", help="their share of all tokens")
    add_data_fields(data)
    data.add_argument("--overwrite", action="store_true", help="replace an earlier run in --out")
    length = parser.add_argument_group("how long; one of these")
    length.add_argument("--epochs", type=float, metavar="E", help="passes over the chosen documents")
    length.add_argument("--num-tokens", type=int, metavar="B", help="tokens in all")
    training = parser.add_argument_group("the training")
    training.add_argument("--learning-rate", type=float, metavar="X", help="the peak: the stable phase's")
    training.add_argument("--schedule", choices=("linear", "1-sqrt", "cosine", "constant"), help="its end (linear)")
    training.add_argument("--warm-up-steps", type=int, metavar="N", help="steps of rising rate before it (0)")
    training.add_argument(
        "--optimizer-state", choices=("kept", "fresh"), help="Adam's moments: the checkpoint's, or zero (fresh)"
    )
    training.add_argument("--batch-size", type=int, metavar="N", help="windows of a step (16)")
    training.add_argument("--micro-batch-size", type=int, metavar="N", help="windows at once (--batch-size)")
    training.add_argument("--max-length", type=int, metavar="T", help="tokens of a window (the context, at most 2048)")
    training.add_argument("--weight-decay", type=float, metavar="X", help="of AdamW (0.1)")
    training.add_argument("--beta1", type=float, metavar="X", help="of AdamW (0.9)")
    training.add_argument("--beta2", type=float, metavar="X", help="of AdamW (0.95)")
    training.add_argument("--clip", type=float, metavar="X", help="largest gradient norm (1.0)")
    training.add_argument("--seed", type=int, metavar="S", help="of the order of documents, and of dropout (0)")
    machine = parser.add_argument_group("the machine")
    machine.add_argument("--device", help="cpu (default) or cuda")
    machine.add_argument("--dtype", choices=("float32", "bfloat16"), help="bfloat16 for mixed precision (float32)")
    machine.add_argument("--checkpoint-steps", type=int, metavar="N", help="a killed run goes on from there (500)")
    machine.add_argument("--keep-optimizer-state", action="store_true", help="leave optimizer.pt beside the model")
    machine.add_argument("--track", choices=("none", "tensorboard", "wandb", "trackio"), help="send metrics there too")
    machine.add_argument("--trust-remote-code", action="store_true", help="run Python code that the checkpoint brings")
    add_telling(parser)


def _anneal(options: dict[str, Any]) -> dict[str, Any]:
    require(options, "anneal", ("model", "data", "out", "learning_rate"))
    from direct_anneal.train import anneal

    quieten_transformers()
    record = anneal(progress=progress_of(options), **options)
    ran = f"{record['num_steps']:,} steps, {record['num_tokens']:,} tokens, {record['seconds']:.0f} s"
    last = f"; loss {record['losses'][-1][1]:.3f} at the end" if record["losses"] else ""
    print(f"{options['out']}: annealed on {record['num_documents']['data']:,} documents ({ran}){last}")
    counts = {name: record[name] for name in ("num_documents", "num_steps", "num_tokens", "seconds")}
    loss = record["losses"][-1][1] if record["losses"] else None
    return {"command": "anneal", "out": str(options["out"]), **counts, "loss": loss}
