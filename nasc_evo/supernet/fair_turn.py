"""Five NAS-Bench-201 networks at once, each with its own images, for training without waiting.

A network of this space has hundreds of small operations, so that a GPU spends its time on launching
them. In a *fair turn* (:meth:`nasc_evo.supernet.training.Trainer.fair_path`) five networks have
five different operations at every edge. Sorted by operation, an edge's images therefore always
split into five equal parts, whichever networks they are: what runs is the same in every turn, can
be captured once, and does five times as much at a launch.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

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
    dead_edges,
)
from nasc_evo.supernet.blocks import Unit, average_pool
from nasc_evo.supernet.model import (
    EdgeWeights,
    NASBench201Supernet,
    ReductionWeights,
    Transmission,
)
from nasc_evo.supernet.transmission import transmit

NETWORKS = len(OPS)


class FairTurn:
    """Runs the networks of a fair turn side by side.

    Attributes:
        stages: The blocks as functions of `[5 N, C, H, W]`, the images of each network in a row.
        weights: The weights that each of them uses.

    Args:
        supernet: The supernet.
        unit: How convolutions are normalised; each network by its own images.
        dtype: Type of activations.
    """

    def __init__(self, supernet: NASBench201Supernet, unit: Unit, dtype: torch.dtype) -> None:
        self._unit = unit
        device = supernet.stem.device
        shape = (len(EDGES), NETWORKS)
        self._network_of = torch.arange(NETWORKS, device=device).repeat(len(EDGES), 1)
        self._op_of = self._network_of.clone()
        self._share = torch.zeros(shape, dtype=dtype, device=device)
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
                total = None
                for edge, (source, target) in enumerate(EDGES):
                    if target != node:
                        continue
                    network_of, op_of = self._network_of[edge], self._op_of[edge]
                    by_op = _Reorder.apply(nodes[source], network_of, op_of)
                    same, to_convolve, to_pool = by_op.split((CONV_1X1, 2, 1))
                    first, second = F.relu(to_convolve).split(1)
                    by_op = torch.cat(
                        [
                            same,  # what no operation brings has a share of 0
                            convolved(first, edge, CONV_1X1),
                            convolved(second, edge, CONV_3X3),
                            _rows(average_pool(images(to_pool)), 1),
                        ]
                    )
                    y = _Reorder.apply(by_op, op_of, network_of)
                    share = self._share[edge][:, None]
                    total = y * share if total is None else torch.addcmul(total, y, share)
                assert total is not None
                nodes.append(total)
            return images(nodes[-1])

        return run


def _rows(x: Tensor, rows: int) -> Tensor:
    """Return images `[N, C, H, W]` as `[rows, values]`, channels last."""
    return x.permute(0, 2, 3, 1).reshape(rows, -1)


class _Reorder(torch.autograd.Function):
    """Takes rows in another order; its gradient is the inverse, without any sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        """Return `x[order]`."""
        ctx.save_for_backward(inverse)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of `x`."""
        (inverse,) = ctx.saved_tensors
        return grad.index_select(0, inverse), None, None
