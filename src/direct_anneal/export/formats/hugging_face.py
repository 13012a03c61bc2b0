"""A dataset for `datasets.load_from_disk`, tokenised: what transformers' Trainer takes as it is."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from direct_anneal.data import write_dataset_state
from direct_anneal.export.shards import MIB, Document, Exported, Format, Setting, Sharded, Writer

_IGNORED = -100  # transformers' own: no loss at such a label
_BATCH_BYTES = 16 * 2**20


class _Stream:
    """part-00000.arrow; a document's place is its row. Memory: a batch."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.name = f"{path.name}.arrow"
        self._file = pa.OSFile(str(path.with_name(self.name)), "wb")
        self._writer = pa.ipc.new_stream(self._file, schema)
        self._schema = schema
        self._held: list[Document] = []
        self._held_bytes = 0
        self._num_rows = 0

    def size(self, document: Document) -> int:
        return 4 * len(document.tokens) * (2 if "labels" in self._schema.names else 1)

    def add(self, document: Document) -> int:
        self._held.append(document)
        self._held_bytes += self.size(document)
        self._num_rows += 1
        if self._held_bytes >= _BATCH_BYTES:
            self._flush()
        return self._num_rows - 1

    def _flush(self) -> None:
        if not self._held:
            return
        columns = {
            "id": [document.id for document in self._held],
            "domain": [document.domain for document in self._held],
            "input_ids": [document.tokens.astype(np.int32) for document in self._held],
        }
        if "labels" in self._schema.names:
            columns["labels"] = [_labels(document) for document in self._held]
        self._writer.write_table(pa.table(columns, schema=self._schema))
        self._held, self._held_bytes = [], 0

    def close(self) -> None:
        self._flush()
        self._writer.close()
        self._file.close()


def _labels(document: Document) -> np.ndarray:
    labels = document.tokens.astype(np.int32)
    labels[: document.num_prompt] = _IGNORED
    return labels


def open_dataset(directory: Path, setting: Setting) -> Writer:
    """Return a writer of the dataset: id, domain, input_ids, and labels where prompts are not to be predicted."""
    tokens = pa.list_(pa.int32())
    fields = [("id", pa.string()), ("domain", pa.string()), ("input_ids", tokens)]
    schema = pa.schema([*fields, ("labels", tokens)] if setting.has_prompts else fields)

    def finish(names: list[str]) -> None:
        digest = hashlib.blake2b(digest_size=8)
        for name in names:
            with (directory / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
        write_dataset_state(directory, names, digest.hexdigest(), {"features": None})

    return Sharded(directory, setting.shard_bytes, lambda path: _Stream(path, schema), finish)


def dataset_snippet(exported: Exported) -> str:
    """Return a snippet for transformers' Trainer."""
    share = exported.share
    collator = (
        "DataCollatorForSeq2Seq(tokenizer)  # pads input_ids and labels"
        if exported.setting.has_prompts
        else "DataCollatorForLanguageModeling(tokenizer, mlm=False)"
    )
    name = collator.partition("(")[0]
    mixed = (
        ""
        if share == 1
        else f"""\
stable = load_from_disk("STABLE")  # the stable phase's own, tokenised
train = interleave_datasets(  # shares of documents
    [train, stable], probabilities=[{share:g}, {1 - share:g}], seed=0, stopping_strategy="first_exhausted"
)
"""
    )
    return f"""\
from datasets import {"" if share == 1 else "interleave_datasets, "}load_from_disk
from transformers import {name}

train = load_from_disk("{exported.out}")
{mixed}collator = {collator}
# Trainer(..., train_dataset=train, data_collator=collator)
"""


FORMATS = {
    "hf": Format(
        holds="tokens",
        open=open_dataset,
        snippet=dataset_snippet,
        pasted_into="py",
        shard_bytes=512 * MIB,
        masks_prompts=True,
    ),
}
