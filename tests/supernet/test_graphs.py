"""On a GPU: kernels of evaluation and training, and captured blocks, do what plain ones do."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nasc_evo.search.operators import keep_valid, random_genomes
from nasc_evo.space import FBNetSpace, NASBench201Space
from nasc_evo.supernet.blocks import (
    Calibration,
    ConvNorm,
    FoldedConv,
    average_pool,
    batch_norm_unit,
)
from nasc_evo.supernet.model import build_supernet, run_blocks
from problems import FBNetSplit, NASBench201Split
from tests.supernet.test_training import CONFIG, trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize(("channels", "size", "relu"), [(16, 32, True), (184, 4, False)])
def test_fused_norm_equals_batch_norm(channels, size, relu):
    from nasc_evo.supernet.kernels import fused_norm_unit

    generator = torch.Generator().manual_seed(0)
    shape = (6, channels, size, size)
    x = torch.randn(shape, generator=generator).cuda().to(memory_format=torch.channels_last)
    identity = torch.ones(channels, 1, 1, 1, device="cuda")
    results = []
    for unit in (batch_norm_unit, fused_norm_unit):
        inputs = [
            x.clone().requires_grad_(True),
            torch.linspace(0.5, 2, channels, device="cuda", requires_grad=True),
            torch.linspace(-1, 1, channels, device="cuda", requires_grad=True),
        ]
        y = unit(inputs[0], ConvNorm(identity, *inputs[1:], groups=channels, relu=relu))
        y.backward(torch.sin(torch.arange(y.numel(), device="cuda").float()).view_as(y))
        results.append([y, *(value.grad for value in inputs)])
    for plain, fused in zip(*results, strict=True):
        torch.testing.assert_close(plain, fused, rtol=1e-3, atol=1e-4 * float(plain.abs().max()))


def test_pooling_by_convolution_equals_pooling():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 8, 8, generator=generator)
    expected = average_pool(x)
    torch.testing.assert_close(average_pool(x.cuda()).cpu(), expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("channels", [16, 96, 1104])
def test_what_follows_a_convolution_in_one_pass_equals_its_steps(channels, relu):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, channels, 7, 9, generator=generator).cuda()
    x = x.contiguous(memory_format=torch.channels_last)
    bias = torch.linspace(-1, 1, channels, device="cuda")
    identity = torch.ones(channels, 1, 1, 1, device="cuda")
    conv = FoldedConv(identity, bias, stride=1, groups=channels, relu=relu)
    expected = x + bias[:, None, None]
    torch.testing.assert_close(conv(x), expected.relu() if relu else expected)
    if not relu:
        plus = torch.flip(x, (0,))
        torch.testing.assert_close(conv(x, plus), expected + plus)
    half = conv.to(torch.bfloat16)(x.bfloat16()).float()
    torch.testing.assert_close(half, expected.relu() if relu else expected, rtol=0.02, atol=0.02)
    x[0, 0, 0, 0] = torch.nan
    assert conv(x)[0, 0, 0, 0].isnan()


def poisoned(shape, *, memory_format=torch.contiguous_format, **options):
    return torch.full(shape, torch.nan, **options).contiguous(memory_format=memory_format)


@torch.no_grad()
@pytest.mark.parametrize(
    ("inputs", "channels", "size", "stride"),
    [
        *[(16, 96, 1, 1), (24, 144, 1, 1), (1104, 184, 1, 1), (16, 32, 1, 2), (16, 8, 1, 1)],
        *[(144, 24, 1, 1), (64, 384, 1, 1), (672, 112, 1, 2)],
        *[(16, 16, 3, 1), (16, 32, 3, 2)],
        *[(3, 16, 3, 1), (32, 32, 3, 1), (20, 24, 1, 1)],  # those are cuDNN's
    ],
)
def test_dense_convolutions_equal_those_of_torch_with_what_follows(inputs, channels, size, stride):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, inputs, 7, 9, generator=generator).cuda().bfloat16()
    weight = torch.randn(channels, inputs, size, size, generator=generator).cuda().bfloat16()
    weight /= (inputs * size * size) ** 0.5
    bias = torch.linspace(-1, 1, channels, device="cuda").bfloat16()
    expected = F.conv2d(x.float(), weight.float(), bias.float(), stride, size // 2)
    plus = torch.randn(expected.shape, generator=generator).cuda().bfloat16()
    conv = FoldedConv(weight, bias, stride, 1, relu=True)
    close = {"rtol": 0.02, "atol": 0.02}
    torch.testing.assert_close(conv(x).float(), expected.relu(), **close)
    linear = conv._replace(relu=False)
    torch.testing.assert_close(linear(x).float(), expected, **close)
    torch.testing.assert_close(linear(x, plus).float(), expected + plus.float(), **close)
    with pytest.MonkeyPatch.context() as patch:  # new memory is filled with NaN
        patch.setattr(torch, "empty", poisoned)
        assert not conv(x).isnan().any()
    x[0, 0, 0, 0] = torch.nan
    assert conv(x)[0, :, 0, 0].isnan().all()
    assert torch.equal(conv(x)[1:], conv(x[1:]))


@torch.inference_mode()
@pytest.mark.parametrize(
    ("inputs", "within", "channels", "stride"),
    [(24, 144, 24, 1), (32, 48, 32, 1), (16, 96, 32, 2), (112, 672, 112, 1)],
)
def test_bias_and_relu_left_to_the_convolution_behind_change_nothing(
    inputs, within, channels, stride
):
    from nasc_evo.supernet.convolutions import left_to_readers

    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator).cuda().bfloat16()

    x = random(5, inputs, 7, 9).contiguous(memory_format=torch.channels_last)
    convs = [
        FoldedConv(random(within, inputs, 1, 1), random(within), 1, 1, relu=True),
        FoldedConv(random(within, 1, 5, 5), random(within), stride, within, relu=True),
        FoldedConv(random(channels, within, 1, 1), random(channels), 1, 1, relu=False),
    ]
    left = left_to_readers(convs)
    assert [conv.finished for conv in left] == [True, False, True]
    for other in (
        [convs[0], convs[1]._replace(relu=False), convs[2]],
        [convs[0], convs[1], convs[2]._replace(weight=random(channels, within, 3, 3))],
        [conv.to(torch.float32) for conv in convs],
    ):
        assert all(conv.finished for conv in left_to_readers(other))
    results = []
    for row in (convs, left):
        y = row[1](row[0](x))
        results.append(row[2](y, x if stride == 1 and inputs == channels else None))
    assert torch.equal(*results)


@torch.inference_mode()
def test_calibration_gives_the_norms_of_its_images():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 24, 8, 8, generator=generator).cuda()
    weight = torch.randn(48, 24, 1, 1, generator=generator).cuda()
    gamma, beta = (torch.linspace(*ends, 48, device="cuda") for ends in ((0.5, 2), (-1, 1)))
    conv = ConvNorm(weight, gamma, beta, relu=False)
    calibration = Calibration()
    expected = batch_norm_unit(x, conv)
    torch.testing.assert_close(calibration(x, conv), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(calibration.folded()(x, conv), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("kind", [FBNetSplit, NASBench201Split])
def test_designs_that_share_images_on_a_gpu_score_as_each_alone(kind):
    options = {"name": "supernet", "images": 200, "processor": "cuda"}
    problem = kind(evaluator=options)
    X = random_genomes(problem.space, 6, np.random.default_rng(0))
    X[3:, : problem.space.n_arch] = X[:3, : problem.space.n_arch]
    designs = problem.space.designs(problem.space.decode_batch(keep_valid(problem.space, X)))
    together = dict(problem.evaluator.evaluate(designs))
    others = dict(problem.evaluator.evaluate(designs, "test", 100))  # their norms are known
    alone = kind(evaluator={**options, "memory_mb": 0}).evaluator
    for number, design in enumerate(designs):
        assert dict(alone.evaluate([design]))[0] == together[number]
        assert dict(alone.evaluate([design], "test", 100))[0] == others[number]


def test_captured_blocks_give_the_gradients_of_the_same_kernels():
    from nasc_evo.supernet.graphs import BlockGraphs
    from nasc_evo.supernet.kernels import fused_norm_unit

    supernet = build_supernet(FBNetSpace(32, 10), torch.Generator().manual_seed(0)).cuda()
    graphs = BlockGraphs(supernet, 64, torch.float32)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 3, 32, 32, generator=generator).cuda()
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.arange(64, device="cuda") % 10
    networks = [supernet.largest(), (7, 8, *range(9), *range(9), 8, 0), supernet.largest()]

    def uncaptured(ops):
        stem, *layers, head = supernet.blocks(ops)
        fused = [lambda x, unit, block=block: block(x, fused_norm_unit) for block in layers]
        return [stem, *fused, head]

    gradients = []
    for blocks in (uncaptured, graphs.blocks):
        supernet.zero_grad(set_to_none=False)
        for ops in networks:  # one twice: its second replay must not overwrite the first's
            F.cross_entropy(run_blocks(blocks(ops), x, batch_norm_unit), y).backward()
        gradients.append([p.grad.clone() for p in supernet.parameters()])
    for plain, captured in zip(*gradients, strict=True):
        assert float((plain - captured).norm()) <= 0.01 * float(plain.norm()) + 1e-6


def test_training_without_captured_blocks_runs_to_weights(tmp_path):
    # a weight that no network has used yet has no gradient, and fused SGD wants all or none
    config = replace(CONFIG, processor="cuda", cuda_graphs=False)
    assert trainer(tmp_path, config).run().is_file()


def test_ways_into_and_out_of_cells_equal_plain_ones():
    from nasc_evo.supernet import fair_turn, kernels

    rng = np.random.default_rng(0)
    turns = []
    for _ in range(3):
        op_of = rng.permutation(fair_turn.NETWORKS)
        parts = (np.argsort(op_of), op_of, rng.random(fair_turn.NETWORKS, dtype=np.float32))
        turns.append(fair_turn.Turn(*(torch.from_numpy(part).cuda() for part in parts)))
    values = torch.sin(torch.arange(5 * 5000, device="cuda").float()).view(5, 5000)
    for n_edges in (1, 2, 3):
        results = []
        for module in (fair_turn, kernels):
            nodes = [(values * (i + 1)).requires_grad_(True) for i in range(n_edges)]
            edges = [module.take(x, turn) for x, turn in zip(nodes, turns, strict=False)]
            y = module.mix([tuple(2 * row for row in edge) for edge in edges], turns[:n_edges])
            y.backward(torch.cos(values))
            results.append([y, *(x.grad for x in nodes)])
        for plain, fused in zip(*results, strict=True):
            torch.testing.assert_close(plain, fused)


def test_a_captured_fair_turn_gives_the_gradients_of_the_same_kernels():
    from nasc_evo.supernet.fair_turn import NETWORKS, FairTurn
    from nasc_evo.supernet.graphs import captured_turn
    from nasc_evo.supernet.kernels import fused_norm_unit, mix, take

    space = NASBench201Space(32, 10)
    supernet = build_supernet(space, torch.Generator().manual_seed(0)).cuda()
    captured = captured_turn(supernet, 32 * NETWORKS, torch.float32)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(32 * NETWORKS, 3, 32, 32, generator=generator).cuda()
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.arange(len(x), device="cuda") % 10
    rng = np.random.default_rng(0)
    turns = [
        np.array([rng.permutation(NETWORKS) for _ in range(space.n_genes)]).T for _ in range(2)
    ]
    kept = torch.arange(32, device="cuda") < 16
    sent = [[(9, kept, 8)], [], [], [], []]
    gradients = []
    plain = FairTurn(supernet, torch.float32, fused_norm_unit, take, mix)
    for turn in (plain, captured):
        supernet.zero_grad(set_to_none=False)
        for networks in turns:
            F.cross_entropy(turn(x, networks, sent), y).backward()
        gradients.append([p.grad.clone() for p in supernet.parameters()])
    for launched, replayed in zip(*gradients, strict=True):
        assert float((launched - replayed).norm()) <= 0.01 * float(launched.norm()) + 1e-6
