import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nasc_evo.data import get_dataset
from nasc_evo.errors import UserError
from nasc_evo.search.operators import keep_valid, random_genomes
from nasc_evo.space import Design, FBNetSpace, SplitSpace
from nasc_evo.supernet import blocks, evaluation
from nasc_evo.supernet.blocks import Calibration
from nasc_evo.supernet.evaluation import (
    SupernetEvaluator,
    closest,
    has_native_bfloat16,
    transmissions,
)
from nasc_evo.supernet.score import Score, score_each
from nasc_evo.supernet.transmission import channel_mask, transmit
from problems import FBNetSplit, NASBench201Split

SPACE = FBNetSpace(32, 10)
SPLIT = SplitSpace(SPACE, bits=(4, 8, 32), min_device_blocks=1)


@pytest.fixture(scope="module")
def evaluator():
    return SupernetEvaluator(
        SPACE,
        get_dataset("fashion_mnist"),
        images=64,
        calibration_images=32,
        dtype="float32",
        threads=1,
    )


def design(ops, cut, mask="11111111", bits=32) -> Design:
    ops = tuple(int(op) for op in ops)
    mask = mask if 0 < cut < 24 else ""
    return Design(SPACE.format(ops), ops, (cut,), (mask,), (bits if mask else 0,))


def logits(evaluator, design, x, unit):
    """What a design computes, without anything that makes it fast."""
    sent = [
        (cut, channel_mask(mask, SPACE.cut_shapes[cut][0]), bits)
        for cut, (mask, bits) in transmissions(design).items()
    ]
    return evaluator.supernet(x, design.ops, unit, sent)


FAST = has_native_bfloat16(torch.device("cpu"))
FAST_DTYPES = ["float32", "bfloat16"] if FAST else ["float32"]
OPS = np.random.default_rng(0).integers(0, 9, 22)


def test_head_and_tail_equal_the_whole_network_at_every_cut(evaluator):
    x = evaluator._split("search")[0][:8]
    with torch.inference_mode():
        calibration = Calibration()
        logits(evaluator, design(OPS, 24), evaluator._calibration, calibration)
        whole = logits(evaluator, design(OPS, 24), x, calibration.folded())
        blocks = evaluator.supernet.blocks(OPS)
        for cut in range(1, 24):
            unit = calibration.folded()
            sent = x
            for block in blocks[:cut]:
                sent = block(sent, unit)
            assert tuple(sent.shape[1:]) == SPACE.cut_shapes[cut]
            received = sent.clone()
            for block in blocks[cut:]:
                received = block(received, unit)
            assert torch.allclose(received, whole, atol=1e-4)
            full = logits(evaluator, design(OPS, cut), x, calibration.folded())
            assert torch.allclose(full, whole, atol=1e-4)


@pytest.mark.parametrize("cut", [1, 10, 23])
def test_a_masked_design_is_the_network_with_zeroed_channels(evaluator, cut):
    masked = design(OPS, cut, "01000010", 32)
    x = evaluator._split("search")[0][:8]
    with torch.inference_mode():
        calibration = Calibration()
        logits(evaluator, masked, evaluator._calibration, calibration)
        got = logits(evaluator, masked, x, calibration.folded())
        unit = calibration.folded()
        blocks = evaluator.supernet.blocks(OPS)
        y = x
        for block in blocks[:cut]:
            y = block(y, unit)
        group = y.shape[1] // 8
        zeroed = torch.zeros_like(y)
        for index in (1, 6):
            part = slice(index * group, (index + 1) * group)
            zeroed[:, part] = y[:, part]
        for block in blocks[cut:]:
            zeroed = block(zeroed, unit)
    assert torch.equal(zeroed, got)


def test_the_mask_of_training_is_that_of_evaluation():
    x = torch.randn(2, 32, 4, 4, generator=torch.Generator().manual_seed(0))
    kept = channel_mask("11000000", 32)
    with torch.no_grad():
        evaluated = transmit(x, kept, 6)
    trained = transmit(x.requires_grad_(True), kept, 6).detach()
    assert torch.allclose(evaluated, trained, atol=1e-6)


def test_shipped_weights_recognise_images(evaluator):
    scores = dict(evaluator.evaluate([design([7] * 22, 24), design(OPS, 24)], images=256))
    assert scores[0].error < 0.15
    assert scores[1].error < 0.2


def test_fewer_bits_and_channels_lose_accuracy_but_not_all(evaluator):
    order = [design(OPS, 10), design(OPS, 10, "10000000", 4)]
    scores = dict(evaluator.evaluate(order, images=512))
    assert scores[0].error < scores[1].error < 0.6


def test_a_score_depends_on_the_design_alone(evaluator):
    population = [
        design(OPS, 24),
        design(OPS, 10, "11000000", 4),
        design(np.full(22, 8), 5, "00000001", 8),
        design(OPS, 10, "11000000", 8),
    ]
    together = dict(evaluator.evaluate(population))
    for i, one in enumerate(population):
        assert dict(evaluator.evaluate([one]))[0] == together[i]


def test_a_score_counts_what_the_plain_network_gets_right(evaluator):
    x, y = evaluator._split("search")
    for one in (
        design(OPS, 24),
        design(OPS, 10, "11000000", 4),
        design([7] * 22, 1, "00000011", 8),
    ):
        calibration = Calibration()
        with torch.inference_mode():
            logits(evaluator, one, evaluator._calibration, calibration)
            predicted = logits(evaluator, one, x[:64], calibration.folded()).argmax(dim=1)
        ((_, score),) = evaluator.evaluate([one])
        assert score.correct == int((predicted == y[:64]).sum())


def small(**options) -> SupernetEvaluator:
    defaults = {"images": 40, "calibration_images": 16, "dtype": "float32", "threads": 1}
    return SupernetEvaluator(SPACE, get_dataset("fashion_mnist"), **{**defaults, **options})


needs_bfloat16 = pytest.mark.skipif(not FAST, reason="this processor does not compute in bfloat16")


@pytest.fixture(scope="module")
def alone():
    """Scores of designs one by one, nothing shared; by tile size and type."""
    evaluators = {
        (tile_kb, dtype): small(tile_kb=tile_kb, dtype=dtype, memory_mb=0)
        for tile_kb in (100, 3072)
        for dtype in FAST_DTYPES
    }

    def score(tile_kb, dtype, one):
        ((_, found),) = evaluators[tile_kb, dtype].evaluate([one])
        return found

    return score


@st.composite
def populations(draw):
    """Designs that agree in their first layers, in all of them, or in everything."""
    parents = draw(
        st.lists(st.lists(st.integers(0, 8), min_size=22, max_size=22), min_size=1, max_size=2)
    )
    members = []
    for _ in range(draw(st.integers(2, 5))):
        ops = list(draw(st.sampled_from(parents)))
        changed = draw(st.integers(0, 22))
        ops[changed:] = draw(
            st.lists(st.integers(0, 8), min_size=22 - changed, max_size=22 - changed)
        )
        mask = draw(st.sampled_from(["11111111", "10000000", "01010101"]))
        members.append(
            design(ops, draw(st.integers(0, 24)), mask, draw(st.sampled_from([4, 8, 32])))
        )
    return members


@settings(max_examples=12, deadline=None)
@given(
    st.lists(populations(), min_size=1, max_size=2),
    st.sampled_from([100, 3072]),
    st.sampled_from([1, 20, 512]),
    st.sampled_from(FAST_DTYPES),
)
def test_sharing_changes_no_score(alone, generations, tile_kb, memory_mb, dtype):
    together = small(tile_kb=tile_kb, memory_mb=memory_mb, dtype=dtype)
    for population in generations:
        for index, score in together.evaluate(population):
            assert score == alone(tile_kb, dtype, population[index])
            assert together._prefixes.nbytes <= memory_mb * 2**20


@pytest.mark.parametrize("kind", ["two cuts", "cells"])
def test_sharing_changes_no_score_of_chains_and_cells(kind):
    options = {"images": 24, "calibration_images": 16, "dtype": "float32", "threads": 1}
    if kind == "cells":
        make, choices = NASBench201Split, {"evaluator": {"name": "supernet", **options}}
    else:
        chain = {"nodes": ["raspi4", "edgegpu", "titan_rtx"], "links": ["wifi", "lte"]}
        make, choices = FBNetSplit, {"evaluator": options, "chain": chain}
    problem = make(**choices)
    space = problem.space
    X = random_genomes(space, 6, np.random.default_rng(0))
    X[3:, : space.n_arch] = X[:3, : space.n_arch]  # the same networks, sent in another way
    designs = space.designs(space.decode_batch(keep_valid(space, X)))
    choices["evaluator"] = {**choices["evaluator"], "memory_mb": 0}
    alone = make(**choices).evaluator
    for order in (range(6), [5, 2, 0, 4, 1, 3]):
        row = [designs[i] for i in order]
        for index, score in problem.evaluator.evaluate(row):
            assert score == dict(alone.evaluate([row[index]]))[0]


def test_every_output_is_written():
    expected = dict(small().evaluate(VARIED))
    torch.use_deterministic_algorithms(True)  # new memory is filled with NaN
    try:
        assert torch.empty(3).isnan().all()
        assert dict(small().evaluate(VARIED)) == expected
    finally:
        torch.use_deterministic_algorithms(False)


VARIED = [design(OPS, 24), design(OPS, 10, "11000000", 4), design([7] * 22, 1, "00000011", 8)]


@needs_bfloat16
def test_what_bfloat16_decides_closely_is_decided_in_float32(monkeypatch):
    exact = dict(small(images=100).evaluate(VARIED))
    rough = small(images=100, dtype="bfloat16")
    assert all(abs(score.correct - exact[i].correct) <= 1 for i, score in rough.evaluate(VARIED))
    monkeypatch.setattr(rough, "exact_one_in", 1)  # all of them
    monkeypatch.setattr(evaluation, "SLAB_IMAGES", {"cpu": 64})
    assert dict(rough.evaluate(VARIED)) == exact


@pytest.mark.parametrize(
    ("capabilities", "gains"),
    [
        ({}, False),
        ({"avx512_bf16": True, "cpu_name": "Intel Xeon"}, False),
        ({"avx512_bf16": True, "amx_bf16": True, "cpu_name": "Intel Xeon"}, True),
        ({"avx512_bf16": True, "cpu_name": "AMD EPYC"}, True),
    ],
)
def test_auto_is_what_a_processor_is_faster_in(monkeypatch, capabilities, gains):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert small(dtype="auto").dtype == ("bfloat16" if gains else "float32")
    assert small(dtype="auto").tile_kb == (3072 if gains else 6144)


def test_the_closest_decisions_are_found():
    logits = torch.tensor([[3.0, 0, 1], [0, 2.5, 2], [5, 5, -9], [0, 0.5, 1.4]])
    assert closest(logits, 3).tolist() == [2, 1, 3]


@pytest.fixture
def computed(monkeypatch):
    """The blocks that evaluators fold from now on."""
    blocks = []

    def counted(block, x, *arguments):
        blocks.append(block)
        return fold_block(block, x, *arguments)

    fold_block = evaluation.fold_block
    monkeypatch.setattr(evaluation, "fold_block", counted)
    return blocks


def test_what_designs_have_in_common_is_computed_once(computed):
    evaluator = small()
    masks = [design(OPS, 10, mask, 8) for mask in ("11111111", "11110000", "00001111")]
    dict(evaluator.evaluate(masks))
    assert len(computed) == 24 + 2 * 14  # the head of ten blocks once
    computed.clear()
    dict(evaluator.evaluate([design(OPS, 10, "10000000", 4)]))  # a later generation
    assert len(computed) == 14
    computed.clear()
    other = OPS.copy()
    other[15:] = (other[15:] + 1) % 9
    dict(evaluator.evaluate([design(other, 24), design(OPS, 24)]))
    assert 24 + 8 > len(computed) >= 8 + 8  # they part after block 16, and something was known
    computed.clear()
    dict(evaluator.evaluate(masks, images=30))  # other images: their tensors are not known
    assert len(computed) == 24 + 2 * 14


@pytest.mark.parametrize("dtype", FAST_DTYPES)
def test_on_other_images_a_design_is_not_calibrated_again(monkeypatch, dtype):
    calibrated = []

    def counted(unit, x, conv):
        calibrated.append(conv)
        return normalised(unit, x, conv)

    normalised = Calibration._normalised
    monkeypatch.setattr(Calibration, "_normalised", counted)
    other = OPS.copy()
    other[15:] = (other[15:] + 1) % 9
    masks = [design(OPS, 10, mask, 8) for mask in ("11111111", "11110000")]
    unknown = [design(OPS, 24), design(OPS, 10, "00001111", 8), design(other, 10, "11110000", 8)]
    evaluator = small(dtype=dtype)
    dict(evaluator.evaluate(masks))
    expected = dict(small(dtype=dtype).evaluate([*masks, *unknown], "test", 30))
    calibrated.clear()
    assert dict(evaluator.evaluate(masks, "test", 30)) == {0: expected[0], 1: expected[1]}
    assert not calibrated
    assert dict(evaluator.evaluate([*masks, *unknown], "test", 30)) == expected
    assert calibrated
    forgetful = small(dtype=dtype, memory_mb=0)
    for _ in range(2):
        calibrated.clear()
        dict(forgetful.evaluate(masks))
        assert calibrated
    monkeypatch.setattr(evaluation, "KNOWN_DESIGNS", 2)
    few = small(dtype=dtype)
    dict(few.evaluate([*masks, *unknown], "test", 20))
    assert len(few._known) == 2


@pytest.mark.parametrize("dtype", FAST_DTYPES)
def test_on_more_images_a_design_goes_on_where_it_ended(monkeypatch, dtype):
    scored = []

    def counted(self, x, unit):
        scored.append(len(x))
        return head(self, x, unit)

    head = blocks.Classifier.__call__
    monkeypatch.setattr(blocks.Classifier, "__call__", counted)
    monkeypatch.setattr(evaluation, "SLAB_IMAGES", {"cpu": 16})
    few = [design(OPS, 24), design(OPS, 10, "11110000", 8)]
    more = [design(OPS, 10, "00001111", 8), few[1], design(OPS, 10, "11110000", 4), few[0]]
    expected = dict(small(dtype=dtype).evaluate(more, images=56))
    evaluator = small(dtype=dtype)
    exact = 0 if dtype == "float32" else 2 * math.ceil(56 / evaluator.exact_one_in)
    for known, run in ((32, 2 * (56 - 32)), (40, 2 * 56)):  # 40 are no whole number of slabs
        dict(evaluator.evaluate(few, images=known))
        scored.clear()
        assert dict(evaluator.evaluate(few, images=56)) == {0: expected[3], 1: expected[1]}
        assert sum(scored) == run + exact
        dict(evaluator.evaluate(few, images=32))
    assert dict(evaluator.evaluate(more, images=56)) == expected
    monkeypatch.setattr(evaluation, "KNOWN_BYTES", 0)
    dict(evaluator.evaluate(few, "test", images=32))
    scored.clear()
    dict(evaluator.evaluate(few, "test", images=56))
    assert sum(scored) == 2 * 56 + exact


def test_who_needs_calibration_shares_what_others_kept_without(computed):
    evaluator = small()
    masks = [design(OPS, 10, mask, 8) for mask in ("11110000", "11000000", "00001111", "00000011")]
    dict(evaluator.evaluate(masks[:2]))
    dict(evaluator.evaluate(masks[:2], images=30))  # their head is kept, without calibration
    computed.clear()
    dict(evaluator.evaluate(masks[2:], images=30))
    assert len(computed) == 24 + 14


def test_cells_whose_norms_are_known_score_as_before():
    options = {"images": 24, "calibration_images": 16, "dtype": "float32", "threads": 1}
    problem = NASBench201Split(evaluator={"name": "supernet", **options})
    X = random_genomes(problem.space, 4, np.random.default_rng(0))
    designs = problem.space.designs(problem.space.decode_batch(keep_valid(problem.space, X)))
    known, fresh = problem.evaluator, NASBench201Split(evaluator={"name": "supernet", **options})
    dict(known.evaluate(designs))
    expected = dict(fresh.evaluator.evaluate(designs, "test", 24))
    assert dict(known.evaluate(designs, "test", 24)) == expected


def test_memory_does_not_grow_over_a_thousand_evaluations():
    import resource

    evaluator = small(memory_mb=8)
    rng = np.random.default_rng(1)

    def evaluate(n):
        networks = np.where(rng.random((n, 22)) < 0.8, 8, rng.integers(0, 9, (n, 22)))
        for ops in networks:  # most layers are skipped: they take less time
            dict(evaluator.evaluate([design(ops, 10, "11110000", 8)], images=2))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    before = evaluate(200)
    assert evaluate(1000) - before < 30


def test_scores_state_their_standard_error():
    score = Score(correct=90, images=100)
    assert score.error == pytest.approx(0.1)
    assert score.standard_error == pytest.approx(np.sqrt(0.1 * 0.9 / 100))


def test_outputs_that_are_not_finite_are_a_failure_not_a_number(evaluator):
    broken = SupernetEvaluator(
        SPACE, evaluator.dataset, images=64, calibration_images=32, dtype="float32", threads=1
    )
    broken.supernet.classifier_bias.fill_(float("nan"))
    ((_, score),) = score_each(broken, [design(OPS, 24)], "search", 64)
    assert score.correct is None
    assert "not finite" in score.message
    assert np.isnan(score.error)


def test_the_search_split_is_balanced_at_every_size(evaluator):
    labels = evaluator._split("search")[1]
    for n in (64, 256, 2000):
        counts = torch.bincount(labels[:n], minlength=10)
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 0}, "evaluator.images must be a positive whole number or 'full', got 0"),
        ({"images": 2001}, "more than the 2000 images"),
        ({"images": "all"}, "got 'all'"),
        ({"dtype": "int8"}, "evaluator.dtype must be one of auto, float32, bfloat16, got 'int8'"),
        ({"tile_kb": 0}, "evaluator.tile_kb must be a whole number of at least 1, got 0"),
        ({"memory_mb": -1}, "evaluator.memory_mb must be a whole number of at least 0, got -1"),
        ({"threads": 1.5}, "evaluator.threads must be"),
        ({"threads": 10**6}, "evaluator.threads must be at most 1024, got 1000000"),
        ({"calibration_images": True}, "got True"),
        ({"calibration_images": 513}, "more than the 512 calibration images"),
        ({"processor": "meta"}, "evaluator.processor must be cpu or cuda"),
        ({"weights": "none.safetensors"}, "There is no weight file none.safetensors"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        SupernetEvaluator(SPACE, get_dataset("fashion_mnist"), **options)


def test_missing_weights_say_how_to_train_them():
    dataset = get_dataset("cifar100", geometry=224)
    with pytest.raises(UserError, match=r"python -m nasc_evo.train problem=fbnet dataset=cifar100"):
        SupernetEvaluator(FBNetSpace(224, 100), dataset)
