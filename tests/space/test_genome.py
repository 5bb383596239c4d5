import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasc_evo.errors import UserError
from nasc_evo.space import FBNetSpace, SplitSpace

ARCHITECTURE = FBNetSpace(32, 10)
SPACES = {
    "default": SplitSpace(ARCHITECTURE),
    "raw": SplitSpace(ARCHITECTURE, allow_raw_offload=True, min_device_blocks=3),
    "channels": SplitSpace(ARCHITECTURE, mask_groups="channels", bits=(8, 16, 32)),
    "chain": SplitSpace(ARCHITECTURE, n_links=2),
}


def genome(space: SplitSpace, **segment: object) -> np.ndarray:
    """Return a genome of skips with the given cut, mask and bits (index) on its first link."""
    x = np.zeros(space.n_var, dtype=int)
    x[space.cut_genes] = np.searchsorted(space.cut_choices, segment.get("cut", 10))
    mask = str(segment.get("mask", "1" * space.n_mask))
    x[space.mask_genes[0][: len(mask)]] = [int(bit) for bit in mask]
    x[space.bits_genes] = segment.get("bits", 0)
    return x


def test_layout_of_the_default_genome():
    space = SPACES["default"]
    assert space.n_var == 22 + 1 + 8 + 1
    assert space.cut_choices.tolist() == list(range(2, 25))
    assert space.sizes.tolist() == [9] * 22 + [23] + [2] * 8 + [3]


def test_decode_by_hand():
    design = SPACES["default"].decode(genome(SPACES["default"], mask="01100001", bits=2))
    assert design.cuts == (10,)
    assert design.masks == ("01100001",)
    assert design.bits == (8,)
    assert design.key == "|".join(["k3_e1"] * 22) + ";10;01100001;8"
    batch = SPACES["default"].decode_batch(genome(SPACES["default"], mask="01100001")[None])
    assert batch.kept_channels.tolist() == [[3 * 32 // 8]]


@pytest.mark.parametrize("cut", [0, 24])
def test_mask_and_bits_are_absent_where_nothing_is_masked(cut):
    space = SPACES["raw"]
    one = space.decode(genome(space, cut=cut, mask="10000000", bits=0))
    other = space.decode(genome(space, cut=cut, mask="00000011", bits=2))
    assert one == other
    assert one.masks == ("",)
    assert one.bits == (0,)


def test_an_empty_mask_stands_for_the_most_important_group():
    scores = np.ones(32)
    scores[21] = 9.0  # a channel of group 5: cut 10 has 32 channels, 4 a group
    space = SplitSpace(ARCHITECTURE, channel_importance={10: scores})
    assert space.importance[10].tolist() == [5, 0, 1, 2, 3, 4, 6, 7]
    assert space.decode(genome(space, mask="00000000")).masks == ("00000100",)
    assert space.decode(genome(space, cut=11, mask="00000000")).masks == ("10000000",)


def test_surplus_mask_genes_are_inactive():
    space = SPACES["channels"]
    assert space.n_mask == 352
    design = space.decode(genome(space, cut=2))
    assert design.masks == ("1" * 16,)


@given(seed=st.integers(0, 2**32 - 1), name=st.sampled_from(sorted(SPACES)))
@settings(max_examples=60, deadline=None)
def test_every_integer_array_within_bounds_round_trips(seed, name):
    space = SPACES[name]
    x = np.random.default_rng(seed).integers(0, space.sizes)
    x[space.cut_genes] = np.sort(x[space.cut_genes])
    design = space.decode(x)
    again = space.encode(design)
    assert space.decode(again) == design
    batch = space.decode_batch(np.stack([x, again]))
    for values in (batch.cuts, batch.masks, batch.bits, batch.kept_channels):
        assert np.array_equal(values[0], values[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:-1], "has 32 genes"),
        (lambda x: np.where(np.arange(32) == 3, 9, x), "Gene 3 must be in 0..8, got 9"),
        (lambda x: np.where(np.arange(32) == 22, -1, x), "Gene 22 must be in 0..22, got -1"),
        (lambda x: x + 0.5, "Gene 0 must be a whole number, got 0.5"),
        (lambda x: x * np.nan, "must be a whole number"),
    ],
)
def test_what_is_no_genome_is_refused(change, message):
    space = SPACES["default"]
    with pytest.raises(UserError, match=message):
        space.decode(change(genome(space)))


def test_cuts_that_decrease_are_refused():
    space = SPACES["chain"]
    x = genome(space)
    x[space.cut_genes] = (5, 3)
    with pytest.raises(UserError, match="must not decrease"):
        space.decode(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": ()}, "bits must be a list"),
        ({"bits": (4, 4)}, "bits must be a list"),
        ({"bits": (5, 9)}, "bits must be a list"),
        ({"mask_groups": 3}, "does not divide the 16 channels"),
        ({"mask_groups": 0}, "must be a positive whole number"),
        ({"mask_groups": "all"}, "must be a positive whole number or 'channels'"),
        ({"min_device_blocks": 0}, "must be in 1..24"),
        ({"min_device_blocks": 25}, "must be in 1..24"),
        ({"n_links": 0}, "at least one link"),
        ({"channel_importance": {10: [1.0] * 8}}, "at cut 10 must be 32 finite numbers"),
    ],
)
def test_impossible_spaces_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        SplitSpace(ARCHITECTURE, **options)
