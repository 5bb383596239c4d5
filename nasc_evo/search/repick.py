"""Another front out of a finished run: its designs under other costs, without a new search.

The accuracy of a design depends on its architecture, cuts, masks and bits, not on links, machines
or limits. So every design that a run evaluated has a place under other costs at once. Where nothing
is lost on a link - everything is local, the stored image is sent, or all channels at 32 bits - the
accuracy does not depend on the cut either, so that from one such design those at all other cuts
follow. Any other change of cut, mask or bits is a new design with an accuracy that nobody knows:
promising ones are offered and can be evaluated.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import moocore
import numpy as np
from numpy.typing import NDArray

from nasc_evo.cost import Chain
from nasc_evo.errors import UserError, brief, one_line
from nasc_evo.problem import VARYING, Evaluation, SplitProblem, evaluation_costs
from nasc_evo.search.final import FinalResult, reference_designs, result_of
from nasc_evo.search.folder import FORMAT, JOURNAL, MANIFEST, first_difference, read_document
from nasc_evo.search.indicators import hypervolume, least_infeasible, non_dominated
from nasc_evo.search.journal import Line, ScoreKey, read_journal
from nasc_evo.space import Design, SplitSpace
from nasc_evo.space.genome import BITS, DesignBatch
from nasc_evo.supernet.score import Score

LOSSLESS_BITS = max(BITS)
Points = Callable[[DesignBatch, NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.bool_]]]
"""Of P designs and their errors: points `[P, m]`, and which of them may count."""
MAX_OFFERS = 300_000
"""Unevaluated designs that are looked at; beyond it those of the best networks."""


@dataclass(frozen=True, eq=False)
class RecordedRun:
    """What a run left: its configuration, and the scores of its journal.

    Attributes:
        path: Its folder.
        config: Its configuration, resolved.
        problem: The description of its problem, which includes space and evaluator.
        lines: Its journal, and of what was evaluated after it.
        own: Index of the first evaluation after it.
    """

    path: Path
    config: dict[str, Any]
    problem: dict[str, Any]
    lines: list[Line]
    own: int

    @classmethod
    def read(cls, path: Path, later: Path | None = None) -> "RecordedRun":
        """Read the folder of a run.

        Args:
            path: The folder.
            later: A further journal, of what was evaluated after the run; it need not exist.

        Raises:
            UserError: If it holds no run, or a file of it is damaged.
        """
        if not (path / MANIFEST).is_file() or not (path / JOURNAL).is_file():
            raise UserError(f"run={path} is no folder of a run: it has no {MANIFEST} or {JOURNAL}.")
        manifest = read_document(path / MANIFEST, "manifest", FORMAT)
        try:
            config, problem = manifest["config"], manifest["identity"]["problem"]
            parts = (config, config["problem"], problem, problem["space"], problem["evaluator"])
            if not all(isinstance(part, dict) for part in parts):
                raise TypeError("a part is no mapping")
            images = problem["evaluator"]["images"]
            if type(images) is not int or images < 1:
                raise TypeError("the number of images is no whole number")
        except (KeyError, TypeError) as error:
            raise UserError(
                f"The manifest {path / MANIFEST} is damaged ({one_line(error)})."
            ) from error
        lines = list(read_journal(path / JOURNAL))
        own = 1 + max((_index(line) for line in lines), default=-1)
        if later is not None and later.is_file():
            lines += read_journal(later)
        return cls(path, config, problem, lines, own)

    @property
    def images(self) -> int:
        """How many images of the search split scored the designs of the search."""
        return self.problem["evaluator"]["images"]

    @cached_property
    def searched(self) -> set[str]:
        """Keys of the designs that were scored as those of the search."""
        return {line.key[0] for line in self.lines if line.key[1:] == ("search", self.images)}

    def check_space(self, problem: SplitProblem) -> None:
        """Raise a UserError unless the designs of the run are designs of a problem."""
        difference = first_difference(self.problem["space"], problem.space.describe())
        if difference is not None:
            key, before, now = difference
            raise UserError(
                f"The designs of {self.path} are of another space: its {key} was {before!r}, now "
                f"it is {now!r}; search it with `python -m nasc_evo.run`."
            )


class RecordedEvaluator:
    """Stands in for the evaluator of a run: says what it was, knows its scores, computes none.

    Args:
        described: Its description.
    """

    def __init__(self, described: dict[str, Any]) -> None:
        self.described = described
        self.images: int = described["images"]
        self.knows_whole_networks_only = "accuracies" in described

    def evaluate(
        self, designs: Sequence[Design], split: str = "search", images: int | None = None
    ) -> Iterable[tuple[int, Score]]:
        """Yield a failure for each design, as :class:`Evaluator` says."""
        count = images or self.images
        for index in range(len(designs)):
            yield index, Score(None, count, "this design was not evaluated")

    def split_size(self, split: str) -> int:
        """Return the number of images that a search uses, all that is known here."""
        return self.images

    def describe(self) -> dict[str, Any]:
        """Return what fixed the numbers of the run."""
        return self.described


@dataclass(frozen=True, eq=False)
class Offer:
    """A design that nobody has evaluated and that would be on the front if its error held.

    Attributes:
        design: The design.
        parent: The evaluated design with other cuts from which it comes.
        error: The error of the parent, a guess for this one.
        latency_ms: Its latency.
    """

    design: Design
    parent: int
    error: float
    latency_ms: float


class Recorded(NamedTuple):
    """The designs that a run scored during its search.

    Attributes:
        batch: All of them, decoded.
        indices: Their running numbers.
        genomes: A genome of each.
        designs: The phenotypes.
        scores: Their scores.
    """

    batch: DesignBatch
    indices: list[int]
    genomes: list[tuple[int, ...]]
    designs: list[Design]
    scores: list[Score]

    @classmethod
    def of(cls, run: RecordedRun, space: SplitSpace) -> "Recorded":
        """Return the designs of a run.

        Raises:
            UserError: If there is none, or one is no design of the space.
        """
        lines = [line for line in run.lines if line.key[1:] == ("search", run.images)]
        if not lines:
            raise UserError(f"The journal of {run.path} has no evaluation of its search.")
        archs: dict[str, tuple[int, ...]] = {}
        designs = [_design(space, line, archs, run.path) for line in lines]
        return cls(
            space.batch(designs),
            [_index(line) for line in lines],
            _genomes(space, lines, run.path),
            designs,
            [line.score for line in lines],
        )


class Repick:
    """The designs of a run under the costs of a problem.

    Args:
        run: The run.
        problem: Its space with any chain, limits and objectives.
        recorded: The designs, where they were read before.
        derives: Whether designs follow from those recorded, see :attr:`derived`.

    Attributes:
        evaluations: All that the run scored during its search, with their new costs.
        next_index: The first running number that no evaluation has.

    Raises:
        UserError: If the space is another one, or a design of the journal is none of it.
    """

    def __init__(
        self,
        run: RecordedRun,
        problem: SplitProblem,
        recorded: Recorded | None = None,
        *,
        derives: bool = True,
    ) -> None:
        run.check_space(problem)
        self.run = run
        self.problem = problem
        self.recorded = Recorded.of(run, problem.space) if recorded is None else recorded
        self._derives = derives
        self.next_index = 1 + max(_index(line) for line in run.lines)
        self.evaluations = self._costed(*self.recorded)

    def _costed(
        self,
        batch: DesignBatch,
        indices: Sequence[int],
        genomes: Sequence[tuple[int, ...]],
        designs: Sequence[Design],
        scores: Sequence[Score],
    ) -> list[Evaluation]:
        """Return scored designs with their costs; one that a node refuses has failed."""
        reasons = self.problem.chain.refusals(batch)
        kept = batch.kept_channels.tolist()
        costs = evaluation_costs(self.problem.costs(batch))
        return [
            Evaluation(
                index=indices[i],
                genome=genomes[i],
                design=designs[i],
                split="search",
                score=replace(score, correct=None, message=reasons[i]) if reasons[i] else score,
                kept_channels=tuple(kept[i]),
                costs=costs[i],
                refused=bool(reasons[i]),
            )
            for i, score in enumerate(scores)
        ]

    def with_chain(self, chain: Chain) -> "Repick":
        """Return the same designs on another chain of as many nodes."""
        problem = self.problem
        other = SplitProblem(
            problem.space,
            chain,
            problem.evaluator,
            objectives=problem.objectives,
            limits=problem.limits,
            lossless=problem.lossless,
        )
        return Repick(self.run, other, self.recorded, derives=self._derives)

    @cached_property
    def lossless_scores(self) -> dict[tuple[int, ...], tuple[Evaluation, Score]]:
        """For architectures whose accuracy without loss on links is known: the evaluation, it."""
        known: dict[tuple[int, ...], tuple[Evaluation, Score]] = {}
        for evaluation, score in zip(self.evaluations, self.recorded.scores, strict=True):
            lossless = self.problem.lossless or _is_lossless(evaluation.design)
            if lossless and score.correct is not None:
                known.setdefault(evaluation.design.ops, (evaluation, score))
        return known

    @cached_property
    def derived(self) -> list[Evaluation]:
        """Designs whose accuracy follows from another cut of their network, as far as they count.

        They are not dominated among themselves; indices go on where those of the run end.
        """
        return self._costed(*self._derive(self._objectives)) if self._derives else []

    def _derive(self, points: Points) -> Recorded:
        """Return the designs that follow from others and whose points no other such one dominates.

        Args:
            points: Gives points `[P, m]` of designs with known errors, and which may count.
        """
        space, known = self.problem.space, self.lossless_scores
        bits = space.bits[-1] if self.problem.lossless else LOSSLESS_BITS
        ops = np.array(list(known), dtype=np.int64).reshape(len(known), space.n_arch)
        errors = np.array([score.error for _, score in known.values()])
        rows, cuts = np.empty(0, np.int64), np.empty((0, space.n_links), np.int64)
        F = np.empty((0, 0))
        for vector in space.cut_choices[space.cut_vectors] if known else []:
            at = np.tile(vector, (len(ops), 1))
            new, allowed = points(_unmasked(space, ops, at, bits), errors)
            chosen = np.flatnonzero(allowed)
            chosen = chosen[moocore.is_nondominated(new[chosen], keep_weakly=False)]
            F = np.concatenate([F.reshape(len(F), new.shape[1]), new[chosen]])
            rows, cuts = np.concatenate([rows, chosen]), np.concatenate([cuts, at[chosen]])
            best = moocore.is_nondominated(F, keep_weakly=False)
            F, rows, cuts = F[best], rows[best], cuts[best]
        evaluated = self.run.searched
        designs = space.designs(_unmasked(space, ops[rows], cuts, bits))
        unknown = [i for i, design in enumerate(designs) if design.key not in evaluated]
        designs = [designs[i] for i in unknown]
        return Recorded(
            _unmasked(space, ops[rows[unknown]], cuts[unknown], bits),
            list(range(self.next_index, self.next_index + len(unknown))),
            [()] * len(unknown),
            designs,
            [known[design.ops][1] for design in designs],
        )

    def over_any_links(self) -> "Repick":
        """Return the designs that can be on a front of error and latency over any links at all.

        Others have a design beside them with no more error, computing time and payload on any link.
        Where objectives or limits are on other metrics, all designs are returned.
        """
        problem = self.problem
        if not {*problem.objectives, *problem.limits} <= {"error", "latency_ms", *VARYING}:
            return self
        batch, errors = self.recorded.batch, [score.error for score in self.recorded.scores]
        F, allowed = self._link_free(batch, np.array(errors))
        rows = np.flatnonzero(allowed)
        rows = rows[moocore.is_nondominated(F[rows], keep_weakly=False)]
        of, more = self.recorded, self._derive(self._link_free)
        designs = [of.designs[row] for row in rows] + more.designs
        joined = Recorded(
            problem.space.batch(designs),
            [of.indices[row] for row in rows] + more.indices,
            [of.genomes[row] for row in rows] + more.genomes,
            designs,
            [of.scores[row] for row in rows] + more.scores,
        )
        return Repick(self.run, problem, joined, derives=False)

    def _link_free(
        self, batch: DesignBatch, errors: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return error, computing time and payloads of designs, and which can be computed."""
        node_ms = self.problem.costs(batch)["node_ms"].sum(axis=1)
        F = np.column_stack([errors, node_ms, self.problem.chain.payloads(batch)])
        return F, np.isfinite(F).all(axis=1)

    def _objectives(
        self, batch: DesignBatch, errors: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return objectives `[P, m]` of designs with given errors, and which are feasible."""
        problem = self.problem
        metrics = {**problem.costs(batch), "error": errors}
        F = np.column_stack([metrics[name] for name in problem.objectives]).astype(float)
        allowed = np.isfinite(F).all(axis=1)
        for name, limit in problem.limits.items():
            allowed &= metrics[name] <= limit
        if problem.chain.may_refuse:
            allowed &= [not reason for reason in problem.chain.refusals(batch)]
        return F, allowed

    def front(self) -> list[Evaluation]:
        """Return the front of all designs whose accuracy is known, sorted by latency."""
        return non_dominated(self.problem, [*self.evaluations, *self.derived])

    def other_tables(self) -> list[str]:
        """Return the nodes of the run whose cost tables have other figures now."""
        had = self.run.problem.get("nodes")
        pairs = zip(had if isinstance(had, list) else [], self.problem.chain.nodes, strict=False)
        return [
            node.name
            for before, node in pairs
            if isinstance(before, dict)
            and before.get("name") == node.name
            and before.get("table_sha256") != node.table.sha256
        ]

    def origins(self, front: Iterable[Evaluation]) -> dict[int, str]:
        """Return for each design of a front, by index, where its accuracy comes from."""
        derived = {e.index for e in self.derived}
        said = {}
        for e in front:
            if e.index in derived:
                source = self.lossless_scores[e.design.ops][0]
                said[e.index] = f"that of design {source.index}, nothing is lost on a link"
            elif e.index < self.run.own:
                said[e.index] = "evaluated by the run"
            else:
                said[e.index] = "evaluated after it"
        return said

    def result(self, front: Sequence[Evaluation], references: bool = True) -> FinalResult:
        """Return a front as the result that a run would report, at the fidelity of its search.

        Args:
            front: Of :meth:`front`.
            references: Whether to add all local and raw offload, as far as their accuracy is known.
        """
        problem, images = self.problem, self.run.images
        if not front:
            nearest = least_infeasible(problem, [*self.evaluations, *self.derived])
            return FinalResult([], 0, [], 0.0, None, "no design meets the limits", nearest, False)
        tests: dict[str, Evaluation] = {}
        scores = {line.key[0]: line.score for line in self.run.lines if line.key[1] == "test"}
        for e in front:
            if e.design.key in scores and scores[e.design.key].correct is not None:
                tests[e.design.key] = replace(e, split="test", score=scores[e.design.key])
        beside = []
        if references and any(not e.failed for e in self.evaluations):
            local = (problem.space.architecture.n_blocks,) * problem.space.n_links
            empty, none = ("",) * len(local), (0,) * len(local)
            problem.remember(
                {
                    (Design(e.design.arch, ops, local, empty, none).key, "search", images): score
                    for ops, (e, score) in self.lossless_scores.items()
                }
            )
            beside = reference_designs(problem, self.evaluations, front)
        ids = {e.design.key: e.index for e in front}
        return result_of(problem, list(front), ids, tests, beside, rescored=False)

    def offers(self, front: Sequence[Evaluation], count: int) -> list[Offer]:
        """Return designs that would enlarge the front most if another cut left the error as it is.

        Every evaluated design is moved to every other cut, with its mask and bits. The one that
        adds most hypervolume is taken first, then the one that adds most to both, and so on.

        Args:
            front: Of :meth:`front`.
            count: How many at most.
        """
        problem, space = self.problem, self.problem.space
        scored = np.flatnonzero([not e.failed for e in self.evaluations])
        if problem.lossless or not len(scored) or count < 1:
            return []
        vectors = space.cut_choices[space.cut_vectors]
        scored = scored[: self._best_networks(scored, MAX_OFFERS // len(vectors))]
        errors = np.array([e.score.error for e in self.evaluations])[scored]
        masks, bits = _filled(space, self.recorded.batch, scored)
        parents, cuts, points = [], [], []
        for vector in vectors:
            at = np.tile(vector, (len(scored), 1))
            batch = space.assemble_batch(self.recorded.batch.ops[scored], at, masks, bits)
            F, allowed = self._objectives(batch, errors)
            chosen = np.flatnonzero(allowed)
            chosen = chosen[moocore.is_nondominated(F[chosen], keep_weakly=False)]
            parents.append(chosen)
            cuts.append(at[chosen])
            points.append(F[chosen])
        F, rows, at = np.concatenate(points), np.concatenate(parents), np.concatenate(cuts)
        reference = np.array([problem.reference_point[name] for name in problem.objectives])
        known = problem.objective_values(front)
        mask = moocore.is_nondominated(np.concatenate([known, F]), keep_weakly=False)[len(known) :]
        F, rows, at = F[mask], rows[mask], at[mask]
        batch = space.assemble_batch(
            self.recorded.batch.ops[scored][rows], at, masks[rows], bits[rows]
        )
        latency_ms = problem.costs(batch)["latency_ms"]
        designs = _relaid(space.designs(batch))
        evaluated = self.run.searched | {e.design.key for e in self.derived}
        left = [i for i, design in enumerate(designs) if design.key not in evaluated]
        offers: list[Offer] = []
        while left and len(offers) < count:
            gains = [hypervolume(np.concatenate([known, F[i : i + 1]]), reference) for i in left]
            best = left.pop(int(np.argmax(gains)))
            known = np.concatenate([known, F[best : best + 1]])
            parent = self.evaluations[scored[rows[best]]]
            offers.append(
                Offer(designs[best], parent.index, parent.score.error, float(latency_ms[best]))
            )
        return offers

    def _best_networks(self, scored: NDArray[np.int64], count: int) -> int:
        """Bring the best networks by error and arithmetic to the front; return how many to take."""
        if len(scored) > count:
            of = [
                (self.evaluations[i].score.error, self.evaluations[i].costs["macs"]) for i in scored
            ]
            scored[:] = scored[np.argsort(moocore.pareto_rank(np.array(of, float)), kind="stable")]
        return count


def scores_of(lines: Iterable[Line]) -> dict[ScoreKey, Score]:
    """Return the scores of a journal but its failures."""
    return {line.key: line.score for line in lines if line.score.correct is not None}


def _index(line: Line) -> int:
    index = line.record.get("index")
    return index if type(index) is int and 0 <= index < 2**53 else 0


def _genomes(space: SplitSpace, lines: Sequence[Line], path: Path) -> list[tuple[int, ...]]:
    """Return the genomes of journal lines, checked to be genomes of the space."""
    rows = [line.record.get("genome") for line in lines]
    try:
        if not all(isinstance(row, list) and set(map(type, row)) == {int} for row in rows):
            raise ValueError("a genome is a list of whole numbers")
        space.check(np.array(rows))
    except (ValueError, OverflowError) as error:
        raise UserError(f"A genome in the journal of {path} is damaged ({error}).") from error
    return [tuple(row) for row in rows]  # type: ignore[arg-type]


def _design(space: SplitSpace, line: Line, archs: dict[str, tuple[int, ...]], path: Path) -> Design:
    """Return the design of a journal line; `archs` remembers the architectures read before."""
    record = line.record
    try:
        arch, *values = (record[name] for name in ("arch", "cut", "mask", "bits"))
        if ";".join([arch, *map(str, values)]) != line.key[0]:
            raise ValueError("key and design differ")
        if arch not in archs:
            archs[arch] = tuple(space.architecture.parse(arch).tolist())
        cuts, masks, bits = (_parts(space, value) for value in values)
        design = Design(arch, archs[arch], tuple(map(int, cuts)), masks, tuple(map(int, bits)))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        which = f"Design {brief(record.get('index'))} in the journal of {path}"
        raise UserError(f"{which} is damaged ({one_line(error)}).") from error
    return design


def _parts(space: SplitSpace, value: Any) -> tuple[str, ...]:
    """Return the values of the links of a chain, see :func:`nasc_evo.problem.joined`."""
    return tuple(str(value).split("/")) if space.n_links > 1 else (str(value),)


def _is_lossless(design: Design) -> bool:
    return all(
        not mask or ("0" not in mask and bits == LOSSLESS_BITS)
        for mask, bits in zip(design.masks, design.bits, strict=True)
    )


def _unmasked(space: SplitSpace, ops: NDArray, cuts: NDArray, bits: int) -> DesignBatch:
    masks = np.ones((*cuts.shape, space.max_groups), dtype=bool)
    return space.assemble_batch(ops, cuts, masks, np.full(cuts.shape, bits))


def _filled(
    space: SplitSpace, batch: DesignBatch, rows: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return masks and bits of designs for any cut: all channels, most bits where inactive."""
    beyond = np.arange(space.max_groups) >= batch.n_groups[rows][..., None]
    bits = np.where(batch.bits[rows] == 0, space.bits[-1], batch.bits[rows])
    return batch.masks[rows] | beyond, bits


def _relaid(designs: Sequence[Design]) -> list[Design]:
    """Return designs whose relays send what they got, see :mod:`nasc_evo.space.genome`."""
    result = []
    for design in designs:
        masks, bits = list(design.masks), list(design.bits)
        for link in range(1, len(design.cuts)):
            if design.cuts[link] == design.cuts[link - 1]:
                masks[link], bits[link] = masks[link - 1], bits[link - 1]
        result.append(replace(design, masks=tuple(masks), bits=tuple(bits)))
    return result
