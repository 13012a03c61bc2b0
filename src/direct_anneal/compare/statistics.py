"""The table of a comparison: means, and differences to the reference paired by seed.

Runs of one seed share the order of training and, where an arm's choice is random, that too; so differences are taken
within seeds. They say how sure a difference is on this pool, validation set and checkpoint, not on others.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from direct_anneal.compare.config import BEFORE
from direct_anneal.errors import InputError

CONFIDENCE = 0.95
_FEW = 0.9  # of the tokens that the reference chose

Line = dict[str, Any]
Key = tuple[str, str, float, float]  # scenario, model, fraction, replay


@dataclass(frozen=True)
class Difference:
    """Difference of an arm to another, over the seeds that both have.

    Attributes:
        mean: arm − other, bits per byte; below 0 the arm is better.
        low, high: 95 % interval of the mean, paired t; None with fewer than two seeds.
        p_value: two-sided, paired t, not corrected for the number of arms; None with fewer than two seeds.
        num_seeds: pairs.
        deviation: standard deviation over the pairs; None with fewer than two.
    """

    mean: float
    low: float | None
    high: float | None
    p_value: float | None
    num_seeds: int
    deviation: float | None = None


@dataclass(frozen=True)
class Row:
    """One arm in one scenario at one fraction and replay share; the checkpoint before annealing has fraction 0.

    Attributes:
        target, others, macro: mean bits per byte over seeds, of the target's domains, of those that are neither the
            target's nor set aside (of all, where there are none), and of all but those set aside.
        target_difference, others_difference, macro_difference: to the reference at the same replay share; None for
            itself, and before annealing.
        accuracy: mean over seeds; None where nothing is to be chosen from.
        selection_seconds, training_seconds: mean.
        num_seeds: runs.
    """

    scenario: str
    model: str
    fraction: float
    replay: float
    arm: str
    target: float
    others: float
    macro: float
    target_difference: Difference | None
    others_difference: Difference | None
    macro_difference: Difference | None
    accuracy: float | None
    selection_seconds: float
    training_seconds: float
    num_seeds: int


def key_of(line: Line) -> Key:
    """Return a line's scenario, model, fraction and replay share, which lines from before there was replay lack."""
    return line["scenario"], line["model"], float(line["fraction"]), float(line.get("replay", 0.0))


def with_others(line: Line) -> Line:
    """Return the line with `others_bpb`, also where it is from before that was written.

    Raises:
        InputError: no domain was scored that is not the target's.
    """
    if line.get("others_bpb") is not None:
        return line
    left_out = {*line.get("target", ()), *line.get("aside", ())}
    others = [value for name, value in line.get("domain_bpb", {}).items() if name not in left_out]
    if not others:
        raise InputError(
            subject=f"runs of {line['scenario']}",
            must="score a domain that is neither the target's nor set aside",
            got="but score none: what is forgotten does not show",
        )
    return {**line, "others_bpb": math.fsum(others) / len(others)}


def by_arm(lines: Sequence[Line]) -> dict[Key, dict[str, dict[int, Line]]]:
    """Group lines: key → arm → seed → line, in the order in which they first come."""
    groups: dict[Key, dict[str, dict[int, Line]]] = defaultdict(lambda: defaultdict(dict))
    for line in lines:
        groups[key_of(line)][line["arm"]][line["seed"]] = with_others(line)
    return groups


def table(lines: Sequence[Line], reference: str) -> list[Row]:
    """Return rows by scenario, model, fraction and replay as they first come, the best on the target first."""
    rows = []
    for (scenario, model, fraction, replay), arms in by_arm(lines).items():
        found = []
        for arm, runs in arms.items():
            is_compared = arm not in (reference, BEFORE) and reference in arms
            target, others, macro = (
                paired_difference(runs, arms[reference], measure) if is_compared else None
                for measure in ("target_bpb", "others_bpb", "macro_bpb")
            )
            accuracies = [line["accuracy"] for line in runs.values() if isinstance(line.get("accuracy"), float)]
            found.append(
                Row(
                    scenario=scenario,
                    model=model,
                    fraction=fraction,
                    replay=replay,
                    arm=arm,
                    target=_mean(runs, "target_bpb"),
                    others=_mean(runs, "others_bpb"),
                    macro=_mean(runs, "macro_bpb"),
                    target_difference=target,
                    others_difference=others,
                    macro_difference=macro,
                    accuracy=math.fsum(accuracies) / len(accuracies) if len(accuracies) == len(runs) else None,
                    selection_seconds=_mean(runs, "selection_seconds"),
                    training_seconds=_mean(runs, "training_seconds"),
                    num_seeds=len(runs),
                )
            )
        rows += sorted(found, key=lambda row: (row.target, row.arm))
    return rows


def small_choices(lines: Sequence[Line], reference: str) -> list[str]:
    """Name arms whose choice has far fewer tokens than the reference's: they see what they chose more often."""
    found = {}
    for (scenario, _, fraction, _), arms in by_arm(lines).items():
        whole = _mean(arms[reference], "num_tokens") if reference in arms else 0.0
        for arm, runs in arms.items():
            if arm != BEFORE and (tokens := _mean(runs, "num_tokens")) < _FEW * whole:
                found[scenario, fraction, arm] = (
                    f"{scenario}, {fraction:g}: {arm} has {tokens:,.0f} tokens where {reference} has {whole:,.0f}, and "
                    "was trained on them more often"
                )
    return list(found.values())


def paired_difference(runs: Mapping[int, Line], others: Mapping[int, Line], measure: str) -> Difference | None:
    """Return runs minus others, paired by seed; None where no seed is in both."""
    seeds = sorted(set(runs) & set(others))
    return paired([runs[seed][measure] for seed in seeds], [others[seed][measure] for seed in seeds])


def paired(one: Sequence[float], other: Sequence[float]) -> Difference | None:
    """Return one minus other, pair by pair; None where there is no pair."""
    values = np.array(one, dtype=np.float64) - np.array(other, dtype=np.float64)
    count = len(values)
    if not count:
        return None
    mean = float(values.mean())
    if count < 2:
        return Difference(mean, None, None, None, count)
    deviation = float(values.std(ddof=1))
    if deviation == 0:  # equal differences: t is infinite, or the arms are the same
        return Difference(mean, mean, mean, 0.0 if mean else 1.0, count, 0.0)
    from scipy.stats import ttest_rel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # differences that are equal but for rounding
        found = ttest_rel(one, other)
    interval = found.confidence_interval(CONFIDENCE)
    return Difference(mean, float(interval.low), float(interval.high), float(found.pvalue), count, deviation)


def _mean(runs: Mapping[int, Line], measure: str) -> float:
    return math.fsum(line.get(measure, 0.0) for line in runs.values()) / len(runs)
