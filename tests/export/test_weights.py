from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from direct_anneal.cli import main
from direct_anneal.config.score import ScoreConfig
from direct_anneal.config.weights import MixFormat, WeightsConfig
from direct_anneal.distill.scoring import score
from direct_anneal.errors import InputError
from direct_anneal.export.weights import MIXES, weights
from distill.conftest import scorer as scorer  # fixtures
from distill.test_score import pool as pool
from distill.test_score import read_chosen
from selection.tiny import evidence, files_below


def shares_of(run: Path, to: Any, **options: Any) -> Any:
    return weights(WeightsConfig(run=run, to=to, **options))


class TestTable:
    def test_of_a_selection_is_what_was_chosen(self, run: Path, tmp_path: Path) -> None:
        table, _ = shares_of(run, "nanotron", out=tmp_path / "weights.parquet")
        rows = [row for row in evidence(run).to_pylist() if row["rank"] is not None]
        chosen = sum(row["num_tokens"] for row in rows if row["selected"])
        for cell in table.to_pylist():
            of = [row for row in rows if row["domain"] == cell["source"]]
            taken = sum(row["num_tokens"] for row in of if row["selected"])
            assert (cell["documents"], cell["size"]) == (len(of), sum(row["num_tokens"] for row in of))
            assert cell["chosen_size"] == taken
            assert cell["share"] == pytest.approx(taken / chosen)
            assert cell["rate"] == pytest.approx(taken / cell["size"])
        assert pq.read_table(tmp_path / "weights.parquet").equals(table)

    def test_buckets_go_by_rank(self, run: Path) -> None:
        table, _ = shares_of(run, "nanotron", buckets=2)
        best = sum(cell["chosen_documents"] for cell in table.to_pylist() if cell["bucket"] == 1)
        assert best == evidence(run)["selected"].to_pylist().count(True)  # one half was selected
        assert {cell["bucket"] for cell in table.to_pylist()} == {1, 2}
        assert sum(cell["share"] for cell in table.to_pylist()) == pytest.approx(1)

    def test_of_scores_is_what_was_chosen(self, scorer: Path, pool: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        score(ScoreConfig(scorer=scorer, pool=str(pool), out=out, fraction=0.25, exact=True, workers=1))
        table, _ = shares_of(out, "megatron", buckets=4)
        cells = table.to_pylist()
        assert sum(cell["chosen_size"] for cell in cells) == sum(len(text.encode()) for text in read_chosen(out))
        assert sum(cell["documents"] for cell in cells) == 80
        by_bucket = [sum(cell["documents"] for cell in cells if cell["bucket"] == bucket) for bucket in range(1, 5)]
        assert max(by_bucket) - min(by_bucket) <= 4
        assert sum(cell["chosen_documents"] for cell in cells if cell["bucket"] > 2) == 0

    @pytest.mark.parametrize("buckets", [1, 3, 4])
    def test_buckets_divide_the_ranking_of_all_sources(self, run: Path, buckets: int) -> None:
        """Counted one document after the other."""
        rows = [row for row in evidence(run).to_pylist() if row["rank"] is not None]
        expected: dict[tuple[str, int], list[int]] = {}
        for position, row in enumerate(sorted(rows, key=lambda row: row["rank"])):
            bucket = next(b for b in range(1, buckets + 1) if position * buckets < b * len(rows))
            cell = expected.setdefault((row["domain"], bucket), [0, 0, 0, 0])
            for place, amount in enumerate((1, row["num_tokens"])):
                cell[place] += amount
                cell[place + 2] += amount * row["selected"]
        table, _ = shares_of(run, "nanotron", buckets=buckets)
        columns = ("documents", "size", "chosen_documents", "chosen_size")
        found = {(cell["source"], cell["bucket"]): [cell[name] for name in columns] for cell in table.to_pylist()}
        assert found == expected
        assert len({source for source, _ in found}) > 1

    def test_buckets_of_scores_divide_those_of_all_sources(self, scorer: Path, pool: Path, tmp_path: Path) -> None:
        """However many a bucket holds in all, they are the best of those that are left."""
        out = tmp_path / "out"
        score(ScoreConfig(scorer=scorer, pool=str(pool), out=out, fraction=0.25, workers=1))
        cells = shares_of(out, "megatron", buckets=4)[0].to_pylist()
        parts = [path for path in (out / "scores").glob("*.parquet") if "histogram" not in path.name]
        scored = [row for path in parts for row in pq.read_table(path).to_pylist()]
        scored.sort(key=lambda row: -row["score"])
        expected, first = dict[tuple[str, int], int](), 0
        for bucket in range(1, 5):
            count = sum(cell["documents"] for cell in cells if cell["bucket"] == bucket)
            for row in scored[first : first + count]:
                expected[str(row["domain"]), bucket] = expected.get((str(row["domain"]), bucket), 0) + 1
            first += count
        assert {(cell["source"], cell["bucket"]): cell["documents"] for cell in cells} == expected
        assert first == len(scored)

    def test_scores_without_a_choice_are_refused(self, scorer: Path, pool: Path, tmp_path: Path) -> None:
        score(ScoreConfig(scorer=scorer, pool=str(pool), out=tmp_path / "out", workers=1))
        with pytest.raises(InputError, match="must hold a choice"):
            shares_of(tmp_path / "out", "levanter")

    @pytest.mark.parametrize("options", [{"buckets": 0}, {"buckets": 2, "paths": "{source}"}, {"paths": "x"}])
    def test_options_are_checked(self, options: dict[str, Any]) -> None:
        with pytest.raises(InputError, match=r"buckets must be|paths must name"):
            WeightsConfig(run="r", to="megatron", **options)


class TestOut:
    def test_a_table_that_is_there_is_replaced_only_when_told(self, run: Path, tmp_path: Path) -> None:
        out = tmp_path / "table.parquet"
        shares_of(run, "nanotron", out=out)
        before = out.read_bytes()
        with pytest.raises(InputError, match=r"^out must be a new file, .* pass overwrite"):
            shares_of(run, "nanotron", out=out, buckets=2)
        assert out.read_bytes() == before
        table, _ = shares_of(run, "nanotron", out=out, buckets=2, overwrite=True)
        assert pq.read_table(out).equals(table)

    @pytest.mark.parametrize("name", ["selection.parquet", "manifest.json", "selected.parquet", "corpus/new.parquet"])
    def test_no_file_of_a_run_is_written(self, run: Path, name: str) -> None:
        before = files_below(run)
        with pytest.raises(InputError, match=r"^out must be"):
            shares_of(run, "nanotron", out=run / name, overwrite=True)
        assert files_below(run) == before

    def test_no_file_of_others_is_replaced(self, run: Path, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("mine")
        with pytest.raises(InputError, match="must be new or an earlier table of weights"):
            shares_of(run, "nanotron", out=tmp_path / "thesis.tex", overwrite=True)
        assert (tmp_path / "thesis.tex").read_text() == "mine"

    @pytest.mark.parametrize(
        ("out", "told"),
        [("none/x.parquet", "but .*none is not: make it"), ("", "is a directory"), ("file/x", "file is a file")],
    )
    def test_places_where_no_file_can_be(self, run: Path, tmp_path: Path, out: str, told: str) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match=f"^out must be a file.*{told}"):
            shares_of(run, "nanotron", out=tmp_path / out)

    def test_a_run_that_is_not_there_is_named_as_no_other_option(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["weights", "nope", "--to", "megatron"]) == 2
        error = capsys.readouterr().err
        assert "the run must be the directory" in error
        assert "RUN_DIR" not in error


SHARES = {"DATA/a b/1": 0.625, "DATA/ü: #x/2": 0.375}


class TestConfigurations:
    def test_each_trainer_has_one(self) -> None:
        assert tuple(MIXES) == MixFormat.__args__  # type: ignore[attr-defined]

    def test_olmo_core(self) -> None:
        sources = yaml.safe_load(MIXES["olmo-core"](SHARES))["sources"]
        assert {source["source_name"]: source["target_ratio"] for source in sources} == SHARES
        mixture = pytest.importorskip("olmo_core.data.source_mixture", reason="make test-formats")
        listed = mixture.SourceMixtureList(sources=[mixture.SourceMixtureConfig(**source) for source in sources])
        listed.validate()

    def test_megatron(self) -> None:
        flag, *words = shlex.split(MIXES["megatron"](SHARES).replace("\\\n", " "))
        assert flag == "--data-path"
        assert dict(zip(words[1::2], map(float, words[::2]), strict=True)) == SHARES
        utils = pytest.importorskip("megatron.core.datasets.utils", reason="make test-formats")
        prefixes, weights = utils.get_blend_from_list(words)
        assert dict(zip(prefixes, weights, strict=True)) == SHARES

    def test_nanotron(self) -> None:
        [stage] = yaml.safe_load(MIXES["nanotron"](SHARES))["data_stages"]
        dataset = stage["data"]["dataset"]
        assert dict(zip(dataset["dataset_folder"], dataset["dataset_weights"], strict=True)) == SHARES

    def test_levanter(self) -> None:
        data = yaml.safe_load(MIXES["levanter"](SHARES))["data"]
        assert data["train_weights"] == SHARES
        assert data["configs"].keys() == SHARES.keys()

    def test_mosaicml(self) -> None:
        streams = yaml.safe_load(MIXES["mosaicml"](SHARES))["train_loader"]["dataset"]["streams"]
        assert {stream["local"]: stream["proportion"] for stream in streams.values()} == SHARES
        streaming = pytest.importorskip("streaming", reason="make test-formats")
        made = [streaming.Stream(**stream) for stream in streams.values()]
        assert [stream.proportion for stream in made] == list(SHARES.values())

    def test_the_command_prints_it(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["weights", str(run), "--to", "levanter", "--paths", "s3://b/{source}"]) == 0
        weights_ = yaml.safe_load(capsys.readouterr().out)["data"]["train_weights"]
        assert all(path.startswith("s3://b/") for path in weights_)
        assert sum(weights_.values()) == pytest.approx(1)
