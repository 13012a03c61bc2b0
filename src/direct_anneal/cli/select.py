"""`select`, `features` and `solve`: choosing documents, what it takes, and choosing again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from direct_anneal.cli.command import Command, Writes, quieten_transformers
from direct_anneal.config.features import ComputeConfig
from direct_anneal.config.objective import DEFAULT_ON_ARRAYS
from direct_anneal.config.select import SOLVING_FIELDS, SelectConfig, SolveConfig
from direct_anneal.progress import current_progress

if TYPE_CHECKING:
    from direct_anneal.selection import Run


def _select(options: dict[str, Any]) -> dict[str, Any]:
    from direct_anneal.selection import select

    quieten_transformers()
    return _shown("select", select(**options))


def _features(options: dict[str, Any]) -> dict[str, Any]:
    from direct_anneal.selection import compute_features

    quieten_transformers()
    run = compute_features(**options)
    for role, corpus in run.corpora.items():
        print(
            f"{role}: {corpus['documents']:,} documents, {corpus['tokens']:,} tokens; "
            f"{corpus['quarantined']['count']:,} with unusable gradients"
        )
    for remark in run.warnings:
        print(f"Note: {remark}")
    if "shards" in options:
        print(f"When all jobs are done: direct-anneal merge {run.out}")
        return {"command": "features", "out": str(run.out), "shards": options["shards"], "warnings": run.warnings}
    print(
        f"Features are in {run.out}/features. To choose by them: direct-anneal solve {run.out} --objective "
        f"{DEFAULT_ON_ARRAYS} --fraction F --out DIR"
    )
    return {"command": "features", "out": str(run.out), "corpora": run.corpora, "warnings": run.warnings}


def _solve(options: dict[str, Any]) -> dict[str, Any]:
    from direct_anneal.selection import select_again

    return _shown("solve", select_again(**options))


def _shown(command: str, run: Run) -> dict[str, Any]:
    """Write the report, print the summary, and return what a job's log needs to know; manifest.json has all of it."""
    from rich.console import Console

    from direct_anneal.report import print_frontier, print_summary, try_report

    with current_progress().stage("Report", "page", 1) as advance:
        try_report(run.out)
        advance(1)
    print_summary(run.manifest, run.out, Console())
    if "frontier" in run.manifest:
        print_frontier(run.manifest["frontier"], run.out, Console())
    budget, objective = run.manifest["budget"], run.manifest["objective"]
    return {
        "command": command,
        "out": str(run.out),
        "num_selected": run.manifest["num_selected"],
        "num_pool": run.manifest["corpora"]["pool"]["documents"],
        "objective": {name: objective[name] for name in ("name", "value", "bound")},
        "budget": budget and {name: budget[name] for name in ("ratio", "limit", "used", "relaxed")},
        "status": run.manifest["status"],
        "files": run.manifest["files"],
        "warnings": run.manifest["warnings"],
        "seconds": run.manifest["timings"],
    }


_CHOICE = ("selected.*", "replay.*", "selection.parquet", "manifest.json", "options.json", "report.html")
_REPLAY = {"replay.*": "replay"}

SELECT = Command(
    name="select",
    help="choose documents from a pool",
    description="Choose the documents of a pool that a checkpoint should see while its learning rate decays. It needs "
    "--model, --pool, --validation, --out, and a size: --fraction, --num-samples or --num-tokens. An interrupted run "
    "goes on when the command is given again.",
    config=SelectConfig,
    run=_select,
    writes=Writes(files=(*_CHOICE, "features/", "corpus/"), only_with=_REPLAY),
)
FEATURES = Command(
    name="features",
    help="compute and store what select needs, without choosing yet",
    description="Compute and store the gradients of a pool and a validation set, which is the long part of select. "
    "Afterwards, select with the same --out uses them, and so does solve.",
    config=ComputeConfig,
    run=_features,
    writes=Writes(files=("features/", "corpus/", "options.json")),
    unused=SOLVING_FIELDS | {"frontier"},  # a selection's file will do
)
SOLVE = Command(
    name="solve",
    help="choose again from a run's features, in seconds",
    description="Choose again from what a select run has stored: another size, objective, budget or quota. Options "
    "that are left out keep that run's values. The run itself is not changed.",
    config=SolveConfig,
    run=_solve,
    writes=Writes(files=_CHOICE, only_with=_REPLAY),
)
