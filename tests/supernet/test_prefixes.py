from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from nasc_evo.supernet.blocks import FixedNorm
from nasc_evo.supernet.prefixes import Images, PrefixCache, packed, retiled, shared_prefixes


def images(n_bytes: int) -> Images:
    calibration = torch.zeros(n_bytes // 2, dtype=torch.uint8)
    return Images(calibration, [], [[torch.zeros(n_bytes - n_bytes // 2, dtype=torch.uint8)]])


def test_the_least_recently_used_images_make_room():
    cache = PrefixCache(100)
    cache.add(("a",), images(40))
    cache.add(("a", "b"), images(40))
    assert cache.longest(("a", "c", "d"), calibrated=True)[0] == 1  # uses the first
    cache.add(("x",), images(30))
    assert cache.get(("a", "b")) is None
    assert cache.get(("a",)) is not None
    assert cache.get(("x",)) is not None
    assert cache.nbytes == 70
    cache.make_room(60)
    assert cache.nbytes == 30
    assert cache.get(("x",)) is not None
    cache.clear()
    assert cache.nbytes == 0
    assert cache.get(("a",)) is None


def test_norms_count_too():
    norm = FixedNorm(torch.zeros(3), torch.zeros(3))
    assert Images(torch.zeros(2), [[norm, norm], []], [[torch.zeros(5)]]).nbytes == 4 * (2 + 12 + 5)


def test_images_beyond_the_budget_are_not_kept():
    cache = PrefixCache(100)
    cache.add(("a",), images(60))
    cache.add(("b",), images(101))
    assert cache.get(("a",)) is not None
    assert cache.get(("b",)) is None


def test_the_longest_prefix_is_found_but_never_the_whole_path():
    cache = PrefixCache(100)
    kept = {path: images(10) for path in [(1,), (1, 2), (1, 2, 3)]}
    for path, behind in kept.items():
        cache.add(path, behind)
    for calibrated in (False, True):
        assert cache.longest((1, 2, 3), calibrated=calibrated) == (2, kept[1, 2])
        assert cache.longest((1, 2, 3, 4), calibrated=calibrated) == (3, kept[1, 2, 3])
        assert cache.longest((2, 2), calibrated=calibrated) == (0, None)


def test_images_without_calibration_serve_who_needs_none():
    cache = PrefixCache(100)
    whole, bare = images(10), replace(images(10), calibration=torch.zeros(0))
    cache.add((1,), whole)
    cache.add((1, 2), bare)
    assert cache.longest((1, 2, 3), calibrated=False) == (2, bare)
    assert cache.longest((1, 2, 3), calibrated=True) == (1, whole)
    cache.add((1, 2), whole)
    assert cache.longest((1, 2, 3), calibrated=True) == (2, whole)
    assert cache.nbytes == 20


def test_packed_norms_are_the_same_norms():
    norms = [
        [FixedNorm(torch.rand(3), torch.rand(3))],
        [],
        [FixedNorm(torch.rand(2), torch.rand(2))],
    ]
    again = packed(norms)
    assert [len(of_block) for of_block in again] == [1, 0, 1]
    assert again[2][0].shift.untyped_storage().nbytes() == 4 * 10
    for of_block, expected in zip(again, norms, strict=True):
        for norm, other in zip(of_block, expected, strict=True):
            assert torch.equal(norm.scale, other.scale)
            assert torch.equal(norm.shift, other.shift)
    assert packed([[], []]) == [[], []]


def test_neighbours_share_their_common_prefix():
    paths = sorted([(1, 2, 3), (1, 2, 4), (1, 5, 3), (7, 0, 0), (7, 0, 0)])
    assert shared_prefixes(paths) == {(1, 2), (1,), (), (7, 0, 0)}
    assert shared_prefixes([]) == set()


@given(
    st.integers(1, 300), st.lists(st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128, 256]), max_size=6)
)
def test_tiles_keep_the_images_in_order(n, sizes):
    x = torch.arange(n)[:, None]
    tiles = [x]
    for size in sizes:
        tiles = retiled(tiles, size)
        assert torch.equal(torch.cat(tiles), x)
        assert [len(tile) for tile in tiles] == [len(part) for part in x.split(size)]
