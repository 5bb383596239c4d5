"""Five networks at once compute what each computes alone."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nasc_evo.space import NASBench201Space
from nasc_evo.supernet.blocks import batch_norm_unit
from nasc_evo.supernet.fair_turn import NETWORKS, FairTurn
from nasc_evo.supernet.model import build_supernet

SPACE = NASBench201Space(32, 10)
IMAGES = 4


def turn_of(seed):
    """Five networks of which no two have the same operation at an edge."""
    rng = np.random.default_rng(seed)
    return np.array([rng.permutation(NETWORKS) for _ in range(SPACE.n_genes)]).T


def transmissions_of(rng):
    """Three of five networks send some channels."""
    sent = []
    for network in range(NETWORKS):
        cut = int(rng.integers(1, SPACE.n_blocks))
        kept = torch.from_numpy(rng.random(SPACE.cut_shapes[cut][0]) < 0.5)
        sent.append([(cut, kept, 4)] if network % 2 == 0 else [])
    return sent


@pytest.mark.parametrize("seed", range(3))
def test_five_networks_at_once_equal_each_alone(seed):
    generator = torch.Generator().manual_seed(seed)
    supernet = build_supernet(SPACE, generator).double()
    with torch.no_grad():
        for p in supernet.parameters():  # shifts that are not 0 show what dead edges bring
            p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    x = torch.randn(NETWORKS * IMAGES, 3, 32, 32, generator=generator)
    x = x.double().contiguous(memory_format=torch.channels_last)
    y = torch.arange(len(x)) % 10
    networks, sent = turn_of(seed), transmissions_of(np.random.default_rng(seed))

    together = FairTurn(supernet, torch.float64)(x, networks, sent)
    (NETWORKS * F.cross_entropy(together, y)).backward()
    gradients = [p.grad for p in supernet.parameters()]
    supernet.zero_grad()
    alone = []
    for i, ops in enumerate(networks):
        logits = supernet(x.chunk(NETWORKS)[i], ops, batch_norm_unit, sent[i])
        F.cross_entropy(logits, y.chunk(NETWORKS)[i]).backward()
        alone.append(logits)

    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)
    for got, p in zip(gradients, supernet.parameters(), strict=True):
        expected = torch.zeros_like(p) if p.grad is None else p.grad
        assert float((got - expected).norm()) <= 1e-5 * float(expected.norm()) + 1e-6


def test_turns_are_independent():
    """A turn leaves nothing behind for the next."""
    supernet = build_supernet(SPACE, torch.Generator().manual_seed(0))
    turn = FairTurn(supernet, torch.float32)
    x = torch.randn(NETWORKS * IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    nothing = [[]] * NETWORKS
    with torch.no_grad():
        first = turn(x, turn_of(0), nothing)
        turn(x, turn_of(1), nothing)
        assert torch.equal(turn(x, turn_of(0), nothing), first)
