"""What needs a GPU: events, CUDA graphs, launch cost."""

from functools import partial

import numpy as np
import pytest
import torch

from nasc_evo.cost import CostTable
from nasc_evo.measure import measure
from nasc_evo.measurement.backends import captured, create_backend
from nasc_evo.measurement.energy import find_counter
from nasc_evo.measurement.pieces import block_pieces, random_runs
from nasc_evo.measurement.session import Plan
from nasc_evo.report.display import create_console
from nasc_evo.space import FBNetSpace, NASBench201Space
from nasc_evo.supernet.model import build_supernet

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SPACES = [FBNetSpace(32, 100), NASBench201Space()]


def keep(run, outputs):
    outputs.append(run())


@pytest.mark.parametrize("space", SPACES, ids=repr)
@torch.inference_mode()
def test_a_captured_run_computes_the_same(space):
    supernet = build_supernet(space).requires_grad_(False).to("cuda")
    for run in random_runs(space, 2, np.random.default_rng(0)):
        deployed = run.piece(supernet).fold("cuda", channels_last=False)
        run_once, outputs = deployed.runner(), []
        replay = captured(partial(keep, run_once, outputs))
        outputs[-1].zero_()
        replay()
        torch.cuda.synchronize()
        scale = float(deployed.y.abs().max())
        torch.testing.assert_close(outputs[-1], deployed.y, rtol=1e-2, atol=1e-3 * scale)


@torch.inference_mode()
def test_graphs_save_launches():
    space = SPACES[0]
    supernet = build_supernet(space).requires_grad_(False).to("cuda")
    backend = create_backend("torch", "cuda", 1, "eager")
    whole = random_runs(space, 1, np.random.default_rng(0))[0].piece(supernet)
    block = block_pieces(space, supernet)["k3_e6 24x32-24x32"]
    for piece, is_whole in ((whole, True), (block, False)):
        eager = backend.prepare(piece, graph=False, whole=is_whole)
        graph = backend.prepare(piece, graph=True, whole=is_whole)
        eager_ms, graph_ms = (
            np.median([prepared.timed() for _ in range(50)][20:]) for prepared in (eager, graph)
        )
        assert 0 < graph_ms < eager_ms


@pytest.mark.slow
@pytest.mark.parametrize("launch", ["eager", "graph"])
def test_a_table_of_the_gpu(tmp_path, launch):
    plan = Plan(processor="cuda", launch=launch, rounds=1, repeats=5, networks=40)
    out = tmp_path / "gpu.csv"
    assert measure(SPACES[1], plan, out, "gpu", True, create_console()) == 0
    table = CostTable.load(out, SPACES[1])
    assert table.prediction_error() is not None
    if find_counter("cuda") is not None:
        assert table.prediction_error("energy_mj")[0] < 50
        skip, conv_3x3 = table.energy_mj[1, [1, 3]]
        assert 0 <= skip < conv_3x3
    assert ("launch" in table.header) == (launch == "eager")
    assert ("host" in table.header["measurement"]) == (launch == "eager")
    assert ("launch_ms" in out.read_text().split("position,op,", 1)[1]) == (launch == "eager")
