import json
import shutil
from itertools import product

import numpy as np
import pytest
import torch

from nasc_evo.data import get_dataset
from nasc_evo.errors import UserError
from nasc_evo.search.calibration import find_calibration
from nasc_evo.space import SPACES, Design, FBNetSpace, SplitSpace
from nasc_evo.supernet.evaluation import SupernetEvaluator
from nasc_evo.supernet.model import build_supernet
from nasc_evo.supernet.weights import (
    PRETRAINED,
    find_weights,
    load_importance,
    load_supernet,
    read_manifest,
    save_supernet,
)
from tests.conftest import needs_data

SPACE = FBNetSpace(32, 10)
DATASET = get_dataset("fashion_mnist")


@pytest.fixture
def copy(tmp_path):
    """A copy of the shipped weights and manifest that may be damaged."""
    shipped = find_weights(SPACE, DATASET)
    for ending in (".safetensors", ".json"):
        shutil.copy(shipped.with_suffix(ending), tmp_path)
    return tmp_path / shipped.name


SHIPPED = list(product(SPACES, ("fashion_mnist", "cifar100")))


@pytest.mark.parametrize(("space_name", "dataset_name"), SHIPPED)
def test_shipped_weights_load_and_state_their_origin(space_name, dataset_name):
    dataset = get_dataset(dataset_name)
    space = SPACES[space_name](32, dataset.n_classes)
    shipped = find_weights(space, dataset)
    manifest = read_manifest(shipped, space, dataset)
    assert manifest["licence"].startswith("MIT")
    assert manifest["machine"]
    assert "/" not in str([s["recipe"].get("init") for s in manifest.get("earlier_stages", ())])
    assert "/" not in str(manifest["recipe"].get("init"))
    assert manifest["recipe"]["epochs"] > 0
    assert 1 / dataset.n_classes < manifest["validation"]["median"] < 1
    supernet = load_supernet(space, dataset, shipped)
    assert all(torch.isfinite(value).all() for value in supernet.state_dict().values())
    assert sorted(load_importance(shipped)) == list(range(1, space.n_blocks))


def test_shipped_weights_are_small():
    suffixes = [path.suffixes[-1] for path in PRETRAINED.iterdir() if len(path.suffixes) == 1]
    assert sorted(suffixes) == [".json"] * len(SHIPPED) + [".safetensors"] * len(SHIPPED)
    sizes = [path.stat().st_size for path in PRETRAINED.iterdir()]
    assert sum(sizes) <= 25 * 10**6


def test_shipped_calibrations_are_of_the_shipped_weights_and_worth_it():
    (path,) = PRETRAINED.glob("*.calibration.json")
    assert path.name == "nasbench201_32_cifar100.calibration.json"
    weights = path.with_name("nasbench201_32_cifar100.safetensors")
    calibration = find_calibration(SPACES["nasbench201"](32, 100), weights)
    figures = calibration.cross_validated
    assert figures["kendall_tau"] > figures["kendall_tau_inherited"] + 0.2
    document = json.loads(path.read_text())
    assert document["cross_validated"] == pytest.approx(figures, abs=0.05)  # other processors
    assert "MIT" in document["source"]


@pytest.mark.parametrize("space_name", SPACES)
def test_shipped_weights_have_the_accuracy_of_their_manifest_on_cifar100(space_name):
    needs_data("cifar100.npz")
    dataset = get_dataset("cifar100")
    space = SPACES[space_name](32, dataset.n_classes)
    evaluator = SupernetEvaluator(space, dataset, images=500, calibration_images=256)
    ops = build_supernet(space).largest()
    whole = Design(space.format(np.array(ops)), ops, (space.n_blocks,), ("",), (0,))
    ((_, score),) = evaluator.evaluate([whole])
    stated = read_manifest(evaluator.weights, space, dataset)["validation"]["largest"]
    assert abs(1 - score.error - stated) < 4 * score.standard_error


def test_save_and_load_round_trip(tmp_path):
    supernet = build_supernet(SPACE)
    importance = {c: np.arange(SPACE.cut_shapes[c][0], 0, -1.0) for c in range(1, 24)}
    path = save_supernet(supernet, DATASET, tmp_path, importance, {})
    loaded = load_supernet(SPACE, DATASET, path)
    for (name, before), after in zip(
        supernet.state_dict().items(), loaded.state_dict().values(), strict=True
    ):
        assert np.array_equal(before.half().float(), after), name
    assert load_importance(path)[10].tolist() == list(range(32, 0, -1))


def test_importance_orders_every_inner_cut():
    scores = load_importance(find_weights(SPACE, DATASET))
    assert sorted(scores) == list(range(1, 24))
    space = SplitSpace(SPACE, channel_importance=scores)
    assert any(order.tolist() != list(range(8)) for order in space.importance[1:24])


def test_a_flipped_byte_is_noticed(copy):
    content = bytearray(copy.read_bytes())
    content[len(content) // 2] ^= 1
    copy.write_bytes(bytes(content))
    with pytest.raises(UserError, match="does not have the sha256 of its manifest"):
        load_supernet(SPACE, DATASET, copy)


def test_a_truncated_file_is_refused_even_with_a_matching_hash(copy):
    from nasc_evo.supernet.weights import file_sha256

    copy.write_bytes(copy.read_bytes()[:100000])
    manifest = json.loads(copy.with_suffix(".json").read_text())
    manifest["sha256"] = file_sha256(copy)
    copy.with_suffix(".json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="is damaged"):
        load_supernet(SPACE, DATASET, copy)
    with pytest.raises(UserError, match="is damaged"):
        load_importance(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"space": "other"}, "is for space 'other', this run needs 'fbnet'"),
        ({"n_classes": 7}, "is for n_classes 7"),
        ({"format": "zip"}, "is no manifest of format"),
    ],
)
def test_a_foreign_manifest_is_refused(copy, change, message):
    manifest = json.loads(copy.with_suffix(".json").read_text()) | change
    copy.with_suffix(".json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=message):
        read_manifest(copy, SPACE, DATASET)


@pytest.mark.parametrize("content", [None, "", "{", "[]"])
def test_a_missing_or_damaged_manifest_is_refused(copy, content):
    copy.with_suffix(".json").unlink()
    if content is not None:
        copy.with_suffix(".json").write_text(content)
    with pytest.raises(UserError, match="manifest"):
        read_manifest(copy, SPACE, DATASET)


def test_tensors_of_another_shape_are_refused(tmp_path):
    path = save_supernet(build_supernet(FBNetSpace(32, 7)), DATASET, tmp_path, {}, {})
    with pytest.raises(UserError, match="'classifier_.*' is missing, unknown or of another shape"):
        load_supernet(SPACE, DATASET, path)
