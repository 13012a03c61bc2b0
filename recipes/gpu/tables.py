"""Tables of finished runs, for docs/results.md.

    python recipes/gpu/tables.py RUNS.jsonl ... [--role test/] [--reference random] [--against random] > tables.md

One table for each kind of figure: gain on the target and change of others at each replay share, fronts, unique tokens,
what each arm took of damage, and accuracy. Differences are paired by seed, and in the last column by scenario; * stands
for p < 0.05, ** for p < 0.01.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from direct_anneal.compare import table
from direct_anneal.compare.fronts import fronts
from direct_anneal.compare.statistics import Difference, by_arm, paired, paired_difference, with_others

WHOLE_POOL = ("whole-pool", "whole pool")  # as recipes and as grid.py name it
DAMAGE = ("shuffled", "random", "looping", "boilerplate")
Line = dict[str, Any]


def read(paths: Sequence[Path], role: str) -> list[Line]:
    """Lines of scenarios whose names begin with `role`, without it."""
    texts = [line for path in paths for line in path.read_text(encoding="utf-8").split("\n")]
    lines = [json.loads(line) for line in texts if line.strip()]
    own = [line for line in lines if line["scenario"].startswith(role)]
    return [{**with_others(line), "scenario": line["scenario"].removeprefix(role)} for line in own]


def said(difference: Difference | None) -> str:
    """Mean and stars."""
    if difference is None:
        return ""
    p = 1.0 if difference.p_value is None else difference.p_value
    return f"{difference.mean:+.4f}{'**' if p < 0.01 else '*' if p < 0.05 else ''}"


def grid(head: str, columns: Sequence[str], rows: dict[str, list[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {head} | " + " | ".join(columns) + " |", "|---|" + "--:|" * len(columns)]
    return "\n".join(lines + [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items()]) + "\n"


def gains(lines: list[Line], reference: str, replay: float, fraction: float) -> str:
    """Target / others against the reference, by arm and scenario."""
    rows = [row for row in table(lines, reference) if row.replay == replay and row.fraction == fraction]
    scenarios = list(dict.fromkeys(row.scenario for row in rows))
    by = {(row.arm, row.scenario): row for row in rows}
    arms = list(dict.fromkeys(row.arm for row in rows))
    base = {scenario: by[reference, scenario] for scenario in scenarios if (reference, scenario) in by}
    found = {f"{reference} (itself)": [f"{base[s].target:.4f} / {base[s].others:.4f}" for s in scenarios] + [""]}
    means = {
        arm: np.mean([by[arm, s].target_difference.mean for s in scenarios if (arm, s) in by])  # type: ignore[union-attr]
        for arm in arms
        if arm != reference
    }
    for arm in sorted(means, key=lambda arm: means[arm]):
        cells = []
        for scenario in scenarios:
            row = by.get((arm, scenario))
            cells.append("" if row is None else f"{said(row.target_difference)} / {said(row.others_difference)}")
        there = [scenario for scenario in scenarios if (arm, scenario) in by]
        pairs = [
            paired([getattr(by[arm, s], of) for s in there], [getattr(base[s], of) for s in there])
            for of in ("target", "others")
        ]
        found[arm] = [*cells, " / ".join(map(said, pairs)) if len(there) > 1 else ""]
    seeds = sorted({row.num_seeds for row in rows})
    return f"seeds: {', '.join(map(str, seeds))}\n\n" + grid("arm", [*scenarios, "mean over scenarios"], found)


def areas(lines: list[Line], against: str, fraction: float) -> str:
    """Dominated area in 10⁻³ (bits a byte)², and its difference to an arm's."""
    own = [line for line in lines if line["fraction"] in (0.0, fraction)]
    found = fronts(own, against)
    scenarios = list(dict.fromkeys(front.scenario for front in found))
    by = {(front.arm, front.scenario): front for front in found}
    arms = list(dict.fromkeys(front.arm for front in found))
    rows = {}
    for arm in sorted(arms, key=lambda arm: -sum(by[arm, s].area for s in scenarios if (arm, s) in by)):
        cells = []
        for scenario in scenarios:
            front = by.get((arm, scenario))
            if front is None:
                cells.append("")
                continue
            difference = front.difference
            if difference is None:
                cells.append(f"{1e3 * front.area:.2f}")
                continue
            p = 1.0 if difference.p_value is None else difference.p_value
            cells.append(
                f"{1e3 * front.area:.2f} ({1e3 * difference.mean:+.2f}{'**' if p < 0.01 else '*' if p < 0.05 else ''})"
            )
        rows[arm] = cells
    return grid("arm", scenarios, rows)


def unique(lines: list[Line], reference: str, share: float) -> str:
    """Target / others against the reference at this share of the pool, by fraction, without replay."""
    groups = by_arm(lines)
    scenarios = list(dict.fromkeys(line["scenario"] for line in lines))
    model = lines[0]["model"]
    fractions = sorted({key[2] for key in groups if key[2] > 0})
    parts = []
    for scenario in scenarios:
        base = groups.get((scenario, model, share, 0.0), {}).get(reference, {})
        arms = [
            arm
            for arm in dict.fromkeys(
                arm for fraction in fractions for arm in groups.get((scenario, model, fraction, 0.0), {})
            )
            if sum(arm in groups.get((scenario, model, fraction, 0.0), {}) for fraction in fractions) > 1
        ]
        rows = {
            arm: [
                ""
                if arm not in groups.get((scenario, model, fraction, 0.0), {})
                else " / ".join(
                    said(paired_difference(groups[scenario, model, fraction, 0.0][arm], base, measure))
                    for measure in ("target_bpb", "others_bpb")
                )
                for fraction in fractions
            ]
            for arm in arms
        }
        if rows:
            parts.append(f"{scenario}:\n\n" + grid("arm", [f"{fraction:g}" for fraction in fractions], rows))
    return "\n".join(parts)


def damage(lines: list[Line], fraction: float) -> str:
    """Chosen damaged documents of each kind, as multiples of a random choice of as many documents."""
    parts = []
    for scenario in dict.fromkeys(line["scenario"] for line in lines):
        own = [
            line
            for line in lines
            if line["scenario"] == scenario and line.get("replay", 0.0) == 0.0 and line["fraction"] == fraction
        ]
        pool = next((line["chosen_domains"] for line in own if line["arm"] in WHOLE_POOL), {})
        if not set(DAMAGE) & set(pool):
            continue
        rows = {}
        for arm in dict.fromkeys(line["arm"] for line in own if line["arm"] != "before"):
            runs = [line for line in own if line["arm"] == arm]
            cells = []
            for kind in DAMAGE:
                share = np.mean([line["chosen_domains"].get(kind, 0) / line["num_documents"] for line in runs])
                cells.append(f"{share / (pool[kind] / sum(pool.values())):.2f}")
            rows[arm] = cells
        parts.append(f"{scenario}:\n\n" + grid("arm", DAMAGE, rows))
    return "\n".join(parts)


def accuracy(lines: list[Line], replay: float, fraction: float) -> str:
    """Accuracy in per cent, and its difference to random's, by arm and scenario."""
    found: dict[str, dict[str, list[float]]] = {}
    for line in lines:
        fits = line["arm"] == "before" or (line["fraction"] == fraction and line.get("replay", 0.0) == replay)
        if fits and line.get("accuracy") is not None:
            found.setdefault(line["arm"], {}).setdefault(line["scenario"], []).append(line["accuracy"])
    scenarios = list(dict.fromkeys(scenario for by in found.values() for scenario in by))
    rows = {arm: [f"{100 * np.mean(by[s]):.1f}" if s in by else "" for s in scenarios] for arm, by in found.items()}
    return grid("arm", scenarios, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--role", default="", help="scenarios whose names begin so: test/ of the grid")
    parser.add_argument("--reference", default="random")
    parser.add_argument("--against", default="random", help="arm that fronts are compared with")
    parser.add_argument("--fraction", type=float, default=0.1, help="share of the pool that was chosen")
    given = parser.parse_args()
    share = given.fraction
    lines = read(given.runs, given.role)
    shares = sorted({line.get("replay", 0.0) for line in lines})
    for replay in shares:
        print(f"## {replay:.0%} replay, target / others against {given.reference}\n")
        print(gains(lines, given.reference, replay, share))
    print(f"## Fronts: dominated area, and difference to {given.against}\n\n{areas(lines, given.against, share)}")
    print(f"## Unique tokens, against {given.reference} at {share:g} of the pool\n")
    print(unique(lines, given.reference, share))
    print(f"## Damage, times the pool's share\n\n{damage(lines, share)}")
    print(f"## Accuracy, per cent, without replay\n\n{accuracy(lines, 0.0, share)}")


if __name__ == "__main__":
    main()
