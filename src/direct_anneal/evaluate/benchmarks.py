"""The seven benchmarks of the paper, scored by lm-eval on the user's own files: nothing is fetched.

Prompts, answers and metrics are lm-eval's tasks, zero-shot; only where their documents come from is ours. HumanEval's
programs are run by `execution`, since lm-eval would fetch the code that runs them.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from direct_anneal.errors import InputError, option
from direct_anneal.evaluate.execution import passes

CONFIDENCE = 0.95
_HUMANEVAL = "humaneval"
_STOPS = ["\nclass", "\ndef", "\n#", "\nif", "\nprint"]  # lm-eval's own for HumanEval

_GSM8K_OPTIONS = {"until": ["Question:", "</s>", "<|im_end|>"], "do_sample": False}  # and for GSM8K


@dataclass(frozen=True)
class _Benchmark:
    """A task of lm-eval: its file below lm_eval/tasks, its split, the metric that counts, what a record must have."""

    file: str
    split: str
    metric: str
    fields: tuple[str, ...]


BENCHMARKS: dict[str, _Benchmark] = {
    "winogrande": _Benchmark(
        "winogrande/default.yaml", "validation", "acc,none", ("sentence", "option1", "option2", "answer")
    ),
    "copa": _Benchmark(
        "super_glue/copa/default.yaml",
        "validation",
        "acc,none",
        ("premise", "choice1", "choice2", "question", "label"),
    ),
    "piqa": _Benchmark("piqa/piqa.yaml", "validation", "acc,none", ("goal", "sol1", "sol2", "label")),
    "sciq": _Benchmark(
        "sciq/sciq.yaml",
        "test",
        "acc,none",
        ("question", "support", "correct_answer", "distractor1", "distractor2", "distractor3"),
    ),
    "arc_easy": _Benchmark("arc/arc_easy.yaml", "test", "acc,none", ("question", "choices", "answerKey")),
    "gsm8k": _Benchmark("gsm8k/gsm8k.yaml", "test", "exact_match,strict-match", ("question", "answer")),
    _HUMANEVAL: _Benchmark("", "test", "", ("task_id", "prompt", "test", "entry_point")),
}


@dataclass(frozen=True)
class BenchmarkScore:
    """One benchmark.

    Attributes:
        accuracy: share of the items that were right.
        low, high: its exact binomial (Clopper–Pearson) 95 % interval.
        chance: what guessing gives; 0 where answers are generated.
        near_chance: the interval holds chance: the score says nothing.
        num_items: items scored.
    """

    accuracy: float
    low: float
    high: float
    chance: float
    near_chance: bool
    num_items: int


def check_benchmarks(files: Mapping[str, Path], *, run_generated_code: bool) -> None:
    """See that benchmarks can be scored, before hours of other work.

    Args:
        files: by names of `BENCHMARKS`.
        run_generated_code: HumanEval is scored by running what the model wrote, in a process with limits but with the
            user's rights: only where that may be.

    Raises:
        InputError: lm-eval is not installed, a file does not fit its benchmark, or HumanEval may not be run.
    """
    for name, path in files.items():
        _read(name, path, None)
    if _HUMANEVAL in files and not run_generated_code:
        raise InputError(
            "HumanEval is scored by running programs that the model wrote, with your rights: do that in a container, "
            f"and pass {option('run_generated_code')}"
        )
    if files and importlib.util.find_spec("lm_eval") is None:
        raise InputError("benchmarks need lm-eval, which is not installed: pip install 'direct-anneal[eval]'")


def score_benchmark(
    model: Any, tokenizer: Any, name: str, path: Path, *, window: int, batch_size: int, limit: int | None = None
) -> BenchmarkScore:
    """Score a model on one benchmark, from a JSONL file with the records that its authors distribute.

    Args:
        name: of `BENCHMARKS`; "humaneval" runs what the model writes.
        window: tokens that the model sees at once; of what is longer the beginning is lost.
        batch_size: sequences at once.
        limit: the first items alone; None: all.

    Raises:
        InputError: the file does not fit.
    """
    records = _read(name, path, limit)
    from lm_eval.models.huggingface import HFLM

    for logger in ("lm_eval", "lm-eval"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=window)
    num_right = _humaneval(lm, records) if name == _HUMANEVAL else _lm_eval(lm, name, records)
    return binomial_score(num_right, len(records), _chance(name, records))


def binomial_score(num_right: int, num_items: int, chance: float) -> BenchmarkScore:
    """Return the score of so many right answers."""
    from scipy.stats import binomtest

    interval = binomtest(num_right, num_items, chance).proportion_ci(CONFIDENCE, method="exact")
    low, high = float(interval.low), float(interval.high)
    return BenchmarkScore(num_right / num_items, low, high, chance, low <= chance <= high, num_items)


def _lm_eval(lm: Any, name: str, records: Sequence[dict[str, Any]]) -> int:
    """Return the number of items that lm-eval counts as right."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    benchmark = BENCHMARKS[name]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / f"{benchmark.split}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        task: dict[str, Any] = {
            "include": str(Path(lm_eval.__file__).parent / "tasks" / benchmark.file),
            "task": name,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {benchmark.split: str(path)}, "cache_dir": str(Path(directory) / "cache")},
            "training_split": None,
            "validation_split": benchmark.split if benchmark.split == "validation" else None,
            "test_split": benchmark.split if benchmark.split == "test" else None,
            "fewshot_split": None,
            "num_fewshot": 0,
        }
        if name == "gsm8k":
            task["generation_kwargs"] = {**_GSM8K_OPTIONS, "max_gen_toks": lm.max_length // 2}
        (Path(directory) / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
        manager = TaskManager(include_path=directory, include_defaults=False)  # all of its tasks would take a minute
        found = lm_eval.simple_evaluate(
            model=lm, tasks=[name], task_manager=manager, bootstrap_iters=0, log_samples=False
        )
    share: float = found["results"][name][benchmark.metric]
    return round(share * len(records))


def _humaneval(lm: Any, records: Sequence[dict[str, Any]]) -> int:
    """Count programs that pass their tests, one greedy try each (pass@1)."""
    from lm_eval.api.instance import Instance

    options = {"until": _STOPS, "max_gen_toks": lm.max_length // 2, "do_sample": False}
    requests = [
        Instance(request_type="generate_until", doc=record, arguments=(record["prompt"], dict(options)), idx=0)
        for record in records
    ]
    programs = [
        f"{record['prompt']}{completion}\n{record['test']}\ncheck({record['entry_point']})\n"
        for record, completion in zip(records, lm.generate_until(requests, disable_tqdm=True), strict=True)
    ]
    return sum(map(passes, programs))


def _chance(name: str, records: Sequence[dict[str, Any]]) -> float:
    if name in ("gsm8k", _HUMANEVAL):
        return 0.0
    if name == "arc_easy":  # three to five choices
        return sum(1 / len(record["choices"]["text"]) for record in records) / len(records)
    return 0.25 if name == "sciq" else 0.5


def _read(name: str, path: Path, limit: int | None) -> list[dict[str, Any]]:
    if name not in BENCHMARKS:
        raise InputError(field="benchmarks", must=f"be one of {', '.join(BENCHMARKS)}", got=str(name))
    try:
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        records = [json.loads(line) for line in lines[:limit]]
    except (OSError, ValueError) as error:
        raise InputError(
            subject=f"{option('benchmarks')} {name}", must="be a JSONL file", got=f"but {path}: {error}"
        ) from error
    fields = BENCHMARKS[name].fields
    for row, record in enumerate(records):
        if not isinstance(record, dict) or (lacking := [field for field in fields if field not in record]):
            missing = ", ".join(lacking) if isinstance(record, dict) else "everything"
            raise InputError(
                subject=f"{option('benchmarks')} {name}",
                must=f"hold records with {', '.join(fields)}",
                got=f"but row {row} of {path} lacks {missing}",
                do="give the file as its authors distribute it",
            )
    if not records:
        raise InputError(
            subject=f"{option('benchmarks')} {name}", must="hold at least one record", got=f"but {path} is empty"
        )
    return records
