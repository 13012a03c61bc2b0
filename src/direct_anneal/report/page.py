"""The report page: one HTML file that needs nothing beside itself."""

from __future__ import annotations

from base64 import b64encode
from functools import cache
from hashlib import sha256 as new_sha256
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError
from markupsafe import Markup

from direct_anneal.errors import InputError
from direct_anneal.io.atomic import replacing
from direct_anneal.io.digests import sha256
from direct_anneal.io.sanitize import sanitized
from direct_anneal.report import figures
from direct_anneal.report.data import EXCERPT_CHARACTERS, NEAR_TOKENS, Findings, gather
from direct_anneal.report.verdict import judge, moved
from direct_anneal.report.why import Standing
from direct_anneal.run.manifest import besides

NAME = "report.html"
BEGINNING_CHARACTERS = 160  # of a document in the table
MAX_DOMAINS = 24  # rows of a table of domains; the others are summed


def write_report(run: str | Path) -> Path:
    """Write report.html into the directory of a finished `select` or `solve`; the same files give the same bytes.

    Raises:
        InputError: the directory holds no finished run.

    Cost: as `gather`, and a second or two for the figures.
    """
    findings = gather(Path(run))
    return write_page(Path(run), render("selection.html", **_selection(findings)))


def write_page(directory: Path, page: str) -> Path:
    """Write a page as the directory's report, whole or not at all."""
    path, content = directory / NAME, page.encode("utf-8")
    with replacing(path) as temporary:
        temporary.write_bytes(content + f"<!-- sha256 {sha256(content)} -->\n".encode())  # of all before it
    return path


def render(template: str, **content: Any) -> str:
    """Render a page of ours. Texts in it are shown as they are, whatever they hold; only `Markup` is taken for HTML.

    Raises:
        InputError: a record lacks what the page shows.
    """
    try:
        return _environment().get_template(template).render(version=version("direct-anneal"), **content) + "\n"
    except UndefinedError as error:
        raise InputError(
            subject="records", must="hold all that a report shows", got=f"but {error}", do="make them again"
        ) from error


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("direct_anneal.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: sanitized(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    environment.filters |= {"count": _count, "share": _share, "figure": _figure, "signed": _signed, "excerpt": _excerpt}
    environment.filters |= {"beginning": _beginning, "sentence": _sentence}
    return environment


def _count(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"


def _share(part: float, digits: int = 1) -> str:
    """Format a fraction in per cent; what is there is never shown as nothing."""
    smallest = 10.0 ** -(digits + 2)
    return f"< {smallest:.{digits}%}" if 0 < part < smallest / 2 else f"{part:.{digits}%}"


def _figure(number: float, digits: int = 4) -> str:
    """Format significant digits, with the thousands apart."""
    shown = f"{number:,.0f}" if abs(number) >= 10 ** (digits - 1) else f"{number:.{digits}g}"
    return shown.replace("-", "−")


def _signed(difference: float) -> str:
    return f"{difference:+.4f}".replace("-", "−")


def _excerpt(text: str) -> str:
    return sanitized(text, EXCERPT_CHARACTERS)


def _beginning(text: str) -> str:
    return sanitized(" ".join(text[:1000].split()), BEGINNING_CHARACTERS)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _script() -> tuple[Markup, str]:
    """Return the page's one script, and its digest: a browser runs nothing else (content security policy)."""
    source = resources.files("direct_anneal.report").joinpath("templates", "documents.js").read_text(encoding="utf-8")
    return Markup(source), b64encode(new_sha256(source.encode()).digest()).decode()


def _selection(findings: Findings) -> dict[str, Any]:
    """Return the variables of the template."""
    manifest = findings.manifest
    points = _frontier(manifest)
    kinds = figures.largest_domains(row["counts"] for row in points)
    rows = _domains(manifest["composition"]["domains"])
    count, usable = manifest["num_selected"], len(findings.usable)
    script, digest = _script()
    return {
        "findings": findings,
        "verdict": judge(manifest, findings.run),
        "moved": moved(manifest["composition"]["domains"]),
        "standing": Standing(findings.usable),
        "script": script,
        "script_digest": digest,
        "manifest": manifest,
        "domains": rows,
        "most": max(row[f"{role}_share"] for row in rows for role in ("pool", "selected", "validation")),
        "aimed": _aimed(manifest["composition"]["domains"]),
        "used": manifest["budget"] and _used(manifest["budget"]),
        "chance": count / usable,
        "sampled": count > figures.POINTS[True] or usable - count > figures.POINTS[False],
        "spectrum": figures.spectrum(findings) if manifest["spectrum"] else None,
        "trade_off": figures.trade_off(findings) if manifest["budget"] else None,
        "shifts": figures.shifts(findings),
        "budgets": figures.budgets(points, _ratio(manifest["budget"]), kinds) if len(points) > 1 else None,
        "kinds": kinds,
        "overlaps": _overlaps(findings),
        "near_tokens": NEAR_TOKENS,
        "excerpt_characters": EXCERPT_CHARACTERS,
        "settings": {name: _plain(value) for name, value in manifest["config"].items() if value not in (None, {}, [])},
    }


def _domains(entries: dict[str, dict[str, int]]) -> list[dict[str, Any]]:
    """Return rows of the table, by how many were chosen, with shares of pool, selection and validation set."""
    order = sorted(entries, key=lambda name: (-entries[name]["selected"], -entries[name]["pool"], name))
    rows: list[dict[str, Any]] = [{"name": name, **entries[name]} for name in order[:MAX_DOMAINS]]
    if rest := order[MAX_DOMAINS:]:
        summed = {key: sum(entries[name][key] for name in rest) for key in entries[rest[0]]}
        rows.append({"name": f"{len(rest)} others", **summed})
    for role in ("pool", "selected", "validation"):
        total = sum(entry[role] for entry in entries.values())
        for row in rows:
            row[f"{role}_share"] = row[role] / total
    return rows


def _aimed(entries: dict[str, dict[str, int]]) -> dict[str, float]:
    """Share of pool and selection in the domains of the validation set."""
    aimed = [entry for entry in entries.values() if entry["validation"]]
    return {
        role: sum(entry[role] for entry in aimed) / sum(entry[role] for entry in entries.values())
        for role in ("pool", "selected")
    }


def _frontier(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Return rows for `figures.budgets`: the feasible budgets that were traced, and this selection's own."""
    points = {
        row["ratio"]: (row["objective"], {entry["domain"]: entry["selected"] for entry in row["domains"]})
        for row in manifest.get("frontier", [])
        if row["objective"] is not None
    }
    if points:
        counts = {name: entry["selected"] for name, entry in manifest["composition"]["domains"].items()}
        points[_ratio(manifest["budget"])] = (manifest["objective"]["value"], counts)
    return [{"ratio": ratio, "objective": value, "counts": counts} for ratio, (value, counts) in sorted(points.items())]


def _overlaps(findings: Findings) -> list[tuple[str, float]]:
    others = [other for other in besides(findings.manifest) if other["feasible"]]
    beside = [(f"--objective {other['objective']}", other["shared"]) for other in others]
    return [*findings.overlaps.items(), *beside]


def _ratio(budget: dict[str, Any]) -> float:
    """Share of the budget that is used; without a budget, of the least that allows the same selection."""
    return float(budget["used_ratio"] if budget["ratio"] is None else budget["ratio"])


def _used(budget: dict[str, Any]) -> float | None:
    """Share used in the fullest band; None without a budget."""
    if budget["ratio"] is None:
        return None
    used, limits = (np.atleast_1d(budget[name]) for name in ("used", "limit"))
    return float(np.max(np.divide(used, limits, out=np.zeros(len(used)), where=limits > 0)))


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(map(str, value))
    if isinstance(value, dict):
        return "\n".join(f"{name}={amount}" for name, amount in value.items())
    return str(value)
