"""Is a choice safe to train on? Facts for the manifest, and the checks that are made of them.

N documents of the pool.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from direct_anneal.data import Corpus
from direct_anneal.io.digests import short_digest
from direct_anneal.path.damage import repeated_share

State = Literal["good", "look", "bad", "unknown"]

LOOKED_AT = 2_000  # documents of pool and selection in which loops are looked for
LOOP = 0.5  # share of a document's tokens in phrases that it has had before

MANY_LEFT_OUT = 0.2  # of the pool, for one sign of damage
CONCENTRATED = 0.8  # of the chosen tokens, from one domain that is less than that of the pool
FEW_REPEATS, MANY_REPEATS = 0.01, 0.1
FEW_LOOPS, MANY_LOOPS = 0.02, 0.1
OVERFIT = 1.5  # stiff cost in sample over that held out
WEAKLY_KNOWN, WELL_KNOWN = 0.25, 0.6
ALIKE = 0.65  # between pools of the target's own mixture (0.57) and others (0.71 and more; docs/results.md)


@dataclass(frozen=True)
class Check:
    """An answer to one question about a choice.

    Attributes:
        name: the question, in a word or two.
        state: "good"; "look" before you train; "bad"; "unknown", where this run cannot tell.
        text: what was found, and where it is not good what to do.
    """

    name: str
    state: State
    text: str


def num_shared(pool: Corpus, validation: Corpus) -> int:
    """Return documents of the pool that are in the validation set, token for token. Reads every token once."""
    wanted = {validation.tokens(i).tobytes() for i in range(validation.num_samples)}
    return sum(pool.tokens(i).tobytes() in wanted for i in range(pool.num_samples))


def safety_facts(
    pool: Corpus,
    selected: NDArray[np.bool_],
    *,
    in_validation: int,
    told_apart: float | None,
    by_its_own_measure: list[str],
) -> dict[str, Any]:
    """Return counts for the manifest.

    Args:
        selected: (N,).
        in_validation: as `num_shared` counts it.
        told_apart: as `likeness.told_apart` finds it.
        by_its_own_measure: what the objective's value has against the choice, as `checks.of_measure` says it.

    Cost: reads every token once, and those of `LOOKED_AT` documents twice more; memory O(N).
    """
    digests = np.fromiter(
        (int.from_bytes(short_digest(pool.tokens(i).tobytes(), 8)) for i in range(pool.num_samples)),
        np.uint64,
        pool.num_samples,
    )
    return {
        "in_validation": in_validation,
        "told_apart": told_apart,
        "by_its_own_measure": by_its_own_measure,
        "repeats": {"pool": _repeats(digests), "selected": _repeats(digests[selected])},
        "loops": {
            "pool": _loops(pool, np.arange(pool.num_samples)),
            "selected": _loops(pool, np.flatnonzero(selected)),
        },
    }


def safety_checks(manifest: Mapping[str, Any]) -> list[Check]:
    """Return the checks of a finished run, from its manifest. Runs of 0.1 have fewer facts, and fewer checks."""
    facts = manifest.get("safety")
    found = [] if facts is None else [*_measure(facts), _damage(facts, manifest), _duplicates(facts, manifest)]
    found.append(_concentration(manifest["composition"]["domains"]))
    if facts is not None:
        found.append(overlap_check(facts["in_validation"]))
        found += likeness_checks(facts.get("told_apart"))
    found.append(_target(manifest["objective"]))
    return [*found, *_curvature(manifest["spectrum"])] if uses_stiff_split(manifest) else found


def uses_stiff_split(manifest: Mapping[str, Any]) -> bool:
    """True if the choice depends on which directions are stiff: by a budget, or by the filter flat."""
    budget = manifest.get("budget") or {}
    return budget.get("ratio") is not None or manifest["objective"].get("filter") == "flat"


def overlap_check(count: int) -> Check:
    """Judge how many documents of the pool are in the validation set."""
    if not count:
        return Check("Overlap", "good", "no document of the pool is in the validation set")
    return Check(
        "Overlap",
        "look",
        f"{count:,} documents of the pool are in the validation set, too. They favour themselves, and scores on "
        "that set will look too good. Remove them from one of the two",
    )


def likeness_checks(told_apart: float | None) -> list[Check]:
    """Judge whether there is much to choose: a pool that is the target's own mixture seldom gains by it."""
    if told_apart is None:
        return []
    found = f"words tell a validation document from one of the pool in {told_apart:.0%} of pairs"
    if told_apart >= ALIKE:
        return [Check("Likeness", "good", found)]
    return [
        Check(
            "Likeness",
            "look",
            f"{found}, where guessing does in 50%: the pool is much like the target already. In the one "
            "that we measured no choice gained much over random documents. Train on the pool as it is, unless compare "
            "shows a gain",
        )
    ]


def _repeats(digests: NDArray[np.uint64]) -> int:
    return len(digests) - len(np.unique(digests))


def _loops(corpus: Corpus, places: NDArray[np.intp]) -> dict[str, int]:
    """Return documents that repeat themselves, among some in even steps."""
    looked_at = places[:: -(-len(places) // LOOKED_AT) or 1]
    found = sum(repeated_share(np.asarray(corpus.tokens(i), np.int64)) > LOOP for i in looked_at.tolist())
    return {"looked_at": len(looked_at), "found": found}


def _measure(facts: Mapping[str, Any]) -> list[Check]:
    """List what the objective's own value says against the choice: a constraint can make it worse than random."""
    return [Check("Gain", "bad", text) for text in facts["by_its_own_measure"]]


def _damage(facts: Mapping[str, Any], manifest: Mapping[str, Any]) -> Check:
    pool, selected = (facts["loops"][role] for role in ("pool", "selected"))
    share = selected["found"] / max(1, selected["looked_at"])
    told = (
        f"{selected['found']:,} of {selected['looked_at']:,} chosen documents consist mostly of repeated phrases "
        f"(pool: {pool['found']:,} of {pool['looked_at']:,})"
    )
    documents = manifest["corpora"]["pool"]["documents"]
    if left_out := max(manifest["objective"].get("damaged", {}).values(), default=0):
        told += ". Documents that look damaged were left out; the notes count them"
    if left_out > MANY_LEFT_OUT * documents:
        told += (
            f". A single sign excluded {left_out:,} of {documents:,} documents. See whether the pool consists of "
            "templates"
        )
        return Check("Damage", "look", told)
    if share > FEW_LOOPS:
        told += (
            ". Read some of them: code, tables and licences repeat themselves without being damaged. Remove damaged "
            "ones from the pool, or list their ids in a file for --force-out"
        )
    return Check("Damage", _graded(share, FEW_LOOPS, MANY_LOOPS), told)


def _duplicates(facts: Mapping[str, Any], manifest: Mapping[str, Any]) -> Check:
    count, chosen = facts["repeats"]["selected"], manifest["num_selected"]
    share = count / max(1, chosen)
    told = f"{count:,} of {chosen:,} chosen documents are exact copies of another one"
    if share > FEW_REPEATS:
        told += ". Deduplicate the pool and choose again"
    return Check("Duplicates", _graded(share, FEW_REPEATS, MANY_REPEATS), told)


def _concentration(domains: Mapping[str, Mapping[str, int]]) -> Check:
    pool, chosen = (sum(entry[f"{role}_tokens"] for entry in domains.values()) for role in ("pool", "selected"))
    if sum(entry["pool"] > 0 for entry in domains.values()) < 2:
        return Check("Concentration", "unknown", "the pool has one domain, so a mix cannot be judged")
    largest = max(sorted(domains), key=lambda name: domains[name]["selected_tokens"])
    share, in_pool = domains[largest]["selected_tokens"] / max(1, chosen), domains[largest]["pool_tokens"] / pool
    told = f"the largest domain, {largest}, is {share:.0%} of the chosen tokens and {in_pool:.0%} of the pool's"
    if share >= CONCENTRATED > in_pool:
        told += ". The model would see little else. Limit it with --ceiling, or mix in random documents when you train"
        return Check("Concentration", "look", told)
    return Check("Concentration", "good", told)


def _target(objective: Mapping[str, Any]) -> Check:
    if (known := objective.get("known")) is not None:
        told = f"{known:.0%} of the pool–validation difference exceeds sampling noise"
        if known < WEAKLY_KNOWN:
            told = f"only {told}, so the selection is weakly targeted. Add validation documents"
            return Check("Target", "look", told)
        more = ". More validation documents would sharpen the target" if known < WELL_KNOWN else ""
        return Check("Target", "look" if more else "good", told + more)
    path = objective.get("path", {})
    if (gain := path.get("left_out_gain")) is None:
        why = (
            "not measured, because no validation text was left out of the walk"
            if path
            else f"objective {objective['name']} does not measure how well the target is known"
        )
        return Check("Target", "unknown", why)
    error = path.get("left_out_gain_stderr")
    told = (
        f"annealing on the validation set lowers the loss of validation text that was left out by {gain:.3f}"
        + ("" if error is None else f" ± {error:.3f}")
        + " nats a token"
    )
    if error is not None and gain < 2 * error:
        return Check("Target", "look", told + ". That is within noise. Add validation documents")
    return Check("Target", "good", told)


def _curvature(spectrum: Mapping[str, Any]) -> list[Check]:
    held_out = spectrum.get("stiff_cost_held_out")
    if not held_out:
        return []
    ratio = spectrum["stiff_cost_in_sample"] / held_out
    told = f"stiff costs are {ratio:.1f} times as high on the documents that the spectrum was made from as on others"
    if ratio > OVERFIT:
        told = f"the spectrum is overfitted: {told}. Add validation documents, or lower --elbow"
        return [Check("Curvature", "look", told)]
    return [Check("Curvature", "good", told)]


def _graded(share: float, few: float, many: float) -> State:
    return "good" if share <= few else "look" if share <= many else "bad"
