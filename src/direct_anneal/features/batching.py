"""Sketches of batches of a size that memory allows.

B windows of a batch, T tokens.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from direct_anneal.errors import InputError, option
from direct_anneal.gradients import GradientSketcher, Sketches
from direct_anneal.model.batching import Window, padded

BATCH_TOKENS = 2048  # on a CPU, where more was slower (docs/log.md); on a GPU what memory is measured with

# Of a GPU's memory. The rest is for what the allocator cannot use again, and for what torch does not count.
_SHARE_OF_MEMORY = 0.8


class BatchTooLargeError(Exception):
    """A batch did not fit into memory; `tokens`, half of it, may."""

    def __init__(self, tokens: int) -> None:
        super().__init__(f"a batch of {2 * tokens} tokens does not fit into memory")
        self.tokens = tokens


def sketched(sketcher: GradientSketcher, batch: list[Window]) -> Sketches:
    """Sketch a batch, the longest window first.

    Raises:
        BatchTooLargeError: it does not fit into memory, and is more than one window.
        InputError: it is one window, and does not fit.
    """
    width, rows = len(batch[0].tokens), padded(batch)
    try:
        return sketcher.sketch(rows.ids, rows.mask, rows.labels)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        if len(batch) > 1:
            raise BatchTooLargeError(len(batch) * width // 2) from error
        raise InputError(
            f"the model and one window of {width} tokens must fit into memory, but do not: pass a smaller "
            f"{option('max_length')}, or {option('dtype')} bfloat16"
        ) from error


def found_batch_tokens(sketcher: GradientSketcher, longest: NDArray[np.int64]) -> int:
    """Find a size that should fit: on a GPU the largest power of two within a share of its memory.

    On a CPU `BATCH_TOKENS`, and more where the projection is drawn anew for each batch.

    Args:
        longest: the longest window's tokens, shape (T,). A batch of them is sketched to measure what a token takes.

    Raises:
        InputError: not even one window fits.
    """
    device = sketcher.device
    if device.type != "cuda":
        return BATCH_TOKENS * sketcher.projection.batch_factor
    sketched(sketcher, [Window(0, longest)])  # the first call also checks the model, which no other does
    tokens = BATCH_TOKENS
    while True:
        batch = [Window(0, longest)] * max(1, tokens // len(longest))
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        try:
            sketched(sketcher, batch)
            break
        except BatchTooLargeError as error:
            tokens = error.tokens
    # Of the device's memory, not of what others leave free just now: the same on the same machine, always.
    room = _SHARE_OF_MEMORY * torch.cuda.get_device_properties(device).total_memory - before
    taken = torch.cuda.max_memory_allocated(device) - before
    fitting = int(room * len(batch) * len(longest) / taken)
    return max(len(longest), 1 << max(fitting, 1).bit_length() - 1)


def _is_out_of_memory(error: Exception) -> bool:
    # The CPU's allocator has no error class of its own.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
