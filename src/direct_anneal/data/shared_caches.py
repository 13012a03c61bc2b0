"""Token caches that jobs make for one another: each source is read and tokenised by one of them.

A finished cache lies in a directory that all jobs see, under the names that `TokenCache` gives its files; KEY.lock
beside it is held by whoever makes it. Its files are linked into the directory of each job, so that no job's corpus
changes with what another does later. A job that ends, however it ends, lets its lock go: another one takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from direct_anneal.data.sources import Source
from direct_anneal.data.token_cache import CacheRecord, TokenCache, reusable_records
from direct_anneal.io.atomic import linked
from direct_anneal.io.lock import taken

Item = tuple[Source, TokenCache]


@dataclass(frozen=True, kw_only=True)
class SharedCaches:
    """Caches that one of several jobs shares with the others.

    Attributes:
        directory: seen by all of them.
        number: of this job, from 0; each begins with other sources.
        count: of the jobs.
    """

    directory: Path
    number: int
    count: int

    def in_turn(self, items: Sequence[Item]) -> list[Item]:
        """Return the items in this job's order: those that it begins with if all jobs start at once come first."""
        first = len(items) * self.number // self.count
        return [*items[first:], *items[:first]]

    def found(self, items: Sequence[Item]) -> list[tuple[Item, CacheRecord]]:
        """Take over what other jobs have finished; what is damaged is dropped. Cost: reads it once."""
        there = [item for item in items if self._shared(item[1]).record_path.exists()]
        for _, cache in there:
            with suppress(FileNotFoundError):  # which the records then lack
                for path, target in zip(self._shared(cache).paths, cache.paths, strict=True):
                    linked(path, target)
        records = reusable_records([cache for _, cache in there], [source for source, _ in there])
        made = []
        for item, record in zip(there, records, strict=True):
            if isinstance(record, CacheRecord):
                made.append((item, record))
                continue
            with taken(self._lock(item[1])) as own:
                if own:  # else somebody makes it anew
                    self._shared(item[1]).record_path.unlink(missing_ok=True)
        return made

    def make(self, cache: TokenCache, make: Callable[[], CacheRecord]) -> CacheRecord | None:
        """Make a cache for all jobs; None if another one has, or is about it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with taken(self._lock(cache)) as own:
            if not own or self._shared(cache).record_path.exists():
                return None
            record = make()
            for path, target in zip(cache.paths, self._shared(cache).paths, strict=True):
                linked(path, target)
            return record

    def _shared(self, cache: TokenCache) -> TokenCache:
        return TokenCache(self.directory, cache.key)

    def _lock(self, cache: TokenCache) -> Path:
        return self.directory / f"{cache.key}.lock"
