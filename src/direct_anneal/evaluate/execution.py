"""Programs that a model wrote, run apart from us: a process of its own, with little time, memory and disk.

This keeps accidents away, not attacks: the process has the user's rights.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

SECONDS, MEMORY_BYTES, FILE_BYTES = 10, 2**30, 2**20

_LIMITED = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, ({SECONDS}, {SECONDS}))
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY_BYTES}, {MEMORY_BYTES}))
resource.setrlimit(resource.RLIMIT_FSIZE, ({FILE_BYTES}, {FILE_BYTES}))
exec(compile(open(sys.argv[1], encoding="utf-8").read(), "program", "exec"), {{"__name__": "program"}})
print("passed", flush=True)
"""


def passes(program: str) -> bool:
    """True if a program runs to its end: raises nothing, leaves by no exit, and does not take too long."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "program.py"
        try:
            path.write_text(program, encoding="utf-8")
            done = subprocess.run(
                [sys.executable, "-I", "-c", _LIMITED, str(path)],
                cwd=directory,
                env={},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=2 * SECONDS,  # sleeping takes no processor time
                check=False,
            )
        except (subprocess.TimeoutExpired, UnicodeEncodeError):
            return False
    return done.returncode == 0 and done.stdout.endswith(b"passed\n")
