"""CUDA graphs of the blocks of an FBNet supernet, so that launches do not bound its training.

Each operation of each layer is captured once, forward and backward, for one shape of batch; a
network is then a sequence of replays. Only the narrow tensors between blocks are copied. The
operations of a layer share memory: a network runs one of them, and is trained to the end before
the next network begins.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from nasc_evo.space.fbnet import OPS
from nasc_evo.supernet.blocks import Block, Unit
from nasc_evo.supernet.kernels import fused_norm_unit
from nasc_evo.supernet.model import FBNetLayer, FBNetSupernet


class _Operation(nn.Module):
    """One operation of one layer as a module that has the weights it uses and no others."""

    def __init__(self, layer: FBNetLayer, name: str) -> None:
        super().__init__()
        self.weights = nn.ParameterList(layer.weights_of(name))
        self._build: Callable[[], Block] = lambda: layer.block(name)

    def forward(self, x: Tensor) -> Tensor:
        return self._build()(x, fused_norm_unit)


class _Replay:
    """A captured block."""

    def __init__(self, graph: Callable[[Tensor], Tensor]) -> None:
        self._graph = graph

    def __call__(self, x: Tensor, unit: Unit) -> Tensor:
        """Run the block; the unit is the one it was captured with."""
        return self._graph(x)


class BlockGraphs:
    """Captured blocks of a supernet on a GPU.

    Gradients must be accumulated into tensors that exist already: the ones that a replay returns
    are overwritten by the next.

    Args:
        supernet: The supernet, on a GPU; none of its weights may take part in an autograd graph.
        batch_size: Images of every batch.
        dtype: Type of activations.
    """

    def __init__(self, supernet: FBNetSupernet, batch_size: int, dtype: torch.dtype) -> None:
        self._supernet = supernet
        self._replays: list[dict[str, _Replay]] = []
        device = supernet.stem.device
        for layer in supernet.layers:
            assert isinstance(layer, FBNetLayer)
            g = layer.geometry
            shape = (batch_size, g.channels_in, g.size_in, g.size_in)
            sample = torch.randn(shape, device=device).to(dtype, memory_format=torch.channels_last)
            sample.requires_grad_(True)
            pool = torch.cuda.graph_pool_handle()
            replays = {}
            widest_first = [name for name in reversed(OPS) if name in layer.norms]
            for name in widest_first:
                operation = _Operation(layer, name)
                torch.cuda.make_graphed_callables(operation, (sample,), pool=pool)
                replays[name] = _Replay(operation)
            self._replays.append(replays)

    def blocks(self, ops: Sequence[int]) -> list[Block]:
        """Return the blocks of one architecture, captured ones where there are."""
        stem, *layers, head = self._supernet.blocks(ops)
        captured = (
            replays.get(OPS[op], block)
            for replays, op, block in zip(self._replays, ops, layers, strict=True)
        )
        return [stem, *captured, head]
