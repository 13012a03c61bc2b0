"""`direct-anneal`, and `python -m direct_anneal`: signals are heeded from here on, while the rest is being loaded."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from direct_anneal.interrupts import exit_code, heed_sigterm, last_words


def begin(arguments: Sequence[str] | None = None) -> NoReturn:
    """Load the command line and run one command, as `direct_anneal.cli.main` does."""
    heed_sigterm()
    if "OMP_WAIT_POLICY" not in os.environ:
        # torch's threads would wait for one another by spinning, which takes most of the time where cores are shared.
        # A short spin spares the sleep where they are not (docs/log.md, 28 November 2026).
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        from direct_anneal.cli import main
    except BaseException as error:
        if (code := exit_code(error)) is None:
            raise
        with last_words(code):
            print("direct-anneal: interrupted before anything was begun", file=sys.stderr)
        sys.exit(code)
    sys.exit(main(arguments))


if __name__ == "__main__":
    begin()
