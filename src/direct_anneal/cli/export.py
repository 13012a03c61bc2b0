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
        f"files; where each is: {out / 'provenance.parquet'}"
    )
    if record["num_prompts_trained_on"]:
        print(
            f"note: {record['num_prompts_trained_on']:,} documents begin with a prompt, which this trainer will learn "
            "to predict, too: its format marks none (hf, jsonl and parquet do)"
        )
    print(f"\n{record['snippet']}", end="")
    return {"command": "export", "out": str(out), **record}


EXPORT = Command(
    name="export",
    help="write a run's choice in a trainer's format",
    description="Write the documents that a run chose in the format of a trainer, shuffled, tokenised where the "
    "trainer wants tokens, with a snippet for its configuration.",
    config=ExportConfig,
    run=_export,
    writes=Writes(
        files=("files of the format", "provenance.parquet", "snippet.*", "export.json"),
        earlier=("export.json",),
        resumes=False,
    ),
    takes_file=False,
)
