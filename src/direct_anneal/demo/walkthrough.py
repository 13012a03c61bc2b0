"""The demo told: what was in the pool, what was chosen, what that means, and what to try next."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from direct_anneal.demo import DAMAGED, TARGET, demo_model_path, write_demo_corpus
from direct_anneal.progress import current_progress
from direct_anneal.report import print_summary, try_report
from direct_anneal.selection import select

NUM_DOCUMENTS, NUM_VALIDATION = 500, 160
FRACTION = 0.2
BESIDE = ("energy", "matching")
PATH: dict[str, Any] = {"learning_rates": (1e-3,), "num_folds": 0, "max_passes": 1.0}  # a sixteenth of the walks


def run_demo(directory: Path, *, console: Console) -> None:
    """Write the demo's corpus, run the main job on it, and explain the outcome.

    Args:
        directory: receives data/ and selection/.
        console: where the story goes.

    Raises:
        InputError: as `write_demo_corpus` and `select`.
    """
    with current_progress().stage("Making the demo's documents", "documents") as advance:
        corpus = write_demo_corpus(directory / "data", num_documents=NUM_DOCUMENTS, num_validation=NUM_VALIDATION)
        advance(sum(corpus.domains.values()))
    pool, damaged = sum(corpus.domains.values()), sum(corpus.domains[name] for name in DAMAGED)
    _say(
        console,
        f"""
        [bold]The situation.[/] A model of a million parameters is at the end of its stable phase, and annealing is
        next. There is a pool of {pool:,} documents, from this Python installation or made up: documentation, code,
        comments, tables, sums, logs. {damaged:,} of them ({damaged / pool:.0%}) are damaged on purpose:
        {", ".join(sorted(DAMAGED))}. The model should get better at {" and ".join(TARGET)}. The tool learns
        that only from a validation set of these two. Which {FRACTION:.0%} of the pool should the model see last?
        """,
    )
    files: dict[str, Any] = {"pool": [str(path) for path in corpus.pool], "validation": str(corpus.validation)}
    run = select(
        model=demo_model_path(),
        **files,
        fraction=FRACTION,
        out=directory / "selection",
        overwrite=True,  # it suggests trying other options on its own directory
        objective="path",
        objective_options=PATH,
        beside=BESIDE,  # whose gradients serve other objectives that are tried on this run, too
    )
    try_report(run.out)
    print_summary(run.manifest, run.out, console)
    _say(console, _meaning(run.manifest))
    console.print()
    console.print(_side_by_side(run.manifest))
    _say(console, _differences())
    _say(
        console,
        """
        [bold]What to try next.[/] Choose from the same pool by the published objective. Gradients are kept, so that
        takes seconds:
        """,
    )
    program = _program()
    _show(
        console,
        f"{program} solve {directory}/selection --objective energy --out {directory}/energy",
    )
    _say(
        console,
        """
        Then use your own checkpoint and pool, with a validation set of a few hundred documents that show what your
        model should be good at:
        """,
    )
    _show(
        console,
        f"{program} select --model ckpt/ --pool 'pool/*.jsonl.zst' --validation val.jsonl --fraction 0.2 --out runs/a",
    )


def _meaning(manifest: dict[str, Any]) -> str:
    domains = manifest["composition"]["domains"]
    chosen = {name: entry["selected"] for name, entry in domains.items()}
    in_pool = {name: entry["pool"] for name, entry in domains.items()}
    other = _beside(manifest, "energy")
    wanted, broken = _share(chosen, TARGET), _share(chosen, DAMAGED)
    objective = manifest["objective"]
    return f"""
        [bold]What that means.[/] {wanted:.0%} of the choice is {" and ".join(TARGET)} (pool:
        {_share(in_pool, TARGET):.0%}).
        {broken:.0%} is damaged (pool: {_share(in_pool, DAMAGED):.0%}). The objective here is {objective["name"]}: it
        looks for {objective["goal"]}. The published objective, energy, looks for gradients with a long sum, in any
        direction. Damaged text has large gradients. At the same size, energy would choose
        {_share(other, TARGET):.0%} {" and ".join(TARGET)} and {_share(other, DAMAGED):.0%} damaged text. Open
        report.html in a browser before you train on a choice: it shows figures and the documents.
        """


def _side_by_side(manifest: dict[str, Any]) -> Table:
    """Return shares of the target and of damage in the pool, and in what each objective chooses of it."""
    rows = {
        "the pool": _counts(manifest, "pool"),
        "energy, as published": _beside(manifest, "energy"),
        "matching, by gradients": _beside(manifest, "matching"),
        "path, the drop of loss": _counts(manifest, "selected"),
    }
    table = Table(box=box.SIMPLE)
    table.add_column("chosen by")
    for name in (" and ".join(TARGET), "damaged", "other"):
        table.add_column(name, justify="right")
    for name, counts in rows.items():
        wanted, broken = _share(counts, TARGET), _share(counts, DAMAGED)
        table.add_row(name, *(f"{share:.0%}" for share in (wanted, broken, 1 - wanted - broken)))
    return table


def _differences() -> str:
    (rate,), passes = PATH["learning_rates"], PATH["max_passes"]
    return f"""
        The objective path anneals two copies of the model for a short while: one on random documents of the pool with
        the validation set among them, one on those documents alone. It takes the documents whose loss the validation
        set lowers most, and needs no gradients of the pool. It leaves out documents that look damaged; the notes above
        count them. To save time, the demo makes a single walk at rate {rate:g}, for {passes:g} pass. By default,
        rate and length are found by cross-validation, in walks of up to 3 passes. The default objective, blend, adds
        descent, which is measured with gradients and words.
        """


def _beside(manifest: dict[str, Any], objective: str) -> dict[str, int]:
    """Return documents of each domain that another objective would choose."""
    found: dict[str, int] = next(entry["domains"] for entry in manifest["beside"] if entry["objective"] == objective)
    return found


def _counts(manifest: dict[str, Any], role: str) -> dict[str, int]:
    return {name: entry[role] for name, entry in manifest["composition"]["domains"].items()}


def _share(counts: dict[str, int], names: tuple[str, ...] | frozenset[str]) -> float:
    return sum(counts.get(name, 0) for name in names) / sum(counts.values())


def _program() -> str:
    """Return the command as the reader can call it."""
    script = Path(sys.executable).parent / "direct-anneal"
    if shutil.which("direct-anneal") or not script.is_file():
        return "direct-anneal"
    here = Path.cwd()
    return str(script.relative_to(here) if script.is_relative_to(here) else script)


def _say(console: Console, paragraph: str) -> None:
    console.print()
    console.print(" ".join(paragraph.split()), highlight=False)


def _show(console: Console, command: str) -> None:
    """Print a command on one line, however long, so that it can be copied."""
    console.print()
    console.print("  " + command, highlight=False, markup=False, soft_wrap=True)
