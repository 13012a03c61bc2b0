"""Choice of the machines that tokenise: this one, or the workers of a cluster."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from direct_anneal.config.features import FeaturesConfig
from direct_anneal.data import Elsewhere, Source, is_divisible
from direct_anneal.errors import InputError
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.run.sources import Tokenisation
from direct_anneal.selection.sketching import on_any_machine


@contextmanager
def readers(
    config: FeaturesConfig, checkpoint: Checkpoint, tokens: Tokenisation, sources: Sequence[Source]
) -> Iterator[tuple[Callable[[], Any], Elsewhere | None]]:
    """Yield what loads the tokenizer, and the cluster's `map` where its workers are to read these sources.

    They are where they must see the run's directory anyway, and there is enough to read.
    """
    much = is_divisible(sources, trust_remote_code=config.trust_remote_code)
    if config.engine == "local" or config.features is not None or not much:
        yield checkpoint.load_tokenizer, None
        return
    from direct_anneal.distributed import TaskMap

    with TaskMap(address=config.ray_address, workers=config.workers) as elsewhere:
        yield _TokenizerAnywhere(on_any_machine(config), tokens.tokenizer), elsewhere


@dataclass(frozen=True)
class _TokenizerAnywhere:
    """Loads a run's tokenizer on any machine, where the same one must be.

    Attributes:
        config: the run's, with absolute paths.
        fingerprint: of the tokenizer.
    """

    config: FeaturesConfig
    fingerprint: str

    def __call__(self) -> Any:
        checkpoint = Checkpoint.choosing(self.config)
        if (found := checkpoint.tokenizer_fingerprint()) != self.fingerprint:
            raise InputError(
                subject=f"the tokenizer of {checkpoint.name}",
                must="be the same on every machine",
                got=f"but is {found:.16} on {socket.gethostname()} and {self.fingerprint:.16} where the run began",
                do="copy it there",
            )
        return checkpoint.load_tokenizer()
