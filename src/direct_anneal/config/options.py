"""Checks of options, and the file that keeps them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from direct_anneal.errors import InputError
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
