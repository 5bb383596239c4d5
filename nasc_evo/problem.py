"""The multi-objective problem: architecture, cut, channel mask and bits of a split network.

:class:`SplitProblem` joins a space, a chain of nodes and links, and an evaluator of accuracy to a
pymoo problem. It owns the cache of everything evaluated, by phenotype: asking again is free.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymoo.core.problem import Problem

from nasc_evo.cost import Chain, Costs
from nasc_evo.cost.chain import SERVER
from nasc_evo.errors import UserError
from nasc_evo.halving import Ceilings, make_halving
from nasc_evo.space import Design, SplitSpace
from nasc_evo.space.genome import DesignBatch
from nasc_evo.spill import SpillingDict
from nasc_evo.supernet.score import Evaluator, Score, score_each

METRICS = (
    "error",
    "latency_ms",
    "device_ms",
    "link_ms",
    "server_ms",
    "payload_bytes",
    "energy_mj",
    "macs",
    "params",
    "latency_p95_ms",
)
"""What can be an objective or have an upper limit; all are better when smaller."""
VARYING = ("latency_p95_ms",)
"""Those of them that there are only where the rate of a link varies."""


@dataclass(frozen=True)
class Evaluation:
    """Everything known of one design after its evaluation.

    Attributes:
        index: Running number within the problem.
        genome: A genome of the design.
        design: The phenotype.
        split: Which images scored it.
        score: Correct images, or the reason of a failure.
        kept_channels: Channels sent at each cut.
        costs: Every metric but the error, and `node_ms` and `links_ms`; None where unknown or
            without end.
        refused: Whether a node cannot run the network, so that it was not scored.
    """

    index: int
    genome: tuple[int, ...]
    design: Design
    split: str
    score: Score
    kept_channels: tuple[int, ...]
    costs: dict[str, Any]
    refused: bool = False

    @property
    def failed(self) -> bool:
        """Whether there is no score."""
        return self.score.correct is None

    def metric(self, name: str) -> float:
        """Return one of :data:`METRICS`; NaN where unknown."""
        value = self.score.error if name == "error" else self.costs[name]
        return math.nan if value is None else float(value)


def pack_evaluation(evaluation: Evaluation) -> list[Any]:
    """Return everything of an evaluation as what JSON holds."""
    e, design, score = evaluation, evaluation.design, evaluation.score
    return [
        *(e.index, e.genome, e.split, e.kept_channels, e.costs, e.refused),
        [design.arch, design.ops, design.cuts, design.masks, design.bits],
        [score.correct, score.images, score.message],
    ]


def unpack_evaluation(packed: list[Any]) -> Evaluation:
    """Return the evaluation of :func:`pack_evaluation`."""
    index, genome, split, kept_channels, costs, refused, (arch, *parts), score = packed
    design = Design(arch, *(tuple(part) for part in parts))
    return Evaluation(
        index, tuple(genome), design, split, Score(*score), tuple(kept_channels), costs, refused
    )


class SplitProblem(Problem):
    """A pymoo problem over the genomes of a :class:`SplitSpace`; every metric is minimised.

    Subclasses need only assemble the four parts; see `problems.FBNetSplit`. Use
    :func:`nasc_evo.testing.check_problem` on a subclass of your own.

    Args:
        space: Genomes and what they mean.
        chain: Costs.
        evaluator: Accuracy, or a function that makes the evaluator when it is first needed.
        objectives: Metrics to minimise, two or more different ones of :data:`METRICS`.
        limits: Upper limits of metrics; None is no limit. They become constraints, each scaled by
            its own value.
        lossless: Whether nothing is lost on a link, so that the error does not depend on the cut.
        halving: Options of :class:`nasc_evo.halving.Halving`: on how many images of the search
            split designs are scored first. Those that need no more keep that score.

    Attributes:
        on_evaluation: Called with each new evaluation as it happens, and whether its score was
            computed (rather than remembered from an earlier run).
        evaluations: What was evaluated so far, by (phenotype key, split, images), in the order in
            which it was asked for; a mapping that keeps only the newest in memory.
        next_index: Running number of the next new evaluation.

    Raises:
        UserError: If an objective or limit is unknown, out of range, or cannot be computed.
    """

    def __init__(
        self,
        space: SplitSpace,
        chain: Chain,
        evaluator: Evaluator | Callable[[], Evaluator],
        *,
        objectives: Sequence[str] = ("error", "latency_ms"),
        limits: Mapping[str, float | None] | None = None,
        lossless: bool = False,
        halving: Mapping[str, Any] | None = None,
    ) -> None:
        self.lossless = lossless
        self.halving = make_halving(halving)
        self.space = space
        self.chain = chain
        self._evaluator = evaluator
        self.objectives = self._check_objectives(objectives)
        self.limits = self._check_limits(limits or {})
        varying = [name for name in (*self.objectives, *self.limits) if name in VARYING]
        if varying and not chain.varies:
            raise UserError(
                f"{varying[0]} is of links whose rates vary, and none does; give link.rate_sigma, "
                "link=trace or link=uav, or use latency_ms."
            )
        needs_energy = "energy_mj" in (*self.objectives, *self.limits)
        missing = chain.missing_for_energy()
        if needs_energy and missing:
            raise UserError(f"energy_mj cannot be computed without {' and '.join(missing)}.")
        self.on_evaluation: Callable[[Evaluation, bool], None] | None = None
        self.evaluations = SpillingDict(pack_evaluation, unpack_evaluation)
        self._remembered: list[Mapping[tuple[str, str, int], Score]] = []
        self.next_index = 0
        self._ceilings = Ceilings(self.limits.get("error"))
        super().__init__(
            n_var=space.n_var,
            n_obj=len(self.objectives),
            n_ieq_constr=len(self.limits) + int(chain.may_refuse),
            xl=space.xl,
            xu=space.xu,
            vtype=int,
        )

    @staticmethod
    def _check_objectives(objectives: Sequence[str]) -> tuple[str, ...]:
        listed = isinstance(objectives, Iterable) and not isinstance(objectives, str)
        names = tuple(objectives) if listed else ()
        unknown = [name for name in names if name not in METRICS]
        if unknown:
            raise UserError(
                f"An objective must be one of {', '.join(METRICS)}, got '{unknown[0]}'."
            )
        if len(names) < 2 or len(set(names)) != len(names):
            raise UserError(f"Give a list of at least two different objectives, got {objectives}.")
        return names

    @staticmethod
    def _check_limits(limits: Mapping[str, float | None]) -> dict[str, float]:
        checked = {}
        if not isinstance(limits, Mapping):
            raise UserError(f"limits must give a number by the name of a metric, got {limits}.")
        for name, value in limits.items():
            if name not in METRICS:
                raise UserError(f"A limit must be on one of {', '.join(METRICS)}, got '{name}'.")
            if value is None:
                continue
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not (number and math.isfinite(value) and value > 0):
                raise UserError(f"limits.{name} must be a finite number above 0, got {value!r}.")
            checked[name] = float(value)
        return checked

    @cached_property
    def evaluator(self) -> Evaluator:
        """The source of accuracies."""
        made = self._evaluator
        evaluator: Evaluator = made if hasattr(made, "evaluate") else made()  # type: ignore
        self.halving.check(evaluator.images, self.lossless, self.objectives)
        return evaluator

    def assess(
        self,
        X: NDArray,
        *,
        split: str = "search",
        images: int | None = None,
        max_new: int | None = None,
        halved: bool = True,
    ) -> list[Evaluation | None]:
        """Return the evaluation of each genome, computing only unknown phenotypes.

        Args:
            X: Genomes, `[P, n_var]`.
            split: Images that score them.
            images: How many; None takes the evaluator's default for the search split and all
                images of another.
            max_new: Evaluate at most this many unknown phenotypes, the first ones.
            halved: Whether a search asks, whose designs may be scored on fewer images, see
                :mod:`nasc_evo.halving`. Others get all of them.

        Returns:
            One evaluation a genome; None where `max_new` forbade it.

        Raises:
            UserError: If a row is no genome of the space.
        """
        batch = self.space.decode_batch(X)
        designs = self.space.designs(batch)
        count = self._image_count(split, images)
        keys = [(design.key, split, count) for design in designs]
        new: dict[tuple[str, str, int], int] = {}
        for row, key in enumerate(keys):
            known = self.evaluations.get(key)
            stopped = known is not None and known.score.images < count
            if (known is None or (stopped and not halved)) and key not in new:
                if max_new is not None and len(new) >= max_new:
                    continue
                new[key] = row
        of_search = split == "search" and count == self.evaluator.images
        if new and halved and self.halving.images and of_search:
            self._halve(batch, np.atleast_2d(X), designs, new)
        elif new:
            self._evaluate_new(batch, np.atleast_2d(X), designs, new)
            if self.halving.images and of_search:
                self._lower_ceilings([self.evaluations[key] for key in new])
        return [self.evaluations.get(key) for key in keys]

    def search_evaluations(self) -> Sequence[Evaluation]:
        """Return the evaluations on the images that a search uses, failures included.

        Those that are not in memory are read one by one as the sequence is gone through.
        """
        return self.evaluations.select("search", self.evaluator.images)

    def forget(self) -> None:
        """Drop all evaluations and remembered scores, for another search of the same problem."""
        self.evaluations.clear()
        self._remembered.clear()
        self.next_index = 0
        self._ceilings = Ceilings(self.limits.get("error"))

    def _image_count(self, split: str, images: int | None) -> int:
        if images is not None:
            return images
        if split == "search":
            return self.evaluator.images
        return self.evaluator.split_size(split)

    def _halve(
        self,
        batch: DesignBatch,
        X: NDArray,
        designs: list[Design],
        new: dict[tuple[str, str, int], int],
    ) -> None:
        """Score unknown designs on few images, and on more as long as they could enter the front.

        The front is that before them, so that a decision depends on no other design of theirs.
        """
        ceilings = self._ceilings.of(*self.cut_costs(batch))
        going_on = dict(new)
        for images in self.halving.images:
            first = {(name, split, images): row for (name, split, _), row in going_on.items()}
            unknown = {key: row for key, row in first.items() if key not in self.evaluations}
            if unknown:
                self._evaluate_new(batch, X, designs, unknown)
            for (name, split, count), row in list(going_on.items()):
                evaluation = self.evaluations[name, split, images]
                if self.halving.stops(evaluation.score, ceilings[row], count):
                    self.evaluations[name, split, count] = evaluation
                    del going_on[name, split, count]
        if going_on:
            self._evaluate_new(batch, X, designs, going_on)
            self._lower_ceilings([self.evaluations[key] for key in going_on])

    def _lower_ceilings(self, scored: list[Evaluation]) -> None:
        """Take note of designs scored on all images, for later designs to be better than."""
        feasible = zip(scored, self.feasible(scored), strict=True)
        F = self.objective_values([e for e, ok in feasible if ok and not e.failed])
        error = self.objectives.index("error")
        self._ceilings.add(F[:, error], np.delete(F, error, axis=1))

    def _evaluate_new(
        self,
        batch: DesignBatch,
        X: NDArray,
        designs: list[Design],
        new: dict[tuple[str, str, int], int],
    ) -> None:
        costs = evaluation_costs(self.costs(batch))
        (split, count) = next((key[1], key[2]) for key in new)
        refusals = self.chain.refusals(batch)
        refused = {
            key: Score(None, count, refusals[row]) for key, row in new.items() if refusals[row]
        }
        first = self.next_index
        self.next_index += len(new)
        indices = {key: first + position for position, key in enumerate(new)}
        found: dict[tuple[str, str, int], Evaluation] = {}
        try:
            for key, score, computed in self._scores(designs, new, split, count, refused):
                row = new[key]
                found[key] = evaluation = Evaluation(
                    index=indices[key],
                    genome=tuple(int(gene) for gene in X[row]),
                    design=designs[row],
                    split=split,
                    score=score,
                    kept_channels=tuple(batch.kept_channels[row].tolist()),
                    costs=costs[row],
                    refused=key in refused,
                )
                if self.on_evaluation is not None:
                    self.on_evaluation(evaluation, computed)
        finally:  # in the order of the genomes, in whatever order the scores came
            for key in new:
                if key in found:
                    self.evaluations[key] = found[key]

    def _scores(
        self,
        designs: list[Design],
        new: dict[tuple[str, str, int], int],
        split: str,
        count: int,
        refused: dict[tuple[str, str, int], Score],
    ) -> Iterator[tuple[tuple[str, str, int], Score, bool]]:
        """Yield refusals and known scores, then others as the evaluator has them.

        With each comes whether it is new, rather than remembered.
        """
        unknown = []
        for key in new:
            remembered = self._remembered_score(key)
            score = refused.get(key) or remembered
            if score is None:
                unknown.append(key)
            else:
                yield key, score, remembered is None
        candidates = [designs[new[key]] for key in unknown]
        for position, score in score_each(self.evaluator, candidates, split, count):
            yield unknown[position], score, True

    def _remembered_score(self, key: tuple[str, str, int]) -> Score | None:
        found = (scores.get(key) for scores in reversed(self._remembered))
        return next((score for score in found if score is not None), None)

    def close(self) -> None:
        """End the workers of the evaluator, if it was used and has any."""
        close = getattr(self.__dict__.get("evaluator"), "close", None)
        if close is not None:
            close()

    def remember(self, scores: Mapping[tuple[str, str, int], Score]) -> None:
        """Look up scores of an earlier run, by (phenotype key, split, images), before computing.

        A remembered design is not computed again when it is asked for; it still counts as one of
        the evaluations of this run.
        """
        self._remembered.append(scores)

    def costs(self, batch: DesignBatch) -> dict[str, NDArray]:
        """Return every metric but the error of a decoded population, and the parts of a chain."""
        costs: Costs = self.chain.evaluate(batch)
        architecture = self.space.architecture
        varying = {} if costs.latency_p95_ms is None else {"latency_p95_ms": costs.latency_p95_ms}
        return {
            "latency_ms": costs.latency_ms,
            "device_ms": costs.device_ms,
            "link_ms": costs.link_ms,
            "server_ms": costs.server_ms,
            "payload_bytes": costs.payload_bytes,
            "energy_mj": costs.energy_mj,
            "macs": architecture.macs(batch.ops),
            "params": architecture.params(batch.ops),
            **varying,
            "node_ms": costs.node_ms,
            "links_ms": costs.links_ms,
        }

    def cut_costs(self, batch: DesignBatch) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return what is known of a decoded population without scoring it.

        Args:
            batch: P designs.

        Returns:
            The objectives but the error, `[P, m]`, and the sum of the relative violations of the
            limits but that of the error, `[P]`.
        """
        costs = self.costs(batch)
        objectives = [costs[name] for name in self.objectives if name != "error"]
        violations = [
            np.maximum(costs[name] / limit - 1, 0)
            for name, limit in self.limits.items()
            if name != "error"
        ]
        F = np.column_stack(objectives).astype(float)
        overloaded = np.where(np.isfinite(F).all(axis=1), 0.0, np.inf)
        return F, np.sum([overloaded, *violations], axis=0)

    def objective_values(self, evaluations: Sequence[Evaluation]) -> NDArray[np.float64]:
        """Return F, `[n, objectives]`."""
        rows = [[e.metric(name) for name in self.objectives] for e in evaluations]
        return np.array(rows, dtype=float).reshape(len(rows), self.n_obj)

    def limit_violations(self, evaluations: Sequence[Evaluation]) -> NDArray[np.float64]:
        """Return G, `[n, n_ieq_constr]`: relative excess over each limit, feasible where <= 0.

        Where a node may refuse a network the last column is 1 for designs without a score.
        """
        rows = [
            [e.metric(name) / limit - 1 for name, limit in self.limits.items()]
            + [1.0 if e.failed else -1.0] * self.chain.may_refuse
            for e in evaluations
        ]
        return np.array(rows, dtype=float).reshape(len(rows), self.n_ieq_constr)

    def feasible(self, evaluations: Sequence[Evaluation]) -> NDArray[np.bool_]:
        """Return which evaluations meet every limit."""
        return np.all(self.limit_violations(evaluations) <= 0, axis=1)

    def _evaluate(self, X: NDArray, out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Fill F and G for pymoo.

        Raises:
            UserError: If a row is no genome, or the evaluation of a design failed.
        """
        evaluations = [e for e in self.assess(X) if e is not None]
        refusals = self.chain.refusals(self.space.decode_batch(X))
        out["F"] = self.objective_values(evaluations)
        for row, (evaluation, refused) in enumerate(zip(evaluations, refusals, strict=True)):
            if evaluation.failed and not refused:
                raise UserError(
                    f"The evaluation of {evaluation.design.key} failed: {evaluation.score.message}"
                )
            if refused:
                out["F"][row] = [self.reference_point[name] for name in self.objectives]
        if self.n_ieq_constr:
            out["G"] = np.nan_to_num(self.limit_violations(evaluations), nan=1.0)
        if not np.isfinite(out["F"]).all():
            raise UserError("An objective is not finite; check the cost tables.")

    def decode(self, x: NDArray) -> dict[str, Any]:
        """Return architecture, cut, mask, bits and every metric of one genome `[n_var]`."""
        (evaluation,) = self.assess(np.asarray(x)[None])
        assert evaluation is not None
        return describe_evaluation(evaluation)

    @cached_property
    def reference_point(self) -> dict[str, float]:
        """The worst value of each objective, fixed before any evaluation.

        The error of guessing; a limit where there is one; else the largest value of the space
        with everything on the device, or for what a link carries the largest over the cuts.
        """
        worst = self._worst_costs()
        worst["error"] = 1 - 1 / self.space.architecture.n_classes
        point = {name: self.limits.get(name, worst[name]) for name in self.objectives}
        for name, value in point.items():
            if not value > 0:
                raise UserError(
                    f"No design of the space has a {name} above 0, so that there is nothing to "
                    "minimise; check the cost tables."
                )
        return point

    def _worst_costs(self) -> dict[str, float]:
        space, n = self.space, self.space.architecture.n_blocks
        sizes = [len(ops) for ops in space.architecture.gene_ops]
        everything = space.architecture.architectures
        rows = everything if len(everything) else one_gene_changed(sizes)

        def largest(values: NDArray) -> float:
            return float(values.max() if len(everything) else largest_sum(values, sizes))

        local = self.costs(all_local_batch(space, rows))
        worst = {
            name: largest(local[name])
            for name in ("latency_ms", "device_ms", "energy_mj", "macs", "params")
        }
        worst["latency_p95_ms"] = worst["latency_ms"]
        worst["server_ms"] = self._worst_server_ms(rows, largest, worst["latency_ms"])
        split = space.cut_vectors[space.cut_choices[space.cut_vectors[:, 0]] < n]
        sent = self.costs(self._full_batch(split if len(split) else space.cut_vectors))
        for name in ("payload_bytes", "link_ms"):
            worst[name] = float(sent[name].max()) or 1.0
        return worst

    def _worst_server_ms(
        self, rows: NDArray, largest: Callable[[NDArray], float], unbounded: float
    ) -> float:
        """Return the largest time of a server; `unbounded` where its queue may grow for ever."""
        worst = 0.0
        idle = self.chain.without_queues()
        servers = [node for node in self.chain.nodes if node.role == SERVER]
        for node, (_, cuts) in zip(servers, self.chain.remote_cuts(), strict=True):
            service_ms = largest(idle.evaluate(unmasked_batch(self.space, rows, cuts)).server_ms)
            waiting_ms = 0.0 if node.queue is None else float(node.queue.waiting_ms(service_ms))
            total = service_ms + waiting_ms
            worst = max(worst, total if math.isfinite(total) else unbounded)
        return worst

    def _full_batch(self, cuts: NDArray) -> DesignBatch:
        """Return designs that send every channel with the most bits at each of the cut genes."""
        X = np.tile(self.space.xu, (len(cuts), 1))
        X[:, self.space.cut_genes] = cuts
        return self.space.decode_batch(X)

    def notes(self) -> list[str]:
        """Return what a reader of the results must know, in sentences."""
        return self.chain.notes()

    def fastest_design(self) -> Design | None:
        """Return the design of the lowest latency in the space, if the problem knows it exactly."""
        return None

    def out_of_reach(self) -> str | None:
        """Return why no design meets the latency limits; None if one does, or none is known."""
        # 95 % of the inferences take no less than one at the median rates
        limits = [self.limits[name] for name in ("latency_ms", *VARYING) if name in self.limits]
        limit = min(limits, default=None)
        fastest = self.fastest_design()
        if limit is None or fastest is None:
            return None
        batch = self.space.decode_batch(self.space.encode(fastest)[None])
        lowest = float(self.costs(batch)["latency_ms"][0])
        if lowest <= limit:
            return None
        return (
            f"even the fastest design of the space takes {lowest:.4g} ms, the limit is {limit:g} ms"
        )

    def describe(self) -> dict[str, Any]:
        """Return what defines the problem: a run is resumed only with an equal description."""
        return {
            "space": self.space.describe(),
            "nodes": [
                {
                    "name": node.name,
                    "role": node.role,
                    "table_sha256": node.table.sha256,
                    "totals_sha256": node.table.totals and node.table.totals.sha256,
                    "idle_mw": node.idle_mw,
                    "arrival_per_s": node.queue and node.queue.arrival_per_s,
                    "service_ms": node.queue and node.queue.service_ms,
                }
                for node in self.chain.nodes
            ],
            "links": [link.describe() for link in self.chain.links],
            "image_bytes": self.chain.image_bytes,
            "result_bytes": self.chain.result_bytes,
            "objectives": list(self.objectives),
            "limits": dict(self.limits),
            "evaluator": self.evaluator.describe(),
            **({"halving": self.halving.describe()} if self.halving.images else {}),
        }


def evaluation_costs(costs: Mapping[str, NDArray]) -> list[dict[str, Any]]:
    """Return the costs of each design of a population as plain values; None where not finite."""
    columns = []
    for array in costs.values():
        values = array.tolist()
        if not np.isfinite(array).all():
            values = [_finite(value) for value in values]
        columns.append(values)
    return [dict(zip(costs, row, strict=True)) for row in zip(*columns, strict=True)]


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return value if math.isfinite(value) else None


def one_gene_changed(sizes: Sequence[int]) -> NDArray[np.int64]:
    """Return the architecture of zeros, then it with each gene set to each of its values."""
    rows = [np.zeros(len(sizes), dtype=np.int64)]
    for gene, size in enumerate(sizes):
        for op in range(size):
            rows.append(rows[0].copy())
            rows[-1][gene] = op
    return np.array(rows)


def largest_sum(values: NDArray, sizes: Sequence[int]) -> float:
    """Return the maximum over all architectures of an additive figure.

    Args:
        values: The figure for the rows of :func:`one_gene_changed`.
        sizes: Number of values of each gene.
    """
    parts = np.split(values[1:], np.cumsum(sizes)[:-1])
    return float(values[0]) + sum(float(part.max() - values[0]) for part in parts)


def all_local_batch(space: SplitSpace, ops: NDArray) -> DesignBatch:
    """Return architectures `[P, n_genes]` as designs that run on the first node alone."""
    return unmasked_batch(space, ops, space.architecture.n_blocks)


def unmasked_batch(space: SplitSpace, ops: NDArray, cuts: int | Sequence[int]) -> DesignBatch:
    """Return architectures cut at 0 (raw offload) or n (all local), where nothing is masked.

    Args:
        space: Their space.
        ops: Architectures, `[P, n_genes]`.
        cuts: One of the two for every link, or for each.
    """
    n, k = len(ops), space.n_links
    zeros = np.zeros((n, k), dtype=np.int64)
    return DesignBatch(
        ops=np.asarray(ops, dtype=np.int64),
        cuts=zeros + np.asarray(cuts),
        masks=np.zeros((n, k, space.max_groups), dtype=bool),
        kept_channels=zeros,
        n_groups=zeros,
        bits=zeros,
    )


def describe_evaluation(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation as plain values, by the names of the output files."""
    design = evaluation.design
    return {
        "arch": design.arch,
        "cut": joined(design.cuts),
        "mask": joined(design.masks),
        "bits": joined(design.bits),
        "kept_channels": joined(evaluation.kept_channels),
        "split": evaluation.split,
        "correct": evaluation.score.correct,
        "images": evaluation.score.images,
        "error": None if evaluation.failed else evaluation.score.error,
        "error_se": None if evaluation.failed else evaluation.score.standard_error,
        **evaluation.costs,
    }


def joined(values: Sequence[Any]) -> Any:
    """Return the one value of a two-node chain, or those of a longer one joined by `/`."""
    return values[0] if len(values) == 1 else "/".join(map(str, values))
