"""`--dry-run`: what a command would read, write and do, from the declarations of its options. Nothing is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from direct_anneal.cli.command import Command, Writes
from direct_anneal.cli.console import size_text
from direct_anneal.config.option import Declared, declared
from direct_anneal.config.options import require_new_file
from direct_anneal.errors import InputError

_SHOWN = 3  # names of files that are printed


def dry_run(command: Command, options: Mapping[str, Any]) -> dict[str, Any]:
    """Check options, inputs and output place as the command would before its work, and print what it would do.

    Inputs are checked by name, size and configuration: documents, weights and a run's files are not read. URLs and hub
    names are not looked up.

    Returns:
        what was printed, by option: for the log of a job.

    Raises:
        InputError: an option is out of range, an input is missing, or the output place is taken.
    """
    assert command.writes is not None
    config = command.config(**options)
    reads = {each.flag: found for each in declared(command.config).values() if (found := _read(each, config))}
    place, state = _place(command.writes, config, command.name)
    files = _files(command.writes, config)
    print(f"Dry run of {command.name}: {command.help}. Nothing is written.")
    rows = [("reads", f"{flag} {found}") for flag, found in reads.items()]
    rows.append(("writes", f"{place} ({state})" if place else state))
    if files:
        rows.append(("", ", ".join(files)))
    plain = {each.name for each in declared(command.config).values() if not each.meta.reads}
    rows.append(("options", _given({k: v for k, v in options.items() if k in plain - {command.writes.option}})))
    heading = ""
    for title, text in rows:
        print(f"{'' if title == heading else title:<9}{text}")
        heading = title
    print("Not checked: the content of documents, weights and runs. Leave out --dry-run to run it.")
    return {"command": command.name, "dry_run": True, "reads": reads, "writes": place, "state": state, "files": files}


def _read(each: Declared, config: Any) -> str | None:
    """Describe an input; None where the option is none, or was left out."""
    value = getattr(config, each.name)
    if each.meta.reads is None or not value:
        return None
    if each.meta.reads == "documents":
        return _documents(each.name, value)
    if each.meta.reads == "checkpoint":
        return _checkpoint(each.name, value, config)
    paths = list(value.values()) if isinstance(value, Mapping) else [value]
    for path in paths:
        if not Path(path).expanduser().exists():
            raise InputError(field=each.name, must="name what is there", got=f"but {path} does not exist")
    if each.meta.reads == "run":
        from direct_anneal.run.run_dir import RunDir

        RunDir.open(value)
    return ", ".join(map(str, paths))


def _documents(name: str, patterns: tuple[str, ...]) -> str:
    from direct_anneal.data import expand
    from direct_anneal.data.remote import is_remote

    remote = [pattern for pattern in patterns if is_remote(pattern)]
    here = [pattern for pattern in patterns if not is_remote(pattern)]
    told = [f"{pattern} (not looked up)" for pattern in remote]
    if here:
        sources = expand(here, name)
        size = sum(size for source in sources for _, size, _ in source.state())
        more = len(sources) - _SHOWN
        names = ", ".join(map(str, sources[:_SHOWN])) + (f" and {more:,} more" if more > 0 else "")
        told.insert(0, f"{len(sources):,} file{'s' if len(sources) > 1 else ''}, {size_text(size)}: {names}")
    return "; ".join(told)


def _checkpoint(name: str, value: str, config: Any) -> str:
    directory = Path(value).expanduser()
    is_path = value.startswith((".", "/", "~")) or value.endswith("/") or value.count("/") > 1
    if not directory.exists() and not is_path:
        return f"{value} (no directory here, so a hub name; not looked up)"
    from direct_anneal.model.checkpoint import Checkpoint

    checkpoint = Checkpoint.choosing(config) if name == "chooser" else Checkpoint.of(config)
    return f"{value}: checkpoint, {checkpoint.config.model_type}"


def _place(writes: Writes, config: Any, command: str) -> tuple[str | None, str]:
    """Return the output place and its state.

    Raises:
        InputError: the command would refuse it.
    """
    value = getattr(config, writes.option) or (writes.unset and writes.unset.format(config=config))
    if value is None:
        return None, "no file: it prints to the terminal"
    out, overwrite = Path(value), bool(getattr(config, "overwrite", False))
    if writes.is_file:
        require_new_file(out, overwrite=overwrite)
        return value, "replaced" if out.exists() else "new file"
    blocked = next((path for path in (out, *out.parents) if path.exists() and not path.is_dir()), None)
    if blocked is not None:
        raise InputError(field=writes.option, must="be a directory", got=f"but {blocked} is a file")
    if not out.is_dir() or not any(out.iterdir()):
        return value, "new directory"
    if writes.earlier is None:
        return value, "exists; what is missing is added"
    if not any((out / name).exists() for name in writes.earlier):
        kinds = f"new, empty or of an earlier {command}" if writes.earlier else "new or empty"
        raise InputError(field="out", must=f"be {kinds}", got=f"but {out} holds other files", do="choose another")
    if overwrite:
        return value, "holds an earlier result, which is replaced where it differs"
    if writes.resumes:
        return value, "holds an earlier result: the same options continue it, others are refused"
    raise InputError(f"{out} holds an earlier {command}: choose another directory, or allow overwriting")


def _files(writes: Writes, config: Any) -> list[str]:
    """Return the files that these options make."""
    return [name for name in writes.files if name not in writes.only_with or getattr(config, writes.only_with[name])]


def _given(options: Mapping[str, Any]) -> str:
    said = ", ".join(f"{name} {_said(value)}" for name, value in options.items())
    return f"{said or 'none'}; the others are at their defaults"


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name}={each}" for name, each in value.items())
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
