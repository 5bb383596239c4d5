"""What is measured is what networks are made of."""

from collections import Counter

import numpy as np
import pytest
import torch

from nasc_evo.cost import Chain, CostTable, Link, Node
from nasc_evo.cost.chain import DEVICE, SERVER
from nasc_evo.cost.table import write_table
from nasc_evo.measurement.pieces import (
    Run,
    beside_keys,
    block_pieces,
    fold,
    random_runs,
    run_features,
    table_keys,
)
from nasc_evo.space import FBNetSpace, NASBench201Space, SplitSpace
from nasc_evo.space.genome import Design
from nasc_evo.supernet.blocks import ConvNorm
from nasc_evo.supernet.model import build_supernet

SPACES = [FBNetSpace(32, 100), FBNetSpace(224, 1000), NASBench201Space()]
SMALL = [SPACES[0], SPACES[2]]


def supernet(space):
    return build_supernet(space, torch.Generator().manual_seed(0)).requires_grad_(False)


def runs(space, n, seed=0):
    return random_runs(space, n, np.random.default_rng(seed))


def test_folding_keeps_unit_variance():
    generator = torch.Generator().manual_seed(0)
    weight = 3 * torch.randn(8, 16, 3, 3, generator=generator)
    conv = ConvNorm(weight, torch.ones(8), torch.zeros(8), relu=False)
    y = fold(conv)(torch.randn(1, 16, 64, 64, generator=generator).relu())
    inner = y[:, :, 1:-1, 1:-1]
    assert inner.var(dim=(0, 2, 3)).mean().item() == pytest.approx(1 - 1 / np.pi, abs=0.1)


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_every_row_of_a_table_has_its_piece(space):
    keys, beside = table_keys(space), beside_keys(space)
    pieces = block_pieces(space, supernet(space))
    assert list(keys) == [(p.name, op) for p in dict.fromkeys(space.positions) for op in p.ops]
    assert {*pieces, *beside} == {key[0] for key in keys.values() if key is not None}
    assert not pieces.keys() & beside.keys()
    assert set(beside.values()) <= set(pieces)
    times = {place: key[1] for place, key in keys.items() if key is not None}
    assert all(n == (int(place[1]) if place[0] in beside else 1) for place, n in times.items())
    nothing = {op for (_, op), key in keys.items() if key is None}
    assert nothing == ({"none", "0"} if space.name == "nasbench201" else {"skip"})
    if space.name == "fbnet":
        free = {position for (position, op), key in keys.items() if key is None}
        assert free == {f"layer_{i + 1}" for i, g in enumerate(space.layers) if g.identity}


@pytest.mark.parametrize("space", SMALL, ids=repr)
def test_pieces_run_and_join(space):
    network = supernet(space)
    for run in runs(space, 3):
        deployed = run.piece(network).fold()
        assert torch.isfinite(deployed.y).all()
        assert 1e-3 < deployed.y.abs().max() < 1e9
        end = space.cut_shapes[run.end] if run.end < space.n_blocks else (space.n_classes,)
        assert tuple(deployed.y.shape[1:]) == end
        with torch.inference_mode():
            y = deployed.runner()()
        scale = float(deployed.y.abs().max())
        torch.testing.assert_close(y, deployed.y, rtol=1e-3, atol=1e-4 * scale)
    for piece in block_pieces(space, network).values():
        assert torch.isfinite(piece.fold().y).all()


@pytest.mark.parametrize("space", SMALL, ids=repr)
def test_onnx_graphs_compute_what_torch_computes(space):
    onnx = pytest.importorskip("onnx", reason="the optional extra onnx is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="likewise")
    from nasc_evo.measurement.onnx_graph import INPUT, onnx_model

    network = supernet(space)
    pieces = [run.piece(network) for run in runs(space, 4)]
    if space.name == "nasbench201":  # also the nodes that average, as the supernet's own do
        pieces.append(type(pieces[0])(network.blocks((3, 4, 2, 1, 3, 4)), space.cut_shapes[0]))
    for piece in [*pieces, *block_pieces(space, network).values()]:
        deployed = piece.fold(channels_last=False)
        model = onnx_model(deployed)
        onnx.checker.check_model(model, full_check=True)
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        (y,) = session.run(None, {INPUT: deployed.x.numpy()})
        scale = float(deployed.y.abs().max())
        np.testing.assert_allclose(y, deployed.y.numpy(), rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("space", SMALL, ids=repr)
def test_random_runs_are_whole_networks_and_both_sides(space):
    found = runs(space, 20)
    assert found == runs(space, 20)
    assert found == runs(space, 30)[:60]  # a measurement may go on with more
    assert found != runs(space, 20, seed=1)
    for whole, first, second in zip(found[::3], found[1::3], found[2::3], strict=True):
        assert whole.ops == first.ops == second.ops
        assert (whole.start, whole.end) == (0, space.n_blocks)
        assert (first.start, second.end) == (0, space.n_blocks)
        assert 0 < first.end == second.start < space.n_blocks


@pytest.mark.parametrize("space", SMALL, ids=repr)
def test_features_and_constant_are_those_of_the_cost_model(space, tmp_path):
    """A table predicts, for device and server at every cut, what the fit predicts for the sides."""
    keys = table_keys(space)
    kinds = sorted({key[0] for key in keys.values() if key is not None})
    figures = np.random.default_rng(0).uniform(0.1, 1, len(kinds))
    constant = 0.25
    rows = {
        place: {"latency_ms": 0.0 if key is None else key[1] * figures[kinds.index(key[0])]}
        for place, key in keys.items()
    }
    header = {"name": "mine", "constant_ms": constant, "pruned": list(space.prunable)}
    write_table(tmp_path / "mine.csv", space, header, rows)
    table = CostTable.load(tmp_path / "mine.csv", space)
    nodes = [Node("a", table, DEVICE), Node("b", table, SERVER)]
    chain = Chain(space, nodes, [Link.create("wifi")], image_bytes=3072)
    split = SplitSpace(space, allow_raw_offload=True, min_device_blocks=1)
    sides = []
    for run in runs(space, 3)[::3]:
        for cut in range(space.n_blocks + 1):
            inner = 0 < cut < space.n_blocks
            masks, bits = ("1" * 8 if inner else "",), (8 if inner else 0,)
            design = Design(space.format(np.array(run.ops)), run.ops, (cut,), masks, bits)
            costs = chain.evaluate(split.decode_batch(split.encode(design)[None]))
            parts = [Run(run.ops, 0, cut), Run(run.ops, cut, space.n_blocks)]
            for part, got in zip(parts, (costs.device_ms[0], costs.server_ms[0]), strict=True):
                if part.start == part.end:
                    assert got == 0
                else:
                    sides.append((part, got))
    expected = constant + run_features(space, [part for part, _ in sides], kinds) @ figures
    np.testing.assert_allclose([got for _, got in sides], expected, rtol=1e-12)


def test_what_is_beside_operations_is_what_onnx_runtime_leaves(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    from nasc_evo.measurement.onnx_graph import onnx_model

    space, equal = NASBench201Space(), []
    network = supernet(space)
    for run in runs(space, 60)[::3]:
        model = onnx_model(run.piece(network).fold(channels_last=False))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        onnxruntime.InferenceSession(model.SerializeToString(), options)
        left = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
        codes = space.position_codes(np.array([run.ops]), space.prunable)[0]
        relus, adds, pools = codes[space.block_start[1] + 6 : space.block_start[2]]
        expected = (15 * relus + 2, 15 * adds, 15 * pools + 2)  # each reduction has one of two
        equal.append((left["Relu"], left["Add"], left["AveragePool"]) == expected)
    # the first cell of a stage has another before it, and two nodes may compute the same
    assert np.mean(equal) > 0.85
