"""The callback: trains on what it chose, chooses with the model as it then is, and goes on to the same bytes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from direct_anneal.errors import InputError
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.selection.trainer_callback import Reselecting

pytest.importorskip("accelerate", reason="annealing needs the extra 'anneal'")
from transformers import Trainer, TrainingArguments

STEPS, EVERY, BATCH, K, T = 9, 3, 2, 3, 12


def drawn(count: int, seed: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 256, (count, T), generator=generator)
    return [{"input_ids": one, "labels": one} for one in ids]


POOL, VALIDATION = drawn(14, 1), drawn(6, 2)


class Recording(Reselecting):
    """Notes which samples were handed out, and what was chosen when."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.handed: dict[int, int] = {}
        self.choices: list[tuple[int, tuple[int, ...]]] = []

    def sample(self, position: int, per_step: int) -> Any:
        found = super().sample(position, per_step)
        self.handed[position] = next(i for i, one in enumerate(POOL) if one is found)
        return found

    def _select(self, generation: int, model: Any, state: Any) -> None:
        super()._select(generation, model, state)
        assert self.selection is not None
        self.choices.append((state.global_step, tuple(sorted(self.selection.indices.tolist()))))


def arguments(out: Path, **options: Any) -> TrainingArguments:
    given: dict[str, Any] = {
        "output_dir": str(out),
        "max_steps": STEPS,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": BATCH,
        "learning_rate": 0.05,
        "train_sampling_strategy": "sequential",
        "use_cpu": True,
        "save_steps": 1,
        "disable_tqdm": True,
        "report_to": "none",
        "logging_steps": 100,
    }
    return TrainingArguments(**(given | options))


def trained(model: Path, out: Path, resume: Path | None = None, **options: Any) -> tuple[Recording, dict[str, Tensor]]:
    reselecting = Recording(POOL, VALIDATION, every=EVERY, num_selected=K, sketch_size=32)
    args = arguments(out, **options)
    trainer = Trainer(
        Checkpoint(str(model)).load_model("cpu", "float32"),
        args,
        train_dataset=reselecting.dataset(args),
        callbacks=[reselecting],
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return reselecting, {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def test_it_trains_on_the_latest_choice_and_goes_on_to_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    whole, weights = trained(checkpoint, tmp_path / "whole")
    assert [step for step, _ in whole.choices] == [0, 3, 6]
    assert len({chosen for _, chosen in whole.choices}) > 1, "the model changed, and the choice with it"
    in_force = {0: range(4), 1: range(4, 7), 2: range(7, STEPS)}  # steps of each choice: from one after the next on
    for generation, steps in in_force.items():
        handed = [whole.handed[position] for step in steps for position in range(step * BATCH, (step + 1) * BATCH)]
        assert set(handed) <= set(whole.choices[generation][1])
        for start in range(0, len(handed) - K + 1, K):
            assert len(set(handed[start : start + K])) == K, "all of a choice come before any comes again"
    # Steps 4 and 7 are those that a batch fetched ahead could give another choice.
    for step in (4, 7):
        resumed, again = trained(checkpoint, tmp_path / f"from-{step}", tmp_path / "whole" / f"checkpoint-{step}")
        assert all(torch.equal(weights[name], again[name]) for name in weights)
        for position in range(step * BATCH, STEPS * BATCH):
            assert resumed.handed[position] == whole.handed[position]
        assert min(resumed.handed) >= step * BATCH


def test_the_example_of_the_docs(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples of unequal lengths, with `input_ids` alone."""
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    (example,) = [code for code in re.findall(r"```python\n(.*?)```", page, flags=re.S) if "Reselecting" in code]
    example = example.replace("max_steps=1000", "max_steps=4, use_cpu=True, disable_tqdm=True, report_to='none'")
    monkeypatch.chdir(tmp_path)
    loaded = Checkpoint(str(checkpoint))
    given: dict[str, Any] = {"model": loaded.load_model("cpu", "float32"), "tokenizer": loaded.load_tokenizer()}
    given["tokenizer"].pad_token = given["tokenizer"].convert_ids_to_tokens(0)
    for name, samples in (("pool", POOL), ("validation", VALIDATION)):
        given[name] = [{"input_ids": one["input_ids"][: T - i % 3]} for i, one in enumerate(samples)]
    exec(example.replace("every=200", "every=2"), given)
    assert given["trainer"].state.global_step == 4
    assert given["reselecting"].selection is not None


def test_each_passs_order_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is that of its seed, choice and pass, whichever sample is asked for."""
    drawn, draw = list[list[int]](), np.random.default_rng

    def noted(seed: list[int]) -> np.random.Generator:
        drawn.append(seed)
        return draw(seed)

    reselecting = Reselecting(POOL, VALIDATION, every=EVERY, seed=71, num_selected=K)
    reselecting._chosen = {0: [2, 5, 11], 1: [0, 3, 7, 9]}
    monkeypatch.setattr(np.random, "default_rng", noted)
    handed = [reselecting.sample(position, BATCH) for position in range(14)]  # from position 8 on of the second choice
    assert drawn == [[71, 0, 0], [71, 0, 1], [71, 0, 2], [71, 1, 0], [71, 1, 1]]
    expected = [[2, 5, 11][i] for seed in drawn[:3] for i in draw(seed).permutation(3)][:8]
    expected += [[0, 3, 7, 9][i] for seed in drawn[3:] for i in draw(seed).permutation(4)][:6]
    assert all(found is POOL[place] for found, place in zip(handed, expected, strict=True))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda out: Reselecting(POOL, VALIDATION, every=1), "every must be at least 2"),
        (lambda out: Reselecting([{"input_ids": [1]}], VALIDATION, every=2), r"pool\[0\] has fewer"),
        (lambda out: dataset(out, max_steps=-1), "must give max_steps"),
        (lambda out: dataset(out, train_sampling_strategy="random"), "train_sampling_strategy='sequential'"),
        (lambda out: dataset(out, dataloader_num_workers=2), "one process that also loads the data"),
    ],
)
def test_what_would_mix_up_the_order_is_refused(tmp_path: Path, make: Callable[[Path], Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        make(tmp_path)


def dataset(out: Path, **options: Any) -> Any:
    return Reselecting(POOL, VALIDATION, every=2, num_selected=2).dataset(arguments(out, **options))


def test_a_checkpoint_without_a_choice(checkpoint: Path, tmp_path: Path) -> None:
    model = Checkpoint(str(checkpoint)).load_model("cpu", "float32")
    args = arguments(tmp_path, max_steps=2)
    Trainer(model, args, train_dataset=POOL).train()  # type: ignore[arg-type]
    with pytest.raises(InputError, match="its checkpoint holds no selection"):
        trained(checkpoint, tmp_path / "next", tmp_path / "checkpoint-1")
