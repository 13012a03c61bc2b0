"""Lengths at which a model computes otherwise: rotary embeddings that take other frequencies for long inputs.

transformers looks at the longest sequence of a batch, so that a long one would change its shorter neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def length_switches(model: Any) -> tuple[int, ...]:
    """Return lengths above which a model takes other frequencies, ascending; none for most.

    Args:
        model: with a `config` as transformers has them; a module without one has no switch.
    """
    found = set()
    for config in _configs(model):
        for rope in _ropes(config):
            kind = rope.get("rope_type", rope.get("type"))
            if kind in ("longrope", "su", "dynamic"):
                own = rope.get("original_max_position_embeddings")
                other = getattr(config, "original_max_position_embeddings", None)
                whole = getattr(config, "max_position_embeddings", None) if kind == "dynamic" else None
                found |= {int(length) for length in (own, other, whole) if isinstance(length, int) and length > 0}
    return tuple(sorted(found))


def longest_alike(model: Any) -> int | None:
    """Return the length above which a sequence's frequencies follow the longest of its batch; None where nothing does
    so.
    """
    lengths = [
        config.max_position_embeddings
        for config in _configs(model)
        for rope in _ropes(config)
        if rope.get("rope_type", rope.get("type")) == "dynamic"
        and isinstance(getattr(config, "max_position_embeddings", None), int)
    ]
    return min(lengths, default=None)


def _configs(model: Any) -> Iterator[Any]:
    config = getattr(model, "config", None)
    if config is None:
        return
    yield config
    inner = config.get_text_config() if hasattr(config, "get_text_config") else config
    if inner is not config:
        yield inner


def _ropes(config: Any) -> Iterator[Mapping[str, Any]]:
    """Yield rotary settings: one for all layers, or one for each kind of layer."""
    for name in ("rope_parameters", "rope_scaling"):
        stated = getattr(config, name, None)
        if isinstance(stated, Mapping):
            yield stated
            yield from (part for part in stated.values() if isinstance(part, Mapping))
