"""Checks of options, and the file that keeps them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from direct_anneal.errors import InputError, option
from direct_anneal.io.atomic import replacing
from direct_anneal.io.redaction import redacted

OPTIONS_FILE = "options.json"


def require(holds: bool, field: str, must: str, value: object) -> None:
    """Refuse a value of an option.

    Raises:
        InputError: it does not hold.
    """
    if not holds:
        raise InputError(field=field, must=f"be {must}", got=f"got {value}")


def require_seed(seed: int) -> None:
    """See that numpy, torch and transformers all take a seed: 32 bits.

    Raises:
        InputError: it is negative or larger.
    """
    require(0 <= seed < 2**32, "seed", f"in 0..{2**32 - 1}", seed)


def require_new_file(path: Path, *, overwrite: bool) -> None:
    """See that an output file can be written where nothing else is.

    Raises:
        InputError: a file is there and may not be overwritten; there is a directory in its place, or none to hold it.
    """
    if path.is_dir():
        raise InputError(field="out", must="be a file", got=f"but {path} is a directory", do="name a file in it")
    holder = next(parent for parent in path.parents if parent.exists() or parent == parent.parent)
    if not holder.is_dir():
        raise InputError(
            field="out", must="be a file in a directory", got=f"but {holder} is a file", do="choose another"
        )
    if holder != path.parent:
        raise InputError(
            field="out", must="be a file in a directory that is there", got=f"but {path.parent} is not", do="make it"
        )
    if path.exists() and not overwrite:
        raise InputError(
            field="out",
            must="be a new file",
            got=f"but {path} is there",
            do=f"choose another name, or pass {option('overwrite')}",
        )


def keep(options: Mapping[str, Any], out: Path) -> None:
    """Write options in full, defaults and all, as `--config` takes them."""
    with replacing(out / OPTIONS_FILE) as temporary:
        temporary.write_text(json.dumps(redacted(options), indent=1) + "\n", encoding="utf-8")


def require_device(device: str, *, numbered: bool = True) -> None:
    """See that a device is there.

    Args:
        numbered: cuda:1 will do, beside cuda.

    Raises:
        InputError: it is not.
    """
    import torch

    pattern = r"cpu|cuda(:\d+)?" if numbered else "cpu|cuda"
    require(re.fullmatch(pattern, device) is not None, "device", "cpu or cuda", device)
    count = torch.cuda.device_count()
    if device != "cpu" and int(device.partition(":")[2] or 0) >= count:
        raise InputError(
            field="device", must="be there", got=f"got {device}, but torch sees {count or 'none'}", do="use another"
        )
