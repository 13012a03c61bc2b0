"""The summary on the terminal: what was chosen, from what, under which budget, and whether to worry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from direct_anneal.io.sanitize import legible
from direct_anneal.run.manifest import besides

_MAX_DOMAINS = 24


def print_summary(manifest: dict[str, Any], out: Path, console: Console) -> None:
    """Print a finished run's manifest for a person.

    Args:
        manifest: as `select` wrote it.
        out: the run's directory, which file names are shown below.
        console: where to print.
    """
    domains = manifest["composition"]["domains"]
    console.print(_composition(domains))
    for line in (
        _shifts(manifest),
        *([_spectrum(manifest["spectrum"])] if manifest["spectrum"] else []),
        *([_budget(manifest["budget"])] if manifest["budget"] else []),
        _objective(manifest["objective"], manifest["status"]),
        *map(_beside, besides(manifest)),
    ):
        console.print(line, highlight=False, soft_wrap=True)
    for warning in manifest["warnings"]:
        console.print(f"[yellow]Note[/]      {escape(legible(warning))}", highlight=False, soft_wrap=True)
    for name, content in (
        *((name, "the chosen documents, as they came") for name in manifest["files"]),
        ("selection.parquet", "every document of the pool with its evidence"),
        ("manifest.json", "configuration, fingerprints, figures"),
        ("report.html", "all of it to look at, in a browser or on paper"),
    ):
        if not (out / name).exists():  # a report that could not be written was told of, and is no reason to fail
            continue
        console.print(
            f"[green]Written[/]   {escape(legible(str(out / name)))}: {content}", highlight=False, soft_wrap=True
        )


def _composition(domains: dict[str, dict[str, int]]) -> Table:
    pool = sum(entry["pool"] for entry in domains.values())
    selected = sum(entry["selected"] for entry in domains.values())
    table = Table(
        title=f"Selected {selected:,} of {pool:,} documents",
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1),
    )
    table.add_column("domain")
    for heading in ("pool", "share", "selected", "share", "rate", "tokens", "validation"):
        table.add_column(heading, justify="right", no_wrap=True)
    largest = sorted(domains, key=lambda name: (-domains[name]["selected"], name))
    for name in largest[:_MAX_DOMAINS]:
        table.add_row(escape(name), *_cells(domains[name], pool, selected))
    if rest := largest[_MAX_DOMAINS:]:
        summed = {key: sum(domains[name][key] for name in rest) for key in domains[rest[0]]}
        table.add_row(f"{len(rest)} others", *_cells(summed, pool, selected))
    return table


def _cells(entry: dict[str, int], pool: int, selected: int) -> tuple[str, ...]:
    """Counts and shares of one domain; its rate is selected over pool, with – where the pool has none."""
    return (
        f"{entry['pool']:,}",
        f"{entry['pool'] / pool:.1%}",
        f"{entry['selected']:,}",
        f"{entry['selected'] / selected:.1%}",
        f"{entry['selected'] / entry['pool']:.0%}" if entry["pool"] else "–",
        f"{entry['selected_tokens']:,}",
        f"{entry['validation']:,}",
    )


def _shifts(manifest: dict[str, Any]) -> str:
    loss, length = manifest["composition"]["loss_mean"], manifest["composition"]["num_tokens_median"]
    return (
        f"[bold]Shift[/]     mean loss {loss['pool']:.3f} in the pool, {loss['selected']:.3f} selected (nats a token); "
        f"median length {length['pool']:,.0f}, {length['selected']:,.0f} selected (tokens)"
    )


def _spectrum(spectrum: dict[str, Any]) -> str:
    eigenvalues, stiff = spectrum["eigenvalues"], spectrum["num_stiff"]
    text = (
        f"[bold]Spectrum[/]  {stiff} stiff directions hold {spectrum['energy']:.1%} of the validation curvature "
        f"({spectrum['curvature']}, rank {len(eigenvalues)}, {spectrum['num_validation']} samples); the largest holds "
        f"{eigenvalues[0] / sum(eigenvalues):.1%}"
    )
    held_out = spectrum["stiff_cost_held_out"]
    if held_out:
        text += f"; stiff cost in sample / held out {spectrum['stiff_cost_in_sample'] / held_out:.2f}"
    return text


def _budget(budget: dict[str, Any]) -> str:
    if budget["ratio"] is None:
        return (
            f"[bold]Budget[/]    none: the objective alone holds back stiff directions; what is chosen costs "
            f"{budget['used_ratio']:.4g} times the {budget['reference']}'s mean"
        )
    bands = _by_band(budget) if isinstance(budget["limit"], list) else [budget]
    shares = [band["used"] / band["limit"] if band["limit"] > 0 else 0.0 for band in bands]
    shown = " / ".join(f"{share:.1%}" for share in shares)
    return (
        f"[bold]Budget[/]    {shown} of the stiff budget used: ratio {budget['ratio']:.4g} of the "
        f"{budget['reference']}'s mean stiff cost (at this size at least {budget['least_feasible_ratio']:.4g})"
        + (", relaxed" if budget["relaxed"] else "")
    )


def _by_band(budget: dict[str, Any]) -> list[dict[str, float]]:
    return [{"used": used, "limit": limit} for used, limit in zip(budget["used"], budget["limit"], strict=True)]


def _objective(objective: dict[str, Any], status: str) -> str:
    text = (
        f"[bold]Objective[/] {objective['name']} {objective['value']:.6g}, at most {objective['bound']:.6g} ({status}"
    )
    if objective["starts"]:
        best = max(start["final"] for start in objective["starts"])
        near = sum(start["final"] >= 0.99 * best for start in objective["starts"])
        text += f"; {near} of {len(objective['starts'])} starts end within 1 % of it"
    return text + ")"


def _beside(other: dict[str, Any]) -> str:
    if not other["feasible"]:
        return f"[bold]Beside[/]    --objective {other['objective']} has no selection under these constraints"
    counts = sorted(other["domains"].items(), key=lambda item: (-item[1], item[0]))
    total = sum(other["domains"].values())
    shown = ", ".join(f"{escape(name)} {count / total:.0%}" for name, count in counts[:6])
    return (
        f"[bold]Beside[/]    --objective {other['objective']} would choose {shown}"
        f"{', ...' if len(counts) > 6 else ''}; {other['shared']:.0%} in common"
        + (f" (at ratio {other['ratio']:.4g}, since yours is infeasible for it)" if other["relaxed"] else "")
    )
