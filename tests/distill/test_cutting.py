"""Cuts, with floors and ceilings of domains and without, against choosing one document after the other."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from direct_anneal.config.score import MergeConfig, ScoreConfig
from direct_anneal.config.weights import WeightsConfig
from direct_anneal.distill.cuts import Cut
from direct_anneal.distill.cutting import Read, cut
from direct_anneal.distill.histogram import added, bins_of, counted
from direct_anneal.distill.scoring import merge, score
from direct_anneal.errors import InputError
from direct_anneal.export.weights import weights
from distill.conftest import scorer as scorer  # fixtures
from distill.test_score import pool as pool
from distill.test_score import read_chosen
from selection.tiny import files_below

NAMES = ["a", "b", "c"]


def drawn(seed: int, count: int = 60) -> pa.Table:
    """Scores in two parts: with ties, several in a bin, or both."""
    rng = np.random.default_rng(seed)
    scores = np.round(rng.normal(size=count), 1).astype(np.float32)
    if seed % 3:
        scores += np.round(rng.normal(size=count), 1).astype(np.float32) * np.float32(
            2**-12 if seed % 3 == 1 else 2**-20
        )
    return pa.table(
        {
            "domain": [NAMES[i] for i in rng.integers(3, size=count)],
            "score": scores,
            "part": np.repeat([0, 1], [count // 2, count - count // 2]),
            "row": np.arange(count),
            "size": rng.integers(1, 6, size=count),
            "bin": bins_of(scores).astype(np.int64),
        }
    )


def histogram_of(table: pa.Table) -> pa.Table:
    places = np.array([NAMES.index(name) for name in table["domain"].to_pylist()])
    return added([counted(places, NAMES, table["score"].to_numpy(), table["size"].to_numpy())])


def one_by_one(table: pa.Table, budget: int, unit: str, floors: dict[str, int], ceilings: dict[str, int]) -> set[int]:
    """First the floors, then by score; a domain is done with the first document that its ceiling does not allow."""
    rows = sorted(table.to_pylist(), key=lambda row: (-row["score"], row["part"], row["row"]))
    cost = {row["row"]: 1 if unit == "documents" else row["size"] for row in rows}
    taken, spent = set[int](), dict.fromkeys(NAMES, 0)
    for row in rows:
        if spent[row["domain"]] < floors.get(row["domain"], 0):
            taken.add(row["row"])
            spent[row["domain"]] += cost[row["row"]]
    done = set[str]()
    for row in rows:
        if row["row"] in taken or row["domain"] in done:
            continue
        if spent[row["domain"]] + cost[row["row"]] > ceilings.get(row["domain"], 10**9):
            done.add(row["domain"])
            continue
        if sum(spent.values()) + cost[row["row"]] > budget:
            break
        taken.add(row["row"])
        spent[row["domain"]] += cost[row["row"]]
    return taken


def reading(table: pa.Table) -> Read:
    """The documents as `cut` reads them: three rows at a time."""
    return lambda bins: (
        part.filter(pa.array(np.isin(part["bin"].to_numpy(), sorted(bins))))
        for part in (table.slice(start, 3) for start in range(0, len(table), 3))
    )


def chosen(made: Cut, table: pa.Table) -> set[int]:
    found = set[int]()
    for part in (0, 1):
        of = table.filter(pa.array(table["part"].to_numpy() == part))
        marks = made.chosen(part, of["score"].to_numpy(), of["row"].to_numpy(), of["domain"])
        found |= set(of["row"].to_numpy()[marks].tolist())
    return found


LIMITS: list[tuple[dict[str, int], dict[str, int]]] = [
    ({}, {}),
    ({"a": 9}, {}),
    ({}, {"b": 2}),
    ({"a": 4, "b": 6}, {"c": 3}),
    ({"a": 3}, {"a": 12, "b": 0}),
    ({"a": 7, "b": 7, "c": 6}, {}),
]


@pytest.mark.parametrize("unit", ["documents", "size"])
@pytest.mark.parametrize("limits", LIMITS)
def test_exact_cuts_are_those_of_choosing_one_by_one(unit: str, limits: tuple[dict[str, int], dict[str, int]]) -> None:
    held, refused = 0, list[str]()
    for seed in range(12):
        table, times = drawn(seed), 1 if unit == "documents" else 3
        floors, ceilings = ({name: amount * times for name, amount in of.items()} for of in limits)
        read = reading(table)
        for budget in (23 * times, 40 * times, 10**6):
            try:
                made = cut([histogram_of(table)], budget, unit, floors, ceilings, read)
            except InputError as error:
                refused.append(str(error))
                continue
            held += 1
            expected = one_by_one(table, budget, unit, floors, ceilings)
            assert chosen(made, table) == expected
            assert (made.documents, made.size) == (
                len(expected),
                sum(row["size"] for row in table.to_pylist() if row["row"] in expected),
            )
    assert held > 20
    assert all("no more than the pool has" in told or "fit below its ceiling" in told for told in refused)


@pytest.mark.parametrize("limits", LIMITS)
def test_cuts_in_whole_bins_keep_what_was_asked(limits: tuple[dict[str, int], dict[str, int]]) -> None:
    floors, ceilings = limits
    held, refused = 0, list[str]()
    for seed in range(12):
        table = drawn(seed)
        try:
            made = cut([histogram_of(table)], 28, "documents", floors, ceilings, None)
        except InputError as error:
            refused.append(str(error))
            continue
        held += 1
        rows = [row for row in table.to_pylist() if row["row"] in chosen(made, table)]
        assert made.documents == len(rows) <= 28
        for name in NAMES:
            count = sum(row["domain"] == name for row in rows)
            assert floors.get(name, 0) <= count <= ceilings.get(name, 10**9)
            bins = {row["bin"] for row in rows if row["domain"] == name}
            inside = [row for row in table.to_pylist() if row["domain"] == name and row["bin"] in bins]
            assert len(inside) == count
    assert held > 2
    assert all("exact" in told or "no more than the pool has" in told for told in refused)


def test_floors_that_come_to_more_than_the_choice_are_refused() -> None:
    with pytest.raises(InputError, match=r"the floors must fit into the choice, 10, but come to"):
        cut([histogram_of(drawn(0))], 10, "documents", {"a": 8, "b": 8}, {}, None)


class TestOfPools:
    def test_are_kept_and_weights_know_of_them(self, scorer: Path, pool: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        options: dict[str, Any] = {"scorer": str(scorer), "pool": (str(pool),), "workers": 1}
        plain = score(ScoreConfig(**options, out=str(out), num_samples=20, exact=True))
        before = domains_of(out)
        asked: dict[str, Any] = {"num_samples": 20, "exact": True, "floors": "packed-4=0.2", "ceilings": {"prose": 3}}
        result = merge(MergeConfig(run=str(out), **asked, workers=1))
        assert before.get("packed-4", 0) < 4 <= domains_of(out)["packed-4"]
        assert before["prose"] > 3 >= domains_of(out)["prose"]
        assert result["chosen"]["documents"] == plain["chosen"]["documents"] == len(read_chosen(out)) == 20
        table, _ = weights(WeightsConfig(run=out, to="nanotron"))
        shares = {cell["source"]: cell["chosen_documents"] for cell in table.to_pylist() if cell["chosen_documents"]}
        assert shares == domains_of(out)
        other = tmp_path / "other"
        score(ScoreConfig(**options, out=str(other), **asked))
        assert files_below(out) == files_below(other)

    def test_of_what_is_not_there_are_refused(self, scorer: Path, pool: Path, tmp_path: Path) -> None:
        options: dict[str, Any] = {"scorer": str(scorer), "pool": (str(pool),), "out": str(tmp_path / "out")}
        with pytest.raises(InputError, match=r"name a domain of the pool, but poetry is none: there are code"):
            score(ScoreConfig(**options, fraction=0.5, floors={"poetry": 1}, workers=1))
        with pytest.raises(InputError, match="ceilings must come with a size"):
            ScoreConfig(**options, ceilings={"prose": 1})


def domains_of(out: Path) -> dict[str, int]:
    """Documents of each domain in a choice, from its files."""
    counts = Counter[str]()
    for path in sorted((out / "selected").iterdir()):
        source = Path(json.loads((out / "scores" / f"{path.name[:5]}.json").read_text())["source"])
        if path.suffix == ".parquet":
            records = pq.read_table(path).to_pylist()
        else:
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            records = [json.loads(line) for line in content.splitlines()]
        counts.update(record.get("domain") or source.name.partition(".")[0] for record in records)
    return dict(counts)
