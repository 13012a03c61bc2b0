"""The results of a comparison on the terminal: a table for each scenario, then the verdicts."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from direct_anneal.compare.config import BEFORE
from direct_anneal.compare.statistics import Row
from direct_anneal.compare.verdicts import Verdict, difference_text, recommendation

_SIGNS = {"adopt": "[green]✓[/]", "reject": "[red]✗[/]", "inconclusive": "[yellow]?[/]"}
_WIDEST = 120  # columns of a line that is no terminal's


def print_results(rows: Sequence[Row], verdicts: Sequence[Verdict], reference: str, console: Console) -> None:
    """Print what was measured, and what follows from it."""
    if not console.is_terminal:
        console.width = _WIDEST
    before = {(row.scenario, row.model): row for row in rows if row.arm == BEFORE}
    for place in dict.fromkeys((row.scenario, row.model, row.fraction) for row in rows if row.fraction > 0):
        own = [row for row in rows if (row.scenario, row.model, row.fraction) == place]
        console.print(_table(own, before.get(place[:2]), reference))
    console.print("Bits per byte; lower is better. Others: held-out domains that are not the target's.", style="dim")
    if not verdicts:
        return
    console.print("\n[bold]Verdict[/]")
    for line in recommendation(verdicts):
        console.print(f"  [bold]{escape(line)}[/]", highlight=False, soft_wrap=True)
    for verdict in verdicts:
        where = f"{verdict.scenario}, {verdict.fraction:.0%}: {verdict.sentence}"
        console.print(f"  {_SIGNS[verdict.decision]} {escape(where)}", highlight=False, soft_wrap=True)


def _table(rows: Sequence[Row], before: Row | None, reference: str) -> Table:
    first = rows[0]
    table = Table(
        title=f"{escape(first.scenario)}: {first.fraction:.0%} of the pool's tokens chosen, {escape(first.model)}",
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1),
    )
    table.add_column("arm", overflow="fold")
    for heading in ("replay", "seeds", "target", f"− {reference}", "others", f"− {reference}"):
        table.add_column(escape(heading), justify="right")
    if before is not None:
        table.add_row("before annealing", "", "", f"{before.target:.4f}", "", f"{before.others:.4f}", "", style="dim")
    for row in rows:
        table.add_row(
            escape(row.arm),
            f"{row.replay:.0%}",
            str(row.num_seeds),
            f"{row.target:.4f}",
            "" if row.target_difference is None else difference_text(row.target_difference),
            f"{row.others:.4f}",
            "" if row.others_difference is None else difference_text(row.others_difference),
        )
    return table
