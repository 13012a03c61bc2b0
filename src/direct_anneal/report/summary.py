"""The summary on the terminal: what was chosen, is it safe, what next; then the figures and the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from direct_anneal.io.sanitize import sanitized
from direct_anneal.report.verdict import Verdict, judge, moved
from direct_anneal.run.manifest import besides

_MAX_DOMAINS = 24
_WIDTH = 18  # of the words that lines begin with
_SIGNS = {"good": "[green]✓[/]", "look": "[yellow]![/]", "bad": "[red]✗[/]", "unknown": "[dim]?[/]"}


def print_summary(manifest: dict[str, Any], out: Path, console: Console) -> None:
    """Print a finished run's manifest for a person.

    Args:
        manifest: as `select` wrote it.
        out: the run's directory, which file names are shown below.
        console: where to print.
    """
    domains = manifest["composition"]["domains"]
    verdict = judge(manifest, out)
    console.print(_composition(domains))
    for line in (
        *_judged(verdict, domains),
        "",
        *_figures(manifest),
        *(_line("Note", escape(_sentence(sanitized(warning))), "yellow") for warning in verdict.others),
        "",
        *_written(manifest, out),
        "",
        _line("Gain", escape(verdict.expectation)),
        "",
        *(
            f"{_line('' if number else 'Next', step.purpose)}:\n{'':<{_WIDTH}}  {escape(sanitized(step.command))}"
            for number, step in enumerate(verdict.steps)
        ),
    ):
        console.print(line, highlight=False, soft_wrap=True)


def _judged(verdict: Verdict, domains: dict[str, dict[str, int]]) -> list[str]:
    """Return the shift, the verdict, and the checks behind it."""
    lines = []
    if len(domains) > 1:
        shown = ", ".join(f"{escape(name)} {pool:.0%} → {chosen:.0%}" for name, chosen, pool in moved(domains, 4))
        lines.append(_line("Chosen", f"largest shifts, pool → choice: {shown}"))
    lines.append(_line("Verdict", f"[bold]{escape(verdict.sentence)}[/]"))
    for check in verdict.checks:
        lines.append(
            f"{'':<2}{_SIGNS[check.state]} {check.name:<{_WIDTH - 4}}{escape(_sentence(sanitized(check.text)))}"
        )
    return lines


def _figures(manifest: dict[str, Any]) -> list[str]:
    """Return the method's own figures, for those who read them."""
    coverage = manifest.get("coverage") or {}
    return [
        _shifts(manifest),
        *([_replay(manifest["replay"])] if "replay" in manifest else []),
        *([_retain(manifest["retain"])] if "retain" in manifest else []),
        *([_line("Gradients", escape(sanitized(str(coverage["summary"]))))] if "summary" in coverage else []),
        *([_spectrum(manifest["spectrum"])] if manifest["spectrum"] else []),
        *([_budget(manifest["budget"])] if manifest["budget"] else []),
        _objective(manifest["objective"], manifest["status"]),
        *map(_beside, besides(manifest)),
    ]


def _written(manifest: dict[str, Any], out: Path) -> list[str]:
    general = manifest.get("replay", {}).get("files", [])
    files = (
        *(
            (name, "general text, to mix in when you train" if name in general else "the chosen documents, unchanged")
            for name in manifest["files"]
        ),
        ("report.html", "this summary with figures and a table of documents, for a browser"),
        ("selection.parquet", "every document of the pool with its scores"),
        ("manifest.json", "configuration, versions, fingerprints and all figures"),
    )
    # A report that could not be written was told of, and is no reason to fail.
    return [
        _line("Written", f"{escape(sanitized(str(out / name)))}: {content}", "green")
        for name, content in files
        if (out / name).exists()
    ]


def _line(head: str, text: str, style: str = "bold") -> str:
    return f"[{style}]{head}[/]{'':<{_WIDTH - len(head)}}{text}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


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
    table.add_column("domain", overflow="fold")  # a name is never cut
    for heading in ("pool", "share", "chosen", "share", "of domain", "tokens", "validation"):
        table.add_column(heading, justify="right", no_wrap=True)
    largest = sorted(domains, key=lambda name: (-domains[name]["selected"], name))
    for name in largest[:_MAX_DOMAINS]:
        table.add_row(escape(name), *_cells(domains[name], pool, selected))
    if rest := largest[_MAX_DOMAINS:]:
        summed = {key: sum(domains[name][key] for name in rest) for key in domains[rest[0]]}
        table.add_row(f"{len(rest)} others", *_cells(summed, pool, selected))
    return table


def _cells(entry: dict[str, int], pool: int, selected: int) -> tuple[str, ...]:
    """Format counts and shares of one domain; the share of it that was chosen, with – where the pool has none."""
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
    return _line(
        "Loss, length",
        f"mean loss {loss['pool']:.3f} nats a token in the pool, {loss['selected']:.3f} chosen; "
        f"median length {length['pool']:,.0f} tokens, {length['selected']:,.0f} chosen",
    )


def _replay(replay: dict[str, Any]) -> str:
    return _line(
        "Replay",
        f"{replay['num_documents']:,} random documents beside them, {replay['num_tokens']:,} tokens: "
        f"{replay['share_reached']:.1%} of all",
    )


def _retain(retain: dict[str, Any]) -> str:
    return _line(
        "Retained text",
        f"to first order the choice helps it {retain['reached_ratio']:.3g} times as much as random documents (at least "
        f"{retain['floor_ratio']:g} was asked for); {retain['harmful']:,} chosen documents harm it",
    )


def _spectrum(spectrum: dict[str, Any]) -> str:
    eigenvalues, stiff = spectrum["eigenvalues"], spectrum["num_stiff"]
    return _line(
        "Spectrum",
        f"{stiff} of {len(eigenvalues)} directions are stiff and hold {spectrum['energy']:.1%} of the curvature "
        f"({spectrum['curvature']} of {spectrum['num_validation']} documents); the largest holds "
        f"{eigenvalues[0] / sum(eigenvalues):.1%}",
    )


def _budget(budget: dict[str, Any]) -> str:
    if budget["ratio"] is None:
        return _line(
            "Budget",
            f"none set; a chosen document has {budget['used_ratio']:.4g} times the {budget['reference']}'s mean "
            "stiff cost",
        )
    bands = _by_band(budget) if isinstance(budget["limit"], list) else [budget]
    shares = [band["used"] / band["limit"] if band["limit"] > 0 else 0.0 for band in bands]
    shown = " / ".join(f"{share:.1%}" for share in shares)
    return _line(
        "Budget",
        f"{shown} of the stiff budget used: ratio {budget['ratio']:.4g} of the {budget['reference']}'s mean stiff "
        f"cost; at least {budget['least_feasible_ratio']:.4g} is needed at this size"
        + (" (relaxed)" if budget["relaxed"] else ""),
    )


def _by_band(budget: dict[str, Any]) -> list[dict[str, float]]:
    return [{"used": used, "limit": limit} for used, limit in zip(budget["used"], budget["limit"], strict=True)]


def _objective(objective: dict[str, Any], status: str) -> str:
    text = (
        f"{objective['name']} {objective['value']:.6g}; upper bound over all choices {objective['bound']:.6g} ({status}"
    )
    if objective["starts"]:
        best = max(start["final"] for start in objective["starts"])
        near = sum(start["final"] >= 0.99 * best for start in objective["starts"])
        text += f"; {near} of {len(objective['starts'])} starts end within 1 % of it"
    return _line("Objective", text + ")")


def _beside(other: dict[str, Any]) -> str:
    if not other["feasible"]:
        return _line("Beside", f"--objective {other['objective']} has no selection under these constraints")
    counts = sorted(other["domains"].items(), key=lambda item: (-item[1], item[0]))
    total = sum(other["domains"].values())
    shown = ", ".join(f"{escape(name)} {count / total:.0%}" for name, count in counts[:6])
    return _line(
        "Beside",
        f"--objective {other['objective']} would choose {shown}{', ...' if len(counts) > 6 else ''}; "
        f"{other['shared']:.0%} in common"
        + (f" (at ratio {other['ratio']:.4g}, since yours is infeasible for it)" if other["relaxed"] else ""),
    )
