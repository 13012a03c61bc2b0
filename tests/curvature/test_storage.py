"""An estimate on disk comes back to the last bit, or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from direct_anneal.curvature import Estimate, SecondMoment, estimate, load_estimate, save_estimate

FINGERPRINT = {"model": "abc", "num_eigenpairs": 4, "part": None}


@pytest.fixture(params=[3, 9], ids=["whole", "halves"])
def found(request: pytest.FixtureRequest) -> Estimate:
    z = np.random.default_rng(0).normal(size=(request.param, 5))
    return estimate(SecondMoment(z), len(z))


def test_it_comes_back(found: Estimate, tmp_path: Path) -> None:
    path = tmp_path / "there" / "ggn.safetensors"
    save_estimate(path, found, FINGERPRINT)
    back = load_estimate(path, dict(reversed(FINGERPRINT.items())))
    assert back is not None
    assert (back.halves is None) == (found.halves is None)
    for one, other in zip((found.whole, *(found.halves or ())), (back.whole, *(back.halves or ())), strict=True):
        assert np.array_equal(one.eigenvalues, other.eigenvalues)
        assert np.array_equal(one.eigenvectors, other.eigenvectors)
        assert (one.num_stiff, one.num_validation) == (other.num_stiff, other.num_validation)
    content = path.read_bytes()
    save_estimate(path, found, FINGERPRINT)
    assert path.read_bytes() == content
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


class TestNotAtAll:
    def test_nothing_there(self, tmp_path: Path) -> None:
        assert load_estimate(tmp_path / "ggn.safetensors", FINGERPRINT) is None

    def test_of_another_fingerprint(self, found: Estimate, tmp_path: Path) -> None:
        save_estimate(tmp_path / "a", found, FINGERPRINT)
        assert load_estimate(tmp_path / "a", FINGERPRINT | {"model": "abd"}) is None

    @pytest.mark.parametrize("damage", ["cut", "empty", "flipped"])
    def test_damaged(self, found: Estimate, tmp_path: Path, damage: str) -> None:
        path = tmp_path / "a"
        save_estimate(path, found, FINGERPRINT)
        content = bytearray(path.read_bytes())
        if damage == "flipped":
            content[-9] ^= 1  # in the last array
        path.write_bytes({"cut": content[:-8], "empty": b"", "flipped": content}[damage])
        assert load_estimate(path, FINGERPRINT) is None
