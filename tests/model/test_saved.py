"""Files that torch.save wrote: read where they are whole and plain, refused otherwise."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest
import torch

from direct_anneal.errors import InputError
from direct_anneal.gradients.preconditioning import adam_moments
from direct_anneal.model.saved import load_saved
from direct_anneal.train.pipeline import load_optimizer_state

STATE = {"state": {}, "param_groups": [{"params": [], "betas": (0.9, 0.999)}]}


@pytest.mark.parametrize("archive", [True, False])
def test_what_torch_writes_is_read(tmp_path: Path, archive: bool) -> None:
    torch.save({"a": torch.arange(5)}, tmp_path / "a.pt", _use_new_zipfile_serialization=archive)
    for source in (tmp_path / "a.pt", io.BytesIO((tmp_path / "a.pt").read_bytes())):
        assert load_saved(source)["a"].tolist() == [0, 1, 2, 3, 4]


def _packed(path: Path) -> None:
    torch.save(STATE, path.with_name("whole"))
    with zipfile.ZipFile(path.with_name("whole")) as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        for name in whole.namelist():
            archive.writestr(name, whole.read(name))


def _cut(path: Path) -> None:
    torch.save(STATE, path)
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("make", [_packed, _cut, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_an_optimizer_state_that_means_harm_is_refused_in_a_line(tmp_path: Path, make) -> None:
    make(tmp_path / "optimizer.pt")
    with pytest.raises(InputError, match=r"optimizer\.pt must hold") as told:
        load_optimizer_state(tmp_path)
    assert "\n" not in str(told.value)
    with pytest.raises(ValueError, match="must be the state_dict of an Adam"):
        adam_moments(tmp_path / "optimizer.pt", torch.nn.Linear(2, 2))
