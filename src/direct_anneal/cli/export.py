"""`export`: the chosen documents in a trainer's format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from direct_anneal.cli.command import Command, Writes, quieten_transformers
from direct_anneal.config.files import ExportConfig


def _export(options: dict[str, Any]) -> dict[str, Any]:
    from direct_anneal.export import export

    quieten_transformers()
    record = export(**options)
    out = Path(options["out"])
    print(
        f"{out}: {record['num_documents']:,} documents, {record['num_tokens']:,} tokens in {len(record['files']):,} "
        f"files; {out / 'provenance.parquet'} says where each document is"
    )
    if record["num_prompts_trained_on"]:
        print(
            f"note: {record['num_prompts_trained_on']:,} documents begin with a prompt. This format cannot mark "
            "prompts, so the trainer will learn to predict them, too (hf, jsonl and parquet can mark them)"
        )
    if "hub" in record:
        print(f"uploaded: {record['hub']}")
    print(f"\n{record['snippet']}", end="")
    return {"command": "export", "out": str(out), **record}


EXPORT = Command(
    name="export",
    help="write a run's choice in a trainer's format",
    description="Write the documents that a run chose in the format of a trainer: shuffled, and tokenised if the "
    "trainer takes tokens. It prints the lines for the trainer's configuration.",
    config=ExportConfig,
    run=_export,
    writes=Writes(
        files=("files of the format", "provenance.parquet", "snippet.*", "export.json"),
        earlier=("export.json",),
        resumes=False,
    ),
    takes_file=False,
)
