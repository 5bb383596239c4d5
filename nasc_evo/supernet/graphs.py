"""CUDA graphs of the blocks of a supernet, so that launches do not bound its training.

FBNet: each operation of each layer is captured once, forward and backward, for one shape of batch;
a network is then a sequence of replays. Only the narrow tensors between blocks are copied. The
operations of a layer share memory: a network runs one of them, and is trained to the end before
the next network begins. NAS-Bench-201: five networks at once, block by block
(:mod:`nasc_evo.supernet.fair_turn`).

Gradients are added to tensors that weights get when a block is captured, which must stay theirs;
what a replay returns is overwritten by the next.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nasc_evo.space.fbnet import OPS
from nasc_evo.supernet.blocks import Block, Unit
from nasc_evo.supernet.fair_turn import NETWORKS, FairTurn
from nasc_evo.supernet.kernels import fused_norm_unit, mix, take
from nasc_evo.supernet.model import FBNetLayer, FBNetSupernet, NASBench201Supernet, Supernet

WARM_UP = 3
"""Runs of a block before it is captured, in which libraries choose their kernels."""


class _Captured:
    """A block, captured forward and backward when made.

    Its backward pass adds to the gradients of the weights itself, in few launches.

    Args:
        run: The block.
        weights: The weights it uses, all of them and no others.
        sample: An input of the shape that all will have.
        pool: Memory that it may share with others, see :func:`torch.cuda.graph_pool_handle`.
    """

    def __init__(
        self,
        run: Callable[[Tensor], Tensor],
        weights: Sequence[nn.Parameter],
        sample: Tensor,
        pool: Any = None,
    ) -> None:
        for weight in weights:
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        self._anchor = weights[0]
        self.x = sample
        inputs = [*weights, sample] if sample.requires_grad else [*weights]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                y = run(sample)
                torch.autograd.grad(y, inputs, torch.zeros_like(y))
        torch.cuda.current_stream().wait_stream(stream)
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.forward, pool=pool):
            self.y = run(sample)
        self.grad_y = torch.zeros_like(self.y)
        with torch.cuda.graph(self.backward, pool=self.forward.pool()):
            grads = torch.autograd.grad(self.y, inputs, self.grad_y)
            sums = [w.grad for w in weights if w.grad is not None]
            torch._foreach_add_(sums, list(grads[: len(weights)]))
        self.grad_x = grads[-1].detach() if sample.requires_grad else None
        self.y = self.y.detach()

    def __call__(self, x: Tensor, unit: Unit | None = None) -> Tensor:
        """Run the block; the unit is the one it was captured with."""
        y: Tensor = _Replay.apply(x, self._anchor, self)
        return y


class _Replay(torch.autograd.Function):
    """A run of a captured block."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, captured: _Captured) -> Tensor:
        """Return its output; `anchor` makes one that has a gradient, whatever `x` is."""
        captured.x.detach().copy_(x)
        captured.forward.replay()
        ctx.captured = captured
        return captured.y.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        """Return the gradient of the input."""
        captured = ctx.captured
        captured.grad_y.copy_(grad)
        captured.backward.replay()
        return captured.grad_x, None, None


def _sample(images: int, shape: Sequence[int], like: Tensor, dtype: torch.dtype) -> Tensor:
    """Return noise as an input of a block, which has a gradient."""
    noise = torch.randn((images, *shape), device=like.device)
    return noise.to(dtype, memory_format=torch.channels_last).requires_grad_(True)


class BlockGraphs:
    """Captured blocks of an FBNet supernet on a GPU.

    Args:
        supernet: The supernet, on a GPU; none of its weights may take part in an autograd graph.
        batch_size: Images of every batch.
        dtype: Type of activations.
    """

    def __init__(self, supernet: FBNetSupernet, batch_size: int, dtype: torch.dtype) -> None:
        self._supernet = supernet
        self._replays: list[dict[str, _Captured]] = []
        for layer in supernet.layers:
            assert isinstance(layer, FBNetLayer)
            g = layer.geometry
            shape = (g.channels_in, g.size_in, g.size_in)
            sample = _sample(batch_size, shape, supernet.stem, dtype)
            pool = torch.cuda.graph_pool_handle()
            widest_first = [name for name in reversed(OPS) if name in layer.norms]
            replays = {}
            for name in widest_first:
                run = _operation(layer, name)
                replays[name] = _Captured(run, layer.weights_of(name), sample, pool)
            self._replays.append(replays)

    def blocks(self, ops: Sequence[int]) -> list[Block]:
        """Return the blocks of one architecture, captured ones where there are."""
        stem, *layers, head = self._supernet.blocks(ops)
        captured = (
            replays.get(OPS[op], block)
            for replays, op, block in zip(self._replays, ops, layers, strict=True)
        )
        return [stem, *captured, head]


def _operation(layer: FBNetLayer, name: str) -> Callable[[Tensor], Tensor]:
    """Return one operation of one layer as a function."""
    return lambda x: layer.block(name)(x, fused_norm_unit)


def captured_turn(supernet: Supernet, batch_size: int, dtype: torch.dtype) -> FairTurn:
    """Return what runs the five networks of a fair turn, captured.

    Args:
        supernet: That of NAS-Bench-201, on a GPU; none of its weights may take part in an
            autograd graph.
        batch_size: Images of every batch, those of the five networks together.
        dtype: Type of activations.
    """
    assert isinstance(supernet, NASBench201Supernet)
    turn = FairTurn(supernet, dtype, fused_norm_unit, take, mix)
    capture_stages(turn, supernet, batch_size, dtype)
    return turn


def capture_stages(
    turn: FairTurn, supernet: NASBench201Supernet, batch_size: int, dtype: torch.dtype
) -> None:
    """Capture the blocks of a fair turn; arguments beside it as of :func:`captured_turn`."""
    images = batch_size // NETWORKS * NETWORKS
    for index, (stage, weights) in enumerate(zip(turn.stages, turn.weights, strict=True)):
        sample = _sample(images, supernet.space.cut_shapes[index], supernet.stem, dtype)
        if index == 0:
            sample.requires_grad_(False)
        turn.stages[index] = _Captured(stage, weights, sample)
