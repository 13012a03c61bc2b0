"""From lines to a table: means, and differences to the reference paired by seed.

Runs of one seed share the order of training and, where an arm's choice is random, that too; so differences are taken
within seeds. They say how sure a difference is on this pool, validation set and checkpoint, not on others.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from direct_anneal.compare.config import BEFORE

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """Of an arm to the reference, over the seeds that both have.

    Attributes:
        mean: arm − reference, bits per byte; below 0 the arm is better.
        low, high: 95 % interval of the mean, paired t; None with fewer than two seeds.
        p_value: two-sided, paired t, not corrected for the number of arms; None with fewer than two seeds.
        num_seeds: pairs.
    """

    mean: float
    low: float | None
    high: float | None
    p_value: float | None
    num_seeds: int


@dataclass(frozen=True)
class Row:
    """One arm in one scenario at one fraction; the checkpoint before annealing has fraction 0.

    Attributes:
        target, macro: mean bits per byte over seeds, of the target's domains and of all.
        target_difference, macro_difference: to the reference; None for itself, and before annealing.
        selection_seconds, training_seconds: mean.
        num_seeds: runs.
    """

    scenario: str
    model: str
    fraction: float
    arm: str
    target: float
    macro: float
    target_difference: Difference | None
    macro_difference: Difference | None
    selection_seconds: float
    training_seconds: float
    num_seeds: int


def table(lines: Sequence[dict[str, Any]], reference: str) -> list[Row]:
    """Rows by scenario, model and fraction as they first come, the best on the target first."""
    groups: dict[tuple[str, str, float], dict[str, dict[int, dict[str, Any]]]] = defaultdict(lambda: defaultdict(dict))
    for line in lines:
        groups[line["scenario"], line["model"], float(line["fraction"])][line["arm"]][line["seed"]] = line
    rows = []
    for (scenario, model, fraction), arms in groups.items():
        found = []
        for arm, runs in arms.items():
            is_compared = arm not in (reference, BEFORE) and reference in arms
            differences = [
                paired_difference(runs, arms[reference], measure) if is_compared else None
                for measure in ("target_bpb", "macro_bpb")
            ]
            found.append(
                Row(
                    scenario=scenario,
                    model=model,
                    fraction=fraction,
                    arm=arm,
                    target=_mean(runs, "target_bpb"),
                    macro=_mean(runs, "macro_bpb"),
                    target_difference=differences[0],
                    macro_difference=differences[1],
                    selection_seconds=_mean(runs, "selection_seconds"),
                    training_seconds=_mean(runs, "training_seconds"),
                    num_seeds=len(runs),
                )
            )
        rows += sorted(found, key=lambda row: (row.target, row.arm))
    return rows


def paired_difference(
    runs: dict[int, dict[str, Any]], others: dict[int, dict[str, Any]], measure: str
) -> Difference | None:
    """Runs minus others, paired by seed; None where no seed is in both."""
    seeds = sorted(set(runs) & set(others))
    if not seeds:
        return None
    values = np.array([runs[seed][measure] - others[seed][measure] for seed in seeds])
    mean, count = float(values.mean()), len(seeds)
    if count < 2:
        return Difference(mean, None, None, None, count)
    error = float(values.std(ddof=1)) / math.sqrt(count)
    if error == 0:  # equal differences: t is infinite, or the arms are the same
        return Difference(mean, mean, mean, 0.0 if mean else 1.0, count)
    from scipy.stats import t

    half = float(t.ppf(0.5 + CONFIDENCE / 2, count - 1)) * error
    p_value = 2 * float(t.sf(abs(mean) / error, count - 1))
    return Difference(mean, mean - half, mean + half, p_value, count)


def _mean(runs: dict[int, dict[str, Any]], measure: str) -> float:
    return math.fsum(line.get(measure, 0.0) for line in runs.values()) / len(runs)
