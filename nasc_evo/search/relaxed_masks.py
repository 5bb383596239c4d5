"""Gradient-relaxed masks on the supernet, after Lee et al. (2021), re-implemented.

Operations, the cut and the channel groups at each cut are relaxed: operations and cut by Gumbel
softmax with straight-through samples (as in GDAS, Dong and Yang 2019), groups by sigmoids. Adam
minimises the task loss of sampled networks plus `lambda` times the expected end-to-end time, on
training images and frozen weights; `lambda` is swept. What the relaxations settle on is evaluated
like every other design.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nasc_evo.errors import UserError
from nasc_evo.problem import SplitProblem, one_gene_changed
from nasc_evo.search.method import Genomes, Method
from nasc_evo.supernet.blocks import batch_norm_unit
from nasc_evo.supernet.inputs import to_input
from nasc_evo.supernet.transmission import quantize

PASSES = 3
"""A step costs a forward and a backward pass, as much as three forward passes."""
SNAPSHOTS = 4
"""Designs read off the relaxations on the way to the end of each sweep step."""
FIRST_TEMPERATURE, LAST_TEMPERATURE = 2.0, 0.3
LEARNING_RATE = 0.1
SMALLEST_LAMBDA, LARGEST_LAMBDA = 0.05, 20.0
KEEP = 2.0
"""First logit of a channel group: most are sent at the beginning."""


class ExpectedTime:
    """The expected latency of relaxed designs, exact where costs are additive over genes.

    Args:
        problem: Whose costs are taken.
    """

    def __init__(self, problem: SplitProblem) -> None:
        space = problem.space
        sizes = space.sizes[: space.n_arch].tolist()
        rows = one_gene_changed(sizes)
        cuts = np.arange(len(space.cut_choices))
        base, parts, slopes = [], [], []
        for cut in cuts:
            X = np.tile(space.xu, (len(rows) + 1, 1))
            X[:, : space.n_arch] = np.vstack([rows, rows[:1]])
            X[:, space.cut_genes] = cut
            groups = max(int(space.groups_at[space.cut_choices[cut]]), 1)
            if space.n_mask:
                X[-1, space.mask_genes] = 0
                X[-1, space.mask_genes[:, 0]] = 1
            latency = problem.costs(space.decode_batch(X))["latency_ms"]
            base.append(latency[0])
            parts.append(latency[1:-1] - latency[0])
            slopes.append((latency[0] - latency[-1]) / max(groups - 1, 1))
        scale = problem.reference_point.get("latency_ms") or float(np.max(base))
        self.base = torch.tensor(np.array(base) / scale, dtype=torch.float32)
        self.parts = torch.tensor(np.array(parts) / scale, dtype=torch.float32)
        self.slopes = torch.tensor(np.array(slopes) / scale, dtype=torch.float32)

    def __call__(self, ops: Tensor, cuts: Tensor, unsent: Tensor) -> Tensor:
        """Return it in units of the reference latency.

        Args:
            ops: Probabilities of the operations, `[genes, kinds]`.
            cuts: Probabilities of the cuts, `[cuts]`.
            unsent: Expected groups that are not sent at each cut, `[cuts]`.
        """
        at_cut = self.base + self.parts @ ops.flatten() - self.slopes * unsent
        return (cuts * at_cut).sum()


class RelaxedMasks(Method):
    """The search; see the module.

    Args:
        n_eval: The budget in evaluations. A gradient step is paid for by the images that pass
            through a network, in units of what an evaluation scores and calibrates on.
        lambdas: How many weights of the time, spread geometrically.
        batch: Training images a step.

    Raises:
        UserError: Later, at :meth:`setup`, where there is no supernet to differentiate.
    """

    ended = "the budget is spent, most of it on gradient steps"

    def __init__(self, n_eval: int, *, lambdas: int, batch: int) -> None:
        self.n_eval = n_eval
        self.lambdas = np.geomspace(SMALLEST_LAMBDA, LARGEST_LAMBDA, lambdas).tolist()
        self.batch = batch

    def setup(self, problem: SplitProblem, *, termination: Any = None, seed: int) -> None:
        """Begin a search."""
        super().setup(problem, termination=termination, seed=seed)
        self.evaluator = differentiable(problem)
        evaluator = self.evaluator
        self.supernet = evaluator.supernet
        images = evaluator.dataset.split("calibration")
        self.x = to_input(images.x, evaluator.dataset, evaluator.device, torch.float32)
        self.y = torch.from_numpy(images.y).to(evaluator.device)
        share = self.n_eval / len(self.lambdas)
        an_evaluation = evaluator.images + evaluator.calibration_images
        paid = max(share - SNAPSHOTS, 1.0) * an_evaluation / (PASSES * self.batch)
        self.steps = max(int(paid), 1)
        self.time = ExpectedTime(problem)
        self.open = list(self.lambdas)

    def propose(self) -> Genomes:
        """Return what the relaxations settle on for the next weight of the time."""
        if not self.open:
            return np.empty((0, self.problem.space.n_var), dtype=np.int64)
        return self._minimise(self.open.pop(0))

    def _minimise(self, weight: float) -> Genomes:
        space = self.problem.space
        torch.set_num_threads(self.evaluator.threads)
        kinds = int(space.sizes[0])
        n_cuts, groups = len(space.cut_choices), space.max_groups
        ops = torch.zeros(space.n_arch, kinds, requires_grad=True)
        cuts = torch.zeros(n_cuts, requires_grad=True)
        kept = torch.full((n_cuts, groups), KEEP, requires_grad=True)
        at = torch.tensor(space.groups_at[space.cut_choices])
        used = (torch.arange(groups) < at[:, None]).float()
        optimizer = torch.optim.Adam([ops, cuts, kept], lr=LEARNING_RATE)
        found = []
        for step in range(self.steps):
            progress = step / max(self.steps - 1, 1)
            temperature = FIRST_TEMPERATURE * (LAST_TEMPERATURE / FIRST_TEMPERATURE) ** progress
            rows = self.rng.integers(0, len(self.x), self.batch)
            index = torch.from_numpy(rows).to(self.x.device)
            hard_ops = self._gumbel(ops, temperature)
            hard_cut = self._gumbel(cuts[None], temperature)[0]
            sent = torch.sigmoid(kept)
            logits = self._forward(self.x[index], hard_ops, hard_cut, sent)
            unsent = ((1 - sent) * used).sum(dim=1)
            expected = self.time(ops.softmax(dim=1), cuts.softmax(dim=0), unsent)
            loss = F.cross_entropy(logits, self.y[index]) + weight * expected
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if (step + 1) * SNAPSHOTS // self.steps > step * SNAPSHOTS // self.steps:
                found.append(self._genome(ops, cuts, kept))
        return np.array(found)

    def _gumbel(self, logits: Tensor, temperature: float) -> Tensor:
        """Return one-hot samples with the gradient of their softmax, along the last axis."""
        noise = torch.from_numpy(self.rng.gumbel(size=tuple(logits.shape)).astype(np.float32))
        soft = ((logits + noise) / temperature).softmax(dim=-1)
        hard = F.one_hot(soft.argmax(dim=-1), logits.shape[-1]).float()
        return hard + soft - soft.detach()

    def _forward(self, x: Tensor, ops: Tensor, cut: Tensor, sent: Tensor) -> Tensor:
        """Return the logits of the sampled network; samples scale what they choose by one."""
        space = self.problem.space
        chosen = ops.argmax(dim=1).tolist()
        at = int(cut.argmax())
        block_of_cut = int(space.cut_choices[at])
        groups = int(space.groups_at[block_of_cut])
        blocks = self.supernet.blocks(chosen)
        for index, block in enumerate(blocks):
            if index == block_of_cut:
                x = x * cut[at].to(x.device)
                if groups:
                    mask = sent[at, :groups].repeat_interleave(x.shape[1] // groups)
                    x = quantize(x, max(space.bits)) * mask.to(x.device)[:, None, None]
            x = block(x, batch_norm_unit)
            if 1 <= index <= space.n_arch:
                x = x * ops[index - 1, chosen[index - 1]].to(x.device)
        return x * cut[at].to(x.device) if block_of_cut == len(blocks) else x

    @torch.no_grad()
    def _genome(self, ops: Tensor, cuts: Tensor, kept: Tensor) -> Genomes:
        space = self.problem.space
        x = space.xu.copy()
        x[: space.n_arch] = ops.argmax(dim=1).numpy()
        cut = int(cuts.argmax())
        x[space.cut_genes] = cut
        if space.n_mask:
            mask = (kept[cut] > 0).numpy().astype(np.int64)
            mask[int(kept[cut].argmax())] = 1
            x[space.mask_genes[0]] = mask
        return x


def differentiable(problem: SplitProblem) -> Any:
    """Return the supernet evaluator of a problem.

    Raises:
        UserError: If there is none, or gradients cannot reach the genes of the space.
    """
    evaluator = getattr(problem.evaluator, "local", problem.evaluator)
    space = problem.space
    if not hasattr(evaluator, "supernet") or space.architecture.name != "fbnet":
        raise UserError(
            "algorithm=relaxed_masks follows gradients through a supernet: it needs problem=fbnet "
            "and evaluator=supernet; accuracies from a table have no gradient."
        )
    if space.n_links != 1:
        raise UserError(
            f"algorithm=relaxed_masks knows chains of one link, this one has {space.n_links}."
        )
    evaluator.supernet.requires_grad_(False)
    return evaluator
