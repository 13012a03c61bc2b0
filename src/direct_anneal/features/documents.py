"""The documents of one shard: all that its features are made from, beside the model.

n documents, T tokens of one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from direct_anneal.data import Corpus


@dataclass(frozen=True)
class Documents:
    """The documents of one shard.

    Attributes:
        samples: their rows of the corpus's index: id, source, row, domain, num_tokens; n.
        tokens: of each, shape (T,), int64.
        num_prompt: leading tokens of each that are not predicted, shape (n,).
    """

    samples: pa.Table
    tokens: list[NDArray[np.int64]]
    num_prompt: NDArray[np.int64]

    @classmethod
    def of(cls, corpus: Corpus, rows: range) -> Documents:
        """Read the documents at these positions."""
        samples = corpus.index.slice(rows.start, len(rows))
        for place, field in enumerate(samples.schema):
            if pa.types.is_dictionary(field.type):  # which holds what all of the corpus's rows take from it
                own = samples[place].combine_chunks().dictionary_decode().dictionary_encode()
                samples = samples.set_column(place, field.name, own)
        return cls(samples, [corpus.tokens(row) for row in rows], corpus.num_prompt[rows.start : rows.stop])

    @classmethod
    def from_bytes(cls, content: bytes) -> Documents:
        """Read documents written by `to_bytes`."""
        with pa.ipc.open_stream(content) as stream:
            table = stream.read_all()
        tokens = [row.values.to_numpy().astype(np.int64) for row in table["tokens"]]
        return cls(table.drop_columns(["tokens", "num_prompt"]), tokens, table["num_prompt"].to_numpy())

    def to_bytes(self) -> memoryview:
        """Return the documents as an Arrow stream, for another process."""
        ends = np.cumsum([0, *map(len, self.tokens)], dtype=np.int64)
        values = np.concatenate([np.empty(0, np.int64), *self.tokens]).astype(np.uint32)
        tokens = pa.LargeListArray.from_arrays(pa.array(ends), pa.array(values))
        table = self.samples.append_column("num_prompt", pa.array(self.num_prompt)).append_column("tokens", tokens)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
            stream.write_table(table)
        return memoryview(sink.getvalue())

    @property
    def num_tokens(self) -> int:
        """All tokens."""
        return sum(map(len, self.tokens))
