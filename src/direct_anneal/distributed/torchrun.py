"""One model spread over the processes of `torchrun`, for models larger than a GPU.

The first process is the run: it reads, keeps and writes everything. The others only help to sketch: each takes every
W-th batch of a shard, all at the same time, since weights are gathered together. A batch has the sketches that it has
in one process, so the bytes of a store are the same.

W processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from direct_anneal.errors import InputError, option

if TYPE_CHECKING:
    import numpy as np

    from direct_anneal.features import Extraction
    from direct_anneal.gradients import Coverage, GradientSketcher, Sketches
    from direct_anneal.model.batching import Window

_SKETCHER, _SHARD, _END = "sketcher", "shard", "end"
# Whoever waits is ended by torchrun as soon as another one fails; reading and tokenising may take days.
_PATIENCE = timedelta(days=365)


class Group:
    """Engine of the first process of a group, all of which make shards.

    Args:
        build_sketcher: called by every process; goes there pickled.
        on_gpu: whether the model is spread over GPUs.
    """

    def __init__(self, build_sketcher: Callable[[], GradientSketcher], *, on_gpu: bool) -> None:
        self._build_sketcher = build_sketcher
        self._on_gpu = on_gpu
        self._built: GradientSketcher | None = None

    @property
    def sketcher(self) -> GradientSketcher:
        """Built on first use, on all processes at once."""
        if self._built is None:
            _tell(_SKETCHER, self._build_sketcher)
            self._built = self._build_sketcher()
        return self._built

    def find_batch_tokens(self, longest: np.ndarray) -> int:
        """See `found_batch_tokens`.

        Raises:
            InputError: on GPUs, where memory is not measured for all at once.
        """
        from direct_anneal.features.batching import found_batch_tokens

        if self._on_gpu:
            raise InputError(
                field="batch_tokens",
                must="be given where torchrun spreads a model",
                got="but is left out",
                do=f"pass {option('batch_tokens')} 8192, say, and less where that does not fit",
            )
        return found_batch_tokens(self.sketcher, longest)

    def make(self, extraction: Extraction, shards: Sequence[int]) -> list[int]:
        """Make these shards, all processes the batches of one after the other."""
        from direct_anneal.features import shard_rows

        sketcher = self.sketcher
        for shard in shards:
            documents = extraction.documents(shard)
            _tell(_SHARD, documents.to_bytes().tobytes(), extraction.max_length, extraction.batch_tokens)
            content = shard_rows(
                documents,
                sketcher,
                extraction.max_length,
                extraction.batch_tokens,
                extraction.advance,
                sketch=sketched_together,
            )
            extraction.write(shard, documents, content)
        return []

    def coverage(self) -> Coverage | None:
        """Return the coverage of the parameters; None if every shard was there already."""
        return None if self._built is None else self._built.describe()


def dismiss() -> None:
    """Let the other processes end; called by the first one once all is done."""
    from torch import distributed as dist

    _tell(_END)
    dist.destroy_process_group()


def serve() -> None:
    """Help the first process until it is done.

    Raises:
        InputError: the model cannot be used, or a batch does not fit into memory.
    """
    from torch import distributed as dist

    from direct_anneal.features import Documents, batches_of

    sketcher: GradientSketcher | None = None
    while True:
        kind, *given = _tell(None)
        if kind == _END:
            dist.destroy_process_group()
            return
        if kind == _SKETCHER:
            sketcher = given[0]()
            continue
        assert sketcher is not None
        content, max_length, batch_tokens = given
        for _ in sketched_together(
            sketcher, batches_of(Documents.from_bytes(content), sketcher, max_length, batch_tokens)
        ):
            raise AssertionError("sketches must go to the first process alone")


def sketched_together(sketcher: GradientSketcher, batches: Sequence[list[Window]]) -> Iterator[Sketches]:
    """Yield the sketches of all batches in order, on the CPU of the first process; the others get none.

    Raises:
        InputError: a batch does not fit into memory.
    """
    from torch import distributed as dist

    from direct_anneal.features.batching import BatchTooLargeError, sketched

    rank, world = dist.get_rank(), dist.get_world_size()
    for start in range(0, len(batches), world):
        # All call as often: those for whom none is left sketch the last one once more.
        try:
            own = sketched(sketcher, batches[min(start + rank, len(batches) - 1)])
        except BatchTooLargeError as error:
            raise InputError(
                field="batch_tokens",
                must="fit into memory beside the model, and cannot be halved while others wait",
                got=f"but {2 * error.tokens} do not",
                do=f"pass {option('batch_tokens')} {error.tokens}, and run the same command again to go on",
            ) from error
        found: list[Any] | None = [None] * world if rank == 0 else None
        there = {name: value.cpu() for name, value in vars(own).items()}
        dist.gather_object(replace(own, **there), found)
        if found is not None:
            yield from found[: len(batches) - start]


def _tell(*message: Any) -> list[Any]:
    """Broadcast the first process's message to all, who are waiting for it."""
    import torch
    from torch import distributed as dist

    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=_PATIENCE)
    messages: list[Any] = [list(message)]
    dist.broadcast_object_list(messages, device=torch.device("cpu"))
    told: list[Any] = messages[0]
    return told
