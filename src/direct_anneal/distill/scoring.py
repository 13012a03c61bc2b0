"""`score` and `merge`, top to bottom: every source of a pool in a stream, then the histogram, the cut and the choice.

OUT/scores.json      scorer, options and the pool's listing; written first, and the same for every job
OUT/scores/          the parts (direct_anneal.distill.parts)
OUT/histogram.parquet, OUT/selected/, OUT/selected.json       written last
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from direct_anneal.config.score import CutConfig, MergeConfig, ScoreConfig
from direct_anneal.data import Fields, Source, TokenLayout, expand
from direct_anneal.data.sources import FETCHED, describe_skipped
from direct_anneal.distill.choosing import CHOICE, CHOSEN, HISTOGRAM, Counts, choose, remove, write_chosen
from direct_anneal.distill.cuts import Cut
from direct_anneal.distill.histogram import stored, write_whole
from direct_anneal.distill.parts import MAX_DOMAINS, SCORES, Part, is_scored, score_part
from direct_anneal.distill.scorer import Scorer, read_scorer
from direct_anneal.errors import InputError, option
from direct_anneal.io.atomic import TEMPORARY_SUFFIX
from direct_anneal.io.lock import LOCK, held
from direct_anneal.io.processes import each
from direct_anneal.io.records import read_sealed, write_record
from direct_anneal.io.redaction import HIDDEN, redacted
from direct_anneal.progress import Progress, current_progress
from direct_anneal.run.layout import JOBS

LISTING = "scores.json"


def score(config: ScoreConfig) -> dict[str, Any]:
    """Score every document of a pool; without `shards` also count, cut and write the choice.

    Parts that are there already, of this scorer and pool, are not made again: a job that was killed goes on, and any
    number of jobs give the same bytes as one.

    Returns:
        what `merge` returns; of a job among several {"parts", "documents", "size", "issues"} of its own parts.

    Raises:
        InputError: something given cannot be used; `out` holds other files, or scores of another pool or scorer.

    Cost: one read of the pool, some 30 ns a byte of text and core; memory a block of text for each worker.
    """
    shown, out = current_progress(), Path(config.out)
    scorer = read_scorer(config.scorer)
    parts = _parts(config.pool, _layout(config), out, shown.note)
    _begin(out, _listing(scorer, config, parts), overwrite=config.overwrite)
    if config.shards is not None:
        number, count = config.job
        with held(out / JOBS / f"{number}-of-{count}"):
            own = parts[number::count]
            _score_all(out, own, scorer, _fields(config), config.num_workers, shown)
            return {"parts": len(own), **_summary(out, own, scorer.unit)}
    with held(out):
        _score_all(out, parts, scorer, _fields(config), config.num_workers, shown)
        return _merged(out, parts, scorer.fingerprint, scorer.unit, scorer.card, config, shown)


def merge(config: MergeConfig) -> dict[str, Any]:
    """Put together what the jobs of a `score` left: see that all is there, count, cut and write the choice.

    May be called again for another size; the scores stay.

    Returns:
        documents, size, unit, issues, domains (their totals; none beyond 4,096), and with a size `chosen`:
        threshold, documents, size, about how many tokens, files.

    Raises:
        InputError: `run` holds no scores, parts are missing or damaged, or the pool has changed.
    """
    shown, out = current_progress(), Path(config.run)
    try:
        listing = read_sealed(out / LISTING)
        layout = TokenLayout(**listing["layout"])
        _require_whole(listing["pool"], out)
        parts, card = _parts(listing["pool"], layout, out, shown.note), listing["card"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            subject=str(out),
            must="hold the scores of a pool",
            got=f"but {LISTING} cannot be read",
            do="run score first",
        ) from error
    if _described(parts) != listing["sources"]:
        raise _changed(out)
    with held(out):
        return _merged(out, parts, listing["scorer"], listing["unit"], card, config, shown)


def is_of_scores(config: MergeConfig) -> bool:
    """True if a directory is one of scores, and not of jobs of `features`.

    Raises:
        InputError: it is neither, or a choice is asked for of the latter.
    """
    run = Path(config.run)
    if (run / LISTING).exists():
        return True
    if not (run / JOBS).is_dir():
        raise InputError(
            subject=str(run), must="hold jobs of score or features", got="but holds none", do="run them first"
        )
    if config.is_given:
        raise InputError(
            subject="a choice", must="be of scores", got=f"but {run} holds features", do="use solve to choose"
        )
    return False


def _parts(patterns: Sequence[str], layout: TokenLayout, out: Path, note: Callable[[str], object]) -> list[Part]:
    skipped: list[Path] = []
    expanded = expand(patterns, "pool", layout, skipped, out / FETCHED)
    sources = [source for source in expanded if source.remote is not None or not _is_below(source, out)]
    if not sources:
        raise InputError(field="pool", must=f"lie outside {option('out')}", got=f"but all of it is below {out}")
    if said := describe_skipped([path for path in skipped if not path.resolve().is_relative_to(out.resolve())]):
        note(f"pool: {said}")
    return [Part(number=number, source=source, state=source.state()) for number, source in enumerate(sources)]


def _require_whole(patterns: Sequence[str], out: Path) -> None:
    """See that the pool's addresses are kept in full.

    Raises:
        InputError: one held a secret.
    """
    if hidden := next((pattern for pattern in patterns if HIDDEN in pattern), None):
        raise InputError(
            subject=f"the pool's address, {hidden},",
            must="be known in full",
            got=f"but {out} does not keep the secret in it",
            do=f"run score as before without {option('shards')}: it finds the parts that are done, and takes a size",
        )


def _is_below(source: Source, out: Path) -> bool:
    return source.path.resolve().is_relative_to(out.resolve())


def _layout(config: ScoreConfig) -> TokenLayout:
    return TokenLayout(dtype=config.token_dtype, eos_id=config.eos_id)


def _fields(config: ScoreConfig) -> Fields:
    return Fields(text=config.text_field, domain=config.domain_field)


def _described(parts: Sequence[Part]) -> list[Any]:
    """Return the listing of the pool, as JSON gives it back."""
    described: list[Any] = json.loads(json.dumps(redacted([[str(part.source), part.state] for part in parts])))
    return described


def _listing(scorer: Scorer, config: ScoreConfig, parts: Sequence[Part]) -> dict[str, Any]:
    layout = _layout(config)
    listing: dict[str, Any] = {
        "format": 1,
        "scorer": scorer.fingerprint,
        "unit": scorer.unit,
        "card": {name: scorer.card.get(name) for name in ("tokens_per_size", "vocab_size", "target", "target_unit")},
        "pool": config.pool,
        "layout": {"dtype": layout.dtype, "eos_id": layout.eos_id},
        "text_field": config.text_field,
        "domain_field": config.domain_field,
        "sources": _described(parts),
    }
    as_read: dict[str, Any] = json.loads(json.dumps(redacted(listing)))
    return as_read


def _begin(out: Path, listing: dict[str, Any], *, overwrite: bool) -> None:
    """Make the directory this pool's, or see that it is."""
    path = out / LISTING
    if path.exists():
        try:
            found = read_sealed(path)
        except ValueError:
            found = None
        if found == listing:
            return
        if not overwrite:
            raise _changed(out)
        with held(out):
            for name in (SCORES, CHOSEN, JOBS, FETCHED):
                shutil.rmtree(out / name, ignore_errors=True)
            for name in (HISTOGRAM, CHOICE, LISTING):
                (out / name).unlink(missing_ok=True)
    elif out.is_dir() and not all(
        entry.name in (LOCK, JOBS, FETCHED) or entry.name.startswith(f"{LISTING}.") for entry in out.iterdir()
    ):
        raise InputError(field="out", must="be new, empty or of an earlier score", got=out, do="choose another")
    out.mkdir(parents=True, exist_ok=True)
    write_record(path, listing)  # jobs that start together write the same


def _sweep(out: Path) -> None:
    """Remove what kills left half-written; nobody else may be at work in the directory."""
    for directory in (out, out / SCORES, out / CHOSEN):
        for path in directory.glob(f"*{TEMPORARY_SUFFIX}"):
            remove(path)


def _changed(out: Path) -> InputError:
    return InputError(
        subject=str(out),
        must="be of one pool, scorer and set of options",
        got="but they, or the files, are others now",
        do=f"choose another directory, or pass {option('overwrite')} to score to begin anew",
    )


def _score_all(out: Path, parts: Sequence[Part], scorer: Scorer, fields: Fields, workers: int, shown: Progress) -> None:
    """Score what is not there yet."""
    total = sum(_num_bytes(part) for part in parts)
    with shown.stage("Scoring", "bytes", total) as advance:
        missing = []
        for part in parts:
            if is_scored(out, part, scorer.fingerprint):
                advance(_num_bytes(part))
            else:
                missing.append(part)
        each(_score_one, missing, (out, scorer, fields), workers, lambda part, _: advance(_num_bytes(part)))


def _num_bytes(part: Part) -> int:
    return sum(size for _, size, *_ in part.state)


def _score_one(part: Part, out: Path, scorer: Scorer, fields: Fields) -> None:
    score_part(out, part, scorer, fields)
    _forget(part)


def _choose_one(part: Part, out: Path, made: Cut, vocab_size: int) -> None:
    write_chosen(part, out, made, vocab_size)
    _forget(part)


def _forget(part: Part) -> None:
    """Remove the copy of a file that was fetched: a pool is larger than a disk."""
    if part.source.remote is not None:
        shutil.rmtree(part.source.remote.directory, ignore_errors=True)


def _merged(
    out: Path,
    parts: Sequence[Part],
    scorer: str,
    unit: str,
    card: Mapping[str, Any],
    config: CutConfig,
    shown: Progress,
) -> dict[str, Any]:
    _sweep(out)
    with shown.stage("Counting", "parts", len(parts)) as advance:
        missing = []
        for part in parts:
            if not is_scored(out, part, scorer):
                missing.append(part.number)
            advance(1)
        if missing:
            raise InputError(
                subject=str(out),
                must=f"hold the scores of all {len(parts):,} sources",
                got=f"but {len(missing):,} are missing or damaged ({', '.join(map(str, missing[:5]))})",
                do=_again(out, missing),
            )
        histograms = (table for part in parts for table in stored(part.path(out, "histogram.parquet")))
        domains = write_whole(histograms, out / HISTOGRAM, MAX_DOMAINS)
    result = _summary(out, parts, unit)
    result["domains"] = {name: list(counts) for name, counts in sorted((domains or {}).items())}
    shutil.rmtree(out / JOBS, ignore_errors=True)
    issues = result["issues"]
    if not result["documents"]:
        raise InputError(
            subject="the pool",
            must="hold documents that can be scored",
            got=f"but none can ({', '.join(f'{count:,} {kind}' for kind, count in issues.items()) or 'no record'})",
            do=f"name the field of the text with {option('text_field')}, or check the files",
        )
    if config.is_given:
        with shown.stage("Writing the choice", "bytes", sum(map(_num_bytes, parts))) as advance:
            result["chosen"] = choose(
                out,
                parts,
                Counts(result["documents"], result["size"], domains),
                card,
                config,
                lambda *given: each(
                    _choose_one, parts, (out, *given), config.num_workers, lambda part, _: advance(_num_bytes(part))
                ),
            )
    shutil.rmtree(out / FETCHED, ignore_errors=True)
    return result


def _again(out: Path, missing: Sequence[int]) -> str:
    """Say who makes these parts."""
    found = (re.fullmatch(r"\d+-of-(\d+)", path.name) for path in (out / JOBS).glob("*"))
    counts = {int(name[1]) for name in found if name}
    if len(counts) != 1:
        return f"run score again without {option('shards')}: it makes these alone"
    [count] = counts
    numbers = sorted({number % count for number in missing})
    return f"run again the jobs {', '.join(map(str, numbers[:10]))} of {count}"


def _summary(out: Path, parts: Sequence[Part], unit: str) -> dict[str, Any]:
    """Add up the parts' records."""
    documents, size, issues = 0, 0, Counter[str]()
    for part in parts:
        record = read_sealed(part.path(out, "json"))
        documents, size = documents + record["documents"], size + record["size"]
        issues.update({kind: issue["count"] for kind, issue in record["issues"].items()})
    return {
        "documents": documents,
        "size": size,
        "unit": "bytes" if unit == "words" else "tokens",
        "issues": dict(sorted(issues.items())),
    }
