"""The solver against the published algorithm, against brute force, and against its own size.

    OMP_NUM_THREADS=1 python benchmarks/solver.py [--only published|scale|brute]
        [--instances 40] [--literal 8] [--sizes 100000 1000000]

published   N = 2,000 under a binding budget. Processor times: one whole `solve` (all starts, swaps, bound) against one
            start of the literal Algorithm 2 (up to 50 linearisations, each by 50 projected-gradient steps with
            Dykstra's projections), and one exact linear step against one literal one. Objectives: relative to the best
            known, which is the best of `solve`, of the literal answers within budget, and of 100 more starts in random
            directions, each ascended and improved by swaps.
scale       features (N, 256), float16, in a memory-mapped file made here; processor time, peak of anonymous
            memory (the file's own pages, which the system may drop at any time, are not counted) and their exponents
            of growth in N.
brute       N = 12: how often the best of all selections is found, without and with bands, quotas and forced samples.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from direct_anneal.solver import FeatureMatrix, Quota, SelectionProblem, solve
from direct_anneal.solver.energy import _ascend
from direct_anneal.solver.local_search import swap
from direct_anneal.solver.lp import OneBudget

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from reference import algorithm_2, linear_problem

Float = NDArray[np.float64]
RANDOM_STARTS = 100
SCALE_SIZE = 256


def pool(kind: str, seed: int, num_samples: int = 2000, size: int = 64) -> SelectionProblem:
    """A tenth of a pool of one kind; the budget lies a random way between the least feasible and the pool's mean."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(num_samples, size))
    if kind == "decaying":  # a spectrum like that of gradients
        features *= np.arange(1, size + 1) ** -0.5
    elif kind == "clustered":
        features += 2 * rng.normal(size=(12, size))[rng.integers(0, 12, num_samples)]
    elif kind == "heavy":
        features *= np.exp(rng.normal(size=(num_samples, 1)))
    cost = np.exp(rng.normal(size=num_samples))
    count = num_samples // 10
    least, mean = float(np.sort(cost)[:count].sum()), float(cost.mean()) * count
    return SelectionProblem(features, cost, num_selected=count, budget=least + rng.uniform(0.1, 0.7) * (mean - least))


def best_of_many(problem: SelectionProblem, seed: int) -> float:
    """The best of random starts, each ascended and swapped to its end."""
    features, polytope = FeatureMatrix(problem.features), OneBudget(problem)
    directions = np.random.default_rng(seed).normal(size=(problem.features.shape[1], RANDOM_STARTS))
    gains = features.dot(directions).T
    solutions, *_ = _ascend(features, polytope, [polytope.maximise(np.ascontiguousarray(gain)) for gain in gains])
    distinct = list({solution.chosen.tobytes(): solution.chosen for solution in solutions}.values())
    totals = features.weighted_sum(np.stack(distinct, axis=1).astype(np.float64))
    return max(search.value for search in swap(features, polytope, distinct, totals))


def published(instances: int, literal: int, seed: int) -> None:
    whole: dict[str, list[float]] = {}
    steps, shares, broken = [], [], []
    for number in range(instances):
        kind = ("plain", "decaying", "clustered", "heavy")[number % 4]
        problem = pool(kind, seed + number)
        started = time.process_time()
        ours = solve(problem)
        seconds = time.process_time() - started
        starts = len(ours.stats["starts"])
        best = max(ours.objective, best_of_many(problem, seed + number))
        if number < literal:
            features, cost, count = np.asarray(problem.features), problem.stiff_cost, problem.num_selected
            started = time.process_time()
            (answer,) = algorithm_2(features, cost, count, budget=problem.budget)
            whole.setdefault(kind, []).append((time.process_time() - started) / seconds)
            broken.append(answer.budget_used / problem.budget - 1)
            if not answer.breaks_budget:
                best = max(best, answer.objective)
            gain = 2.0 * features @ features.sum(axis=0)
            started = time.process_time()
            linear_problem(gain, cost, count, problem.budget, np.full(len(cost), count / len(cost)))
            theirs = time.process_time() - started
            polytope = OneBudget(problem)
            started = time.process_time()
            polytope.maximise(gain)
            steps.append(theirs / (time.process_time() - started))
            print(
                f"  {kind}: literal / ours, whole solve of {starts} starts {whole[kind][-1]:,.0f}, linear step "
                f"{steps[-1]:,.0f}; the literal "
                f"answer uses {broken[-1]:+.1%} of the budget beyond it, objective {answer.objective / best:.4f} of "
                f"the best known, ours {ours.objective / best:.4f}",
                flush=True,
            )
        shares.append(ours.objective / best)
    print(
        f"N = 2,000, {instances} instances: objective / best known, least {min(shares):.5f}, mean "
        f"{np.mean(shares):.5f}, at least 0.995 in {np.mean(np.array(shares) >= 0.995):.0%}, equal (1e-9) in "
        f"{np.mean(np.array(shares) >= 1 - 1e-9):.0%}"
    )
    medians = ", ".join(f"{np.median(ratios):,.0f} ({kind}, {len(ratios)} runs)" for kind, ratios in whole.items())
    print(f"literal / ours in time: whole solve, median {medians}; linear step, least {min(steps, default=0):,.0f}")


def brute(num_samples: int = 12) -> None:
    picks = {
        count: np.array([np.isin(np.arange(num_samples), pick) for pick in itertools.combinations(range(12), count)])
        for count in range(1, 7)
    }
    for coupled, objective in itertools.product((False, True), ("energy", "descent")):
        rng, matched, instances = np.random.default_rng(0), [], 60 if coupled else 200
        for _ in range(instances):
            features = rng.normal(size=(num_samples, int(rng.integers(1, 6))))
            count = int(rng.integers(1, 7))
            target = rng.normal(size=features.shape[1])
            cost = np.exp(rng.normal(size=(num_samples, 3 if coupled else 1)))
            allowed = picks[count]
            witness = allowed[rng.integers(len(allowed))]  # feasible by construction
            budgets = cost[witness].sum(axis=0) * rng.uniform(1, 1.3)
            arguments: dict[str, Any] = {"stiff_cost": cost[:, 0], "budget": float(budgets[0])}
            allowed = allowed[np.all(allowed @ cost <= budgets * (1 + 1e-12), axis=1)]
            if coupled:
                domains = rng.integers(0, 3, num_samples)
                floor, ceiling = (int((domains[witness] == domain).sum()) for domain in (0, 1))
                forced = np.flatnonzero(witness)[: int(rng.integers(0, 2))]
                quota = Quota(domains, {0: floor}, {1: ceiling})
                arguments = {"stiff_cost": cost, "budget": budgets, "quotas": quota, "forced_in": forced}
                counts = [(allowed & (domains == domain)).sum(axis=1) for domain in (0, 1)]
                allowed = allowed[(counts[0] >= floor) & (counts[1] <= ceiling) & allowed[:, forced].all(axis=1)]
            if objective == "descent":
                arguments |= {"objective": "descent", "target": target}
            sums = allowed @ features
            best = float((np.square(sums).sum(axis=1) if objective == "energy" else sums @ target).max())
            found = solve(SelectionProblem(features, num_selected=count, **arguments)).objective
            matched.append(found >= best - 1e-9 * abs(best))
        name = "bands, quotas, forced" if coupled else "one budget"
        print(f"N = 12, {name}, {objective}: the best of all in {np.mean(matched):.1%} of {instances}", flush=True)


def write_features(path: Path, num_samples: int) -> NDArray[np.float16]:
    """Unit rows with a spectrum that decays, written block by block."""
    stored = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(num_samples, SCALE_SIZE))
    rng = np.random.default_rng(0)
    for first in range(0, num_samples, 10_000):
        rows = rng.normal(size=(min(10_000, num_samples - first), SCALE_SIZE)) * np.arange(1, SCALE_SIZE + 1) ** -0.5
        stored[first : first + len(rows)] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    stored.flush()
    return stored


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def measure(path: Path, objective: str, coupled: bool, results: Any) -> None:
    """One solve in a process of its own."""
    features = np.load(path, mmap_mode="r")
    num_samples = len(features)
    rng = np.random.default_rng(1)
    cost = np.exp(rng.normal(size=(num_samples, 3) if coupled else num_samples))
    count = num_samples // 10
    arguments: dict[str, Any] = {"num_selected": count, "budget": 0.6 * cost.mean(axis=0) * count}
    if coupled:
        domains = rng.choice(4, num_samples, p=[0.6, 0.1, 0.25, 0.05])
        arguments["quotas"] = Quota(domains, {1: 0.2 * count, 3: 0.08 * count}, {0: 0.3 * count})
    else:
        arguments["budget"] = float(arguments["budget"])
    if objective == "descent":
        arguments |= {"objective": "descent", "target": rng.normal(size=SCALE_SIZE)}
    peak, done, before = 0, threading.Event(), anonymous_bytes()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.process_time()
    selection = solve(SelectionProblem(features, cost, **arguments))
    seconds = time.process_time() - started
    done.set()
    watcher.join()
    gap = 1 - selection.objective / selection.bound
    results.put((seconds, peak - before, selection.stats["passes"], gap))


def scale(sizes: list[int]) -> None:
    """Energy under several constraints is left to the smallest size: its starts take some hundred programs."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        paths = {size: Path(directory) / f"{size}.npy" for size in sizes}
        for size, path in paths.items():
            write_features(path, size)
        for objective, coupled in (("descent", False), ("energy", False), ("descent", True), ("energy", True)):
            found = {}
            for size, path in list(paths.items())[: 1 if coupled and objective == "energy" else None]:
                results = context.Queue()
                process = context.Process(target=measure, args=(path, objective, coupled, results))
                process.start()
                found[size] = results.get()
                process.join()
                seconds, memory, passes, gap = found[size]
                print(
                    f"{objective}{', 3 bands and quotas' if coupled else ''}, N = {size:,}: {seconds:.1f} s, "
                    f"{memory / 2**20:,.0f} MiB ({memory / size:.0f} bytes a sample; its features have "
                    f"{2 * SCALE_SIZE}), {passes} passes, gap to the bound {gap:.2e}",
                    flush=True,
                )
            if len(found) > 1:
                first, last = found[sizes[0]], found[sizes[-1]]
                growth = [np.log(last[k] / first[k]) / np.log(sizes[-1] / sizes[0]) for k in (0, 1)]
                print(f"    exponent of growth: time {growth[0]:.2f}, memory {growth[1]:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("published", "scale", "brute"))
    parser.add_argument("--instances", type=int, default=40)
    parser.add_argument("--literal", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1000, help="of the first instance; rules were tuned on 0 to 23")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000])
    arguments = parser.parse_args()
    if arguments.only in (None, "brute"):
        brute()
    if arguments.only in (None, "published"):
        published(arguments.instances, arguments.literal, arguments.seed)
    if arguments.only in (None, "scale"):
        scale(arguments.sizes)


if __name__ == "__main__":
    main()
