"""Training on several processes, each with its own images and networks of every step.

`torchrun --nproc-per-node 4 -m nasc_evo.train ...` starts them, one a GPU, on one or many machines.
"""

import atexit
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nasc_evo.errors import UserError, one_line


@dataclass(frozen=True)
class Processes:
    """The processes that train together, seen from one of them.

    Attributes:
        number: Of this process; 0 writes all files.
        count: How many there are.
        local: Number of this process on its machine, which is that of its GPU.
    """

    number: int = 0
    count: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.number == 0

    def clock(self) -> float:
        """Return the first process's seconds, the same in all of them."""
        now = torch.tensor([time.monotonic()], dtype=torch.float64)
        if self.count > 1:
            dist.broadcast(now, 0)
        return float(now)

    def wait_for_first(self) -> None:
        """Wait for the first process, which `torchrun` kills when another fails before it."""
        self.clock()

    def differ(self, values: Sequence[float]) -> bool:
        """Return whether some process has other values than the first."""
        if self.count == 1:
            return False
        ours = torch.tensor(values, dtype=torch.float64)
        theirs = ours.clone()
        dist.broadcast(theirs, 0)
        different = torch.tensor([float((ours != theirs).any())])
        dist.all_reduce(different)
        return bool(different)

    def gradients(self, module: nn.Module) -> Tensor | None:
        """Give all weights gradients that are parts of one tensor, and return it; None if alone."""
        if self.count == 1:
            return None
        weights = list(module.parameters())
        gradients = torch.zeros(sum(w.numel() for w in weights), device=weights[0].device)
        parts = gradients.split([w.numel() for w in weights])
        for weight, part in zip(weights, parts, strict=True):
            weight.grad = part.view_as(weight)
        return gradients

    def average(self, gradients: Tensor) -> None:
        """Replace a tensor by its mean over the processes."""
        dist.all_reduce(gradients)
        gradients /= self.count


def join_processes() -> Processes:
    """Return the processes that `torchrun` started, connected; this one alone without it.

    Raises:
        UserError: If they cannot be connected.
    """
    try:
        number, count, local = (
            int(os.environ.get(name, default))
            for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
        )
        if count > 1 and not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
            atexit.register(dist.destroy_process_group)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            "The processes that the environment speaks of (RANK, WORLD_SIZE) cannot be connected "
            f"({one_line(error)[:200]}); start them with torchrun, or unset WORLD_SIZE."
        ) from error
    return Processes(number, count, local)
