"""Options: a dataclass field with its metadata makes flag, YAML key, help line, Python parameter and docs table.

An options class is declared with `@configuration`, its fields with `option`. Nothing else about an option is written
anywhere: `direct_anneal.cli.flags` makes its flag, `direct_anneal.config.signature.takes` the function's signature, and
`python -m direct_anneal.cli.options_page` the page in the docs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache, wraps
from typing import Any, Literal, TypeVar, dataclass_transform, get_origin

from direct_anneal.config.values import annotations_of, choices_of, kinds_of, settled_value
from direct_anneal.errors import InputError, suggestion
from direct_anneal.errors import option as spelled_option

T = TypeVar("T")
C = TypeVar("C", bound=type)

Affects = Literal["features", "solving", "result", "nothing"]
Reads = Literal["checkpoint", "documents", "run", "path"]
_KEY = "option"


@dataclass(frozen=True, kw_only=True)
class Option:
    """The metadata of one option.

    Attributes:
        help: one line, without the default.
        metavar: stands for the value in the help.
        group: heading in the help.
        unset: words for what holds where the option is left out, if the default does not say it.
        affects: "features" (and all that follows), "solving" (the choice made of them), "result" (of other commands) or
            "nothing": where, how fast and how a run goes.
        flag: on the command line, where it is not the field's name with dashes: "--floor" for `floors`.
        argument: it is no flag but an argument of the command.
        bare: value of the flag when it is given without one; MISSING where it needs one.
        settle: brings a value that was given into form, instead of the annotation; called with the name and the value.
        python_only: no flag and no YAML key stands for it.
        reads: what the value names, where it names something that is read: a checkpoint, files of documents, the
            directory of a run, or another path. `--dry-run` looks at it by this.
        follows: other options, where its default hangs on them: when a run is solved again with another value of one of
            these, this one is at its default again, unless it is given, too.
    """

    help: str
    metavar: str | None = None
    group: str = ""
    unset: str | None = None
    affects: Affects = "result"
    flag: str | None = None
    argument: bool = False
    bare: Any = MISSING
    settle: Callable[[str, Any], Any] | None = None
    python_only: bool = False
    reads: Reads | None = None
    follows: tuple[str, ...] = ()


def option(
    *,
    help: str,
    default: Any = MISSING,
    default_factory: Any = MISSING,
    kw_only: bool = True,
    metavar: str | None = None,
    group: str = "",
    unset: str | None = None,
    affects: Affects = "result",
    flag: str | None = None,
    bare: Any = MISSING,
    settle: Callable[[str, Any], Any] | None = None,
    python_only: bool = False,
    reads: Reads | None = None,
    follows: tuple[str, ...] = (),
) -> Any:
    """Declare an option: a field of a `configuration`, required where it has no default.

    Args:
        kw_only: False for a parameter that Python takes by position; on the command line it is an argument.
        default, default_factory: as of `dataclasses.field`.
        help, metavar, group, unset, affects, flag, bare, settle, python_only, reads, follows: as in `Option`.
    """
    meta = Option(
        help=help,
        metavar=metavar,
        group=group,
        unset=unset,
        affects=affects,
        flag=flag,
        argument=not kw_only,
        bare=bare,
        settle=settle,
        python_only=python_only,
        reads=reads,
        follows=follows,
    )
    if default_factory is not MISSING:
        return field(kw_only=kw_only, metadata={_KEY: meta}, default_factory=default_factory)
    return field(kw_only=kw_only, metadata={_KEY: meta}, default=default)


# Not `frozen_default`, as it is: mypy would then not tell what is given from what is kept (`config.types`).
@dataclass_transform(kw_only_default=True, field_specifiers=(option,))
def configuration(cls: type[T]) -> type[T]:
    """Make a frozen dataclass of options, whose values are brought into form before the object is made.

    Its `repr` shows the fields that are not at their defaults.
    """
    made = dataclass(frozen=True, kw_only=True, repr=False)(cls)
    if "__repr__" not in vars(cls):
        made.__repr__ = described  # type: ignore[method-assign]
    settling(made)
    made.__doc__ = f"{(cls.__doc__ or '').rstrip()}\n\n{attributes(made)}"
    return made


def settling(made: type[T]) -> type[T]:
    """Have values brought into the form of their annotations before an object of a dataclass is made.

    Raises:
        InputError: of the dataclass from now on: a value is of another type.
    """
    plain = made.__init__

    @wraps(plain)
    def init(self: Any, *args: Any, **given: Any) -> None:
        values = settled(made, by_name(made, args, given))
        if "://" in str(values.get("out", "")):
            raise InputError(
                field="out",
                must="be a directory on this machine, where locks and memory maps are kept",
                got=f"but {str(values['out']).partition('://')[0]}:// is none",
                do="copy what is written there in the end; shards of gradients alone may be written to a URL, "
                f"with {spelled_option('features')}",
            )
        plain(self, **values)

    made.__init__ = init  # type: ignore[method-assign]
    return made


@dataclass(frozen=True, kw_only=True)
class Declared:
    """One option as all surfaces see it: name, annotation, default and metadata."""

    name: str
    annotation: Any
    default: Any  # MISSING where it is required
    meta: Option

    @property
    def flag(self) -> str:
        """Spell a name as the command line does; for an argument, its placeholder."""
        if self.meta.argument:
            return self.meta.metavar or self.name.upper()
        return self.meta.flag or "--" + self.name.replace("_", "-")

    @property
    def required(self) -> bool:
        """True if there is no default."""
        return self.default is MISSING

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it may be; empty where it may be any, or a number as well."""
        kinds = [kind for kind in kinds_of(self.annotation) or () if kind is not type(None)]
        return choices_of(self.annotation) if all(get_origin(kind) is Literal for kind in kinds) else ()

    @property
    def metavar(self) -> str:
        """The word that stands for the value."""
        return self.meta.metavar or (f"{{{','.join(self.choices)}}}" if self.choices else self.name.upper())

    @property
    def default_text(self) -> str:
        """The default in words."""
        if self.required:
            return "required"
        if self.meta.unset is not None:
            return self.meta.unset
        if self.default is None or self.default in ((), {}):
            return "none"
        return {True: "yes", False: "no"}[self.default] if isinstance(self.default, bool) else str(self.default)


@cache
def declared(config: type) -> Mapping[str, Declared]:
    """Return the options of a configuration by name, in the order of their declaration."""
    hints = annotations_of(config)
    return {
        each.name: Declared(
            name=each.name, annotation=hints[each.name], default=_default(each), meta=each.metadata[_KEY]
        )
        for each in fields(config)
        if _KEY in each.metadata
    }


def affecting(config: type, *what: Affects) -> frozenset[str]:
    """Return names of the options that affect these.

    >>> @configuration
    ... class Walk:
    ...     steps: int = option(default=1, help="how many", affects="result")
    ...     out: str = option(help="directory", affects="nothing")
    >>> affecting(Walk, "nothing")
    frozenset({'out'})
    """
    return frozenset(name for name, each in declared(config).items() if each.meta.affects in what)


def by_name(config: type, args: tuple[Any, ...], given: Mapping[str, Any], caller: str | None = None) -> dict[str, Any]:
    """Return positional and named values by name.

    Raises:
        TypeError: a name is unknown, with the nearest known one, or given twice; a required one is missing; there are
            too many positions.
    """
    caller = caller or config.__name__
    known = [each.name for each in fields(config)]
    positional = [each.name for each in fields(config) if not each.kw_only]
    if len(args) > len(positional):
        raise TypeError(f"{caller}() takes {len(positional)} positional arguments, but {len(args)} were given")
    named = dict(zip(positional, args, strict=False))
    for name in given:
        if name in named:
            raise TypeError(f"{caller}() got {name!r} twice: by position and by name")
        if name not in known:
            told = suggestion(name, known)
            raise TypeError(f"{caller}() has no option {name!r}{f': {told}' if told else ''}")
    named |= given
    if missing := [each.name for each in fields(config) if _default(each) is MISSING and each.name not in named]:
        raise TypeError(f"{caller}() needs {', '.join(missing)}")
    return named


def settled(config: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return values in the form of their annotations.

    Raises:
        InputError: a value is of another type.
    """
    hints, found = annotations_of(config), {}
    for each in fields(config):
        if each.name in given:
            meta: Option | None = each.metadata.get(_KEY)
            value = given[each.name]
            if meta is not None and meta.settle is not None:
                found[each.name] = value if value is _default(each) else meta.settle(each.name, value)
            else:
                found[each.name] = settled_value(each.name, hints[each.name], value)
    return found


def described(options: Any) -> str:
    """Return a repr that says what was asked for: the fields that are not at their defaults."""
    given = []
    for each in fields(options):
        value = getattr(options, each.name)
        if value != _default(each):
            given.append(f"{each.name}={value!r}")
    return f"{type(options).__name__}({', '.join(given)})"


def attributes(config: type, heading: str = "Attributes") -> str:
    """Return a docstring's section of all options: name, help and default."""
    lines = [f"{heading}:"]
    for name, each in declared(config).items():
        lines.append(f"    {name}: {each.meta.help}{'' if each.required else f' ({each.default_text})'}")
    return "\n".join(lines)


def _default(each: Field[Any]) -> Any:
    return each.default_factory() if each.default_factory is not MISSING else each.default
