"""A selection that follows the model: a callback of transformers' Trainer that chooses again every n steps.

K samples selected. Steps and positions count from 0; P samples are taken a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainingArguments

from direct_anneal.errors import InputError
from direct_anneal.gradients import IGNORED_LABEL
from direct_anneal.selection.in_memory import select_samples
from direct_anneal.solver import Selection

_KEY = "direct-anneal"  # of our part in trainer_state.json; no callback's class name, which Trainer would build anew


class Reselecting(TrainerCallback):  # type: ignore[misc]  # transformers brings no types
    """Training on a selection of a pool, which is made again every `every` steps with the model as it then is.

    Trainer fetches a batch ahead, so that a selection made after step n is trained on from step n + 2. Within one
    selection samples come in an order drawn from the seed, all of them before any comes again. The same seed gives the
    same training, and a run that goes on from a checkpoint trains on what it would have otherwise.

        reselecting = Reselecting(pool, validation, every=200, fraction=0.2)
        collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
        trainer = Trainer(model, args, collator, train_dataset=reselecting.dataset(args), callbacks=[reselecting])

    Args:
        pool, validation: samples with `input_ids`, and where some are not predicted `labels` (−100 there): lists or
            tensors of shape (T,), T ≥ 2. The pool's are handed to Trainer's collator as they are.
        every: steps between selections.
        seed: of the order of samples, and of the sketch.
        options: of `select_samples`: the size (`num_selected` or `fraction`), objective, budget and the like.

    Attributes:
        selection: the latest, its indices positions in `pool`.

    Raises:
        InputError: a sample has fewer than two tokens, or as for `select_samples` when the first selection is made.

    Cost of a selection: forward and backward over pool and validation set.
    """

    selection: Selection | None = None

    def __init__(
        self,
        pool: Sequence[Mapping[str, Any]],
        validation: Sequence[Mapping[str, Any]],
        *,
        every: int,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if every < 2:
            raise InputError(subject="every", must="be at least 2, since a batch is fetched ahead", got=str(every))
        for name, samples in (("pool", pool), ("validation", validation)):
            short = next((i for i in range(len(samples)) if len(samples[i]["input_ids"]) < 2), None)
            if short is not None:
                raise InputError(
                    subject="samples",
                    must="have at least two tokens",
                    got=f"but {name}[{short}] has fewer",
                    do="leave it out",
                )
        self._pool, self._validation = pool, validation
        self._every, self._seed, self._options = every, seed, options
        self._chosen: dict[int, list[int]] = {}  # by generation: which samples, sorted

    def dataset(self, args: TrainingArguments) -> Dataset[Mapping[str, Any]]:
        """Build the training set of Trainer: a sample for each place in each of `max_steps` steps.

        Raises:
            InputError: the arguments would mix up the order, which is the callback's to set, or say nothing of steps.
        """
        if args.max_steps < 1:
            raise InputError(subject="TrainingArguments", must="give max_steps", got=str(args.max_steps))
        if args.train_sampling_strategy != "sequential":
            raise InputError(
                subject="TrainingArguments",
                must="have train_sampling_strategy='sequential', since the order is drawn by the selection",
                got=f"{args.train_sampling_strategy!r}",
            )
        if args.world_size > 1 or args.dataloader_num_workers > 0:
            raise InputError(
                "re-selecting needs one process that also loads the data, got "
                f"{args.world_size} with {args.dataloader_num_workers} dataloader workers each"
            )
        return _Chosen(self, args.max_steps, args.train_batch_size * args.gradient_accumulation_steps)

    def sample(self, position: int, per_step: int) -> Mapping[str, Any]:
        """Return the pool's sample at a position of the training set; P = `per_step`."""
        step = position // per_step
        generation = max(0, (step - 1) // self._every)
        first = generation * self._every + 1 if generation else 0
        chosen = self._chosen[generation]
        passes, place = divmod(position - first * per_step, len(chosen))
        order = _order(self._seed, generation, passes, len(chosen))
        sample: Mapping[str, Any] = self._pool[chosen[order[place]]]
        return sample

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: nn.Module, **_: Any) -> None:  # noqa: ARG002
        kept = state.stateful_callbacks.get(_KEY)
        if kept is not None:
            self._chosen = {int(generation): chosen for generation, chosen in kept.items()}
        elif state.global_step == 0:
            self._select(0, model, state)
        else:
            raise InputError(
                subject=f"a run that goes on at step {state.global_step}",
                must="have selected before",
                got="but its checkpoint holds no selection",
                do="start it anew",
            )

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: nn.Module, **_: Any) -> None:  # noqa: ARG002
        if state.global_step % self._every == 0 and state.global_step + 1 < state.max_steps:
            self._select(state.global_step // self._every, model, state)

    def _select(self, generation: int, model: nn.Module, state: Any) -> None:
        self.selection = select_samples(
            model, self._pool, self._validation, _losses, collate=_collate, seed=self._seed, **self._options
        )
        chosen = sorted(self.selection.indices.tolist())
        # The one before still serves the step that is under way.
        self._chosen = {generation - 1: self._chosen[generation - 1], generation: chosen} if generation else {0: chosen}
        state.stateful_callbacks[_KEY] = {str(number): kept for number, kept in self._chosen.items()}


class _Chosen(Dataset[Mapping[str, Any]]):
    def __init__(self, reselecting: Reselecting, num_steps: int, per_step: int) -> None:
        self._reselecting, self._per_step = reselecting, per_step
        self._length = num_steps * per_step

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position: int) -> Mapping[str, Any]:
        return self._reselecting.sample(position, self._per_step)


@lru_cache(maxsize=1)  # samples are asked for one by one, and a pass is over before the next
def _order(seed: int, generation: int, passes: int, count: int) -> NDArray[np.int64]:
    """Draw the order of so many samples in one pass over them."""
    return np.random.default_rng([seed, generation, passes]).permutation(count)


def _collate(samples: list[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Return input_ids, attention_mask and labels, each (B, T), padded on the right."""
    ids = [torch.as_tensor(sample["input_ids"]) for sample in samples]
    labels = [torch.as_tensor(sample.get("labels", sample["input_ids"])) for sample in samples]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(one) for one in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED_LABEL),
    }


def _losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return mean negative log-likelihood of each sample's predicted tokens, nats, (B,)."""
    device = next(model.parameters()).device
    targets = batch["labels"][:, 1:].to(device)
    inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
    logits = model(**inputs).logits[:, :-1].float()
    nats = nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED_LABEL, reduction="none"
    )
    return nats.reshape(targets.shape).sum(1) / (targets != IGNORED_LABEL).sum(1).clamp(min=1)
