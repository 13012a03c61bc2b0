"""`compare`: every run of a recipe, one line of runs.jsonl each, and the table at the end."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from direct_anneal.compare.choices import VERSION as CHOICES_VERSION
from direct_anneal.compare.choices import score_choices
from direct_anneal.compare.config import BEFORE, WHOLE_POOL, Arm, Recipe, Scenario
from direct_anneal.compare.provenance import commit
from direct_anneal.compare.scenario import Choice, Choices
from direct_anneal.config.names import TrackerName
from direct_anneal.data import Corpus, expand
from direct_anneal.errors import InputError, option
from direct_anneal.evaluate import bits_per_byte, macro_mean
from direct_anneal.io.digests import short_hash
from direct_anneal.io.lock import LOCK, held, make_directory
from direct_anneal.io.processes import telling_of_lost_workers
from direct_anneal.io.records import SEAL, RecordError, parse, read_content, sealed, unsealed
from direct_anneal.io.redaction import redacted
from direct_anneal.io.threads import one_blas_thread
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.progress import Progress, Silent, current_progress, showing
from direct_anneal.tracking import Log, require_tracker, tracking
from direct_anneal.train import anneal

RESULTS, SCENARIOS = "runs.jsonl", "scenarios"
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


@dataclass(frozen=True)
class _Job:
    """The inputs of a worker for one run."""

    key: dict[str, Any]
    recipe: Recipe
    scenario: Scenario
    choice: Choice | None  # None: the checkpoint as it is
    num_tokens: int
    held_out: Corpus
    directory: Path


def compare(
    recipe: Recipe,
    out: str | Path,
    *,
    workers: int = 1,
    track: TrackerName = "none",
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Run what is missing of a recipe; a finished run is a line, and is never made again.

    Every arm of a scenario and fraction is trained on the same number of tokens, in the order of the same seed.

    Args:
        out: directory of the comparison: runs.jsonl, and scenarios/ with features and choices.
        workers: runs side by side, each with the recipe's threads. Does not change a result.
        track: tracker that gets the scores of each finished run, named SCENARIO/ARM/REPLAY/SCORE.
        progress: shows the stages; as `showing` has it where left out.

    Returns:
        the lines, in the recipe's order.

    Raises:
        InputError: something given cannot be used, `out` is another command's, or a line was made by another recipe;
            says what to do.
    """
    if workers < 1:
        raise InputError(field="workers", must="be at least 1", got=str(workers))
    require_tracker(track)
    out = Path(out)
    take_place(out)
    with held(out), tracking(track, out, asdict(recipe)) as log:
        return _completed(recipe, out, workers, progress or current_progress(), log)


@one_blas_thread()
def _completed(recipe: Recipe, out: Path, workers: int, shown: Progress, log: Log) -> list[dict[str, Any]]:
    _cut_off_half_a_line(out / RESULTS)
    known = known_runs(out / RESULTS)
    wanted = list(_keys(recipe))
    _check_fitting(known, wanted, out)
    missing = [key for key in wanted if _place(key) not in known]
    with shown.stage("Runs", "runs", len(wanted)) as advance:
        advance(len(wanted) - len(missing))  # they count, and say nothing of the pace
        for line in _finished(_jobs(recipe, out, missing, shown.note), workers):
            _append(out / RESULTS, line)
            known[_place(line)] = line
            log(_tracked(line), len(known))
            advance(1)
    return [known[_place(key)] for key in wanted]


def take_place(out: Path) -> None:
    """Make a directory a comparison's own, by the directory below it that only a comparison makes.

    Raises:
        InputError: there are other files, or it is a file.
    """
    make_directory(out)
    is_own = any((out / name).exists() for name in (RESULTS, SCENARIOS))
    if not is_own and any(path.name != LOCK for path in out.iterdir()):
        raise InputError(
            field="out",
            must="be new, empty or an earlier comparison",
            got=f"but {out} holds other files",
            do="choose another",
        )
    make_directory(out / SCENARIOS)


def _tracked(line: dict[str, Any]) -> dict[str, float]:
    """Return the scores of a finished run by the names that a tracker shows."""
    place = f"{line['scenario']}/{line['arm']} {line['fraction']:.0%}/replay {line['replay']:.0%}"
    scores = {name: line.get(name) for name in ("target_bpb", "others_bpb", "macro_bpb", "accuracy")}
    return {f"{place}/{name}": score for name, score in scores.items() if score is not None}


def run(job: _Job) -> dict[str, Any]:
    """Train and score one model; its directory goes when it is scored."""
    torch.set_num_threads(job.recipe.threads)
    recipe, model, seconds = job.recipe, job.recipe.model, 0.0
    if job.choice is not None:
        options = {**recipe.fields, **recipe.anneal, "num_tokens": job.num_tokens, "seed": job.key["seed"]}
        if job.key["replay"]:
            options |= {"mix": job.scenario.pool, "mix_share": job.key["replay"]}
        with showing(Silent()):
            record = anneal(model=model, data=job.choice.files, out=job.directory, **options)
        model, seconds = str(job.directory), record["seconds"]
    checkpoint = Checkpoint(model)
    loaded = checkpoint.load_model(recipe.anneal.get("device", "cpu"), "float32")
    window = checkpoint.window(recipe.select.get("max_length"))
    scores = bits_per_byte(
        loaded, job.held_out, window=window, special=checkpoint.special_tokens, text_field=recipe.text_field
    )
    others = job.scenario.others(scores)
    line = {
        **job.key,
        "target_bpb": macro_mean(scores, job.scenario.target),
        "others_bpb": macro_mean(scores, others) if others else None,
        "macro_bpb": macro_mean(scores, [name for name in scores if name not in job.scenario.aside]),
        "domain_bpb": {name: score.bits_per_byte for name, score in scores.items()},
        "training_seconds": seconds,
        "trained_tokens": job.num_tokens,
    }
    if job.scenario.choices is not None:
        score = score_choices(
            loaded,
            checkpoint.load_tokenizer(),
            Path(job.scenario.choices),
            window=window,
            special=checkpoint.special_tokens,
        )
        line |= {"accuracy": score.accuracy, "chance": score.chance}
    if job.choice is not None:
        choice = asdict(job.choice)
        line |= {"selection_seconds": choice["seconds"], "num_documents": choice["num_documents"]}
        line |= {"num_tokens": choice["num_tokens"], "chosen_domains": choice["domains"]}
        shutil.rmtree(job.directory)
    return {**line, "commit": commit()}


def _keys(recipe: Recipe) -> Iterator[dict[str, Any]]:
    """List the keys of all lines in the order of running: the seeds of a scenario fill up for all arms together."""
    model = recipe.model_name or Path(recipe.model).name
    for scenario in recipe.scenarios:
        common = _common(recipe, scenario)
        start = {"scenario": scenario.name, "model": model, "target": list(scenario.target)}
        yield {**start, "arm": BEFORE, "seed": 0, "fraction": 0.0, "replay": 0.0, "inputs": _hash(common)}
        for seed in recipe.seeds:
            for fraction in recipe.fractions:
                for replay in recipe.replay:
                    for arm in recipe.arms:
                        if arm.baseline == WHOLE_POOL and replay != min(recipe.replay):
                            continue  # the whole pool, and a random part of it beside: the same run again
                        place = {"arm": arm.name, "seed": seed, "fraction": fraction, "replay": replay}
                        yield {**start, **place, "inputs": _hash([*common, *_of_arm(recipe, arm)])}


def _of_arm(recipe: Recipe, arm: Arm) -> list[Any]:
    """Return the inputs of an arm's lines beside their scenario."""
    # Defaults of ours may change; then another version must not take these lines for its own.
    chooser = [] if arm.chooser is None else [Checkpoint(arm.chooser).weights_fingerprint()]
    length = recipe.epochs if recipe.tokens is None else {"tokens": recipe.tokens}
    # Lines of arms without options stay good.
    described = {name: value for name, value in asdict(arm).items() if name != "options" or value}
    return [described, recipe.select_options(arm), *chooser, recipe.anneal, length]


def _common(recipe: Recipe, scenario: Scenario) -> list[Any]:
    """Return the inputs that all lines of a scenario depend on."""
    files = [
        [source.state() for source in expand(getattr(scenario, role), role)]
        for role in ("pool", "validation", "held_out")
    ]
    weights = Checkpoint(recipe.model).weights_fingerprint()
    found = [weights, files, scenario.target, recipe.fields, recipe.threads, recipe.select]
    # Later options count where they are given: lines of recipes without them stay good.
    if scenario.choices is not None:
        found.append([CHOICES_VERSION, *(source.state() for source in expand((scenario.choices,), "choices"))])
    return [
        *found,
        *([recipe.prompt_field] if recipe.prompt_field else []),
        *([scenario.aside] if scenario.aside else []),
    ]


def _jobs(recipe: Recipe, out: Path, missing: list[dict[str, Any]], note: Callable[[str], object]) -> Iterator[_Job]:
    """Yield the missing runs, with what they need made as they come up."""
    scenarios = {scenario.name: scenario for scenario in recipe.scenarios}
    arms: dict[str, Arm] = {arm.name: arm for arm in recipe.arms}
    choices: dict[str, Choices] = {}
    for key in missing:
        name, fraction, replay, seed = key["scenario"], key["fraction"], key["replay"], key["seed"]
        if name not in choices:
            directory = out / SCENARIOS / f"{name}-{_hash(_common(recipe, scenarios[name]))}"
            choices[name] = Choices(recipe, scenarios[name], directory, note)
            choices[name].check()
        of = choices[name]
        is_before = key["arm"] == BEFORE
        yield _Job(
            key=key,
            recipe=recipe,
            scenario=scenarios[name],
            choice=None if is_before else of.choice(arms[key["arm"]], fraction, seed, key["inputs"]),
            num_tokens=0 if is_before else recipe.training_tokens(of.budget(fraction), fraction),
            held_out=of.held_out,
            directory=of.directory / "runs" / f"{key['arm']}-{fraction:g}-{replay:g}-{seed}-{key['inputs']}",
        )


def _finished(jobs: Iterator[_Job], workers: int) -> Iterator[dict[str, Any]]:
    """Yield lines as they are done; with several workers no more jobs are prepared ahead than can run."""
    if workers == 1:
        yield from map(run, jobs)
        return
    context = multiprocessing.get_context("spawn")  # torch and its threads do not survive a fork
    others = set(multiprocessing.active_children())
    with (
        telling_of_lost_workers(),
        ProcessPoolExecutor(workers, mp_context=context, initializer=begin_worker) as pool,
    ):
        running: set[Future[dict[str, Any]]] = set()
        try:
            for job in jobs:
                running.add(pool.submit(run, job))
                if len(running) >= workers:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BaseException:  # SIGTERM, say: a run would go on for hours before we end, and goes on another time
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def begin_worker() -> None:
    """Silence a worker: bars would be drawn over each other, and of Ctrl-C the parent tells."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _append(path: Path, line: dict[str, Any]) -> None:
    """Put one line on the disk before anything else happens."""
    whole = sealed(line)
    try:
        content = json.dumps(whole, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair in a name
        content = json.dumps(whole).encode() + b"\n"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NO_LINK, 0o666), "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _cut_off_half_a_line(path: Path) -> None:
    """Remove what a kill left of a line. For who holds the directory."""
    if path.exists() and (content := read_content(path)) and not content.endswith(b"\n"):
        with os.fdopen(os.open(path, os.O_RDWR | _NO_LINK), "r+b") as stream:
            stream.truncate(content.rfind(b"\n") + 1)


def known_runs(path: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Return the finished runs; half a last line is none.

    Raises:
        InputError: it has another line, or one that was changed since it was written.
    """
    known: dict[tuple[Any, ...], dict[str, Any]] = {}
    number = 0
    try:
        content = read_content(path)
        for raw in content[: content.rfind(b"\n") + 1].splitlines():
            number += 1
            if raw.strip():
                line = _object(parse(raw))
                line = unsealed(line) if SEAL in line else line  # earlier versions wrote none
                known[_place(line)] = line
        return known
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        reason = error if isinstance(error, RecordError) else "is no run"
        raise InputError(
            subject=str(path),
            must="hold one finished run a line",
            got=f"but line {number} {reason}",
            do=f"remove it to run that again, or choose another {option('out')}",
        ) from error


def _object(found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise RecordError("is no JSON object")
    return found


def _check_fitting(known: dict[tuple[Any, ...], dict[str, Any]], wanted: list[dict[str, Any]], out: Path) -> None:
    for key in wanted:
        line = known.get(_place(key))
        if line is not None and line.get("inputs") != key["inputs"]:
            raise InputError(
                f"{out} holds a run of {key['scenario']}, {key['arm']}, seed {key['seed']} that was made by another "
                f"recipe, model or pool: choose another {option('out')}, or give the changed arm another name"
            )


def _place(line: dict[str, Any]) -> tuple[Any, ...]:
    replay = float(line.get("replay", 0.0))  # lines from before there was any
    place: tuple[Any, ...] = line["scenario"], line["model"], line["arm"], line["seed"], float(line["fraction"]), replay
    return tuple(redacted(place))  # as they are written


def _hash(content: Any) -> str:
    return short_hash(json.dumps(content, sort_keys=True, default=dict), 8)
