"""Forward passes that a model is asked for before its numbers are believed.

A causal language model predicts each token from those before it, and a sequence's predictions do not hang on what
shares its batch. Both are held against the model itself, on both sides of each length at which it computes otherwise.

B samples, T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from direct_anneal.errors import InputError, option
from direct_anneal.model.borrowing import in_evaluation_mode
from direct_anneal.model.lengths import length_switches, longest_alike

_SHORTEST = 4  # tokens of a probe, where the context has as many
_TRIES = 3  # rounding may send a token to another expert once, and a wrong model errs each time


def require_language_model(model: nn.Module, *, vocab_size: int, window: int, name: str) -> None:
    """See that a model is a causal language model whose predictions do not depend on the batch.

    Args:
        model: in evaluation mode.
        vocab_size: token ids are below it.
        window: T, tokens of the longest sequence that it will be given.
        name: of the model, for messages.

    Raises:
        InputError: it is not; says which of both.

    Cost: four forward passes of T tokens, and as many for each length below T at which the model changes.
    """
    switches = [switch for switch in length_switches(model) if switch < window]
    if (alike := longest_alike(model)) is not None and window > alike:
        raise _depends(name, alike)
    with _asked(model):
        for above, length in zip([0, *switches], [*switches, window], strict=True):
            tries = [_probe(model, vocab_size, above, length, seed) for seed in range(_TRIES)]
            if all(map(_moves_with_the_future, tries)):
                raise _changes(name) if all(map(_changes_by_itself, tries)) else _sees_the_future(name)
            if all(map(_moves_with_its_batch, tries)):
                raise _depends(name, above)


def known_tokens(model: nn.Module) -> int | None:
    """Return V, the rows of a model's embedding; None where it does not say which module that is."""
    try:
        weight = model.get_input_embeddings().weight  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    return int(weight.shape[0]) if isinstance(weight, Tensor) and weight.dim() == 2 else None


def require_causal(model: nn.Module, ids: Tensor) -> None:
    """See that predictions before the last place do not move with the last token.

    Args:
        model: in evaluation mode.
        ids: one sequence, (T,).

    Raises:
        InputError: they do.

    Cost: two forward passes.
    """
    others = ids[ids != ids[-1]]
    if not len(others):  # no other token is known to be one
        return
    with torch.no_grad():
        changed = torch.cat([ids[:-1], others[:1]])
        if _differ(*(predictions(model, row[None])[0, :-1] for row in (ids, changed))):
            raise _sees_the_future(type(model).__name__)


def predictions(model: nn.Module, ids: Tensor) -> Tensor:
    """Return logits, (B, T, V), for ids (B, T).

    Raises:
        InputError: there are none of that shape.
    """
    # A cache of keys and values would only be thrown away; models that are not transformers' know no such word.
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    logits = getattr(model(input_ids=ids, **options), "logits", None)
    if not isinstance(logits, Tensor) or logits.dim() != 3 or logits.shape[:2] != ids.shape:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            subject=type(model).__name__,
            must=f"predict each token of a sequence, with logits of shape {(*ids.shape, 'V')}",
            got=f"but gives {got}",
            do="take a causal language model",
        )
    return logits


@dataclass(frozen=True)
class _Probe:
    """Two random sequences for a model: shape (T,) and at most (T,), on the same side of every switch."""

    model: nn.Module
    vocab_size: int
    longer: Tensor
    shorter: Tensor


def _probe(model: nn.Module, vocab_size: int, above: int, length: int, seed: int) -> _Probe:
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    ids = torch.randint(vocab_size, (2, max(2, length)), generator=generator)
    for special in _special_ids(model):  # which may stand for images and the like
        ids[ids == special] = (special + 1) % vocab_size
    shorter = max(above + 1, min(length, max(_SHORTEST, length // 2)))
    return _Probe(model, vocab_size, ids[0].to(device), ids[1, :shorter].to(device))


def _moves_with_the_future(probe: _Probe) -> bool:
    changed = probe.longer.clone()
    changed[-1] = (changed[-1] + 1) % probe.vocab_size
    one, other = (predictions(probe.model, row[None])[0, :-1] for row in (probe.longer, changed))
    return _differ(one, other)


def _changes_by_itself(probe: _Probe) -> bool:
    one, other = (predictions(probe.model, probe.longer[None])[0] for _ in range(2))
    return _differ(one, other)


def _moves_with_its_batch(probe: _Probe) -> bool:
    rows = [probe.longer, probe.shorter]
    together = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    together[1, len(probe.shorter) :] = probe.shorter[0]  # as batches are padded
    joint = predictions(probe.model, together)
    return any(_differ(predictions(probe.model, ids[None])[0], joint[row, : len(ids)]) for row, ids in enumerate(rows))


def _differ(one: Tensor, other: Tensor) -> bool:
    """True if logits, (T, V) each, differ by more than rounding: √ε of what they vary by, as in the sketcher's check.

    A damaged model's NaN is the same NaN in both; that it says so is left to the documents that meet it.
    """
    # Models in float64 have parts in float32, too.
    tolerance = max(torch.finfo(dtype).eps for dtype in (one.dtype, torch.float32)) ** 0.5
    finite = torch.isfinite(one).all(-1)
    if (finite != torch.isfinite(other).all(-1)).any():
        return True
    if not finite.any():
        return False
    one, other = one[finite].float(), other[finite].float()
    gaps = (one - other).square().mean(-1).sqrt()
    return bool((gaps > tolerance * (one.std(dim=-1).mean() + torch.finfo(torch.float32).tiny)).any())


def _special_ids(model: nn.Module) -> set[int]:
    config = getattr(model, "config", None)
    stated = {} if config is None or not hasattr(config, "to_dict") else config.to_dict()
    return {v for k, v in stated.items() if k.endswith(("token_id", "token_index")) and type(v) is int}


@contextmanager
def _asked(model: nn.Module) -> Iterator[None]:
    """Yield with the model's dropout and gradients off, and give it back as it came."""
    with in_evaluation_mode(model), torch.no_grad():
        yield


def _sees_the_future(name: str) -> InputError:
    return InputError(
        field="model",
        must="predict each token from those before it",
        got=f"but earlier predictions of {name} move with a later token",
        do="take a causal language model; BERT and other bidirectional models are none",
    )


def _changes(name: str) -> InputError:
    return InputError(
        field="model",
        must="give the same predictions each time",
        got=f"but {name} draws random numbers as it computes",
        do="take another model, or configure it without",
    )


def _depends(name: str, above: int) -> InputError:
    return InputError(
        field="model",
        must="predict a sequence alike alone and beside others",
        got=f"but {name} does not" + (f" above {above:,} tokens, where frequencies follow the batch" if above else ""),
        do=f"pass {option('max_length')} of at most {above}" if above else "take another model",
    )
