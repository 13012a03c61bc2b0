"""`convert`: from a distributed checkpoint to one that every other command takes."""

from __future__ import annotations

from typing import Any

from direct_anneal.cli.command import Command, Writes, quieten_transformers
from direct_anneal.config.files import ConvertConfig


def _convert(options: dict[str, Any]) -> dict[str, Any]:
    from direct_anneal.convert import convert

    quieten_transformers()
    record = convert(**options)
    moments = "Adam's state in optimizer.pt" if record["optimizer"] else "no optimizer's state"
    print(
        f"{options['out']}: {record['num_weights']:,} weights, {record['num_parameters']:,} parameters, under "
        f"{record['naming']} names; {moments}"
    )
    return {"command": "convert", "out": options["out"], **record}


CONVERT = Command(
    name="convert",
    help="convert a distributed checkpoint to Hugging Face's format",
    description="Convert a checkpoint of torch.distributed.checkpoint, such as torchtitan writes, to a Hugging Face "
    "directory. Adam's state, if there is one, becomes optimizer.pt.",
    config=ConvertConfig,
    run=_convert,
    writes=Writes(files=("config.json", "*.safetensors", "optimizer.pt"), earlier=()),
    takes_file=False,
)
