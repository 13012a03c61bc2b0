"""The report of a comparison: which choice pays, where, at which cost, and how sure that is."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from direct_anneal.compare import figures
from direct_anneal.compare.config import BEFORE, GUARD, Recipe
from direct_anneal.compare.fronts import fronts
from direct_anneal.compare.pipeline import RESULTS, known_runs
from direct_anneal.compare.statistics import Row, key_of, small_choices, table
from direct_anneal.compare.tables import markdown, plot_pareto
from direct_anneal.compare.verdicts import Verdict, recommendation, verdicts
from direct_anneal.errors import InputError
from direct_anneal.io.atomic import replacing
from direct_anneal.io.records import read_record, write_record
from direct_anneal.report import page
from direct_anneal.report.figures import largest_domains

RECIPE = "recipe.json"
FEW_SEEDS = 3
_RECIPE_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("model", "reference"), str),
    **dict.fromkeys(("scenarios", "arms", "seeds", "fractions"), list),
}


@dataclass(frozen=True, kw_only=True)
class Group:
    """The arms of one scenario, model and fraction.

    Attributes:
        rows: of the table, the best on the target first.
        before: the checkpoint before annealing; None where it was not scored.
        domain_bpb: arm → domain → mean bits per byte over seeds, the checkpoint's too.
        chosen: arm → domain → chosen documents, summed over seeds.
        target: domains that the model should get better at.
    """

    rows: list[Row]
    before: Row | None
    domain_bpb: dict[str, dict[str, float]]
    chosen: dict[str, dict[str, int]]
    target: list[str]


def is_comparison(directory: Path) -> bool:
    """True if it is the directory of a comparison that can be reported."""
    return (directory / RECIPE).exists()


def keep_recipe(recipe: Recipe, directory: Path) -> None:
    """Write the recipe as it was understood beside its runs, so that they can be reported without it."""
    write_record(directory / RECIPE, json.loads(json.dumps(asdict(recipe), default=dict)))


def write_results(
    recipe: Recipe, lines: Sequence[dict[str, Any]], out: Path
) -> tuple[Sequence[Row], Sequence[Verdict]]:
    """Write table.md and pareto.svg of finished runs, and keep the recipe beside them; return rows and verdicts."""
    rows = table(lines, recipe.reference)
    judged = verdicts(lines, against_of(asdict(recipe)), recipe.guard)
    small = small_choices(lines, recipe.reference)
    text = markdown(rows, recipe.reference, fronts(lines, recipe.reference), judged, small)
    with replacing(out / "table.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    plot_pareto(rows, out / "pareto.svg")
    keep_recipe(recipe, out)
    return rows, judged


def write_report(directory: Path) -> Path:
    """Write report.html of the finished runs of a comparison; the same lines give the same bytes.

    Raises:
        InputError: the directory holds no comparison, or none of its arms is annealed yet.
    """
    try:
        recipe = read_record(directory / RECIPE, _RECIPE_TYPES)
    except (OSError, ValueError) as error:
        raise InputError(
            subject="DIR",
            must="be the directory of a comparison",
            got=f"but {directory} has no {RECIPE} that can be read",
            do="run compare again, it makes no finished run anew",
        ) from error
    try:
        shown = page.render("comparison.html", **_content(recipe, directory))
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            subject="DIR",
            must="be the directory of a comparison",
            got=(
                f"but {RECIPE} or {RESULTS} in {directory} is none that compare wrote "
                f"({type(error).__name__} {' '.join(str(error).split()):.60})"
            ),
            do="run compare again elsewhere",
        ) from error
    return page.write_page(directory, shown)


def _content(recipe: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Return all that the page shows."""
    lines = _lines(recipe, directory)
    groups = _groups(lines, recipe["reference"])
    if not groups:
        raise InputError(f"a report needs at least one annealed arm, but {directory} has none yet: let compare go on")
    shown = [_shown(number, group, recipe["reference"]) for number, group in enumerate(groups)]
    judged = verdicts(lines, against_of(recipe), recipe.get("guard", GUARD))
    content: dict[str, Any] = {
        "recipe": recipe,
        "groups": shown,
        "caveats": _caveats(recipe, groups, lines),
        "lines": lines,
    }
    return content | {"recommended": recommendation(judged), "verdicts": judged, "guard": recipe.get("guard", GUARD)}


def against_of(recipe: dict[str, Any]) -> list[str]:
    """Name the arms that every other one is judged by: the reference, and what is in use."""
    return list(dict.fromkeys([recipe["reference"], *([recipe["current"]] if recipe.get("current") else [])]))


def _lines(recipe: dict[str, Any], directory: Path) -> list[dict[str, Any]]:
    """Return the recipe's own among the finished runs, in its order."""
    order: dict[str, list[Any]] = {
        "scenario": [scenario["name"] for scenario in recipe["scenarios"]],
        "seed": [0, *recipe["seeds"]],  # 0 is the checkpoint's, whatever the seeds are
        "fraction": [0.0, *recipe["fractions"]],
        "replay": [0.0, *recipe.get("replay", ())],
        "arm": [BEFORE, *(arm["name"] for arm in recipe["arms"])],
    }
    model = recipe["model_name"] or Path(recipe["model"]).name
    own = [
        line
        for line in known_runs(directory / RESULTS).values()
        if line["model"] == model
        and all(line.get(name, 0.0) in known for name, known in order.items())
        and (line["arm"] == BEFORE or line["seed"] in recipe["seeds"])
    ]
    return sorted(own, key=lambda line: [known.index(line.get(name, 0.0)) for name, known in order.items()])


def _groups(lines: Sequence[dict[str, Any]], reference: str) -> list[Group]:
    rows = table(lines, reference)
    before = {(row.scenario, row.model): row for row in rows if row.arm == BEFORE}
    groups = []
    places = dict.fromkeys((row.scenario, row.model, row.fraction, row.replay) for row in rows if row.arm != BEFORE)
    for key in places:
        own = [line for line in lines if key_of(line) == key]
        start = [line for line in lines if (line["scenario"], line["model"], line["arm"]) == (*key[:2], BEFORE)]
        groups.append(
            Group(
                rows=[row for row in rows if (row.scenario, row.model, row.fraction, row.replay) == key],
                before=before.get(key[:2]),
                domain_bpb=_means([*own, *start]),
                chosen=_chosen(own),
                target=own[0]["target"],
            )
        )
    return groups


def _means(lines: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    by_arm: dict[str, list[dict[str, float]]] = {}
    for line in lines:
        by_arm.setdefault(line["arm"], []).append(line["domain_bpb"])
    return {
        arm: {domain: sum(one[domain] for one in runs) / len(runs) for domain in sorted(runs[0])}
        for arm, runs in by_arm.items()
    }


def _chosen(lines: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for line in lines:
        counts.setdefault(line["arm"], Counter()).update(line["chosen_domains"])
    return {arm: dict(counter) for arm, counter in counts.items()}


def _shown(number: int, group: Group, reference: str) -> dict[str, Any]:
    """Return a group with its figures, as the template asks for it."""
    kinds = largest_domains(group.chosen.values())
    strips = {}
    for row in group.rows:
        counts = group.chosen[row.arm]
        shares = [counts.get(name, 0) / sum(counts.values()) for name in kinds]
        strips[row.arm] = [*shares, max(0.0, 1 - sum(shares))]
    is_compared = any(row.target_difference is not None for row in group.rows)
    return {
        "group": group,
        "best": group.rows[0],
        "differences": figures.differences(f"differences-{number}", group.rows, reference) if is_compared else None,
        "pareto": figures.pareto(f"pareto-{number}", group.rows, group.before) if group.before else None,
        "domains": figures.by_domain(f"domains-{number}", group, reference) if is_compared else None,
        "kinds": kinds,
        "strips": strips,
    }


def _caveats(recipe: dict[str, Any], groups: Sequence[Group], lines: Sequence[dict[str, Any]]) -> list[str]:
    """List caveats that a careful reader of a comparison would ask about."""
    caveats = []
    rows = [row for group in groups for row in group.rows]
    fewest = min(row.num_seeds for row in rows)
    if fewest < len(recipe["seeds"]):
        caveats.append(f"not every run is finished: an arm has {fewest} of {len(recipe['seeds'])} seeds")
    if fewest < FEW_SEEDS:
        caveats.append(
            f"seeds: {fewest}. That gives {'no interval' if fewest == 1 else 'wide intervals'}, and a lucky order of "
            "training can pass for a better choice"
        )
    compared = sum(row.target_difference is not None for row in rows)
    if compared > 1:
        caveats.append(
            f"{compared} differences to {recipe['reference']} are looked at, and no p-value is corrected for that: at "
            f"0.05, {compared * 0.05:.2g} of them would pass by chance alone"
        )
    forgetting = [row.arm for row in rows if _is(row.target_difference, -1) and _is(row.others_difference, 1)]
    if forgetting:
        caveats.append(
            f"better than {recipe['reference']} on the target, and worse on others: "
            f"{', '.join(dict.fromkeys(forgetting))}"
        )
    caveats += small_choices(lines, recipe["reference"])
    caveats.append(
        "seeds vary the order of training and what is random in a choice, but pool, validation set and checkpoint are "
        "one each"
    )
    return caveats


def _is(difference: Any, sign: int) -> bool:
    return difference is not None and difference.mean * sign > 0
