"""Detection of torchrun: is this process one of several that it started?"""

from __future__ import annotations

import os


def is_launched() -> bool:
    """True in a process that torchrun started beside others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """True in the process that is the run."""
    return int(os.environ.get("RANK", "0")) == 0
