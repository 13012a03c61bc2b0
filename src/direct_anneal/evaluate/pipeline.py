"""`evaluate`, top to bottom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from direct_anneal.config.evaluate import EvaluateConfig
from direct_anneal.config.options import keep
from direct_anneal.config.signature import takes
from direct_anneal.data import Corpus, Fields, Source, TokenLayout, expand, prepare
from direct_anneal.data.sources import FETCHED
from direct_anneal.evaluate.benchmarks import check_benchmarks, score_benchmark
from direct_anneal.evaluate.bits_per_byte import bits_per_byte, count_windows, macro_mean
from direct_anneal.io.digests import sha256
from direct_anneal.io.lock import claim
from direct_anneal.io.records import write_record
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.progress import Progress, current_progress

RECORD = "evaluation.json"
_SCORING = 2  # of the rule for context, count and windows: numbers of another are not comparable


@takes(EvaluateConfig)
def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Score a model on held-out documents and benchmarks, and write evaluation.json below `out`.

    Returns:
        the record: configuration, fingerprints, bits per byte by domain and their mean, benchmark scores.

    Raises:
        InputError: something given cannot be used; says what to do.
    """
    shown = current_progress()
    out = Path(config.out)
    checkpoint = Checkpoint.of(config)
    window = checkpoint.window(config.max_length)
    layout = TokenLayout.of(checkpoint.vocab_size, checkpoint.separator)
    sources = expand(config.data, "data", layout, cache=out / FETCHED) if config.data else []
    files = {name: Path(path) for name, path in config.benchmarks.items()}
    check_benchmarks(files, run_generated_code=config.run_generated_code)
    wanted = {
        **config.defining,
        "max_length": window,
        "scoring": _SCORING,
        "weights": checkpoint.weights_fingerprint(),
        "sources": [source.state() for source in sources],
        "benchmark_files": {name: sha256(path.read_bytes()) for name, path in files.items()},
    }
    with claim(out, wanted, RECORD, "benchmarks", overwrite=config.overwrite) as finished:
        return _scored(config, checkpoint, sources, files, wanted, shown) if finished is None else finished


def _scored(
    config: EvaluateConfig,
    checkpoint: Checkpoint,
    sources: list[Source],
    files: dict[str, Path],
    wanted: dict[str, Any],
    shown: Progress,
) -> dict[str, Any]:
    """Score and record, in a directory that is claimed; `wanted` is what the result depends on."""
    out, window = Path(config.out), int(wanted["max_length"])
    keep(asdict(config), out)
    model = checkpoint.load_model(config.device, config.dtype, window=window)
    record: dict[str, Any] = {
        "config": wanted,
        "fingerprints": {"model": wanted["weights"], "tokenizer": checkpoint.tokenizer_fingerprint()},
    }
    if sources:
        special = checkpoint.special_tokens
        for note in special.notes:
            shown.note(note)
        fields = Fields(
            text=config.text_field,
            id=config.id_field,
            domain=config.domain_field,
            special_tokens=config.special_tokens,
        )
        with shown.stage("Reading the data", "documents") as advance:
            corpus = read_held_out(sources, checkpoint, window, out / "corpus", fields, advance)
        if told := corpus.issues.left_out():
            shown.note(f"data: records left out: {told}")
        with shown.stage("Scoring", "windows", count_windows(corpus, window, special)) as advance:
            scores = bits_per_byte(
                model,
                corpus,
                window=window,
                special=special,
                text_field=config.text_field,
                batch_tokens=config.batch_tokens,
                advance=advance,
            )
        record["fingerprints"]["data"] = corpus.fingerprint
        record["first_token_predicted"] = bool(special.context)
        record["special_tokens"] = asdict(special)
        record["domains"] = {name: asdict(score) for name, score in scores.items()}
        record["mean_bits_per_byte"] = macro_mean(scores)
    record["benchmarks"] = {}
    for name, path in files.items():
        with shown.stage(f"Benchmark {name}", "items") as advance:
            score = score_benchmark(
                model, checkpoint.load_tokenizer(), name, path, window=window, batch_size=16, limit=config.limit
            )
            advance(score.num_items)
        record["benchmarks"][name] = asdict(score)
    return write_record(out / RECORD, record)


def read_held_out(
    sources: list[Source],
    checkpoint: Checkpoint,
    window: int,
    directory: Path,
    fields: Fields,
    advance: Callable[[int], object] = lambda _: None,
) -> Corpus:
    """Read held-out documents as a corpus; its tokens lie below `directory`, and are used again if nothing changed."""
    return prepare(
        sources,
        role="data",
        fields=fields,
        load_tokenizer=checkpoint.load_tokenizer,
        tokenizer_fingerprint=checkpoint.tokenizer_fingerprint(),
        vocab_size=checkpoint.vocab_size,
        max_length=window,
        directory=directory,
        advance=advance,
    )
