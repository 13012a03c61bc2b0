"""The worker process of a cluster: loads the model once and makes the shards it is given.

Nothing but descriptors comes and goes through Ray. Documents and shards go by way of the store's own place.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from direct_anneal.features import Documents, Header, ngram_shard, shard_rows
from direct_anneal.features.batching import BatchTooLargeError, found_batch_tokens
from direct_anneal.features.storage import place_at
from direct_anneal.features.store import write_shard
from direct_anneal.gradients import Coverage, GradientSketcher, SlowPathWarning
from direct_anneal.io.atomic import TEMPORARY_SUFFIX


@dataclass(frozen=True, kw_only=True)
class Task:
    """One shard to make.

    Attributes:
        place: the store's, a path or URL that every machine sees.
        header: the store's.
        shard: its number.
        max_length: T, tokens of a window.
        batch_tokens: padded tokens of a batch.
        words: place and header of the store of n-grams; None where they are not wanted, or there already.
    """

    place: str
    header: Header
    shard: int
    max_length: int
    batch_tokens: int
    words: tuple[str, Header] | None = None


@dataclass(frozen=True, kw_only=True)
class Made:
    """The outcome of a task.

    Attributes:
        fitting: None; or, where a batch did not fit into memory, the tokens of one that may.
        slow: warnings of what has no fast path.
    """

    fitting: int | None = None
    slow: list[str] = field(default_factory=list)


class Worker:
    """Process that holds the model, once it has started."""

    def start(self, build_sketcher: Callable[[], GradientSketcher]) -> Coverage:
        """Load the model; which way every parameter goes."""
        self._sketcher = build_sketcher()
        return self._sketcher.describe()

    def find_batch_tokens(self, longest: np.ndarray) -> int:
        """See `found_batch_tokens`."""
        return found_batch_tokens(self._sketcher, longest)

    def make(self, task: Task) -> Made:
        """Make a shard of the documents that lie there for it, and commit it."""
        place = place_at(task.place)
        documents = Documents.from_bytes(place.read(documents_name(task.shard)))
        with _heard() as slow:
            try:
                content = shard_rows(documents, self._sketcher, task.max_length, task.batch_tokens)
            except BatchTooLargeError as error:
                return Made(fitting=error.tokens)
        write_shard(place, task.header, task.shard, content)
        if task.words is not None:
            words, header = task.words
            write_shard(place_at(words), header, task.shard, ngram_shard(documents))
        return Made(slow=slow)


def documents_name(shard: int) -> str:
    """Return the path of a shard's documents while it is made; the next run removes what a kill leaves."""
    return f"documents-{shard:05d}.arrow{TEMPORARY_SUFFIX}"


@contextmanager
def _heard() -> Iterator[list[str]]:
    slow: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SlowPathWarning)
        yield slow
    slow += [str(one.message) for one in caught if issubclass(one.category, SlowPathWarning)]
