"""The results that Python gets from a run."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from direct_anneal.notebook import table
from direct_anneal.solver import Selection

_MOST_DOMAINS = 12


@dataclass(frozen=True)
class Run:
    """The result of `select`; as a path, its directory.

    Attributes:
        out: the directory.
        selection: the solution, its indices relative to the pool's usable samples.
        manifest: as written to manifest.json.
    """

    out: Path
    selection: Selection
    manifest: dict[str, Any]

    def __fspath__(self) -> str:
        return str(self.out)

    def _repr_html_(self) -> str:
        domains = self.manifest["composition"]["domains"]
        largest = sorted(domains.items(), key=lambda item: (-item[1]["selected"], item[0]))[:_MOST_DOMAINS]
        rows = [(name, f"{entry['selected']:,}", f"{entry['pool']:,}") for name, entry in largest]
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.manifest["warnings"])
        return (
            f"{self.selection._repr_html_()}{table(('domain', 'selected', 'pool'), rows)}"
            f"{f'<ul>{notes}</ul>' if notes else ''}<code>{escape(str(self.out))}</code>"
        )

    def __repr__(self) -> str:
        return f"Run({str(self.out)!r}, {self.selection!r})"


@dataclass(frozen=True)
class Features:
    """The result of `features`; as a path, its directory.

    Attributes:
        out: the directory, for `select_again` or for `select` to go on in.
        corpora: of "pool" and "validation" what the manifest of a selection says of them.
        warnings: remarks for the user.
    """

    out: Path
    corpora: dict[str, dict[str, Any]]
    warnings: list[str]

    def __fspath__(self) -> str:
        return str(self.out)
