import json
import shutil

import numpy as np
import pytest

from nasc_evo.data import get_dataset
from nasc_evo.errors import UserError
from nasc_evo.space import FBNetSpace, SplitSpace
from nasc_evo.supernet.model import build_supernet
from nasc_evo.supernet.weights import (
    find_weights,
    load_importance,
    load_supernet,
    read_manifest,
    save_supernet,
)

SPACE = FBNetSpace(32, 10)
DATASET = get_dataset("fashion_mnist")


@pytest.fixture
def copy(tmp_path):
    """A copy of the shipped weights and manifest that may be damaged."""
    shipped = find_weights(SPACE, DATASET)
    for ending in (".safetensors", ".json"):
        shutil.copy(shipped.with_suffix(ending), tmp_path)
    return tmp_path / shipped.name


def test_shipped_weights_are_small_and_state_their_origin():
    shipped = find_weights(SPACE, DATASET)
    assert shipped.stat().st_size <= 10 * 2**20
    manifest = read_manifest(shipped, SPACE, DATASET)
    assert manifest["licence"].startswith("MIT")
    assert manifest["recipe"]["epochs"] > 0
    assert 0.9 < manifest["validation"]["largest"] < 1


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
