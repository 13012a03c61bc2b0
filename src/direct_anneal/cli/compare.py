"""`compare`: which choice of documents pays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from direct_anneal.cli.console import add_telling, progress_of
from direct_anneal.cli.shared import quieten_transformers
from direct_anneal.io.atomic import replacing


def add_compare(commands: Any) -> None:
    """The command and its options."""
    parser = commands.add_parser(
        "compare",
        help="anneal on several choices and compare: which one pays?",
        description="Anneal small runs on the choices of several arms, several seeds each, and compare held-out loss.",
    )
    parser.set_defaults(command=_compare)
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file: model, scenarios, arms")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="runs.jsonl, table.md, pareto.svg and report.html; goes on there"
    )
    parser.add_argument("--workers", type=int, default=1, metavar="W", help="runs side by side (1)")
    add_telling(parser)


def _compare(options: dict[str, Any]) -> dict[str, Any]:
    from direct_anneal.compare import compare, read_recipe, table
    from direct_anneal.compare.report import keep_recipe, write_report
    from direct_anneal.compare.tables import markdown, plot_pareto
    from direct_anneal.report import try_report

    quieten_transformers()
    recipe, out = read_recipe(options["recipe"]), Path(options["out"])
    lines = compare(recipe, out, workers=options["workers"], progress=progress_of(options))
    rows = table(lines, recipe.reference)
    text = markdown(rows, recipe.reference)
    with replacing(out / "table.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    plot_pareto(rows, out / "pareto.svg")
    keep_recipe(recipe, out)
    print(text)
    try_report(out, write_report)
    files = ["runs.jsonl", "table.md", "pareto.svg", "report.html"]
    print(f"{out}/{', '.join(files)}")
    return {"command": "compare", "out": str(out), "num_runs": len(lines), "files": files}
