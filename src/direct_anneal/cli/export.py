"""`export`: the chosen documents in a trainer's format."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from direct_anneal.cli.console import add_telling, progress_of
from direct_anneal.cli.shared import quieten_transformers
from direct_anneal.errors import InputError

_FORMATS = ("hf", "jsonl", "parquet", "olmo-core", "megatron", "nanotron", "mds")
_UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def add_export(commands: Any) -> None:
    """The command and its options."""
    parser = commands.add_parser(
        "export",
        help="write a run's choice in a trainer's format",
        description="Write the documents that a run chose in the format of a trainer, shuffled, tokenised where the "
        "trainer wants tokens, with a snippet for its configuration.",
    )
    parser.set_defaults(command=_export)
    parser.add_argument("run", metavar="RUN_DIR", help="what was --out of select or solve")
    parser.add_argument("--to", choices=_FORMATS, required=True, help="the format")
    parser.add_argument("--out", required=True, metavar="DIR", help="new directory for it")
    parser.add_argument("--shard-size", metavar="SIZE", help="of one file before compression, such as 256MiB")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the documents' order (0)")
    parser.add_argument(
        "--mixture-share", type=float, default=1.0, metavar="X", help="of the training data, for the snippet (1)"
    )
    parser.add_argument(
        "--sequence-length", type=int, metavar="T", help="the trainer's; mds is cut to it (the run's window)"
    )
    parser.add_argument("--eos-id", type=int, metavar="ID", help="token after each document (the checkpoint's)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code that the checkpoint brings")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in --out")
    add_telling(parser)


def _export(options: dict[str, Any]) -> dict[str, Any]:
    from direct_anneal.export import export

    if options["shard_size"] is not None:
        options["shard_size"] = _num_bytes(options["shard_size"])
    quieten_transformers()
    record = export(options.pop("run"), progress=progress_of(options), **options)
    out = Path(options["out"])
    print(
        f"{out}: {record['num_documents']:,} documents, {record['num_tokens']:,} tokens in {len(record['files']):,} "
        f"files; where each is: {out / 'provenance.parquet'}"
    )
    if record["num_prompts_trained_on"]:
        print(
            f"note: {record['num_prompts_trained_on']:,} documents begin with a prompt, which this trainer will learn "
            "to predict, too: its format marks none (hf, jsonl and parquet do)"
        )
    print(f"\n{record['snippet']}", end="")
    return {"command": "export", "out": str(out), **record}


def _num_bytes(text: str) -> int:
    size = re.fullmatch(rf"(\d+) ?({'|'.join(_UNITS)})", text)
    if size is None:
        raise InputError(f"--shard-size must be a number of bytes, KiB, MiB or GiB, such as 256MiB, got {text}")
    return int(size[1]) * _UNITS[size[2]]
