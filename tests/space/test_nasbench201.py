"""The NAS-Bench-201 space against the official list of its architectures."""

import csv

import numpy as np
import pytest

from nasc_evo.errors import UserError
from nasc_evo.space import NASBench201Space, SplitSpace
from nasc_evo.space.nasbench201 import (
    CONV_1X1,
    CONV_3X3,
    NONE,
    POOL,
    SKIP,
    beside,
    cell_expression,
    dead_edges,
)
from tests.conftest import needs_data

SPACE = NASBench201Space(32, 10)
ALL = SPACE.architectures


def test_all_architectures_once():
    assert ALL.shape == (15625, 6)
    assert len(np.unique(ALL, axis=0)) == 15625
    assert np.array_equal(SPACE.index(ALL), np.arange(15625))


def test_strings_round_trip_for_all():
    for index in range(15625):
        assert np.array_equal(SPACE.parse(SPACE.format(ALL[index])), ALL[index])


def test_index_0_is_the_official_one():
    assert SPACE.format(ALL[0]) == (
        "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+"
        "|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"
    )


def test_strings_macs_and_params_of_all_equal_the_official_table():
    with open(needs_data("hwnas/nb201_index.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert [SPACE.format(ops) for ops in ALL] == [row["arch_str"] for row in rows]
    for classes, name in ((10, "cifar10"), (100, "cifar100")):
        space = NASBench201Space(32, classes)
        for mine, column in ((space.macs(ALL), "flops_M_"), (space.params(ALL), "params_M_")):
            official = np.array([float(row[column + name]) for row in rows])
            assert np.array_equal(mine, np.round(official * 1e6).astype(int))
    # what is one network there is one network here
    canonical = SPACE.index(SPACE.canonical(ALL))
    for row, index in zip(rows, canonical, strict=True):
        assert canonical[int(row["iso_rep"])] == index


def test_equal_networks_are_one_phenotype():
    canonical = SPACE.canonical(ALL)
    assert len(np.unique(canonical, axis=0)) == 4930
    assert np.array_equal(SPACE.canonical(canonical), canonical)
    zero_input, unused = dead_edges(canonical)
    assert not ((zero_input | unused) & (canonical != NONE)).any()
    for i in np.random.default_rng(0).integers(0, 15625, 200):
        assert cell_expression(ALL[i].tolist()) == cell_expression(canonical[i].tolist())
    space = SplitSpace(SPACE)
    x = np.zeros((2, space.n_var), dtype=int)
    # 3x3 into node 1, which leads nowhere, and skips to the output: the second has no such edge
    x[0, :6] = [CONV_3X3, NONE, NONE, SKIP, NONE, NONE]
    x[1, :6] = [NONE, NONE, NONE, SKIP, NONE, NONE]
    first, second = space.designs(space.decode_batch(x))
    assert first == second
    apart = SplitSpace(SPACE, merge_equal_networks=False)
    first, second = apart.designs(apart.decode_batch(x))
    assert first.arch != second.arch


def test_networks_that_train_alike_are_equal_and_have_as_many_weights():
    alike = SPACE.alike(ALL)
    assert len(np.unique(alike, axis=0)) == 5260
    assert np.array_equal(SPACE.alike(alike), alike)
    assert np.array_equal(SPACE.canonical(alike), SPACE.canonical(ALL))
    assert np.array_equal(SPACE.alike(SPACE.canonical(ALL)), SPACE.canonical(ALL))
    used = np.where(np.logical_or(*dead_edges(ALL)), NONE, ALL)
    assert np.array_equal(SPACE.params(alike), SPACE.params(used))
    # two convolutions of the input, or one whose result is used twice
    two = SPACE.parse(
        "|nor_conv_3x3~0|+|nor_conv_3x3~0|none~1|+|none~0|skip_connect~1|skip_connect~2|"
    )
    one = SPACE.parse(
        "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|skip_connect~1|skip_connect~2|"
    )
    assert np.array_equal(*SPACE.canonical(np.array([two, one])))
    assert not np.array_equal(*SPACE.alike(np.array([two, one])))


@pytest.mark.parametrize(
    ("ops", "zero_input", "unused"),
    [
        # node 1 gets nothing, so that what comes out of it is zero
        ([NONE, POOL, CONV_3X3, SKIP, CONV_3X3, SKIP], [2, 4], []),
        # node 2 leads nowhere
        ([SKIP, POOL, CONV_3X3, SKIP, CONV_3X3, NONE], [], [1, 2]),
        ([CONV_3X3] * 6, [], []),
        # nothing reaches the output
        ([CONV_3X3, NONE, NONE, NONE, NONE, NONE], [5], [0, 1, 2]),
    ],
)
def test_dead_edges_by_hand(ops, zero_input, unused):
    zero, useless = dead_edges(np.array([ops]))
    assert np.flatnonzero(zero[0]).tolist() == zero_input
    assert np.flatnonzero(useless[0]).tolist() == unused


def test_pruned_edges_cost_as_none():
    ops = np.array([[SKIP, POOL, CONV_3X3, SKIP, CONV_3X3, NONE]])
    first = SPACE.block_start[1]
    assert SPACE.position_codes(ops)[0, first : first + 6].tolist() == ops[0].tolist()
    pruned = SPACE.position_codes(ops, ("unused",))[0]
    for block in SPACE.cell_blocks:
        edges = pruned[SPACE.block_start[block] : SPACE.block_start[block] + 6]
        assert edges.tolist() == [SKIP, NONE, NONE, SKIP, CONV_3X3, NONE]


@pytest.mark.parametrize(
    ("ops", "relus", "adds", "pools"),
    [
        ([CONV_3X3] * 6, 0, 0, 0),  # convolutions take up every addition and ReLU
        ([SKIP] * 6, 0, 3, 0),
        ([NONE, NONE, NONE, POOL, NONE, NONE], 0, 0, 1),
        # three poolings of the input are one
        ([POOL, POOL, NONE, POOL, NONE, SKIP], 0, 1, 1),
        ([CONV_1X1, NONE, NONE, SKIP, CONV_1X1, NONE], 1, 0, 0),  # the input is needed as it is
        ([CONV_1X1, SKIP, POOL, POOL, CONV_1X1, SKIP], 2, 2, 2),
        # node 1 is the input; its convolution takes up the pooling, and the last the sum
        ([SKIP, POOL, CONV_3X3, POOL, CONV_3X3, POOL], 1, 1, 2),
        # the convolution of node 1 is needed in a sum alone and takes it up
        ([CONV_3X3, NONE, NONE, POOL, SKIP, NONE], 1, 0, 1),
    ],
)
def test_what_is_beside_operations_by_hand(ops, relus, adds, pools):
    assert beside(np.array([ops]))[0].tolist() == [relus, adds, pools]
    first = SPACE.block_start[1] + 6
    codes = SPACE.position_codes(np.array([ops]), SPACE.prunable)[0]
    assert codes[first : first + 3].tolist() == [relus, adds, pools]


def test_blocks_and_cuts():
    assert SPACE.n_blocks == 19
    assert SPACE.block_names[0] == "stem"
    assert SPACE.block_names[6] == "reduction_1"
    assert SPACE.cut_shapes[6] == (16, 32, 32)
    assert SPACE.cut_shapes[7] == (32, 16, 16)
    assert SPACE.cut_shapes[18] == (64, 8, 8)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("|none~0|", "3 nodes"),
        ("|no~0|+|none~0|none~1|+|none~0|none~1|none~2|", "'no' in 'no~0' of node 1"),
        ("|none~0|+|none~0|none~0|+|none~0|none~1|none~2|", "write 'none~1'"),
        ("|none~0|+|none~0|+|none~0|none~1|none~2|", "Node 2"),
        ("|none|+|none~0|none~1|+|none~0|none~1|none~2|", "write 'none~0'"),
        ("none~0+|none~0|none~1|+|none~0|none~1|none~2|", "Node 1"),
    ],
)
def test_malformed_strings_are_told_where(text, says):
    with pytest.raises(UserError, match=says):
        SPACE.parse(text)


@pytest.mark.parametrize("arguments", [(224, 10), (32, 1)])
def test_other_geometries_and_one_class_are_refused(arguments):
    with pytest.raises(UserError):
        NASBench201Space(*arguments)
