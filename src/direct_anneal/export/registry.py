"""The registry of trainers' formats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from direct_anneal.export import hugging_face, mds, records, token_files
from direct_anneal.export.shards import Exported, Setting, Writer


@dataclass(frozen=True, kw_only=True)
class Format:
    """One that a trainer reads.

    Attributes:
        holds: "records" with their text, or "tokens".
        open: (directory, setting) → writer.
        snippet: what to paste.
        pasted_into: the snippet's own file extension.
        shard_bytes: where the user names no size.
        masks_prompts: whether it can say that tokens are not to be predicted.
    """

    holds: str
    open: Callable[[Path, Setting], Writer]
    snippet: Callable[[Exported], str]
    pasted_into: str
    shard_bytes: int
    masks_prompts: bool = False


_MIB = 2**20
FORMATS: dict[str, Format] = {
    "hf": Format(
        holds="tokens",
        open=hugging_face.open_dataset,
        snippet=hugging_face.dataset_snippet,
        pasted_into="py",
        shard_bytes=512 * _MIB,
        masks_prompts=True,
    ),
    "jsonl": Format(
        holds="records",
        open=records.open_lines,
        snippet=records.lines_snippet,
        pasted_into="py",
        shard_bytes=512 * _MIB,
        masks_prompts=True,
    ),
    "parquet": Format(
        holds="records",
        open=records.open_tables,
        snippet=records.tables_snippet,
        pasted_into="py",
        shard_bytes=512 * _MIB,
        masks_prompts=True,
    ),
    "olmo-core": Format(
        holds="tokens",
        open=token_files.open_olmo,
        snippet=token_files.olmo_snippet,
        pasted_into="py",
        shard_bytes=1024 * _MIB,
    ),
    "megatron": Format(
        holds="tokens",
        open=token_files.open_megatron,
        snippet=token_files.megatron_snippet,
        pasted_into="sh",
        shard_bytes=1024 * _MIB,
    ),
    "nanotron": Format(
        holds="tokens",
        open=token_files.open_nanotron,
        snippet=token_files.nanotron_snippet,
        pasted_into="yaml",
        shard_bytes=1024 * _MIB,
    ),
    "mds": Format(
        holds="tokens",
        open=mds.open_mds,
        snippet=mds.mds_snippet,
        pasted_into="yaml",
        shard_bytes=64 * _MIB,  # of its library: a shard is what a node fetches
    ),
}
