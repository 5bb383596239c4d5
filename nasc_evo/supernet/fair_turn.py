"""Five NAS-Bench-201 networks at once, each with its own images, for training without waiting.

A network of this space has hundreds of small operations, so that a GPU spends its time on launching
them. In a *fair turn* (:meth:`nasc_evo.supernet.training.Trainer.fair_path`) five networks have
five different operations at every edge. Sorted by operation, an edge's images therefore always
split into five equal parts, whichever networks they are: what runs is the same in every turn, can
be captured once, and does five times as much at a launch.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasc_evo.space.nasbench201 import (
    CONV_1X1,
    CONV_3X3,
    EDGES,
    N_NODES,
    NONE,
    OPS,
    SKIP,
    dead_edges,
)
from nasc_evo.supernet.blocks import Unit, average_pool, batch_norm_unit
from nasc_evo.supernet.model import (
    EdgeWeights,
    NASBench201Supernet,
    ReductionWeights,
    Transmission,
)
from nasc_evo.supernet.transmission import transmit

NETWORKS = len(OPS)


class Turn(NamedTuple):
    """Which network has which operation at one edge, each `[5]`.

    Attributes:
        network_of: The network that has an operation.
        op_of: The operation of a network.
        share: What a network's edge counts at its target; 0 for a dead one.
    """

    network_of: Tensor
    op_of: Tensor
    share: Tensor


Branches = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of one edge: what is skipped, convolved 1x1, convolved 3x3 and pooled, each `[1, values]`."""


def take(x: Tensor, turn: Turn) -> Branches:
    """Return what the operations of an edge are given, of `[5, values]` that its source has.

    A ReLU goes before convolutions.
    """
    skip, first, second, pool = x.index_select(0, turn.network_of[SKIP:]).split(1)
    return skip, F.relu(first), F.relu(second), pool


def mix(edges: Sequence[Branches], turns: Sequence[Turn]) -> Tensor:
    """Return a node, `[5, values]`: the weighted sum of what each network's edges bring."""
    total = torch.zeros((), device=edges[0][0].device)
    for branches, turn in zip(edges, turns, strict=True):
        nothing = torch.zeros_like(branches[0])
        brought = torch.cat([nothing, *branches]).index_select(0, turn.op_of)
        total = total + brought * turn.share[:, None]
    return total


class FairTurn:
    """Runs the networks of a fair turn side by side.

    Attributes:
        stages: The blocks as functions of `[5 N, C, H, W]`, the images of each network in a row.
        weights: The weights that each of them uses.

    Args:
        supernet: The supernet.
        dtype: Type of activations.
        unit: How convolutions are normalised; each network by its own images.
        take: Does what :func:`take` does.
        mix: Does what :func:`mix` does.
    """

    def __init__(
        self,
        supernet: NASBench201Supernet,
        dtype: torch.dtype,
        unit: Unit = batch_norm_unit,
        take: Callable[[Tensor, Turn], Branches] = take,
        mix: Callable[[Sequence[Branches], Sequence[Turn]], Tensor] = mix,
    ) -> None:
        self._unit, self._take, self._mix = unit, take, mix
        self._make_turns(supernet.stem.device, dtype)
        any_network = (NONE,) * len(EDGES)
        self.stages: list[Callable[[Tensor], Tensor]] = [
            self._each(lambda: supernet.blocks(any_network)[0])
        ]
        self.weights = [[supernet.stem, *supernet.stem_norm.parameters()]]
        for module in supernet.middle:
            if isinstance(module, ReductionWeights):
                self.stages.append(self._each(module.block))
            else:
                self.stages.append(self._cell(cast(nn.ModuleList, module)))
            self.weights.append(list(module.parameters()))
        self.stages.append(self._each(lambda: supernet.blocks(any_network)[-1]))
        head = [supernet.classifier_weight, supernet.classifier_bias]
        self.weights.append([*supernet.head_norm.parameters(), *head])

    def __call__(
        self,
        x: Tensor,
        architectures: Sequence[Sequence[int]],
        transmissions: Sequence[Sequence[Transmission]],
    ) -> Tensor:
        """Return the logits `[5 N, classes]`.

        Args:
            x: Images `[5 N, 3, H, W]`, those of each network in a row.
            architectures: Genes of the five networks; no two have the same operation at an edge.
            transmissions: What each of them sends, see :meth:`Supernet.forward`.
        """
        self._begin(np.array(architectures))
        for index, stage in enumerate(self.stages):
            sent = [[t for t in sends if t[0] == index] for sends in transmissions]
            if any(sent):
                parts = list(x.chunk(NETWORKS))
                for network, sends in enumerate(sent):
                    for _, kept, bits in sends:
                        parts[network] = transmit(parts[network], kept, bits)
                x = torch.cat(parts)
            x = stage(x)
        return x

    def _make_turns(self, device: torch.device, dtype: torch.dtype) -> None:
        """Make the tensors that say which networks a turn has."""
        self._network_of = torch.arange(NETWORKS, device=device).repeat(len(EDGES), 1)
        self._op_of = self._network_of.clone()
        self._share = torch.zeros((len(EDGES), NETWORKS), dtype=dtype, device=device)
        pairs = zip(self._network_of, self._op_of, self._share, strict=True)
        self._turns = [Turn(*tensors) for tensors in pairs]

    def _begin(self, architectures: np.ndarray) -> None:
        """Write which network has which operation, and each live edge's share of its node."""
        op_of = architectures.T
        zero_input, unused = dead_edges(architectures)
        live = (op_of != NONE) & ~(zero_input | unused).T
        target = np.array([end for _, end in EDGES])
        fed = np.array([live[target == end].sum(axis=0) for end in target])
        self._op_of.copy_(torch.from_numpy(op_of))
        self._network_of.copy_(torch.from_numpy(np.argsort(op_of, axis=1)))
        self._share.copy_(torch.from_numpy(live / np.maximum(fed, 1)))

    def _each(self, build: Callable[[], Any]) -> Callable[[Tensor], Tensor]:
        """Return a block that all networks share as a function; each is normalised by itself."""

        def run(x: Tensor) -> Tensor:
            block = build()
            return torch.cat([block(part, self._unit) for part in x.chunk(NETWORKS)])

        return run

    def _cell(self, edges: nn.ModuleList) -> Callable[[Tensor], Tensor]:
        """Return a cell as a function."""

        def run(x: Tensor) -> Tensor:
            _, channels, height, width = x.shape

            def images(rows: Tensor) -> Tensor:
                return rows.view(-1, height, width, channels).permute(0, 3, 1, 2)

            def convolved(rows: Tensor, edge: int, op: int) -> Tensor:
                conv = cast(EdgeWeights, edges[edge]).conv(op)
                assert conv is not None
                return _rows(self._unit(images(rows), conv), 1)

            nodes = [_rows(x, NETWORKS)]
            for node in range(1, N_NODES):
                brought, turns = [], []
                for edge, (source, target) in enumerate(EDGES):
                    if target != node:
                        continue
                    skip, first, second, pool = self._take(nodes[source], self._turns[edge])
                    first = convolved(first, edge, CONV_1X1)
                    second = convolved(second, edge, CONV_3X3)
                    brought.append((skip, first, second, _rows(average_pool(images(pool)), 1)))
                    turns.append(self._turns[edge])
                nodes.append(self._mix(brought, turns))
            return images(nodes[-1])

        return run


def _rows(x: Tensor, rows: int) -> Tensor:
    """Return images `[N, C, H, W]` as `[rows, values]`, channels last."""
    return x.permute(0, 2, 3, 1).reshape(rows, -1)
