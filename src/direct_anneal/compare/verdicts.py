"""The verdict: adopt an arm, reject it, or run more seeds before either.

An arm is adopted where it is ahead on the target and forgets no more than is allowed, both by their 95 % intervals; it
is rejected where it is surely behind, or surely forgets more. Everything else is inconclusive, with the number of seeds
that would decide if the means stayed as they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from direct_anneal.compare.config import BEFORE, GUARD
from direct_anneal.compare.statistics import CONFIDENCE, Difference, Line, by_arm, paired_difference

MOST_SEEDS = 50  # a difference that takes more is none worth finding
SPREADLESS = "one seed says nothing of the spread: run at least 2"

Decision = Literal["adopt", "reject", "inconclusive"]


@dataclass(frozen=True)
class Verdict:
    """One arm against another, at the replay share where it does best on the target within the guard.

    Attributes:
        arm, against: which is judged, and by which.
        replay, fraction: where it was judged.
        decision: of the two differences.
        target, others: differences, arm − against, at the same replay share.
        seeds: how many would decide; None where decided, where one seed shows no spread to tell by, or where more than
            MOST_SEEDS would be needed.
    """

    scenario: str
    model: str
    fraction: float
    replay: float
    arm: str
    against: str
    decision: Decision
    target: Difference
    others: Difference
    seeds: int | None

    @property
    def is_spreadless(self) -> bool:
        """True where one seed alone was run by both, so that no interval can be told."""
        return self.target.low is None or self.others.low is None

    @property
    def sentence(self) -> str:
        """The verdict as one line of text."""
        place = f"{self.arm} against {self.against} at {self.replay:.0%} replay"
        figures = f"target {difference_text(self.target)}, others {difference_text(self.others)}"
        if self.decision != "inconclusive":
            return f"{self.decision}: {place}: {figures}"
        if self.is_spreadless:
            return f"inconclusive: {place}: {figures}; {SPREADLESS}"
        more = f"about {self.seeds} seeds would decide" if self.seeds else f"more than {MOST_SEEDS} seeds would decide"
        return f"inconclusive: {place}: {figures}; {more}"


def verdicts(lines: Sequence[Line], against: Sequence[str], guard: float = GUARD) -> list[Verdict]:
    """Return a verdict for every arm, scenario and fraction against each of `against`.

    Args:
        lines: finished runs.
        against: arms to judge by: the reference, and what is in use.
        guard: bits a byte that others may lose.
    """
    places: dict[tuple[str, str, float], dict[float, Mapping[str, Mapping[int, Line]]]] = defaultdict(dict)
    for (scenario, model, fraction, replay), arms in by_arm(lines).items():
        if fraction > 0:
            places[scenario, model, fraction][replay] = arms
    found = []
    for (scenario, model, fraction), by_replay in places.items():
        names = dict.fromkeys(arm for arms in by_replay.values() for arm in arms if arm != BEFORE)
        for other in against:
            for arm in names:
                if arm in against[: against.index(other) + 1]:
                    continue
                judged = [
                    Verdict(scenario, model, fraction, replay, arm, other, decision, target, others, seeds)
                    for replay, arms in by_replay.items()
                    if arm in arms and other in arms
                    for target, others in [_differences(arms[arm], arms[other])]
                    if target is not None and others is not None
                    for decision, seeds in [decide(target, others, guard)]
                ]
                if judged:
                    order = {"adopt": 0, "inconclusive": 1, "reject": 2}
                    found.append(
                        min(
                            judged,
                            key=lambda one: (
                                order[one.decision],
                                one.others.mean > guard,
                                one.target.mean,
                                one.replay,
                            ),
                        )
                    )
    return found


def decide(target: Difference, others: Difference, guard: float) -> tuple[Decision, int | None]:
    """Decide by the intervals of both differences, and how many seeds it would take where they do not say."""
    if target.high is None or target.low is None or others.high is None or others.low is None:
        return "inconclusive", None
    if target.low > 0 or others.low > guard:
        return "reject", None
    if target.high < 0 and others.high <= guard:
        return "adopt", None
    open_ones = [
        (difference, distance)
        for difference, distance, is_open in (
            (target, abs(target.mean), target.high >= 0),
            (others, abs(guard - others.mean), others.high > guard),
        )
        if is_open
    ]
    needed = [_seeds_for(difference, distance) for difference, distance in open_ones]
    return "inconclusive", None if None in needed else max(n for n in needed if n is not None)


def recommendation(found: Sequence[Verdict]) -> list[str]:
    """Return one sentence for each scenario: which arm to adopt, at which replay share and fraction, or none."""
    said = []
    for scenario, model in dict.fromkeys((one.scenario, one.model) for one in found):
        own = [one for one in found if (one.scenario, one.model) == (scenario, model)]
        first = own[0].against
        adopted = [one for one in own if one.against == first and one.decision == "adopt"]
        if adopted:
            best = min(adopted, key=lambda one: one.target.mean)
            said.append(
                f"{scenario}, {model}: adopt {best.arm}, {best.fraction:.0%} of the pool with {best.replay:.0%} "
                f"replay: target {difference_text(best.target)}, others {difference_text(best.others)} against {first}"
            )
        elif any(one.decision == "inconclusive" for one in own if one.against == first):
            near = [(one.seeds, one.arm) for one in own if one.against == first and one.seeds]
            more = ". About {} seeds would decide on {}".format(*min(near)) if near else ""
            if all(one.is_spreadless for one in own):
                more = f". {SPREADLESS.capitalize()}"
            said.append(
                f"{scenario}, {model}: adopt nothing yet: no arm is significantly better than {first} within the "
                f"guard{more}"
            )
        else:
            said.append(f"{scenario}, {model}: adopt nothing: no arm is better than {first} within the guard")
    return said


def _differences(one: Mapping[int, Line], other: Mapping[int, Line]) -> tuple[Difference | None, Difference | None]:
    return paired_difference(one, other, "target_bpb"), paired_difference(one, other, "others_bpb")


def _seeds_for(difference: Difference, distance: float) -> int | None:
    """Return the number of seeds at which the interval's half width is below a distance, if the deviation stays."""
    assert difference.deviation is not None
    from scipy.stats import t

    for count in range(max(2, difference.num_seeds + 1), MOST_SEEDS + 1):
        if float(t.ppf(0.5 + CONFIDENCE / 2, count - 1)) * difference.deviation / count**0.5 < distance:
            return count
    return None


def difference_text(difference: Difference) -> str:
    """Write a difference with its interval, where it has one."""
    if difference.low is None or difference.high is None:
        return f"{difference.mean:+.4f}"
    return f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"
