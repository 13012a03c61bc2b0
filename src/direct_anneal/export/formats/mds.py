"""MDS, which MosaicML's streaming reads (Composer, LLM Foundry): sequences of equal length, documents end to end.

    index.json          what the shards hold
    shard.00000.mds     n samples (u32), where each begins and the last ends (n + 1,) u32, the columns as JSON, samples
    a sample            bytes of its array (u32); the array: one byte for its one axis and the axis's type, its length,
                        the tokens

LLM Foundry cuts a sample at its own sequence length, so documents are joined and cut here, and the end of the last one
is a shorter sample. Written without MosaicML's library, which needs the clients of four clouds, and numpy and
transformers of older majors than ours.

Source: MDSWriter of mosaicml-streaming.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from direct_anneal.data.formats import smallest
from direct_anneal.export.shards import MIB, Document, Exported, Format, Setting, Writer

_AXIS_TYPES = ("<u1", "<u2", "<u4")


class _Sequences:
    """Cutter of documents into samples and these into shards. Memory: a shard."""

    def __init__(self, directory: Path, setting: Setting) -> None:
        self._directory = directory
        self._window = setting.window
        self._dtype = smallest(setting.vocab_size)
        self._shard_bytes = setting.shard_bytes
        self._config = dict[str, Any](
            column_encodings=[f"ndarray:{self._dtype.name}"],
            column_names=["tokens"],
            column_sizes=[None],
            compression=None,
            format="mds",
            hashes=[],
            size_limit=self._shard_bytes,
            version=2,
        )
        self._pending = np.empty(0, dtype=np.int64)  # less than a window
        self._samples: list[bytes] = []
        self._num_bytes = 0
        self._num_tokens = 0  # in the shard's samples
        self._shards: list[dict[str, Any]] = []

    def add(self, document: Document) -> tuple[str, int]:
        """Add a document; its place is a token of the shard's sequences, joined: the sequence is place // T."""
        place = _name(len(self._shards)), self._num_tokens + len(self._pending)
        tokens = np.concatenate([self._pending, document.tokens])
        whole = len(tokens) - len(tokens) % self._window
        for start in range(0, whole, self._window):
            self._keep(tokens[start : start + self._window])
        self._pending = tokens[whole:]
        return place

    def _keep(self, tokens: np.ndarray) -> None:
        sample = _encoded(tokens.astype(self._dtype))
        self._samples.append(sample)
        self._num_bytes += len(sample) + 4
        self._num_tokens += len(tokens)
        # Now, not when the next one comes: a document that begins in it must know in which shard it will be.
        if self._num_bytes + len(sample) + 4 > self._shard_bytes:
            self._flush()

    def _flush(self) -> None:
        name, config = _name(len(self._shards)), json.dumps(self._config, sort_keys=True).encode("ascii")
        sizes = np.array([0, *map(len, self._samples)], dtype=np.int64)
        begins = np.cumsum(sizes) + 4 + 4 * len(sizes) + len(config)
        with (self._directory / name).open("wb") as shard:
            shard.write(np.array([len(self._samples)], dtype="<u4").tobytes())
            shard.write(begins.astype("<u4").tobytes())
            shard.write(config)
            shard.writelines(self._samples)
        raw = {"basename": name, "bytes": int(begins[-1]), "hashes": {}}
        self._shards.append({**self._config, "raw_data": raw, "samples": len(self._samples), "zip_data": None})
        self._samples, self._num_bytes, self._num_tokens = [], 0, 0

    def close(self) -> None:
        """Write the shorter sample at the end, and the index."""
        if len(self._pending):
            self._keep(self._pending)
        if self._samples:
            self._flush()
        index = json.dumps({"shards": self._shards, "version": 2}, sort_keys=True)
        (self._directory / "index.json").write_text(index, encoding="ascii")


def _name(number: int) -> str:
    return f"shard.{number:05d}.mds"


def _encoded(tokens: np.ndarray) -> bytes:
    code = next(code for code, type_ in enumerate(_AXIS_TYPES) if len(tokens) <= np.iinfo(type_).max)
    array = bytes([1 << 2 | code]) + np.array([len(tokens)], _AXIS_TYPES[code]).tobytes() + tokens.tobytes()
    return np.array([len(array)], dtype="<u4").tobytes() + array


def open_mds(directory: Path, setting: Setting) -> Writer:
    """Return a writer of sequences of `setting.window` tokens."""
    return _Sequences(directory, setting)


def mds_snippet(exported: Exported) -> str:
    """Return a snippet for LLM Foundry's configuration."""
    out, setting, share = exported.out, exported.setting, exported.share
    chosen = (
        f"        chosen: {{local: {out}}}"
        if share == 1
        else (
            f"        chosen: {{local: {out}, proportion: {share:g}}}  # shares of sequences\n"
            f"        stable: {{local: STABLE, proportion: {1 - share:g}}}"
        )
    )
    return f"""\
train_loader:
  name: text
  dataset:
    streams:
{chosen}
    max_seq_len: {setting.window}
    shuffle: true
    eos_token_id: {setting.eos_id}
"""


FORMATS = {
    "mds": Format(
        holds="tokens",
        open=open_mds,
        snippet=mds_snippet,
        pasted_into="yaml",
        shard_bytes=64 * MIB,  # of its library: a shard is what a node fetches
        has_window=True,
    ),
}
