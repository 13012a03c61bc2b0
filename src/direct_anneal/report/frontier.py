"""A frontier on the terminal: what each budget buys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

_DOMAINS = 4


def print_frontier(rows: list[dict[str, Any]], out: Path, console: Console) -> None:
    """Print objective, budget used and composition for each budget, and where all of it was written.

    Args:
        rows: the manifest's "frontier".
        out: the run's directory.
        console: where to print.
    """
    table = Table(title="Over budgets", title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1))
    for heading in ("ratio", "used", "objective", "bound", "documents"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("domains")
    for row in rows:
        if row["objective"] is None:
            table.add_row(f"{row['ratio']:.4g}", "–", "–", "–", "–", "infeasible")
            continue
        shares = [
            f"{escape(entry['domain'])} {entry['selected'] / row['num_selected']:.0%}" for entry in row["domains"]
        ]
        table.add_row(
            f"{row['ratio']:.4g}",
            f"{row['used_ratio']:.4g}",
            f"{row['objective']:.6g}",
            f"{row['bound']:.6g}",
            f"{row['num_selected']:,}",
            ", ".join(shares[:_DOMAINS]) + (", ..." if len(shares) > _DOMAINS else ""),
        )
    console.print(table)
    console.print(
        f"[green]Written[/]   {escape(str(out / 'frontier.parquet'))}: every domain of every budget",
        highlight=False,
        soft_wrap=True,
    )
