"""Designs a second through the cost model, and through a look-up in a dictionary beside it.

    python benchmarks/cost_model.py

The cost model gives latency, payload and energy (and the parts of the latency) of whole split
designs, on one core. Beside it, in the same run and turn by turn, whole networks are looked up one
by one in the way of the API of HW-NAS-Bench: for every metric and layer the key of the operator is
put together and its figure added. That API answers every query with eight metrics; the look-up of
three is timed too.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, write_result

from nasc_evo.cost import CostTable
from nasc_evo.cost.hwnasbench import lookup_keys
from nasc_evo.problem import all_local_batch
from nasc_evo.search.operators import random_genomes
from nasc_evo.space import FBNetSpace
from nasc_evo.space.fbnet import SKIP, conv_op
from problems import FBNetSplit

METRICS = (
    *("edgegpu_latency", "edgegpu_energy", "raspi4_latency", "pixel3_latency"),
    *("eyeriss_latency", "eyeriss_energy", "fpga_latency", "fpga_energy"),
)


def lookup_tables(space: FBNetSpace) -> dict[str, dict[str, float]]:
    """Return for each metric the figure of each operator by its official key."""
    tables = {}
    for metric in METRICS:
        machine, kind = metric.split("_")
        table = CostTable.shipped(machine, space)
        figures = table.latency_ms if kind == "latency" else table.energy_mj
        tables[metric] = {key: float(figures[at]) for at, key in lookup_keys(space).items()}
    return tables


class DictionaryLookup:
    """Costs of whole networks, one at a time."""

    def __init__(self, space: FBNetSpace) -> None:
        self.tables = lookup_tables(space)
        self.layers = space.layers
        self.ops = [conv_op(name) for name in space.gene_ops[0] if name != "skip"]
        self.size, self.stem_stride = space.geometry, space.stem_stride
        self.head, self.classes = space.head_channels, space.n_classes

    def query(self, ops: Sequence[int], metrics: Sequence[str]) -> dict[str, float]:
        """Return the metrics of a network."""
        return {metric: self._sum(ops, self.tables[metric]) for metric in metrics}

    def _sum(self, ops: Sequence[int], table: dict[str, float]) -> float:
        size, last = self.size, self.layers[-1]
        first = self.layers[0].channels_in
        total = table[
            f"ConvNorm_H{size}_W{size}_Cin3_Cout{first}_kernel3_stride{self.stem_stride}_group1"
        ]
        for code, layer in zip(ops, self.layers, strict=True):
            size, c_in, c_out = layer.size_in, layer.channels_in, layer.channels_out
            shape = f"H{size}_W{size}_Cin{c_in}_Cout{c_out}"
            if code == SKIP:
                total += table[f"Skip_{shape}_stride{layer.stride}"]
                continue
            op = self.ops[code]
            total += table[
                f"ConvBlock_{shape}_exp{op.expansion}_kernel{op.kernel}_stride{layer.stride}"
                f"_group{op.groups}"
            ]
        size, head = last.size_out, self.head
        total += table[
            f"ConvNorm_H{size}_W{size}_Cin{last.channels_out}_Cout{head}_kernel1_stride1_group1"
        ]
        total += table[f"AvgP_H{size}_W{size}_Cin{head}_Cout{head}_kernel{size}_stride1"]
        return total + table[f"FC_Cin{head}_Cout{self.classes}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--designs", type=int, default=1_000_000)
    parser.add_argument("--networks", type=int, default=5_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS / "cost_model.json")
    args = parser.parse_args()
    device = {"name": "edgegpu", "path": None, "idle_mw": 1900.0}
    problem = FBNetSplit(device=device)
    distinct = random_genomes(problem.space, 10_000, np.random.default_rng(0))
    X = distinct[np.random.default_rng(1).integers(0, len(distinct), args.designs)]
    lookup = DictionaryLookup(problem.space.architecture)
    networks = distinct[: args.networks, : problem.space.n_arch].tolist()
    local = problem.chain.evaluate(all_local_batch(problem.space, np.array(networks)))
    assert np.allclose(
        [lookup.query(ops, METRICS[:1])["edgegpu_latency"] for ops in networks], local.latency_ms
    )
    seconds: dict[str, list[float]] = {}

    def timed(name: str, work: Any) -> Any:
        start = time.perf_counter()
        result = work()
        seconds.setdefault(name, []).append(time.perf_counter() - start)
        return result

    for _ in range(args.repeats):
        batch = timed("decode", lambda: problem.space.decode_batch(X))
        timed("costs", lambda batch=batch: problem.chain.evaluate(batch))
        timed("lookup_8", lambda: [lookup.query(ops, METRICS) for ops in networks])
        timed("lookup_3", lambda: [lookup.query(ops, METRICS[:3]) for ops in networks])
    times = {name: np.array(values) for name, values in seconds.items()}
    ours = args.designs / times["costs"]
    eight, three = (args.networks / times[name] for name in ("lookup_8", "lookup_3"))
    write_result(
        args.out,
        {
            "designs": args.designs,
            "metrics": "latency and its parts, payload, energy",
            "seconds_costs": spread(times["costs"]),
            "seconds_decoding_and_costs": spread(times["decode"] + times["costs"]),
            "designs_per_second": spread(ours),
            "designs_per_second_with_decoding": spread(
                args.designs / (times["decode"] + times["costs"])
            ),
            "networks_per_second_by_dictionary_8_metrics_as_its_api_answers": spread(eight),
            "networks_per_second_by_dictionary_3_metrics": spread(three),
            "times_the_dictionary_with_8_metrics": spread(ours / eight),
            "times_the_dictionary_with_3_metrics": spread(ours / three),
        },
    )


def spread(values: np.ndarray) -> dict[str, float]:
    return {
        "median": float(f"{np.median(values):.4g}"),
        "min": float(f"{values.min():.4g}"),
        "max": float(f"{values.max():.4g}"),
    }


if __name__ == "__main__":
    main()
