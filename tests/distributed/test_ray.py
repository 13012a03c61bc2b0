"""Shards made by a cluster: the same bytes as made here, whoever makes them and whoever is lost."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed: nothing of --engine ray is tested")
if "DIRECT_ANNEAL_TEST_CLUSTER" not in os.environ:  # raylets that starve for a core can hang, and all else
    pytest.skip("a cluster on this machine takes a quiet one: make test-cluster", allow_module_level=True)

import ray
from ray.cluster_utils import Cluster

from data.corpus_samples import prepared
from direct_anneal.data import Corpus, preparation
from direct_anneal.distributed import RayEngine, TaskMap
from direct_anneal.errors import InputError
from direct_anneal.features import extract
from direct_anneal.selection import Run, select_again
from distributed.cluster_runs import Builder, Squaring, gone, no_model
from features.extraction_runs import extracted, store_for
from features.object_store import bucket, objects_below
from selection.pools import chosen, computed, write_world
from selection.tiny import CONTEXT, SKETCH_SIZE, documents, files_below, write_checkpoint, write_jsonl

TESTS = str(Path(__file__).parent.parent)
ROWS = 2
NUM_DOCUMENTS = 31  # sixteen shards, the last one short
_NODE: dict[str, int] = {"num_cpus": 2, "object_store_memory": 80 * 2**20}
_START_SECONDS = 45
_WAIT_SECONDS = 90.0


@dataclass
class TwoNodes:
    """Two machines, as far as Ray can tell; both are this one."""

    cluster: Cluster
    second: Any

    @property
    def address(self) -> str:
        return str(self.cluster.address)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with bucket() as url:
        yield url


@pytest.fixture(scope="module")
def nodes(s3: str) -> Iterator[TwoNodes]:  # which takes the way to the bucket from the environment
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "PYTHONPATH", os.pathsep.join([TESTS, os.environ.get("PYTHONPATH", "")])
        )  # workers import them, too
        for patience in ("raylet_start_wait_time_s", "worker_register_timeout_seconds"):
            patch.setenv(f"RAY_{patience}", str(_START_SECONDS))
        cluster = Cluster()
        try:
            yield started(cluster)
        finally:
            cluster.shutdown()


def started(cluster: Cluster) -> TwoNodes:
    """Both nodes, once a process runs on each of their cores; where other work leaves Ray too little of the machine for
    that, these tests are skipped, and it is said why."""
    try:
        cluster.add_node(**_NODE, include_dashboard=False)
        second = cluster.add_node(**_NODE)
        ray.init(cluster.address, log_to_driver=False)
        ray.get([_core.remote() for _ in range(2 * _NODE["num_cpus"])], timeout=_START_SECONDS)
    except Exception as error:
        reason = (
            f"Ray's nodes did not start in {_START_SECONDS} s each: {' '.join(str(error).split()) or repr(error):.200}"
        )
        warnings.warn(f"Nothing of --engine ray on a cluster is tested: {reason}", stacklevel=1)
        pytest.skip(reason)
    finally:
        ray.shutdown()
    return TwoNodes(cluster, second)


@ray.remote(num_cpus=1)
def _core() -> None:
    time.sleep(1.0)  # so that no process serves for two


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    directory = tmp_path_factory.mktemp("corpus")
    return prepared(directory / "corpus", write_jsonl(directory / "pool.jsonl", documents(NUM_DOCUMENTS, seed=1)))


@pytest.fixture(scope="module")
def local(checkpoint: Path, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every file of the store that this process makes alone."""
    directory = tmp_path_factory.mktemp("local")
    extracted(checkpoint, corpus, directory, ROWS)
    return files_below(directory)


def made(
    corpus: Corpus, place: Path | str, nodes: TwoNodes, builder: Callable[[], Any], workers: int, **options: Any
) -> list[int]:
    """Make the store on the cluster; which shards were begun again."""
    store = store_for(corpus, place, ROWS)
    with closing(RayEngine(builder, address=nodes.address, workers=workers, gpu=False)) as engine:
        return extract(corpus, store, engine, max_length=CONTEXT, **options)


def test_one_worker_gives_the_bytes_of_this_process_also_where_reads_fail_at_first(
    checkpoint: Path, corpus: Corpus, local: dict[str, bytes], nodes: TwoNodes, tmp_path: Path
) -> None:
    amounts: list[int] = []
    assert made(corpus, tmp_path / "store", nodes, Builder(checkpoint, failing=3), 1, advance=amounts.append) == []
    assert files_below(tmp_path / "store") == local
    assert sum(amounts) == corpus.num_tokens.sum()


def test_two_workers_give_them_also_into_a_bucket(
    checkpoint: Path, corpus: Corpus, local: dict[str, bytes], nodes: TwoNodes, s3: str
) -> None:
    assert made(corpus, f"{s3}/store", nodes, Builder(checkpoint), 2) == []
    assert objects_below("store") == local


def test_what_is_amiss_on_a_worker_is_told_as_if_it_were_here(corpus: Corpus, nodes: TwoNodes, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^model must be a checkpoint directory"):
        made(corpus, tmp_path / "store", nodes, no_model, 1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool and a validation set."""
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def here(checkpoint: Path, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of this process alone."""
    return chosen(checkpoint, world, tmp_path_factory.mktemp("here") / "run")


def test_select_on_a_cluster_is_select_here(
    checkpoint: Path, nodes: TwoNodes, world: Path, here: Run, tmp_path: Path
) -> None:
    options = {"engine": "ray", "ray_address": nodes.address, "workers": 1}
    there = chosen(checkpoint, world, tmp_path / "there", **options)
    for part in ("features", "corpus"):
        assert files_below(there.out / part) == files_below(here.out / part)
    assert (there.out / "selection.parquet").read_bytes() == (here.out / "selection.parquet").read_bytes()
    untimed = [{**run.manifest, "config": None, "timings": None} for run in (here, there)]
    assert untimed[0] == untimed[1]


def test_workers_tokenise(
    checkpoint: Path, nodes: TwoNodes, world: Path, here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = preparation._made_here

    def made_here(missing: Any, *given: Any) -> Any:
        read.extend(source.path.name for source, _ in missing)
        return real(missing, *given)

    monkeypatch.setattr(preparation, "_made_here", made_here)
    monkeypatch.setattr(preparation, "_BYTES_FOR_PROCESSES", 1)
    options: dict[str, Any] = {"engine": "ray", "ray_address": nodes.address, "workers": 2}
    there = computed(checkpoint, world, tmp_path / "there", **options)
    assert read == ["validation.jsonl"], "a single file is not divided"
    assert files_below(there.out / "corpus") == files_below(here.out / "corpus")


def test_features_on_a_cluster_and_in_a_bucket_are_those_made_here(
    checkpoint: Path, nodes: TwoNodes, world: Path, here: Run, s3: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"engine": "ray", "ray_address": nodes.address, "workers": 2, "features": f"{s3}/alone"}
    there = computed(checkpoint, world, tmp_path / "there", **options)
    assert files_below(there.out / "features") == files_below(here.out / "features")


def test_losses_along_the_path_on_a_cluster_are_those_made_here_also_for_a_chooser(
    checkpoint: Path, nodes: TwoNodes, world: Path, s3: str, tmp_path: Path
) -> None:
    """`--engine ray` with the objective path, a chooser, and features in a bucket."""
    write_checkpoint(tmp_path / "large", seed=5)
    options: dict[str, Any] = {
        "objective": "path",
        "objective_options": {
            "learning_rates": (1e-2,),
            "max_passes": 1.0,
            "num_folds": 2,
            "num_restrained": 1,
            "min_order": 1e-9,  # random weights read nothing better for its order
        },
        "chooser": checkpoint,
    }
    cluster = {"engine": "ray", "ray_address": nodes.address, "workers": 2}
    local = chosen(tmp_path / "large", world, tmp_path / "local", **options)
    there = chosen(tmp_path / "large", world, tmp_path / "there", **options, **cluster)
    assert files_below(there.out / "features") == files_below(local.out / "features")
    assert (there.out / "selection.parquet").read_bytes() == (local.out / "selection.parquet").read_bytes()
    away = chosen(tmp_path / "large", world, tmp_path / "away", **options, **cluster, features=f"{s3}/path")
    assert (away.out / "selection.parquet").read_bytes() == (local.out / "selection.parquet").read_bytes()
    stored = {f"features/{name}": data for name, data in objects_below("path").items()}
    assert stored == {name: data for name, data in files_below(local.out).items() if name.startswith("features/")}


@pytest.mark.parametrize("objective", ["energy", "descent"])
def test_products_by_one_two_and_four_workers_give_the_selection_made_here(
    nodes: TwoNodes, here: Run, objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("direct_anneal.solver.matrix._PART_BYTES", 8 * SKETCH_SIZE * 13)  # five parts
    local = select_again(here.out, out=tmp_path / "local", objective=objective)
    for workers in (1, 2, 4):
        out = tmp_path / str(workers)
        options: dict[str, Any] = {"engine": "ray", "ray_address": nodes.address, "workers": workers}
        run = select_again(here.out, out=out, objective=objective, **options)
        assert (out / "selection.parquet").read_bytes() == (local.out / "selection.parquet").read_bytes()
        untimed = [{**one.manifest, "config": None, "timings": None} for one in (run, local)]
        assert untimed[0] == untimed[1]


def test_tasks_give_results_in_order_though_their_workers_are_lost(nodes: TwoNodes, tmp_path: Path) -> None:
    with TaskMap(address=nodes.address, workers=2) as mapper:
        assert list(mapper(Squaring(tmp_path), range(8))) == [item**2 for item in range(8)]
        assert {path.name for path in tmp_path.iterdir()} == {"0", "3", "6"}
        with pytest.raises(InputError, match=r"^shard 0 cannot be read here$"):
            list(mapper(gone, range(3)))


def test_four_workers_give_them_though_one_and_then_a_machine_with_two_is_lost(
    checkpoint: Path, corpus: Corpus, local: dict[str, bytes], nodes: TwoNodes, tmp_path: Path
) -> None:
    """The last test of the cluster: it has one machine afterwards."""
    traces = tmp_path / "traces"
    lost: list[str] = []

    def homes() -> dict[int, str]:
        """The machine of each of the four processes, once all have started."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while time.monotonic() < deadline:
            known = {int(path.name): path.read_text() for path in traces.glob("[0-9]*")}
            if len(known) == 4 and all(known.values()):
                return known
            time.sleep(0.01)
        pytest.skip(f"of four workers only {len(list(traces.glob('[0-9]*')))} started within {_WAIT_SECONDS:.0f} s")

    def at_work(second: bool) -> int | None:
        """A process that is at work on that machine just now."""
        pids = (int(path.name.removeprefix("busy-")) for path in traces.glob("busy-*"))
        return next((pid for pid in pids if (where[pid] == nodes.second.node_id) == second), None)

    where: dict[int, str] = {}

    def advance(amount: int) -> None:
        if amount <= 0:
            return
        if not where:
            where.update(homes())
        elif not lost and (pid := at_work(second=False)):
            os.kill(pid, signal.SIGKILL)
            lost.append("worker")
        elif lost == ["worker"] and at_work(second=True):
            nodes.cluster.remove_node(nodes.second, allow_graceful=False)
            lost.append("machine")

    redone = made(corpus, tmp_path / "store", nodes, Builder(checkpoint, traces), 4, advance=advance)
    assert len(set(where.values())) == 2, "both machines must have taken part"
    assert lost == ["worker", "machine"]
    assert len(redone) >= 2
    assert files_below(tmp_path / "store") == local
