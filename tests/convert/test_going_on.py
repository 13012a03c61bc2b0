"""A conversion that was stopped goes on to the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from convert.test_converting import converted, model_of, torchtitan_state
from direct_anneal.convert import pipeline
from selection.tiny import files_below


class KilledError(BaseException):
    """Stand-in for a kill: nothing is tidied up after it."""


def test_killed_after_any_shard_it_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_SHARD_BYTES", 20_000)
    model = model_of("llama")
    state = torchtitan_state(model, old=False)
    (tmp_path / "whole").mkdir()
    converted(tmp_path / "whole", model, state)
    wanted = files_below(tmp_path / "whole" / "out")
    shards = [name for name in wanted if name.endswith(".safetensors")]
    assert len(shards) > 2
    real, saved = pipeline.save_file, list[Path]()

    def save_or_die(tensors: object, path: Path, **options: object) -> None:
        if len(saved) == 2:
            path.write_bytes(b"half of it")
            raise KilledError
        saved.append(path)
        real(tensors, path, **options)

    (tmp_path / "killed").mkdir()
    monkeypatch.setattr(pipeline, "save_file", save_or_die)
    with pytest.raises(KilledError):
        converted(tmp_path / "killed", model, state)
    assert not (tmp_path / "killed" / "out").exists()
    again: list[str] = []
    monkeypatch.setattr(
        pipeline, "save_file", lambda *args, **options: (again.append(args[1].name), real(*args, **options))
    )
    monkeypatch.setattr("convert.test_converting.dcp.save", lambda *_, **__: None, raising=False)  # it is there
    converted(tmp_path / "killed", model, state)
    assert files_below(tmp_path / "killed" / "out") == wanted
    assert len(again) == len(shards) - 2  # what was whole is not written again
