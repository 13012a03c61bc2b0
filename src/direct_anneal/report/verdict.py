"""The first screen's answers: is the choice safe, what to expect of it, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from direct_anneal.data.issues import REJECTIONS
from direct_anneal.run.safety import Check, State, safety_checks

LEFT_OUT = 0.05  # of the documents that were read


@dataclass(frozen=True)
class Step:
    """A command to type next, and what it is for."""

    purpose: str
    command: str


@dataclass(frozen=True)
class Verdict:
    """A judgement of a finished run.

    Attributes:
        state: the worst of the checks'.
        sentence: the judgement in one sentence.
        checks: question by question, the worst first.
        expectation: what is known of the gain.
        steps: what to do next.
        others: warnings of the run that no check repeats.
    """

    state: State
    sentence: str
    checks: list[Check]
    expectation: str
    steps: list[Step]
    others: list[str]


def judge(manifest: Mapping[str, Any], run: Path) -> Verdict:
    """Judge a finished run by its manifest.

    Args:
        run: its directory, as commands name it.
    """
    checks = sorted([*safety_checks(manifest), _left_out(manifest["corpora"]["pool"])], key=_severity)
    told = {check.text for check in checks}
    bad, look = ([check.name.lower() for check in checks if check.state == state] for state in ("bad", "look"))
    if bad:
        state, sentence = "bad", f"Do not train on this yet: look at {_listed([*bad, *look])} first."
    elif look:
        state, sentence = "look", f"Usable, but look at {_listed(look)} before you train on it."
    else:
        state, sentence = "good", "No check found a reason against training on this choice."
    return Verdict(
        state=state,  # type: ignore[arg-type]  # one of the three above
        sentence=sentence,
        checks=checks,
        expectation=_expectation(manifest),
        steps=_steps(run, with_replay="replay" in manifest),
        others=[warning for warning in manifest["warnings"] if warning not in told],
    )


def moved(domains: Mapping[str, Mapping[str, int]], most: int = 5) -> list[tuple[str, float, float]]:
    """Find the domains whose share changed most: name, share of the choice and of the pool; the largest gain first."""
    pool, chosen = (max(1, sum(entry[role] for entry in domains.values())) for role in ("pool", "selected"))
    shares = [
        (name, entry["selected"] / chosen, entry["pool"] / pool)
        for name, entry in domains.items()
        if entry["selected"] or entry["pool"]  # others are of the validation set alone
    ]
    largest = sorted(shares, key=lambda row: (-abs(row[1] - row[2]), row[0]))[:most]
    return sorted(largest, key=lambda row: (row[2] - row[1], row[0]))


def _left_out(pool: Mapping[str, Any]) -> Check:
    """Judge how many of the documents that were read could not be used."""
    count = sum(pool["incidents"][kind]["count"] for kind in REJECTIONS & pool["incidents"].keys())
    count += pool["quarantined"]["count"]
    read = pool["documents"] + count - pool["quarantined"]["count"]
    if not count:
        return Check("Reading", "good", f"all {read:,} records of the pool could be used")
    told = f"{count:,} of {read:,} records of the pool could not be used"
    if count > LEFT_OUT * read:
        return Check("Reading", "look", told + ". The notes say why, and manifest.json names the first of them")
    return Check("Reading", "good", told)


def _expectation(manifest: Mapping[str, Any]) -> str:
    gain = manifest["objective"].get("path", {}).get("left_out_gain")
    told = (
        "Not measured yet. A choice usually helps if the pool differs from the target, and costs something on other "
        "text. The command compare measures both on small training runs, against random documents."
    )
    if gain is not None:
        told += (
            f" For scale: annealing on the validation set itself lowered the loss of target text that was left out by "
            f"{gain:.3f} nats a token. Documents of the pool will gain less."
        )
    return told


def _steps(run: Path, *, with_replay: bool) -> list[Step]:
    part = " --part both" if with_replay else ""
    name = shlex.quote(str(run))
    export = shlex.quote(f"{run}-export")
    return [
        Step("Measure on small training runs whether it pays", f"direct-anneal compare --from {name}"),
        Step(
            "Write it for a trainer, here OLMo-core", f"direct-anneal export {name} --to olmo-core{part} --out {export}"
        ),
    ]


def _severity(check: Check) -> int:
    return ("bad", "look", "unknown", "good").index(check.state)


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
