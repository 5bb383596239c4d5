"""The entangled supernet against stand-alone networks written the plain way."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nasc_evo.space import FBNetSpace
from nasc_evo.space.fbnet import OPS, conv_op
from nasc_evo.supernet.blocks import NORM_EPS, Calibration, Normed, batch_norm_unit
from nasc_evo.supernet.model import FBNetSupernet

SPACE = FBNetSpace(32, 10)


@pytest.fixture(scope="module")
def supernet():
    """A supernet whose norms are not the identity, so that mixing them up shows."""
    net = FBNetSupernet(SPACE, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith("gamma"):
                p.copy_(0.5 + torch.rand(p.shape, generator=generator))
            elif name.endswith("beta"):
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    return net


class PlainBlock(nn.Module):
    """A ConvBlock of HW-NAS-Bench with grouped convolutions and an explicit channel shuffle."""

    def __init__(self, layer, name):
        super().__init__()
        g, op = layer.geometry, conv_op(name)
        hidden = op.expansion * g.channels_in
        self.groups, self.geometry = op.groups, g
        self.expand = nn.Conv2d(g.channels_in, hidden, 1, groups=op.groups, bias=False)
        self.depthwise = nn.Conv2d(
            hidden, hidden, op.kernel, g.stride, op.kernel // 2, groups=hidden, bias=False
        )
        self.project = nn.Conv2d(hidden, g.channels_out, 1, groups=op.groups, bias=False)
        norms = layer.norms[name]
        self.norms = nn.ModuleList(nn.BatchNorm2d(len(norm.gamma)) for norm in norms)
        # the supernet norms channels after the shuffle, this block before it
        shuffled = torch.arange(hidden).view(op.groups, -1).T.flatten()
        with torch.no_grad():
            for i, (mine, theirs) in enumerate(zip(self.norms, norms, strict=True)):
                place = shuffled if i == 0 else slice(None)
                mine.weight[place] = theirs.gamma
                mine.bias[place] = theirs.beta
            edge = (5 - op.kernel) // 2
            full = layer.depthwise[:hidden]
            self.depthwise.weight.copy_(full[:, :, edge : 5 - edge, edge : 5 - edge])
            for conv, dense in (
                (self.expand, layer.expand[:hidden]),
                (self.project, layer.project[:, :hidden]),
            ):
                rows, columns = dense.shape[0] // op.groups, dense.shape[1] // op.groups
                for i in range(op.groups):
                    part = dense[i * rows : (i + 1) * rows, i * columns : (i + 1) * columns]
                    conv.weight[i * rows : (i + 1) * rows] = part

    def forward(self, x):
        y = F.relu(self.norms[0](self.expand(x)))
        if self.groups > 1:
            n, c, h, w = y.shape
            y = y.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)
        y = F.relu(self.norms[1](self.depthwise(y)))
        y = self.norms[2](self.project(y))
        return x + y if self.geometry.identity else y


@pytest.mark.parametrize("name", [op for op in OPS if op != "skip"])
@pytest.mark.parametrize("index", [0, 1, 5, 9, 14])
def test_a_block_inherits_exactly_the_supernets_weights(supernet, name, index):
    layer = supernet.layers[index]
    g = layer.geometry
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, g.channels_in, g.size_in, g.size_in, generator=generator)
    plain = PlainBlock(layer, name).train()
    with torch.no_grad():
        want, got = plain(x), layer.block(name)(x, batch_norm_unit)
    assert torch.allclose(want, got, atol=1e-4)
    n_weights = sum(p.numel() for p in plain.parameters())
    ops = np.full((2, 22), OPS.index("skip"))
    ops[1, index] = OPS.index(name)
    skip = 0 if g.identity else g.channels_in * g.channels_out + 2 * g.channels_out
    assert np.diff(SPACE.params(ops))[0] == n_weights - skip


def test_skip_is_the_identity_or_a_convolution(supernet):
    x = torch.randn(2, 16, 8, 8)
    assert supernet.layers[0].block("skip")(x, batch_norm_unit) is x
    layer = supernet.layers[5]
    x = torch.randn(2, 24, 8, 8)
    norm = layer.norms["skip"][0]
    y = F.conv2d(x, layer.shortcut, stride=2)
    want = F.relu(F.batch_norm(y, None, None, norm.gamma, norm.beta, training=True))
    assert torch.allclose(layer.block("skip")(x, batch_norm_unit), want, atol=1e-5)


def test_folded_convolutions_equal_the_norm_they_replace(supernet):
    ops = np.random.default_rng(0).integers(0, 9, 22)
    x = torch.randn(8, 3, 32, 32)
    with torch.inference_mode():
        calibration = Calibration()
        calibrated = supernet(x, ops, calibration)
        assert torch.allclose(supernet(x, ops, calibration.folded()), calibrated, atol=1e-3)
        assert torch.allclose(supernet(x, ops, batch_norm_unit), calibrated, atol=1e-3)
        normed = supernet(x, ops, Normed(calibration.norms))
        assert torch.allclose(normed, calibrated, atol=1e-3)


def test_statistics_are_float32_whatever_the_images_are(supernet):
    conv = supernet.blocks([0] * 22)[0].convs[0]
    x = (torch.randn(8, 3, 32, 32) + 10).bfloat16()
    with torch.inference_mode():
        calibration = Calibration()
        assert calibration(x, conv).dtype == torch.bfloat16
        y = F.conv2d(x, conv.weight.bfloat16(), padding=1).float()
        scale = conv.gamma * (y.var(dim=(0, 2, 3), correction=0) + NORM_EPS).rsqrt()
        shift = conv.beta - y.mean(dim=(0, 2, 3)) * scale
    (norm,) = calibration.norms
    torch.testing.assert_close(norm.scale, scale)
    torch.testing.assert_close(norm.shift, shift)
    assert calibration.convs[0].weight.dtype == torch.bfloat16


def test_every_operation_and_parameter_gets_gradient():
    supernet = FBNetSupernet(SPACE, torch.Generator().manual_seed(0))
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for op in range(9):
        supernet(x, [op] * 22, batch_norm_unit).square().mean().backward()
    without = [name for name, p in supernet.named_parameters() if p.grad is None]
    assert without == []
    assert all(p.grad.abs().sum() > 0 for name, p in supernet.named_parameters() if "norm" in name)


def test_the_largest_network_is_k5_e6_everywhere(supernet):
    assert SPACE.format(supernet.largest()) == "|".join(["k5_e6"] * 22)
