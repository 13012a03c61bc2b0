"""YAML files of settings, within limits: they may come from anyone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from direct_anneal.io.records import RecordError, read_content

_MAX_BYTES = 2**22
_MAX_VALUES = 100_000  # with every alias written out


def read_yaml(path: Path) -> Any:
    """Read a YAML or JSON file; aliases are allowed as far as they do not multiply without end.

    Raises:
        OSError: it cannot be read.
        RecordError: it is no such file, names something twice, or holds more than settings ever do.
    """
    import yaml

    try:
        text = read_content(path, _MAX_BYTES).decode("utf-8-sig")
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _size(node, {}) > _MAX_VALUES:
                raise RecordError(f"holds more than {_MAX_VALUES:,} values, aliases written out")
            if (twice := _named_twice(node, set())) is not None:
                raise RecordError(f"names {twice!r} twice in one mapping")
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecordError:
        raise
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
        yaml.YAMLError,
    ) as error:
        raise RecordError(f"is no YAML ({' '.join(str(error).split()) or type(error).__name__})") from error


def _size(node: Any, known: dict[int, int]) -> int:
    """Return values below a node, those of aliases as often as they stand there."""
    import yaml

    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = _MAX_VALUES + 1  # met again before it is done: it holds itself
        parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def _named_twice(node: Any, seen: set[int]) -> str | None:
    """Return a key that some mapping below has twice, of which YAML would keep the last without a word."""
    import yaml

    if id(node) in seen or isinstance(node, yaml.ScalarNode):
        return None
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        return next((found for part in node.value if (found := _named_twice(part, seen)) is not None), None)
    known: set[tuple[str, str]] = set()
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode):
            if (key.tag, key.value) in known:
                return str(key.value)
            known.add((key.tag, key.value))
        if (found := _named_twice(value, seen)) is not None:
            return found
    return None
