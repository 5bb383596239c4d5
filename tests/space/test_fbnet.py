import numpy as np
import pytest

from nasc_evo.errors import UserError
from nasc_evo.space import FBNetSpace
from nasc_evo.space.fbnet import OPS, SKIP
from tests.conftest import needs_data


def test_layers_at_32_are_those_of_hw_nas_bench():
    layers = FBNetSpace(32).layers
    assert len(layers) == 22
    assert tuple(layers[0]) == (16, 16, 1, 32, 32)
    assert tuple(layers[5]) == (24, 32, 2, 32, 16)
    assert tuple(layers[21]) == (184, 352, 1, 4, 4)
    assert [i + 1 for i, g in enumerate(layers) if not g.identity] == [2, 6, 10, 14, 18, 22]


@pytest.mark.parametrize(
    ("op", "macs", "params"),
    [
        ("k3_e1", 671744, 752),
        ("k3_e1_g2", 409600, 496),
        ("k5_e6", 5603328, 5888),
        ("skip", 0, 0),
    ],
)
def test_macs_and_params_of_layer_1_by_hand(op, macs, params):
    # k3_e1 at 32x32, 16 -> 16 channels: 16*16 + 16*9 + 16*16 weights and 2*(16+16+16) for norms;
    # each weight is used 1024 times.
    space = FBNetSpace(32)
    ops = np.full((2, 22), SKIP)
    ops[1, 0] = OPS.index(op)
    assert np.diff(space.macs(ops))[0] == macs
    assert np.diff(space.params(ops))[0] == params


@pytest.mark.parametrize(("geometry", "row"), [(32, 0), (224, 1)])
def test_geometry_macs_and_params_equal_the_tables(geometry, row):
    path = needs_data("hwnas/fbnet_layer_costs.npz")
    table = np.load(path, allow_pickle=False)
    space = FBNetSpace(geometry, 100 if geometry == 32 else 1000)
    mine = [(g.size_in, g.channels_in, g.channels_out, g.stride, g.size_out) for g in space.layers]
    assert np.array_equal(mine, table["geometry"][row])
    base = np.full(22, SKIP)
    for layer in range(22):
        for op in range(9):
            ops = base.copy()
            ops[layer] = op
            want = table["macs"][row, layer, op] - table["macs"][row, layer, SKIP]
            assert space.macs(ops[None])[0] - space.macs(base[None])[0] == want
            want = table["params"][row, layer, op] - table["params"][row, layer, SKIP]
            assert space.params(ops[None])[0] - space.params(base[None])[0] == want
    fixed = table["fixed_macs"][row].sum() + table["macs"][row, :, SKIP].sum()
    assert space.macs(base[None])[0] == fixed


def test_text_form_round_trips():
    space = FBNetSpace(32)
    ops = np.random.default_rng(0).integers(0, 9, 22)
    assert np.array_equal(space.parse(space.format(ops)), ops)


@pytest.mark.parametrize(
    ("text", "message"),
    [("k3_e1", "has 22 operations"), ("|".join(["k3_e1"] * 21 + ["k7_e1"]), "'k7_e1'")],
)
def test_malformed_text_is_one_sentence(text, message):
    with pytest.raises(UserError, match=message):
        FBNetSpace(32).parse(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((64, 10), "geometry 32 and 224, got 64"), ((32, 1), "at least 2 classes, got 1")],
)
def test_impossible_spaces_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        FBNetSpace(*arguments)


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        (np.zeros(21, int), "22 genes"),
        (np.full(22, 9), "must be in 0..8, got 9"),
        (np.full(22, 0.5), "whole numbers"),
    ],
)
def test_impossible_architectures_are_refused(ops, message):
    with pytest.raises(UserError, match=message):
        FBNetSpace(32).check(ops)
