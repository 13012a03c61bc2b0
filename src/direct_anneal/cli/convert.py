"""`convert`: from a distributed checkpoint to one that every other command takes."""

from __future__ import annotations

from typing import Any

from direct_anneal.cli.console import add_telling, progress_of
from direct_anneal.cli.shared import quieten_transformers


def add_convert(commands: Any) -> None:
    """The command and its options."""
    parser = commands.add_parser(
        "convert",
        help="make a Hugging Face checkpoint of a distributed one",
        description="Write what torch.distributed.checkpoint saved, as torchtitan does, as a Hugging Face checkpoint, "
        "with Adam's state as optimizer.pt where there is one.",
    )
    parser.set_defaults(command=_convert)
    parser.add_argument("checkpoint", metavar="DCP_DIR", help="directory with .metadata and .distcp files")
    parser.add_argument(
        "--model-config",
        required=True,
        metavar="PATH",
        help="the model's config.json, or its directory, tokenizer included",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="new directory for it")
    add_telling(parser)


def _convert(options: dict[str, Any]) -> dict[str, Any]:
    from direct_anneal.convert import convert

    quieten_transformers()
    record = convert(
        options["checkpoint"], config=options["model_config"], out=options["out"], progress=progress_of(options)
    )
    moments = "Adam's state in optimizer.pt" if record["optimizer"] else "no optimizer's state"
    print(
        f"{options['out']}: {record['num_weights']:,} weights, {record['num_parameters']:,} parameters, under "
        f"{record['naming']} names; {moments}"
    )
    return {"command": "convert", "out": options["out"], **record}
