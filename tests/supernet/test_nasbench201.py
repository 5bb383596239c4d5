"""The NAS-Bench-201 supernet against the official network written the plain way."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nasc_evo.space import NASBench201Space
from nasc_evo.space.nasbench201 import CONV_1X1, CONV_3X3, EDGES, NONE, POOL, SKIP, dead_edges
from nasc_evo.supernet.blocks import Calibration, ReductionBlock, batch_norm_unit
from nasc_evo.supernet.model import NASBench201Supernet

SPACE = NASBench201Space(32, 10)


@pytest.fixture(scope="module")
def supernet():
    """A supernet whose norms are not the identity, so that mixing them up shows."""
    net = NASBench201Supernet(SPACE, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith("gamma"):
                p.copy_(0.5 + torch.rand(p.shape, generator=generator))
            elif name.endswith("beta"):
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    return net


class ReluConvNorm(nn.Sequential):
    def __init__(self, c_in, c_out, kernel, stride):
        conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
        super().__init__(nn.ReLU(), conv, nn.BatchNorm2d(c_out))


class Cell(nn.Module):
    """A cell as the benchmark defines it, but for the mean in place of the sum."""

    def __init__(self, ops, channels):
        super().__init__()
        made = {
            SKIP: nn.Identity,
            CONV_1X1: lambda: ReluConvNorm(channels, channels, 1, 1),
            CONV_3X3: lambda: ReluConvNorm(channels, channels, 3, 1),
            POOL: lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        }
        self.edges = nn.ModuleDict({str(e): made[op]() for e, op in enumerate(ops) if op != NONE})

    def forward(self, x):
        nodes = [x]
        for node in range(1, 4):
            inputs = [
                self.edges[str(e)](nodes[source])
                for e, (source, target) in enumerate(EDGES)
                if target == node and str(e) in self.edges
            ]
            nodes.append(torch.stack(inputs).mean(dim=0) if inputs else torch.zeros_like(x))
        return nodes[-1]


class Reduction(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.first = ReluConvNorm(channels, 2 * channels, 3, 2)
        self.second = ReluConvNorm(2 * channels, 2 * channels, 3, 1)
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, 2), nn.Conv2d(channels, 2 * channels, 1, bias=False)
        )

    def forward(self, x):
        return self.shortcut(x) + self.second(self.first(x))


def official_network(ops, classes=10):
    """Return stem, 15 cells, 2 reductions and head as the benchmark builds them."""
    blocks = [nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16))]
    for stage, channels in enumerate((16, 32, 64)):
        if stage:
            blocks.append(Reduction(channels // 2))
        blocks += [Cell(ops, channels) for _ in range(5)]
    head = [nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    blocks.append(nn.Sequential(*head, nn.Linear(64, classes)))
    return nn.Sequential(*blocks)


def copy_weights(net, plain, ops):
    """Give the plain network the supernet's weights."""

    def norm(source, target):
        target.weight.copy_(source.gamma)
        target.bias.copy_(source.beta)

    with torch.no_grad():
        plain[0][0].weight.copy_(net.stem)
        norm(net.stem_norm, plain[0][1])
        for mine, theirs in zip(net.middle, plain[1:-1], strict=True):
            if isinstance(theirs, Reduction):
                for name in ("first", "second"):
                    getattr(theirs, name)[1].weight.copy_(getattr(mine, name))
                    norm(getattr(mine, f"{name}_norm"), getattr(theirs, name)[2])
                theirs.shortcut[1].weight.copy_(mine.shortcut)
                continue
            for e, op in enumerate(ops):
                if op in (CONV_1X1, CONV_3X3):
                    name = "1x1" if op == CONV_1X1 else "3x3"
                    theirs.edges[str(e)][1].weight.copy_(getattr(mine[e], f"conv_{name}"))
                    norm(getattr(mine[e], f"norm_{name}"), theirs.edges[str(e)][2])
        norm(net.head_norm, plain[-1][0])
        plain[-1][4].weight.copy_(net.classifier_weight)
        plain[-1][4].bias.copy_(net.classifier_bias)


# without dead edges: the benchmark's own norms give these a constant that ours leave out
LIVE = [
    [CONV_3X3] * 6,
    [SKIP, CONV_1X1, POOL, CONV_3X3, SKIP, POOL],
    [NONE, CONV_3X3, NONE, SKIP, NONE, CONV_1X1],
    [POOL, NONE, CONV_1X1, NONE, CONV_3X3, SKIP],
]


@pytest.mark.parametrize("ops", LIVE)
def test_inherited_network_equals_the_official_one(supernet, ops):
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain = official_network(ops).train()
    copy_weights(supernet, plain, ops)
    with torch.no_grad():
        torch.testing.assert_close(
            supernet(x, ops, batch_norm_unit), plain(x), rtol=1e-3, atol=1e-4
        )


def test_params_and_macs_equal_real_networks():
    counted = []

    def count(module, inputs, output):
        if isinstance(module, nn.Conv2d):
            counted.append(output[0].numel() * module.weight[0].numel())
        elif isinstance(module, nn.Linear):
            counted.append(module.weight.numel() + module.bias.numel())

    for index in np.random.default_rng(0).integers(0, 15625, 50):
        ops = SPACE.architectures[index]
        network = official_network(ops.tolist())
        assert SPACE.params(ops[None])[0] == sum(p.numel() for p in network.parameters())
        for module in network.modules():
            module.register_forward_hook(count)
        counted.clear()
        with torch.no_grad():
            network(torch.zeros(1, 3, 32, 32))
        assert SPACE.macs(ops[None])[0] == sum(counted)


def test_inherited_networks_have_the_params_and_macs_of_the_table(supernet):
    convolutions = (CONV_1X1, CONV_3X3)
    dead = np.logical_or(*dead_edges(SPACE.architectures))
    whole = ~(dead & np.isin(SPACE.architectures, convolutions)).any(axis=1)
    rng = np.random.default_rng(1)
    for index in rng.choice(np.flatnonzero(whole), 50, replace=False):
        ops = SPACE.architectures[index]
        found = {"params": 0, "macs": 0}

        def unit(x, conv, plus=None, found=found):
            y = batch_norm_unit(x, conv, plus)
            found["params"] += conv.gamma.numel() + conv.beta.numel()
            if conv.weight is not supernet._identity:
                found["params"] += conv.weight.numel()
                found["macs"] += y[0].numel() * conv.weight[0].numel()
            return y

        value = torch.zeros(1, 3, 32, 32)
        *blocks, head = supernet.blocks(ops.tolist())
        with torch.no_grad():
            for block in blocks:
                value = block(value, unit)
                if isinstance(block, ReductionBlock):
                    found["params"] += block.shortcut.numel()
                    found["macs"] += value[0, 0].numel() * block.shortcut.numel()
            head(value, unit)
        classifier = head.weight.numel() + head.bias.numel()
        assert SPACE.params(ops[None])[0] == found["params"] + classifier
        assert SPACE.macs(ops[None])[0] == found["macs"] + classifier


@pytest.mark.parametrize("ops", [*LIVE, [NONE] * 6])
def test_head_and_tail_equal_the_whole_at_every_cut(supernet, ops):
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = supernet(x, ops, batch_norm_unit)
        blocks = supernet.blocks(ops)
        value, values = x, []
        for block in blocks:
            values.append(value)
            value = block(value, batch_norm_unit)
        for cut in range(len(blocks)):
            assert tuple(values[cut].shape[1:]) == SPACE.cut_shapes[cut]
            value = values[cut]
            for block in blocks[cut:]:
                value = block(value, batch_norm_unit)
            assert torch.equal(value, whole)


@pytest.mark.parametrize("ops", [*LIVE, [NONE] * 6])
def test_folded_equals_calibrated(supernet, ops):
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    calibration = Calibration()
    with torch.no_grad():
        wanted = supernet(x, ops, calibration)
        got = supernet(x, ops, calibration.folded())
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


def test_every_convolution_and_every_cut_gets_gradient(supernet):
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    y = torch.arange(4)
    supernet.zero_grad()
    for cut in range(1, 19):
        kept = torch.zeros(SPACE.cut_shapes[cut][0], dtype=torch.bool)
        kept[::2] = True
        ops = [CONV_3X3, CONV_1X1][cut % 2 :] + [CONV_3X3, CONV_1X1] * 3
        logits = supernet(x, ops[:6], batch_norm_unit, [(cut, kept, 4)])
        F.cross_entropy(logits, y).backward()
    logits = supernet(x, [CONV_1X1, CONV_3X3] * 3, batch_norm_unit)
    F.cross_entropy(logits, y).backward()
    for name, p in supernet.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.abs().sum() > 0, name


def test_skips_do_not_make_activations_grow(supernet):
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    blocks = supernet.blocks([SKIP] * 6)
    with torch.no_grad():
        first = blocks[0](x, batch_norm_unit)
        value = first
        for block in blocks[1:6]:
            value = block(value, batch_norm_unit)
    torch.testing.assert_close(value, first)
