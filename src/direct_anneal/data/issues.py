"""Issues found while reading documents: counted, listed on disk, never silent and never fatal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from direct_anneal.io.atomic import remove_leftovers, replacing

MAX_PLACES = 100

# These stand for a record that was not used ("truncated" for the one that was cut); with the others it stays.
REJECTIONS = frozenset(
    {
        "bad-line",
        "no-text",
        "empty-text",
        "bad-prompt",
        "bad-tokens",
        "too-short",
        "nothing-to-predict",
        "truncated",
        "special-dropped",
    }
)


@dataclass(frozen=True, kw_only=True)
class Issue:
    """One thing amiss with one record, or with a file as a whole.

    Attributes:
        kind: the record is left out for "bad-line" (no UTF-8 JSON object of sane length), "no-text" (neither text nor
            input_ids), "empty-text" (nothing but white space), "bad-prompt" (not of the text's kind), "bad-tokens" (no
            integers within the vocabulary), "too-short" (fewer than two tokens), "nothing-to-predict" (nothing after
            the prompt, or a single token that begins a window), "special-dropped" (special tokens stand in the text,
            and such documents are not wanted). It stays for "special-tokens" (read as asked for), "no-prompt" (where
            one was asked for; predicted whole), "odd-id" (neither a string nor an integer; named by its place),
            "over-long" (more tokens than max_length), "duplicate-id" (under a qualified id). "truncated" is a damaged
            file, used up to there.
        source: the file's path.
        row: line or table row, from 0.
        detail: what exactly.
    """

    kind: str
    source: str
    row: int | None
    detail: str

    def to_line(self) -> str:
        """Return one line of JSON, in ASCII: file names and damaged text may hold what UTF-8 cannot."""
        return json.dumps(asdict(self)) + "\n"


@dataclass(frozen=True)
class IssueSummary:
    """Counts by kind in memory, every issue on disk.

    Attributes:
        counts: issues of each kind that occurred.
        listing: gives JSON lines, all issues in source order; reads them whenever it is called.
    """

    counts: Mapping[str, int]
    listing: Callable[[], Iterable[str]]

    def write(self, path: Path) -> None:
        """Write the listing whole or not at all, in a directory that nobody else writes to."""
        remove_leftovers(path)
        with replacing(path) as temporary, temporary.open("w", encoding="ascii", newline="") as file:
            file.writelines(self.listing())

    def left_out(self) -> str:
        """Describe the records that were not used, by kind, as "3 no-text, 1 too-short"; empty if all were."""
        return ", ".join(f"{self.counts[kind]:,} {kind}" for kind in sorted(self.counts) if kind in REJECTIONS)

    def places(self, kind: str, limit: int = MAX_PLACES) -> list[Issue]:
        """Return the first `limit` issues of a kind. Cost: reads the listing as far as needed."""
        wanted = min(limit, self.counts.get(kind, 0))
        return list(islice((issue for issue in self._listed() if issue.kind == kind), wanted))

    def to_manifest(self) -> dict[str, dict[str, Any]]:
        """Return {kind: {"count": n, "places": [{"source", "row", "detail"}, ... at most 100]}}, kinds sorted."""
        return {
            kind: {
                "count": self.counts[kind],
                "places": [
                    {"source": issue.source, "row": issue.row, "detail": issue.detail} for issue in self.places(kind)
                ],
            }
            for kind in sorted(self.counts)
        }

    def _listed(self) -> Iterator[Issue]:
        for line in self.listing():
            yield Issue(**json.loads(line))
