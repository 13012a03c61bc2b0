"""`anneal`, top to bottom."""

from __future__ import annotations

import importlib.util
import pickle
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from direct_anneal.config.anneal import AnnealConfig
from direct_anneal.config.names import corpus_name
from direct_anneal.config.options import OPTIONS_FILE, keep
from direct_anneal.config.signature import takes
from direct_anneal.data import Corpus, Fields, Source, TokenLayout, expand, prepare
from direct_anneal.data.sources import FETCHED
from direct_anneal.errors import InputError, option
from direct_anneal.io.atomic import remove_leftovers, replacing
from direct_anneal.io.lock import MARK, claim
from direct_anneal.io.records import RecordError, read_record, sealed, unsealed, write_record
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.model.saved import OPTIMIZER_FILE, load_saved
from direct_anneal.progress import Progress, current_progress
from direct_anneal.tracking import require_tracker, tracking
from direct_anneal.train.packing import PackedWindows, Part

RECORD = "annealing.json"  # written last: a run without it goes on
_WORK = "unfinished"  # tokens and checkpoints, until the model is there


@takes(AnnealConfig)
def anneal(config: AnnealConfig) -> dict[str, Any]:
    """Train a checkpoint on the chosen documents while the rate falls, and save it below `out` with a record.

    A run that was killed goes on from its last checkpoint and ends with the same bytes (on the CPU, with the same
    number of threads); one that is finished is returned as it is.

    Returns:
        the record, as written to annealing.json: configuration, fingerprints, steps, tokens, losses, seconds.

    Raises:
        InputError: something given cannot be used; says what to do.
    """
    shown = current_progress()
    out = Path(config.out)
    checkpoint = Checkpoint.of(config)
    window = checkpoint.window(config.max_length)
    _need_accelerate()
    require_tracker(config.track)
    roles = {"data": config.data, **({"mix": config.mix} if config.mix else {})}
    layout = TokenLayout.of(checkpoint.vocab_size, checkpoint.separator)
    sources = {role: expand(patterns, role, layout, cache=out / FETCHED) for role, patterns in roles.items()}
    wanted = {
        **config.defining,
        "max_length": window,
        "weights": checkpoint.weights_fingerprint(),
        "sources": [source.state() for found in sources.values() for source in found],
    }
    with claim(out, wanted, RECORD, "schedule", overwrite=config.overwrite) as finished:
        _tidy(out)
        if finished is None or _begins_anew(config):
            return _annealed(config, checkpoint, sources, wanted, shown)
        shutil.rmtree(out / _WORK, ignore_errors=True)  # of a run that was killed right after its record
        return finished


def _tidy(out: Path) -> None:
    """Remove temporaries of files that a kill left half written."""
    for name in (RECORD, OPTIMIZER_FILE, OPTIONS_FILE, MARK):
        remove_leftovers(out / name)


def _begins_anew(config: AnnealConfig) -> bool:
    """Tell whether a finished run is to be done again, since it did not keep the optimizer's state; its record goes.

    Raises:
        InputError: it would have to be, but nothing may be overwritten.
    """
    out = Path(config.out)
    if not config.keep_optimizer_state or (out / OPTIMIZER_FILE).exists():
        return False
    if not config.overwrite:
        raise InputError(
            field="keep_optimizer_state",
            must="be given to the run that trains",
            got=f"but {out} is finished without {OPTIMIZER_FILE}",
            do=f"choose another {option('out')}, or pass {option('overwrite')} to train again",
        )
    (out / RECORD).unlink()
    return True


def _annealed(
    config: AnnealConfig,
    checkpoint: Checkpoint,
    sources: dict[str, list[Source]],
    wanted: dict[str, Any],
    shown: Progress,
) -> dict[str, Any]:
    """Train, save and record, in a directory that is claimed; `wanted` is what the result depends on."""
    out, window = Path(config.out), int(wanted["max_length"])
    keep(asdict(config), out)
    work = _work(out / _WORK, wanted)
    corpora = {role: _read(role, found, config, checkpoint, window, work, shown) for role, found in sources.items()}
    for note in checkpoint.special_tokens.of_the_separator():
        shown.note(note)
    windows, num_steps = _windows(corpora, config, window, checkpoint.separator)
    model = checkpoint.load_model(config.device, "float32", window=window)  # with dtype bfloat16 autocast does the rest
    state = load_optimizer_state(checkpoint.directory) if config.optimizer_state == "kept" else None
    from direct_anneal.train.loop import train

    num_tokens = num_steps * config.batch_size * window
    started = time.monotonic()
    with tracking(config.track, out, wanted) as log, shown.stage("Annealing", "tokens", num_tokens) as advance:
        trained = train(
            model,
            windows,
            config,
            num_steps=num_steps,
            window=window,
            optimizer_state=state,
            directory=work / "checkpoints",
            advance=advance,
            log=log,
        )
    seconds = round(time.monotonic() - started, 3)

    (out / OPTIMIZER_FILE).unlink(missing_ok=True)  # an earlier run's would pass for this one's
    model.save_pretrained(out)  # type: ignore[operator]
    if checkpoint.has_tokenizer:
        checkpoint.load_tokenizer().save_pretrained(out)
    if config.keep_optimizer_state:
        # An open file: given a path, torch writes the temporary's random name into it.
        with replacing(out / OPTIMIZER_FILE) as temporary, temporary.open("wb") as file:
            torch.save(trained.optimizer, file)
    record = {
        "config": wanted,
        "fingerprints": {
            "model": wanted["weights"],
            "tokenizer": checkpoint.tokenizer_fingerprint(),
            **{role: corpus.fingerprint for role, corpus in corpora.items()},
        },
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "num_steps": num_steps,
        "num_tokens": num_tokens,
        "num_documents": {role: corpus.num_samples for role, corpus in corpora.items()},
        "epoch_tokens": windows.epoch_tokens,
        "losses": trained.losses,
        "seconds": seconds,
    }
    record = write_record(out / RECORD, record)
    shutil.rmtree(work)
    return record


def load_optimizer_state(directory: Path) -> dict[str, Any]:
    """Return the state in a checkpoint's optimizer.pt; nothing but tensors and plain values is read from it.

    Raises:
        InputError: there is none, or it is something else.
    """
    path = directory / OPTIMIZER_FILE
    if not path.exists():
        raise InputError(
            f"{option('optimizer_state')} kept needs the checkpoint's optimizer.pt, but {directory} has none: save "
            "it there with "
            f"torch.save(optimizer.state_dict(), ...), or pass {option('optimizer_state')} fresh"
        )
    try:
        state = load_saved(path)
    except (OSError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(
            subject=str(path),
            must="hold an optimizer's state and nothing else",
            got=f"but cannot be read ({' '.join(str(error).split())[:120]})",
            do=f"save it again, or pass {option('optimizer_state')} fresh",
        ) from error
    if not isinstance(state, dict):
        raise InputError(
            subject=str(path),
            must="hold an optimizer's state",
            got=f"but holds a {type(state).__name__}",
            do="save it again",
        )
    return state


def _need_accelerate() -> None:
    if importlib.util.find_spec("accelerate") is None:
        raise InputError("annealing needs accelerate, which is not installed: pip install 'direct-anneal[anneal]'")


def _read(
    role: str,
    sources: list[Source],
    config: AnnealConfig,
    checkpoint: Checkpoint,
    window: int,
    work: Path,
    shown: Progress,
) -> Corpus:
    with shown.stage(f"Reading the {corpus_name(role)}", "documents") as advance:
        corpus = prepare(
            sources,
            role=role,
            fields=Fields(
                text=config.text_field,
                id=config.id_field,
                domain=config.domain_field,
                special_tokens=config.special_tokens,
            ),
            load_tokenizer=checkpoint.load_tokenizer,
            tokenizer_fingerprint=checkpoint.tokenizer_fingerprint(),
            vocab_size=checkpoint.vocab_size,
            max_length=window,
            directory=work / "corpus" / role,
            advance=advance,
        )
    if told := corpus.issues.left_out():
        shown.note(f"{role}: records left out: {told}")
    return corpus


def _windows(
    corpora: dict[str, Corpus], config: AnnealConfig, window: int, separator: int | None
) -> tuple[PackedWindows, int]:
    """Return the windows of all steps, and how many steps there are: the number nearest to what was asked for, at least
    1.
    """
    parts = [Part(corpora["data"]), *([Part(corpora["mix"], config.mix_share)] if "mix" in corpora else [])]
    step_tokens = config.batch_size * window
    if config.num_tokens is None:
        assert config.epochs is not None
        one = PackedWindows(parts[:1], num_windows=1, window=window, separator=separator, seed=config.seed)
        num_tokens = config.epochs * one.epoch_tokens / (1 - config.mix_share)
    else:
        num_tokens = config.num_tokens
    num_steps = max(1, round(num_tokens / step_tokens))
    if config.warm_up_steps >= num_steps:
        raise InputError(
            field="warm_up_steps",
            must="leave steps for the schedule",
            got=(f"but {config.warm_up_steps} of {num_steps} steps warm up (a step is {step_tokens:,} tokens)"),
            do=f"fewer of them, more data or a smaller {option('batch_size')}",
        )
    windows = PackedWindows(
        parts, num_windows=num_steps * config.batch_size, window=window, separator=separator, seed=config.seed
    )
    return windows, num_steps


def _work(directory: Path, wanted: dict[str, Any]) -> Path:
    """Return the unfinished part of a run, emptied where it is another run's, which this one was told to overwrite."""
    begun = directory / "begun.json"
    try:
        is_ours = read_record(begun) == unsealed(sealed(wanted))
    except (OSError, RecordError):
        is_ours = False
    if directory.exists() and not is_ours:
        shutil.rmtree(directory)
    directory.mkdir(exist_ok=True)
    write_record(begun, wanted)
    return directory
