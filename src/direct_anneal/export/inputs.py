"""The chosen documents' records, gathered once from their sources, which are read from the front, for any order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from direct_anneal.data import Corpus, Fields, chosen_records, listed, value_of
from direct_anneal.progress import Advance
from direct_anneal.run.run_dir import RunDir
from direct_anneal.run.sources import fields_of


class Records:
    """The chosen documents as lines of JSON on disk, in the pool's order, to be taken out in any other.

    Args:
        run: a finished one.
        selected: (N,) bool, which of its pool's documents.
        path: of the file.

    Attributes:
        schema: of all records together.
    """

    def __init__(self, run: RunDir, selected: NDArray[np.bool_], path: Path, advance: Advance) -> None:
        pool, fields = run.corpus("pool"), fields_of(run.config)
        self._path = path
        self._starts = np.zeros(pool.num_samples + 1, dtype=np.int64)
        types: dict[str, pa.DataType] = {}
        columns = listed(fields.text) + listed(fields.prompt)
        with path.open("wb") as file:
            for position, found in chosen_records(pool, selected, columns):
                line = json.dumps(_record(pool, position, found, fields, types), ensure_ascii=False).encode()
                file.write(line)
                self._starts[position + 1] = len(line)
                advance(1)
        np.cumsum(self._starts, out=self._starts)
        self.schema = pa.schema(list(types.items()))
        self._file = path.open("rb")

    def line(self, position: int) -> bytes:
        """Return the document at a position of the pool."""
        self._file.seek(self._starts[position])
        return self._file.read(int(self._starts[position + 1] - self._starts[position]))

    def remove(self) -> None:
        """Remove the copies; nothing can be taken out after it."""
        self._file.close()
        self._path.unlink()


def _record(
    pool: Corpus, position: int, found: Mapping[str, Any], fields: Fields, types: dict[str, pa.DataType]
) -> dict[str, Any]:
    row = pool.index.slice(position, 1)
    given = (fields.id, fields.domain, fields.text, fields.prompt)
    name, domain, text, prompt = (next(iter(listed(names)), "") for names in given)  # one for all sources
    record: dict[str, Any] = {name: row["id"][0].as_py(), domain: row["domain"][0].as_py()}
    types |= dict.fromkeys(record, pa.string())
    if isinstance(found_text := value_of(found, fields.text), str):
        found_prompt = value_of(found, fields.prompt)
        texts = {prompt: found_prompt, text: found_text} if isinstance(found_prompt, str) else {text: found_text}
        types |= dict.fromkeys(texts, pa.large_string())
        return record | texts
    tokens, num_prompt = pool.tokens(position).tolist(), int(pool.num_prompt[position])
    lists = {prompt: tokens[:num_prompt]} if num_prompt else {}
    record |= {**lists, "input_ids": tokens[num_prompt:]}
    types |= dict.fromkeys([*lists, "input_ids"], pa.large_list(pa.int32()))
    return record
