"""Searches on NAS-Bench-201 with official accuracies, against the exact front.

    python benchmarks/nb201_search.py [--seeds 31] [--devices raspi4 edgegpu pixel3]

Every search gets 1000 evaluations; its front after 100, 200, 500 and 1000 of them is compared by
hypervolume with the exact front over all architectures and cuts. Needs `hwnas/nb201_accuracy.npz`
and, for the official costs, `hwnas/nb201_hw.npz` in `$NASC_EVO_DATA`. A Wilcoxon signed-rank test
over the seeds compares our search with each other one.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from common import RESULTS, write_result
from numpy.typing import NDArray
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.operators.sampling.rnd import IntegerRandomSampling
from scipy.stats import wilcoxon

from nasc_evo.config import load_group_option
from nasc_evo.problem import Evaluation
from nasc_evo.search import operators
from nasc_evo.search.algorithms import LOSSLESS_DEFAULTS, create_algorithm
from nasc_evo.search.exact import exact_front
from nasc_evo.search.indicators import hypervolume
from nasc_evo.search.loop import run_search
from problems import NASBench201Split

BUDGETS = (100, 200, 500, 1000)
OURS = "nasc_evo NSGA-II"
EVOLUTION_WEIGHTS = 5
EVOLUTION_POPULATION = 20
TOURNAMENT = 5

Search = Callable[[NASBench201Split, int], list[Evaluation]]


def ours(problem: NASBench201Split, seed: int) -> list[Evaluation]:
    """Our NSGA-II with the options of `algorithm=nsga2`."""
    options = load_group_option("algorithm", "nsga2")
    algorithm = create_algorithm(options.pop("name"), problem, options, seed=seed)
    return run_search(problem, algorithm, BUDGETS[-1], seed=seed).evaluations


def best_cut_inside(problem: NASBench201Split, seed: int) -> list[Evaluation]:
    """Our NSGA-II over architectures alone; each gets its fastest cut (as LENS does)."""
    algorithm = create_algorithm("nsga2", problem, {"best_cut_rate": 1.0}, seed=seed)
    return run_search(problem, algorithm, BUDGETS[-1], seed=seed).evaluations


def pymoo_defaults(
    problem: NASBench201Split, seed: int, pop_size: int = LOSSLESS_DEFAULTS["pop_size"]
) -> list[Evaluation]:
    """NSGA-II with what pymoo offers for integers: SBX and PM with rounding."""
    algorithm = NSGA2(
        pop_size=pop_size,
        sampling=IntegerRandomSampling(),
        crossover=SBX(prob=0.9, eta=15, vtype=float, repair=RoundingRepair()),
        mutation=PM(prob=0.9, eta=20, vtype=float, repair=RoundingRepair()),
        eliminate_duplicates=True,
    )
    return run_search(problem, algorithm, BUDGETS[-1], seed=seed).evaluations


def random_search(problem: NASBench201Split, seed: int) -> list[Evaluation]:
    """`algorithm=random`."""
    algorithm = create_algorithm("random", problem, seed=seed)
    return run_search(problem, algorithm, BUDGETS[-1], seed=seed).evaluations


def regularised_evolution(problem: NASBench201Split, seed: int) -> list[Evaluation]:
    """Ageing evolution (Real et al. 2019), one population for each of five scalarisations.

    The weighted Chebyshev distance to zero is minimised, objectives in units of the reference
    point, weights spread evenly; the populations take turns.
    """
    rng = np.random.default_rng(seed)
    reference = np.array([problem.reference_point[name] for name in problem.objectives])
    first = np.linspace(0.05, 0.95, EVOLUTION_WEIGHTS)
    weights = np.column_stack([first, 1 - first])
    mutation = operators.SplitMutation(problem.space)
    populations: list[list[NDArray]] = [[] for _ in weights]
    values: list[list[float]] = [[] for _ in weights]
    stalled = 0
    while len(problem.evaluations) < BUDGETS[-1] and stalled < 10000:
        for weight, population, value in zip(weights, populations, values, strict=True):
            if len(population) < EVOLUTION_POPULATION:
                x = rng.integers(0, problem.space.sizes)
            else:
                drawn = rng.choice(len(population), TOURNAMENT, replace=False)
                parent = population[min(drawn, key=lambda i, value=value: value[i])]
                x = mutation._do(problem, parent[None], random_state=rng)[0]
            before = len(problem.evaluations)
            (evaluation,) = problem.assess(x[None], max_new=BUDGETS[-1] - before)
            stalled = 0 if len(problem.evaluations) > before else stalled + 1
            if evaluation is None:
                break
            F = problem.objective_values([evaluation])[0] / reference
            population.append(x)
            value.append(float(np.max(weight * F)))
            if len(population) > EVOLUTION_POPULATION:
                population.pop(0)
                value.pop(0)
    return list(problem.evaluations.values())


SEARCHES: dict[str, Search] = {
    OURS: ours,
    "best cut inside": best_cut_inside,
    "pymoo SBX/PM": pymoo_defaults,
    "pymoo SBX/PM, population 40": partial(pymoo_defaults, pop_size=40),
    "regularised evolution": regularised_evolution,
    "random": random_search,
}


def quality(problem: NASBench201Split, evaluations: list[Evaluation], truth: float) -> list[float]:
    """Return the hypervolume relative to the exact front after each budget."""
    F = problem.objective_values(evaluations)
    reference = np.array([problem.reference_point[name] for name in problem.objectives])
    return [hypervolume(F[:budget], reference) / truth for budget in BUDGETS]


def draw(path: Path, devices: dict[str, Any]) -> None:
    """Draw medians with quartiles over the budget, one panel a device."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    width = 5 * len(devices)
    figure, axes = plt.subplots(1, len(devices), figsize=(width, 4.5), squeeze=False)
    for axis, (device, described) in zip(axes[0], devices.items(), strict=True):
        for name, entry in described["searches"].items():
            median = 1 - np.array(list(entry["median"].values()))
            low, high = 1 - np.array(list(entry["quartiles"].values())).T
            (line,) = axis.plot(BUDGETS, median, marker="o", label=name)
            axis.fill_between(BUDGETS, low, high, color=line.get_color(), alpha=0.15)
        axis.set(xscale="log", yscale="log", title=device, xlabel="evaluations")
        axis.set_xticks(BUDGETS, map(str, BUDGETS))
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("missing share of the exact hypervolume")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.set_layout_engine("constrained")
    figure.savefig(path, dpi=100)


def main() -> None:
    """Run every search with every seed and write figures and picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=31)
    parser.add_argument("--devices", nargs="+", default=["raspi4", "edgegpu", "pixel3"])
    parser.add_argument("--out", type=Path, default=RESULTS / "nb201_search.json")
    args = parser.parse_args()
    figures: dict[str, Any] = {"seeds": args.seeds, "budgets": list(BUDGETS), "devices": {}}
    for device in args.devices:
        problem = NASBench201Split(device=device, dataset="cifar100", evaluator="tabular")
        reference = np.array([problem.reference_point[name] for name in problem.objectives])
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            front = exact_front(problem)
            seconds.append(time.perf_counter() - start)
        truth = hypervolume(problem.objective_values(front), reference)
        described = figures["devices"][device] = {
            "exact_front": {
                "designs": len(front),
                "hypervolume": truth,
                "median_seconds": float(np.median(seconds)),
                "official_totals": [node.table.totals is not None for node in problem.chain.nodes],
            },
            "searches": {},
        }
        values: dict[str, NDArray] = {}
        for name, search in SEARCHES.items():
            runs, took = [], []
            for seed in range(args.seeds):
                fresh = NASBench201Split(device=device, dataset="cifar100", evaluator="tabular")
                fresh.fastest_design()
                start = time.perf_counter()
                evaluations = search(fresh, seed)
                took.append(time.perf_counter() - start)
                runs.append(quality(fresh, evaluations, truth))
            values[name] = np.array(runs)
            entry = {
                "median": dict(
                    zip(map(str, BUDGETS), np.median(values[name], 0).tolist(), strict=True)
                ),
                "quartiles": dict(
                    zip(
                        map(str, BUDGETS),
                        np.quantile(values[name], (0.25, 0.75), axis=0).T.tolist(),
                        strict=True,
                    )
                ),
                "median_seconds_for_1000_evaluations": float(np.median(took)),
            }
            if name != OURS:
                entry["wilcoxon_p_of_ours_better"] = {
                    str(budget): float(
                        wilcoxon(
                            values[OURS][:, i], values[name][:, i], alternative="greater"
                        ).pvalue
                    )
                    for i, budget in enumerate(BUDGETS)
                }
            described["searches"][name] = entry
            print(device, name, np.median(values[name], 0).round(4), flush=True)
    write_result(args.out, figures)
    draw(args.out.with_suffix(".png"), figures["devices"])


if __name__ == "__main__":
    main()
