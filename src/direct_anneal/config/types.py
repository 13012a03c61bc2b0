"""Types of options that are given in more forms than they are kept in: a path is kept as text, one text as a tuple.

For a type checker each is a descriptor: what is set is what may be given, what is got is what is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    class PathText:
        """A path or text, kept as text."""

        def __get__(self, instance: object, owner: Any) -> str: ...
        def __set__(self, instance: object, value: str | PathLike[str]) -> None: ...

    class OptionalPath:
        """The same, or None."""

        def __get__(self, instance: object, owner: Any) -> str | None: ...
        def __set__(self, instance: object, value: str | PathLike[str] | None) -> None: ...

    class Texts:
        """One text or path, or several, kept as a tuple of texts."""

        def __get__(self, instance: object, owner: Any) -> tuple[str, ...]: ...
        def __set__(self, instance: object, value: str | PathLike[str] | Sequence[str | PathLike[str]]) -> None: ...

    class OptionalTexts:
        """The same, or None."""

        def __get__(self, instance: object, owner: Any) -> tuple[str, ...] | None: ...
        def __set__(self, instance: object, value: str | Sequence[str] | None) -> None: ...

    class Names:
        """One name or several; one is kept as text, several as a tuple."""

        def __get__(self, instance: object, owner: Any) -> str | tuple[str, ...]: ...
        def __set__(self, instance: object, value: str | Sequence[str]) -> None: ...

    class OptionalNames:
        """The same, or None."""

        def __get__(self, instance: object, owner: Any) -> str | tuple[str, ...] | None: ...
        def __set__(self, instance: object, value: str | Sequence[str] | None) -> None: ...

    class Amounts:
        """Domain → amount, or texts "domain=amount", kept as a mapping."""

        def __get__(self, instance: object, owner: Any) -> Mapping[str, int | float]: ...
        def __set__(self, instance: object, value: Mapping[str, int | float] | str | Sequence[str]) -> None: ...

    class FilesByName:
        """Name → file, or texts "name=file", kept as a mapping."""

        def __get__(self, instance: object, owner: Any) -> Mapping[str, str]: ...
        def __set__(self, instance: object, value: Mapping[str, str | PathLike[str]] | str | Sequence[str]) -> None: ...

    class Numbers:
        """Numbers, or a text "0.1,0.5", kept as a tuple of numbers."""

        def __get__(self, instance: object, owner: Any) -> tuple[float, ...]: ...
        def __set__(self, instance: object, value: float | Sequence[float] | str) -> None: ...

    class OptionalValues:
        """Name → value, or texts "name=value", kept as a mapping; or None."""

        def __get__(self, instance: object, owner: Any) -> Mapping[str, Any] | None: ...
        def __set__(self, instance: object, value: Mapping[str, Any] | str | Sequence[str] | None) -> None: ...

    class OptionalNumbers:
        """Numbers, or a text "0.1,0.5", kept as a tuple of numbers; or None."""

        def __get__(self, instance: object, owner: Any) -> tuple[float, ...] | None: ...
        def __set__(self, instance: object, value: Sequence[float] | str | None) -> None: ...

    class OptionalBytes:
        """A number of bytes, or a text such as "256MiB", kept as a number; or None."""

        def __get__(self, instance: object, owner: Any) -> int | None: ...
        def __set__(self, instance: object, value: int | str | None) -> None: ...

else:
    PathText = str
    OptionalPath = str | None
    Texts = tuple[str, ...]
    OptionalTexts = tuple[str, ...] | None
    Names = str | tuple[str, ...]
    OptionalNames = str | tuple[str, ...] | None
    Amounts = Mapping[str, int | float]
    FilesByName = Mapping[str, str]
    Numbers = tuple[float, ...]
    OptionalValues = Mapping[str, Any] | None
    OptionalNumbers = tuple[float, ...] | None
    OptionalBytes = int | None
