"""One measurement: every block and some hundred networks, round by round, and the table of it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nasc_evo import __version__
from nasc_evo.cost.table import Row
from nasc_evo.errors import UserError
from nasc_evo.measurement.agreement import (
    BoolArray,
    Correction,
    FloatArray,
    choose,
    held_out,
    plain,
    scores,
)
from nasc_evo.measurement.backends import Backend, Prepared
from nasc_evo.measurement.energy import Counter, energy_of
from nasc_evo.measurement.journal import SampleJournal
from nasc_evo.measurement.pieces import (
    RUNS_A_NETWORK,
    Piece,
    Run,
    beside_keys,
    block_pieces,
    random_runs,
    run_features,
    table_keys,
)
from nasc_evo.measurement.stopwatch import (
    Burst,
    Figure,
    Stopwatch,
    halves,
    quiet_reference_ms,
    steadiest_quantile,
    summarize,
)
from nasc_evo.space.architecture import ArchitectureSpace
from nasc_evo.supernet.model import build_supernet

MIN_NETWORKS = 40
ENERGY_NETWORKS = 40
"""So many of the networks have their energy measured."""
MAX_THREADS = 1024
EVENING_WORTH = 0.9
"""Evening out must bring even and odd rounds together to this share of their distance."""
BLOCKS_A_REFERENCE = 3
"""The median of so many runs of the first block is the reference of a block."""

OnStep = Callable[[int, str], None]
"""Called with the steps done and the item measured next, empty at the end."""


@dataclass(frozen=True)
class Plan:
    """What is measured, and how.

    Attributes:
        backend: `torch` or `onnxruntime`.
        processor: `cpu` or `cuda`.
        launch: `eager`, or `graph` for CUDA graphs.
        threads: Threads, each on a processor of its own.
        rounds: How often everything is measured, in another order each time.
        repeats: Samples of each thing in each round, at least.
        networks: Networks measured whole and as two sides of a cut, to correct sums of blocks by
            and to check them on; 0 for neither.
        seed: Of the networks and the orders.

    Raises:
        UserError: If a number is out of range.
    """

    backend: str = "torch"
    processor: str = "cpu"
    launch: str = "eager"
    threads: int = 1
    rounds: int = 5
    repeats: int = 20
    networks: int = 200
    seed: int = 1

    def __post_init__(self) -> None:
        for name, low, high in (
            ("threads", 1, MAX_THREADS),
            ("rounds", 1, 100),
            ("repeats", 3, 500),
            ("networks", 0, 10_000),
            ("seed", 0, 2**63 - 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(f"{name} must be in {low}..{high}, got {value}.")
        if 0 < self.networks < MIN_NETWORKS:
            raise UserError(
                f"networks must be 0 or at least {MIN_NETWORKS}, got {self.networks}: fewer say "
                "little about how good a prediction is."
            )

    @property
    def launches_one_by_one(self) -> bool:
        """Whether a GPU waits for each kernel to be launched."""
        return self.processor == "cuda" and self.launch == "eager"

    @property
    def growing(self) -> tuple[str, ...]:
        """Fields of which a measurement may go on with more.

        Other networks at a later time would have no reference in common with those before.
        """
        return ("rounds",) if self.launches_one_by_one else ("rounds", "networks")


class Session:
    """Measures what is missing in a journal, and makes a table of it.

    Args:
        space: The space.
        plan: What is measured.
        backend: What runs it.
        journal: What was measured already.
        counter: Of energy; None for a table without.
    """

    def __init__(
        self,
        space: ArchitectureSpace,
        plan: Plan,
        backend: Backend,
        journal: SampleJournal,
        counter: Counter | None,
    ) -> None:
        self.space = space
        self.plan = plan
        self.backend = backend
        self.journal = journal
        self.counter = counter
        supernet = build_supernet(space, torch.Generator().manual_seed(plan.seed))
        self.supernet = supernet.requires_grad_(False).to(plan.processor)
        self.blocks = block_pieces(space, self.supernet)
        self._stand_ins = beside_keys(space)
        rng = np.random.default_rng(plan.seed)
        self.runs = random_runs(space, plan.networks, rng)

    @cached_property
    def _items(self) -> dict[str, Callable[[], Prepared]]:
        """What is measured, by its name in the journal."""
        graph = self.plan.launch == "graph"
        items: dict[str, Callable[[], Prepared]] = {}
        for key, piece in self.blocks.items():
            items[f"block {key}"] = partial(self._prepare, piece, graph)
            if self.plan.launches_one_by_one:
                items[f"graph {key}"] = partial(self._prepare, piece, True)
        for i, run in enumerate(self.runs):
            items[f"run {i}"] = partial(self._prepare_run, run, graph)
        return items

    @cached_property
    def _references(self) -> dict[str, Callable[[], float]]:
        """What tells the pace of the host that launches: the first block and the first network.

        Each is a reference of its like. What a busy host costs a block in a loop, whose code stays
        in the caches, is not what it costs a network.
        """
        first = next(iter(self.blocks.values()))
        block = self.backend.prepare(first, graph=False, whole=True).timed

        def of_blocks() -> float:
            return float(np.median([block() for _ in range(BLOCKS_A_REFERENCE)]))

        references = {"block": of_blocks}
        if self.runs:
            references["run"] = self._prepare_run(self.runs[0], graph=False).timed
        return references

    def _prepare(self, piece: Piece, graph: bool) -> Prepared:
        return self.backend.prepare(piece, graph=graph, whole=False)

    def _prepare_run(self, run: Run, graph: bool) -> Prepared:
        return self.backend.prepare(run.piece(self.supernet), graph=graph, whole=True)

    def steps(self) -> list[tuple[str, int | None]]:
        """Return items and rounds in the order in which they are measured.

        Energies, last, have no round.
        """
        names = list(self._items)
        steps: list[tuple[str, int | None]] = []
        for number in range(self.plan.rounds):
            order = np.random.default_rng([self.plan.seed, number]).permutation(len(names))
            steps += [(names[i], number) for i in order]
        if self.counter is not None:
            steps += [(f"block {key}", None) for key in self.blocks]
            steps += [(f"run {i}", None) for i in self._energy_runs]
        return steps

    @property
    def _energy_runs(self) -> range:
        """Which runs have their energy measured."""
        return range(min(len(self.runs), RUNS_A_NETWORK * ENERGY_NETWORKS))

    def _is_done(self, item: str, number: int | None) -> bool:
        if number is None:
            return item in self.journal.energies
        burst = self.journal.bursts.get((item, number))
        return burst is not None and (burst.references_ms is not None) == self._is_paced(item)

    def _is_paced(self, item: str) -> bool:
        """Return whether a reference runs beside it, which tells the pace of what launches it."""
        return self.plan.launches_one_by_one and _kind(item) != "graph"

    @property
    def done(self) -> int:
        """How many of the steps the journal has."""
        return sum(self._is_done(*step) for step in self.steps())

    @torch.inference_mode()
    def measure(self, on_step: OnStep) -> None:
        """Measure everything that the journal lacks."""
        stopwatch = Stopwatch(self.plan.repeats)
        done = self.done
        for item, number in self.steps():
            if self._is_done(item, number):
                continue
            on_step(done, item)
            prepared = self._items[item]()
            if number is None:
                assert self.counter is not None
                energy_mj = energy_of(prepared.repeat, self.counter)
                if energy_mj is None:
                    break  # nor will it tell the others
                self.journal.add_energy(item, energy_mj)
            else:
                reference = self._references[_kind(item)] if self._is_paced(item) else None
                self.journal.add_burst(item, number, stopwatch.burst(prepared.timed, reference))
            done += 1
        on_step(done, "")

    def _measured(self, item: str) -> list[Burst]:
        """Return the bursts of an item, round by round."""
        return [self.journal.bursts[item, n] for n in range(self.plan.rounds)]

    @cached_property
    def _latency_items(self) -> list[str]:
        """Items that make latencies: all but blocks as graphs, which tell launches apart."""
        return [item for item in self._items if _kind(item) != "graph"]

    @cached_property
    def _quiet_ms(self) -> dict[str, dict[int, float]]:
        """What the reference of a kind of items takes on a quiet host, by sitting."""
        things: dict[str, list[list[Burst]]] = {}
        for item in filter(self._is_paced, self._items):
            things.setdefault(_kind(item), []).append(self._measured(item))
        return {kind: quiet_reference_ms(of_kind) for kind, of_kind in things.items()}

    def _evened(self, item: str) -> list[Burst]:
        """Return the bursts of an item as on a quiet host."""
        quiet_ms = self._quiet_ms[_kind(item)]
        return [burst.at_pace(quiet_ms[burst.sitting]) for burst in self._measured(item)]

    @cached_property
    def _choice(self) -> tuple[bool, float]:
        """Whether bursts are evened out, and which quantile of their samples counts.

        What even and odd rounds agree best on, once everything is measured.
        """
        quantile, apart = steadiest_quantile([self._measured(i) for i in self._latency_items])
        if self._quiet_ms:
            of_evened, evened_apart = steadiest_quantile(
                [self._evened(i) for i in self._latency_items]
            )
            if evened_apart < EVENING_WORTH * apart:
                return True, of_evened
        return False, quantile

    def _bursts(self, item: str) -> list[Burst]:
        """Return the bursts of an item as they count."""
        return self._evened(item) if self._choice[0] else self._measured(item)

    def _figure(self, item: str) -> Figure:
        return summarize(self._bursts(item), self._choice[1])

    def table(self) -> tuple[dict[str, Any], dict[tuple[str, str], Row]]:
        """Return what is known beyond name and machine, for the header, and the rows."""
        copies = np.array([piece.copies for piece in self.blocks.values()])
        alone = [self._figure(f"block {key}") for key in self.blocks]
        alone_ms = np.array([figure.latency_ms for figure in alone]) / copies
        spread_ms = np.array([figure.spread_ms for figure in alone]) / copies
        launch_ms = None
        if self.plan.launches_one_by_one:
            graphs = [self._measured(f"graph {key}") for key in self.blocks]
            quantile, _ = steadiest_quantile(graphs)
            graph_ms = np.array([summarize(bursts, quantile).latency_ms for bursts in graphs])
            launch_ms = np.maximum(alone_ms - graph_ms / copies, 0)
        header: dict[str, Any] = {"measurement": self._circumstances(alone)}
        correction = plain(self._with_stand_ins(alone_ms), self._beside)
        if self.plan.networks:
            figures = [self._figure(f"run {i}") for i in range(len(self.runs))]
            measured_ms = np.array([figure.latency_ms for figure in figures])
            correction, scored = self._correct(alone_ms, measured_ms, range(len(self.runs)))
            header["agreement"] = self._about_runs(measured_ms) | scored
            header["correction"] = _about(correction, "ms", self.plan.networks)
        if correction.figures[self._beside].any():
            header["beside"] = (
                "relus, adds and pools: so many ReLUs, additions and poolings of a cell are left "
                "where convolutions take up what they can and nothing is computed twice; known "
                "from whole networks only, beyond what edges contain"
            )
        header["constant_ms"] = _rounded(correction.constant)
        if launch_ms is not None:
            header["launch"] = {
                "median_share_percent": round(100 * float(np.median(launch_ms / alone_ms)), 1),
                "quantile": quantile,
                "meaning": "launch_ms is the latency of a block alone, eager, less that of the "
                "same block as a CUDA graph, of whose samples quantile counts; measured_ms "
                "contains it, graphs save it",
            }
        energy_mj = self._energies(header, copies)
        if energy_mj is None:
            header["measurement"]["energy"] = None
        columns = {"latency_ms": correction.figures, "energy_mj": energy_mj}
        none = np.zeros(len(self._stand_ins))  # nothing beside blocks is measured alone
        columns |= {"measured_ms": np.concatenate([alone_ms, none])}
        columns |= {"spread_ms": np.concatenate([spread_ms, none])}
        if launch_ms is not None:
            columns["launch_ms"] = np.concatenate([launch_ms, none])
        row_of = {kind: i for i, kind in enumerate(self._kinds)}
        rows: dict[tuple[str, str], Row] = {}
        for place, key in table_keys(self.space).items():
            i, times = (0, 0) if key is None else (row_of[key[0]], key[1])
            rows[place] = {
                column: None if costs is None else _rounded(times * costs[i])
                for column, costs in columns.items()
            }
        return header, rows

    @property
    def _kinds(self) -> list[str]:
        """What figures are of: blocks, then what is computed beside them."""
        return [*self.blocks, *self._stand_ins]

    @property
    def _beside(self) -> BoolArray:
        return np.array([kind in self._stand_ins for kind in self._kinds])

    def _with_stand_ins(self, alone: FloatArray) -> FloatArray:
        """Return costs of blocks alone, followed by those that stand in for what is beside them."""
        blocks = list(self.blocks)
        return np.concatenate(
            [alone, [alone[blocks.index(key)] for key in self._stand_ins.values()]]
        )

    def _energies(self, header: dict[str, Any], copies: NDArray[np.int64]) -> FloatArray | None:
        """Return the energy of each kind; None if they are not wanted or not all known."""
        if self.counter is None:
            return None
        blocks = [self.journal.energies.get(f"block {key}") for key in self.blocks]
        runs = [self.journal.energies.get(f"run {i}") for i in self._energy_runs]
        if None in blocks or None in runs:
            return None
        alone_mj = np.array(blocks, dtype=float) / copies
        correction = plain(self._with_stand_ins(alone_mj), self._beside)
        if self.plan.networks:
            measured_mj = np.array(runs, dtype=float)
            correction, scored = self._correct(alone_mj, measured_mj, self._energy_runs)
            networks = len(runs) // RUNS_A_NETWORK
            header["energy_agreement"] = {
                "meaning": "as in agreement, of energies: energy_mj is that of the block repeated "
                "in a row, corrected by networks run one by one, constant_mj that of every piece "
                "beyond its blocks; idle power of what the counter counts is part of them",
                "networks": networks,
                "range_mj": _range(measured_mj[::RUNS_A_NETWORK]),
                **scored,
            }
            header["energy_correction"] = _about(correction, "mj", networks)
        header["constant_mj"] = _rounded(correction.constant)
        return correction.figures

    def _correct(
        self, alone: FloatArray, measured: FloatArray, runs: Sequence[int]
    ) -> tuple[Correction, dict[str, Any]]:
        """Fit the correction to runs, and score those that do not know the network they predict.

        Args:
            alone: Cost of each block alone, `[blocks]`.
            measured: Cost of the runs, `[runs]`.
            runs: Indices of these runs, `[runs]`.
        """
        alone, beside = self._with_stand_ins(alone), self._beside
        counts = run_features(self.space, [self.runs[i] for i in runs], self._kinds)
        network, part = np.divmod(runs, RUNS_A_NETWORK)
        correction = choose(alone, beside, counts, measured, network)
        added = plain(alone, beside).predict(counts)
        predicted = held_out(alone, beside, counts, measured, network)
        scored = {
            name: {
                "plain_addition": scores(measured[chosen], added[chosen]),
                "as_corrected": scores(measured[chosen], predicted[chosen]),
            }
            for name, chosen in (("whole", part == 0), ("sides", part > 0))
        }
        return correction, scored

    def _about_runs(self, measured_ms: FloatArray) -> dict[str, Any]:
        """Return what the header says of the networks that predictions are checked on."""
        whole = range(0, len(self.runs), RUNS_A_NETWORK)
        about: dict[str, Any] = {
            "meaning": "predictions against measurements of networks, whole and as both sides of a "
            "random cut, each by a correction fitted to nine tenths of the networks, without it; "
            "that of the table is fitted to all; rounds: how well even and odd rounds of measuring "
            "whole networks agree, the noise in every score here",
            "networks": self.plan.networks,
            "range_ms": _range(measured_ms[whole]),
        }
        if self.plan.rounds > 1:
            quantile = self._choice[1]
            even_ms, odd_ms = np.array(
                [
                    [summarize(half, quantile).latency_ms for half in halves(bursts)]
                    for bursts in (self._bursts(f"run {i}") for i in whole)
                ]
            ).T
            about["rounds"] = scores(even_ms, odd_ms)
        return about

    def _circumstances(self, alone: list[Figure]) -> dict[str, Any]:
        bursts = [burst for item in self._items for burst in self._measured(item)]
        taken = sum(len(burst.samples_ms) + burst.left_out for burst in bursts)
        disagreement = [figure.disagreement for figure in alone]
        evened, quantile = self._choice
        circumstances: dict[str, Any] = {
            **{k: v for k, v in asdict(self.plan).items() if k not in ("backend", "networks")},
            **self.backend.describe(),
            "energy": None if self.counter is None else self.counter.name,
            "samples": taken,
            "quantile": quantile,
            "left_out_percent": round(100 * sum(burst.left_out for burst in bursts) / taken, 2),
            "rounds_disagree_percent": None
            if self.plan.rounds == 1
            else _median_and_largest(np.array(disagreement), 2),
        }
        if self._quiet_ms:
            slower = [
                burst.reference_ms / self._quiet_ms[_kind(item)][burst.sitting] - 1
                for item in self._latency_items
                for burst in self._measured(item)
            ]
            circumstances["host"] = {
                "meaning": "a reference ran before every sample: for blocks the first block, the "
                "median of three runs, for whole networks and sides the first network; if "
                "evened_out, every sample is multiplied by quiet_ms and divided by what its "
                "reference took. quiet_ms is the 5 % quantile of the medians of bursts; where a "
                "measurement went on in another process, there are several figures, here the "
                "smallest and the largest",
                "quiet_ms": {
                    kind: _range(np.array(list(ms.values()))) for kind, ms in self._quiet_ms.items()
                },
                "slower_percent": _median_and_largest(np.array(slower), 1),
                "evened_out": evened,
            }
        return circumstances


def _kind(item: str) -> str:
    """Return `block`, `graph` or `run`."""
    return item.partition(" ")[0]


def _median_and_largest(shares: FloatArray, digits: int) -> dict[str, float]:
    """Return these in percent."""
    figures = {"median": np.median(shares), "largest": np.max(shares)}
    return {name: round(100 * float(figure), digits) for name, figure in figures.items()}


def _range(figures: FloatArray) -> list[float]:
    """Return the smallest and the largest."""
    return [_rounded(figures.min()), _rounded(figures.max())]


def _about(correction: Correction, unit: str, networks: int) -> dict[str, Any]:
    """Return what the header says of a correction that was fitted to so many networks."""
    parameters = {
        f"{name}_{unit}" if name.startswith("constant") else name: _rounded(value)
        for name, value in correction.parameters.items()
    }
    return {
        "form": correction.form,
        **parameters,
        "fitted_to": f"{networks} networks and both sides of a cut of each",
    }


def _rounded(value: float) -> float:
    """Return a figure with six digits: more than any measurement has."""
    return float(f"{value:.6g}")


def describe_table(
    space: ArchitectureSpace,
    name: str,
    machine: dict[str, Any],
    processor: str,
    pinned: list[int] | None,
) -> dict[str, Any]:
    """Return the part of a header that says what a table is and where it comes from."""
    chip = machine["gpu" if processor == "cuda" else "cpu"]
    quirks = [
        "Blocks are those of this package, with random weights and norms folded; an operation that "
        "changes nothing is free."
    ]
    if space.name == "fbnet":
        quirks.append("The grouped 1x1 convolutions of e1_g2 run as dense ones, as they do here.")
    else:
        quirks.append(
            "An edge counts as half of two equal edges that end in one node, so that it has its "
            "share in the additions; edges without effect are removed before."
        )
    header: dict[str, Any] = {
        "name": name,
        "description": f"{chip}, measured",
        "batch": 1,
        "units": {"latency_ms": "ms", "energy_mj": "mJ"},
        "source": f"python -m nasc_evo.measure, version {__version__}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine,
        "pinned_to": pinned,
        "method": "measured_ms is the latency of the block alone, a quantile of its samples: of "
        "several rounds the one that even and odd ones agree best on (see measurement); spread_ms "
        "is the interquartile range of its samples; those during which the processor was taken "
        "away and outliers are left out. latency_ms is measured_ms corrected so that sums agree "
        "with whole networks (see correction). constant_ms is the latency of every piece of a "
        "network beyond its blocks: each machine that runs a part pays it once.",
        "quirks": quirks,
    }
    if space.prunable:
        header["pruned"] = list(space.prunable)
    return header
