"""`compare`: which choice of documents pays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from direct_anneal.cli.command import Command, Writes, quieten_transformers
from direct_anneal.config.files import CompareConfig


def _compare(options: dict[str, Any]) -> dict[str, Any]:
    from direct_anneal.compare import compare, read_recipe
    from direct_anneal.compare.presets import write_recipe
    from direct_anneal.compare.report import write_report, write_results
    from direct_anneal.report import try_report

    quieten_transformers()
    config = CompareConfig(**options)
    out = Path(config.out)
    path = config.recipe or write_recipe(Path(str(config.run)), config.preset, out)
    recipe = read_recipe(path)
    lines = compare(recipe, out, workers=config.workers)
    text = write_results(recipe, lines, out)
    print(text)
    try_report(out, write_report)
    files = ["runs.jsonl", "table.md", "pareto.svg", "report.html"]
    print(f"{out}/{', '.join(files)}")
    return {"command": "compare", "out": str(out), "num_runs": len(lines), "files": files}


COMPARE = Command(
    name="compare",
    help="anneal on several choices and compare: which one pays?",
    description="Anneal small runs on the choices of several arms, several seeds each, and compare held-out loss.",
    config=CompareConfig,
    run=_compare,
    writes=Writes(
        files=("runs.jsonl", "table.md", "pareto.svg", "report.html", "scenarios/", "recipe.yaml", "documents/"),
        only_with={"recipe.yaml": "run", "documents/": "run"},
        earlier=None,
    ),
    takes_file=False,
)
