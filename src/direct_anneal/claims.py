"""Directories that belong to one run each: claimed at the start, vouched for by a record at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from direct_anneal.durable import replacing
from direct_anneal.errors import InputError
from direct_anneal.redaction import redacted

MARK = "direct-anneal.json"  # no name that a checkpoint, or anyone else, would use


def claim(out: Path, wanted: dict[str, Any], record: str, *, overwrite: bool) -> dict[str, Any] | None:
    """Make `out` this run's own; an unfinished run may go on in it.

    Args:
        wanted: what the result depends on, as plain JSON values.
        record: name of the file that a run writes last.
        overwrite: take the directory from another run, whose record is removed.

    Returns:
        the record of this very run, where it is finished already.

    Raises:
        InputError: it holds another run and `overwrite` is off, or files that are no run's.
    """
    wanted = json.loads(json.dumps(redacted(wanted)))  # as it will be found again
    blocked = next((path for path in (out, *out.parents) if path.exists() and not path.is_dir()), None)
    if blocked is not None:
        raise InputError(f"--out must be a directory, but {blocked} is a file: choose another")
    mark = out / MARK
    if mark.exists():
        found = _read(mark)
        if found == wanted:
            return _read(out / record) if (out / record).exists() else None
        if not overwrite:
            shown = [name for name in wanted if found.get(name) != wanted[name]][:3]
            raise InputError(
                f"{out} holds another run ({', '.join(shown) or 'of another kind'} differ): choose another --out, or "
                "pass --overwrite"
            )
        (out / record).unlink(missing_ok=True)
    elif out.exists() and any(out.iterdir()):
        raise InputError(f"--out must be new, empty or an earlier run, but {out} holds other files: choose another")
    out.mkdir(parents=True, exist_ok=True)
    with replacing(mark) as temporary:
        temporary.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} must be a run's own file, but is no JSON: choose another --out") from error
    return content if isinstance(content, dict) else {}
