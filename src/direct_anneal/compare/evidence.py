"""Evidence for baselines beside texts and gradients: losses under other models, and embeddings. Made once a scenario.

N documents of the pool, M of the validation set, H hidden size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from direct_anneal.baselines import Baseline
from direct_anneal.data import Corpus
from direct_anneal.io.atomic import replacing
from direct_anneal.io.digests import sha256_of_file
from direct_anneal.io.records import read_record, write_record
from direct_anneal.model.borrowing import in_evaluation_mode
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.path import PathConfig, PathLosses, descend
from direct_anneal.path.scoring import BATCH_TOKENS, losses_of
from direct_anneal.progress import Silent, showing
from direct_anneal.train import anneal

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Evidence:
    """One scenario's losses and embeddings, below a directory of their own.

    Attributes:
        directory: where they are kept; what is there already is not made again.
        checkpoint: the onset of annealing.
        pool, validation: N and M documents.
        files: of pool and validation set.
        options: names of fields and device, as `anneal` takes them.
        walk: how the path is walked.
        window: tokens of a window.
        note: is told before what takes long.
    """

    directory: Path
    checkpoint: Checkpoint
    pool: Corpus
    validation: Corpus
    files: tuple[Sequence[str], Sequence[str]]
    options: dict[str, Any]
    walk: PathConfig
    window: int
    note: Callable[[str], object]

    def seconds(self, baseline: Baseline) -> float:
        """Return seconds that the inputs of a baseline took."""
        path = self.directory / "seconds.json"
        known = read_record(path) if path.exists() else {}
        names = {f"loss-{model}" for model in baseline.needs_losses}
        names |= {"states-pool", "states-validation"} if baseline.needs_embeddings else set()
        return float(sum(seconds for name, seconds in known.items() if name in names))

    def losses(self, models: Sequence[str]) -> dict[str, Array]:
        """Return mean token losses of the pool by model, (N,) each: "start", "target", "prior" and "conditional"."""
        made = {
            "start": lambda: self._path.start,
            "target": lambda: self._path.ends.mean(1),
            "prior": lambda: self._under(self._prior()),
            "conditional": lambda: self._under(self._conditional()),
        }
        return {model: self._kept(f"loss-{model}", made[model]) for model in models}

    def hidden_states(self) -> tuple[Array, Array]:
        """Return mean final hidden states of pool and validation set, (N, H) and (M, H)."""
        return (
            self._kept("states-pool", lambda: self._states(self.pool)),
            self._kept("states-validation", lambda: self._states(self.validation)),
        )

    @property
    def _device(self) -> str:
        return str(self.options.get("device", "cpu"))

    @cached_property
    def _path(self) -> PathLosses:
        self.note("walking the path along the validation set")
        return descend(
            self.checkpoint,
            self.validation,
            self.pool,
            self.walk,
            directory=self.directory / "path",
            work=self.directory / "walks",
            max_length=self.window,
            stages=Silent(),
        )

    def _prior(self) -> Checkpoint:
        """Return the checkpoint, annealed on random text of the pool for as long as the path is."""
        return self._annealed("prior", self.checkpoint, self.files[0])

    def _conditional(self) -> Checkpoint:
        """Return the prior, annealed on the validation set."""
        return self._annealed("conditional", self._prior(), self.files[1])

    def _annealed(self, name: str, model: Checkpoint, files: Sequence[str]) -> Checkpoint:
        out = self.directory / name
        described = self._path.described
        if not (out / "annealing.json").exists():
            self.note(f"annealing the {name} model")
            with showing(Silent()):
                anneal(
                    model=str(model.directory),
                    data=tuple(files),
                    out=str(out),
                    num_tokens=max(1, round(described["passes"] * int(self.validation.num_tokens.sum()))),
                    learning_rate=described["learning_rate"],
                    batch_size=described["batch_size"],
                    max_length=described["window"],
                    weight_decay=0.0,
                    **self.options,
                )
        return Checkpoint(str(out))

    def _under(self, checkpoint: Checkpoint) -> Array:
        model = checkpoint.load_model(self._device, "float32")
        contents = [self.pool.tokens(i) for i in range(self.pool.num_samples)]
        size = BATCH_TOKENS["cpu" if self._device == "cpu" else "cuda"]
        return losses_of(
            model, contents, self.pool.num_prompt, max_length=self.window, batch_tokens=max(size, self.window)
        ).means

    def _states(self, corpus: Corpus) -> Array:
        self.note("embedding documents by their mean hidden state")
        model = self.checkpoint.load_model(self._device, "float32")
        return mean_hidden_states(model, [corpus.tokens(i)[: self.window] for i in range(corpus.num_samples)])

    def _kept(self, name: str, make: Callable[[], Array]) -> Array:
        path, record = self.directory / f"{name}.npy", self.directory / "seconds.json"
        told = read_record(record) if record.exists() else {}
        digests = told.get("digests", {})  # none of what an earlier version made
        if path.exists() and digests.get(name) in (None, sha256_of_file(path)):
            kept: Array = np.load(path)
            return kept
        started = time.monotonic()
        values = make()
        self.directory.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as stream:
            np.save(stream, values)
        digests = {**digests, name: sha256_of_file(path)}
        write_record(record, {**told, name: time.monotonic() - started, "digests": digests})
        return values


def mean_hidden_states(model: nn.Module, contents: Sequence[NDArray[np.int64]], batch_tokens: int = 8192) -> Array:
    """Return mean over a document's tokens of the model's final hidden state, (N, H).

    Args:
        contents: tokens of each document, at least one each.
        batch_tokens: padded tokens of a batch; changes the result by float rounding alone.

    Cost: one forward pass.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(contents)), key=lambda i: -len(contents[i]))
    rows: list[Array] = [np.zeros(0)] * len(contents)
    start = 0
    with in_evaluation_mode(model), torch.inference_mode():
        while start < len(order):
            longest = len(contents[order[start]])
            part = order[start : start + max(1, batch_tokens // longest)]
            ids = torch.zeros(len(part), longest, dtype=torch.int64)
            mask = torch.zeros(len(part), longest)
            for row, i in enumerate(part):
                ids[row, : len(contents[i])] = torch.from_numpy(contents[i])
                mask[row, : len(contents[i])] = 1
            found = model(input_ids=ids.to(device), attention_mask=mask.long().to(device), output_hidden_states=True)
            states = found.hidden_states[-1].double().cpu() * mask[:, :, None]
            for row, i in enumerate(part):
                rows[i] = (states[row].sum(0) / len(contents[i])).numpy()
            start += len(part)
    return np.array(rows)
