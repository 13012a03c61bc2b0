"""OLMo-core, Megatron and nanotron: documents end to end, each with its end token, in the files that they map."""

from __future__ import annotations

import csv
import gzip
import io
import re
from pathlib import Path

import numpy as np

from direct_anneal.data.formats import (
    DatatroveWriter,
    MegatronWriter,
    MemmapWriter,
    TokenWriter,
    smallest,
    token_dtype,
)
from direct_anneal.export.shards import MIB, Document, Exported, Format, Setting, Shard, Sharded, Writer

_LINE_BREAK = re.compile(r"\r\n?|\n")


class _Tokens:
    """A file of tokens; a document's place is its first token."""

    def __init__(self, writer: TokenWriter, dtype: np.dtype) -> None:
        self.name = writer.paths[0].name
        self._writer = writer
        self._dtype = dtype
        self._num_tokens = 0

    def size(self, document: Document) -> int:
        return len(document.tokens) * self._dtype.itemsize

    def add(self, document: Document) -> int:
        self._writer.add(document.tokens)
        self._num_tokens += len(document.tokens)
        return self._num_tokens - len(document.tokens)

    def close(self) -> None:
        self._writer.close()


class _Bounded(_Tokens):
    """part-00000.npy, and part-00000.csv.gz with first token, end, id and domain of each document.

    OLMo-core needs the latter where documents hold end tokens of their own.
    """

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        super().__init__(MemmapWriter(path, dtype), dtype)
        # No name and no time, so that equal documents make equal bytes.
        self._raw = path.with_name(path.name + ".csv.gz").open("wb")
        self._packed = gzip.GzipFile("", "wb", fileobj=self._raw, mtime=0)
        self._bounds = io.TextIOWrapper(self._packed, encoding="utf-8", newline="")
        self._rows = csv.writer(self._bounds, lineterminator="\n")

    def add(self, document: Document) -> int:
        start = super().add(document)
        # A line break in an id would be a line of its own to those who read without csv; what else Unicode has stays.
        names = (_LINE_BREAK.sub(" ", name) for name in (document.id, document.domain))
        self._rows.writerow([start, start + len(document.tokens), *names])
        return start

    def close(self) -> None:
        super().close()
        self._bounds.close()
        self._raw.close()


def open_olmo(directory: Path, setting: Setting) -> Writer:
    """Return a writer of headerless memmaps with the bounds of documents beside them."""
    dtype = smallest(setting.vocab_size)
    return Sharded(directory, setting.shard_bytes, lambda path: _Bounded(path, dtype))


def open_megatron(directory: Path, setting: Setting) -> Writer:
    """Return a writer of .bin and .idx."""
    dtype = token_dtype(setting.vocab_size)
    return Sharded(directory, setting.shard_bytes, lambda path: _Tokens(MegatronWriter(path, dtype), dtype))


def open_nanotron(directory: Path, setting: Setting) -> Writer:
    """Return a writer of .ds with index and metadata."""
    dtype = smallest(setting.vocab_size)

    def open_shard(path: Path) -> Shard:
        return _Tokens(DatatroveWriter(path, dtype, setting.tokenizer), dtype)

    return Sharded(directory, setting.shard_bytes, open_shard)


def olmo_snippet(exported: Exported) -> str:
    """Return a snippet for OLMo-core's training script."""
    out, setting, share = exported.out, exported.setting, exported.share
    dtype = smallest(setting.vocab_size).name
    common = f"""\
    sequence_length={setting.window},
    tokenizer=TokenizerConfig(
        vocab_size={setting.vocab_size}, eos_token_id={setting.eos_id}, pad_token_id={setting.eos_id}
    ),
    dtype=NumpyDatasetDType.{dtype},
    work_dir="WORK_DIR",
)
"""
    imports = "from olmo_core.data import NumpyDatasetDType, NumpyFSLDatasetConfig, TokenizerConfig\n"
    if share == 1:
        return f"""\
{imports}
dataset = NumpyFSLDatasetConfig(
    paths=["{out}/part-*.npy"],
    expand_glob=True,
{common}"""
    return f"""\
{imports}from olmo_core.data.source_mixture import (
    SourceMixtureConfig,
    SourceMixtureDatasetConfig,
    SourceMixtureList,
)

mixture = SourceMixtureDatasetConfig(
    source_list=SourceMixtureList(
        sources=[  # shares of tokens
            SourceMixtureConfig(source_name="chosen", target_ratio={share:g}, paths=["{out}/part-*.npy"]),
            SourceMixtureConfig(source_name="stable", target_ratio={1 - share:g}, paths=["STABLE/*.npy"]),
        ]
    ),
    requested_tokens=NUM_TOKENS,
    global_batch_size=BATCH_TOKENS,
)
dataset = NumpyFSLDatasetConfig.from_src_mix(
    mixture,
{common}"""


def megatron_snippet(exported: Exported) -> str:
    """Return a snippet for Megatron-LM's command line: each file weighs as many tokens as it holds."""
    out, share, files = exported.out, exported.share, exported.files
    total = sum(num_tokens for _, num_tokens in files)
    lines = [f"    {share * tokens / total:.6g} {out}/{name.removesuffix('.bin')} \\" for name, tokens in files]
    if share < 1:
        lines.append(f"    {1 - share:g} STABLE \\")
    return "\n".join(["--data-path \\", *lines, "--split 100,0,0", ""])


def nanotron_snippet(exported: Exported) -> str:
    """Return a snippet for the stage of nanotron's configuration."""
    out, share, vocab_size = exported.out, exported.share, exported.setting.vocab_size
    folders, weights = (f"[{out}]", "[1.0]") if share == 1 else (f"[{out}, STABLE]", f"[{share:g}, {1 - share:g}]")
    return f"""\
data_stages:
  - name: annealing
    start_training_step: FIRST_STEP
    data:
      dataset:
        dataset_folder: {folders}
        dataset_weights: {weights}  # shares of sequences
        vocab_size: {vocab_size}
        token_size_in_bytes: {smallest(vocab_size).itemsize}
"""


FORMATS = {
    "olmo-core": Format(
        holds="tokens",
        open=open_olmo,
        snippet=olmo_snippet,
        pasted_into="py",
        shard_bytes=1024 * MIB,
        has_window=True,
    ),
    "megatron": Format(
        holds="tokens",
        open=open_megatron,
        snippet=megatron_snippet,
        pasted_into="sh",
        shard_bytes=1024 * MIB,
    ),
    "nanotron": Format(
        holds="tokens",
        open=open_nanotron,
        snippet=nanotron_snippet,
        pasted_into="yaml",
        shard_bytes=1024 * MIB,
    ),
}
