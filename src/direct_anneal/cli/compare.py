"""`compare`: which choice of documents pays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from direct_anneal.cli.command import Command, Writes, quieten_transformers
from direct_anneal.config.files import CompareConfig


def _compare(options: dict[str, Any]) -> dict[str, Any]:
    from rich.console import Console

    from direct_anneal.compare import compare, read_recipe
    from direct_anneal.compare.presets import write_recipe
    from direct_anneal.compare.report import write_report, write_results
    from direct_anneal.compare.summary import print_results
    from direct_anneal.report import try_report

    quieten_transformers()
    config = CompareConfig(**options)
    out = config.directory
    path = config.recipe or write_recipe(Path(str(config.run)), config.preset, out)
    recipe = read_recipe(path)
    lines = compare(recipe, out, workers=config.workers, track=config.track)
    rows, verdicts = write_results(recipe, lines, out)
    try_report(out, write_report)
    print_results(rows, verdicts, recipe.reference, Console())
    files = ["report.html", "table.md", "pareto.svg", "runs.jsonl"]
    print(f"\nWritten to {out}: {', '.join(files)}")
    return {"command": "compare", "out": str(out), "num_runs": len(lines), "files": files}


COMPARE = Command(
    name="compare",
    help="measure on small training runs which choice pays",
    description="Train small runs on the choices of several arms (a run's own, random documents, baselines), with "
    "several seeds each. Print the losses on held-out text and a verdict for each arm: adopt, reject or inconclusive. "
    "`compare --from RUN_DIR` needs nothing else.",
    config=CompareConfig,
    run=_compare,
    writes=Writes(
        files=("runs.jsonl", "table.md", "pareto.svg", "report.html", "scenarios/", "recipe.yaml", "documents/"),
        only_with={"recipe.yaml": "run", "documents/": "run"},
        earlier=("runs.jsonl", "scenarios"),
        unset="{config.directory}",
    ),
    takes_file=False,
)
