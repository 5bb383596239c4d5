"""Start of a search from what an earlier run has scored, on another device, link or limit."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nasc_evo.errors import UserError
from nasc_evo.problem import SplitProblem
from nasc_evo.search.folder import FORMAT, JOURNAL, MANIFEST, first_difference, read_document
from nasc_evo.search.indicators import non_dominated, spread_subset
from nasc_evo.search.journal import Records, ScoreKey
from nasc_evo.search.operators import BestCuts
from nasc_evo.space import Design, SplitSpace
from nasc_evo.supernet.score import Score

SAME_SPACE = ("architecture", "geometry", "n_classes", "mask_groups", "merge_equal_networks")
"""What must be equal of two spaces for the accuracy of a design to be the same."""
MAX_FIRST = 20
"""Designs of the earlier front that evolutionary algorithms begin with."""


@dataclass(frozen=True)
class WarmStart:
    """What transfers from an earlier run.

    Attributes:
        X: Genomes of the designs, `[n, n_var]`.
        scores: Their scores, for :meth:`nasc_evo.problem.SplitProblem.remember`.
        sha256: Identity of what transfers.
    """

    X: NDArray[np.int64]
    scores: dict[ScoreKey, Score]
    sha256: str

    def apply(self, problem: SplitProblem) -> list[Design]:
        """Make the problem know the designs; return some that are good under its costs.

        Accuracies are those of the earlier run, costs are computed anew.
        """
        if not len(self.X):
            return []
        problem.remember(self.scores)
        found = [e for e in problem.assess(self.X, halved=False) if e is not None]
        front = non_dominated(problem, found)
        F = problem.objective_values(front)
        return [front[i].design for i in spread_subset(F, MAX_FIRST)] if front else []


def read_warm_start(path: Path | str, problem: SplitProblem) -> WarmStart:
    """Return what transfers to a problem from the folder of an earlier run.

    Where nothing is lost on a link, an accuracy is that of the architecture, and every one is
    placed at its best cut under the new costs; else the accuracy belongs to the very design, and
    designs outside the new space are left out.

    Raises:
        UserError: If the folder is no run or damaged, or its accuracies are of other weights,
            images or numerics, or of another space.
    """
    path = Path(path)
    manifest = read_document(path / MANIFEST, "manifest", FORMAT)
    try:
        earlier = manifest["identity"]["problem"]
        old = {"evaluator": earlier["evaluator"], "space": earlier["space"]}
        old["space"] = {name: old["space"][name] for name in SAME_SPACE}
        n_links = earlier["space"]["n_links"]
    except (KeyError, TypeError) as error:
        raise UserError(f"The manifest {path / MANIFEST} is damaged (no problem).") from error
    described = problem.describe()
    new = {
        "evaluator": described["evaluator"],
        "space": {name: described["space"][name] for name in SAME_SPACE},
    }
    difference = first_difference(old, new)
    if difference is not None:
        key, before, now = difference
        raise UserError(
            f"warm_start={path}: its {key} is {before!r}, this run has {now!r}; accuracies "
            "transfer only between equal weights, images, numerics and spaces."
        )
    space, images = problem.space, problem.evaluator.images
    if n_links != space.n_links and not problem.lossless:
        raise UserError(
            f"warm_start={path}: its chain has {n_links} links, this run's has {space.n_links}; "
            "accuracies transfer only between chains of equally many."
        )
    rows, scores = [], []
    for (key, split, count), score in Records(path / JOURNAL).scores.items():
        if split == "search" and count == images:
            x = _genome(space, key, problem.lossless)
            if x is not None:
                rows.append(x)
                scores.append(score)
    X = np.array(rows, dtype=np.int64).reshape(-1, space.n_var)
    if problem.lossless and len(X):
        X = BestCuts(space, problem.cut_costs, 1.0)(X, np.random.default_rng(0))
    keys = [design.key for design in space.designs(space.decode_batch(X))] if len(X) else []
    known = {(key, "search", images): s for key, s in zip(keys, scores, strict=True)}
    lines = sorted(f"{key[0]} {score.correct}" for key, score in known.items())
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return WarmStart(X, known, digest)


def _genome(space: SplitSpace, key: str, any_cut: bool) -> NDArray[np.int64] | None:
    """Return a genome of the phenotype of a key, None if it is none of this space.

    Args:
        space: The space.
        key: See :attr:`nasc_evo.space.Design.key`.
        any_cut: Whether the cut may be another one.
    """
    try:
        arch, *parts = key.split(";")
        cuts, masks, bits = (part.split("/") for part in parts)
        ops = tuple(int(op) for op in space.architecture.parse(arch))
        if any_cut:
            n, links = space.architecture.n_blocks, space.n_links
            design = Design(arch, ops, (n,) * links, ("",) * links, (0,) * links)
        else:
            whole = tuple(int(cut) for cut in cuts), tuple(int(width) for width in bits)
            design = Design(arch, ops, whole[0], tuple(masks), whole[1])
        return np.asarray(space.encode(design), dtype=np.int64)
    except (UserError, ValueError, IndexError):
        return None
