"""Coverage: the path each parameter takes, and the share of the gradient on each path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SLOW = "one sample at a time"
EXCLUDED = "excluded"


@dataclass(frozen=True)
class Way:
    """The parameters on one path.

    Attributes:
        name: "linear", "embedding", "elementwise", "experts", "sinks", several of them joined by " + " where one
            parameter has several uses, `SLOW` or `EXCLUDED`.
        parameters: their names, in the model's order.
        entries: numbers in them.
        squared_norm: their share of the squared gradient norm, in [0, 1], on the samples that the model was checked
            with; None before the first batch.
    """

    name: str
    parameters: tuple[str, ...]
    entries: int
    squared_norm: float | None


@dataclass(frozen=True)
class Coverage:
    """The treatment of every parameter of a model; prints as a table.

    Attributes:
        ways: most entries first, what is excluded last.
    """

    ways: tuple[Way, ...]

    @classmethod
    def of(cls, ways: Mapping[str, str], entries: Mapping[str, int], squared_norms: Mapping[str, float]) -> Coverage:
        """Gather parameters by way.

        Args:
            ways: parameter → way.
            entries: parameter → how many numbers.
            squared_norms: parameter → squared gradient norm, in any unit; empty where unknown.
        """
        gathered: dict[str, list[str]] = {}
        for parameter, way in ways.items():
            gathered.setdefault(way, []).append(parameter)
        total = sum(squared_norms.values())
        return cls(
            tuple(
                Way(
                    name,
                    tuple(parameters),
                    sum(entries[p] for p in parameters),
                    sum(squared_norms.get(p, 0.0) for p in parameters) / total if total > 0 else None,
                )
                for name, parameters in sorted(
                    gathered.items(), key=lambda item: (item[0] == EXCLUDED, -sum(entries[p] for p in item[1]))
                )
            )
        )

    @property
    def entries(self) -> int:
        """Numbers in all parameters, the excluded ones too."""
        return sum(way.entries for way in self.ways)

    @property
    def summary(self) -> str:
        """Return the share of all numbers that have a part in a sketch, and of those that take one sample at a time."""
        counted = self.entries - sum(way.entries for way in self.ways if way.name == EXCLUDED)
        slow = sum(way.entries for way in self.ways if way.name == SLOW)
        share = f"{_percent(counted / max(1, self.entries))} of parameters counted"
        return f"{share}, " + (f"{_percent(slow / counted)} of them {SLOW}" if slow else "all of them fast")

    def __str__(self) -> str:
        lines = [
            self.summary,
            "",
            f"{'way':<24} {'parameters':>10} {'entries':>15} {'share':>7} {'squared gradient norm':>22}",
        ]
        for way in self.ways:
            norm = "not yet known" if way.squared_norm is None else f"{way.squared_norm:.1%}"
            lines.append(
                f"{way.name:<24} {len(way.parameters):>10,} {way.entries:>15,} {way.entries / self.entries:>7.1%} "
                f"{norm:>22}"
            )
        for way in self.ways:
            if way.name in (SLOW, EXCLUDED):
                lines += ["", f"{way.name}:", *(f"  {parameter}" for parameter in way.parameters)]
        return "\n".join(lines)


def _percent(share: float) -> str:
    """Write a share that is not rounded to all or nothing."""
    rounded = round(100 * share, 1)
    if share < 1 and rounded == 100:
        return "99.9 %"
    return f"{rounded:g} %" if rounded or not share else "less than 0.1 %"
