import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from nasc_evo.assembly import build_chain
from nasc_evo.data import Images, get_dataset
from nasc_evo.errors import UserError
from nasc_evo.finetune import write_onnx
from nasc_evo.space import Design, FBNetSpace, NASBench201Space, SplitSpace
from nasc_evo.supernet.blocks import Calibration
from nasc_evo.supernet.deploy import DeployedNetwork, deploy
from nasc_evo.supernet.evaluation import SupernetEvaluator, transmissions
from nasc_evo.supernet.finetuning import NetworkTrainer
from nasc_evo.supernet.transmission import channel_mask, transmit
from nasc_evo.supernet.weights import file_sha256
from tests.supernet.test_training import CONFIG, SPACE, Blobs

DATASET = get_dataset("fashion_mnist")
FBNET = FBNetSpace(32, 10)
NB201 = NASBench201Space(32, 10)
SMALL = FBNET.parse("|".join(["k3_e1_g2", "skip", "k5_e3", "skip"] + ["skip"] * 18))
CELL = (3, 1, 2, 4, 3, 3)


def design(space=FBNET, ops=SMALL, cuts=(5,), masks=("10110001",), bits=(6,)) -> Design:
    ops = tuple(int(op) for op in ops)
    return Design(space.format(np.array(ops)), ops, cuts, masks, bits)


@pytest.fixture(scope="module")
def evaluators():
    torch.set_num_threads(1)  # for `deploy`: batch statistics depend on it in their last digits
    options = {"calibration_images": 32, "images": 64, "dtype": "float32", "threads": 1}
    return {space: SupernetEvaluator(space, DATASET, **options) for space in (FBNET, NB201)}


DESIGNS = {
    "masked": design(),
    "all local": design(cuts=(24,), masks=("",), bits=(0,)),
    "raw offload": design(cuts=(0,), masks=("",), bits=(0,)),
    "half precision": design(masks=("1" * 8,), bits=(16,)),
    "three nodes": design(cuts=(3, 9), masks=("11001111", "01111110"), bits=(8, 4)),
    "a relay": design(cuts=(3, 3), masks=("11001111",) * 2, bits=(8, 8)),
    "cells": design(NB201, CELL, (8,), ("11101111",), (8,)),
    "cells with a dead end": design(NB201, (0,) * 6, (8,), ("1" * 8,), (8,)),
}


@pytest.mark.parametrize("name", DESIGNS)
def test_parts_and_links_give_the_logits_and_the_accuracy_of_the_evaluator(name, evaluators):
    chosen = DESIGNS[name]
    evaluator = evaluators[NB201 if "cell" in name else FBNET]
    network = deploy(evaluator.supernet, chosen, DATASET, 32)
    images = DATASET.split("search").first(64)
    x = network.inputs(images.x)
    expected = logits_of(evaluator, chosen, x)
    value = x
    for part, sender in zip(network.parts, [*network.senders, None], strict=True):
        value = part(value)
        value = value if sender is None else sender(value)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)
    ((_, score),) = evaluator.evaluate([chosen])
    assert network.score(images) == score
    assert value.std() > 0 or "dead" in name


@torch.inference_mode()
def logits_of(evaluator, chosen, x):
    """Return the logits of the supernet itself with statistics of the calibration images."""
    space = evaluator.space
    sent = [
        (cut, channel_mask(mask, space.cut_shapes[cut][0]), bits)
        for cut, (mask, bits) in transmissions(chosen).items()
    ]
    calibration = Calibration()
    evaluator.supernet(evaluator._calibration, chosen.ops, calibration, sent)
    return evaluator.supernet(x, chosen.ops, calibration.folded(len(x)), sent)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8, 16, 32])
def test_a_message_has_the_size_of_the_costs_and_arrives_as_evaluated(bits, evaluators):
    chosen = design(bits=(bits,))
    network = deploy(evaluators[FBNET].supernet, chosen, DATASET, 32)
    x = network.head(network.inputs(DATASET.split("search").first(3).x))
    (sender,) = network.senders
    parts = {"nodes": ["edgegpu", "titan_rtx"], "links": ["wifi"]}
    chain = build_chain(FBNET, parts, image_bytes=784)
    batch = SplitSpace(FBNET, bits=(bits,)).batch([chosen])
    payload_bytes = chain.payloads(batch)[0, 0] - chain.links[0].overhead_bytes
    for image in x:
        message = sender.encode(image)
        assert len(message) == sender.payload_bytes == payload_bytes
        assert torch.equal(sender.decode(message), transmit(image[None], sender.kept, bits)[0])
    with pytest.raises(ValueError, match="a message has"):
        sender.decode(message[:-1])


def test_a_network_is_the_same_after_saving_and_loading(tmp_path, evaluators):
    for name in ("masked", "three nodes", "cells"):
        space = NB201 if name == "cells" else FBNET
        network = deploy(evaluators[space].supernet, DESIGNS[name], DATASET, 32)
        path = network.save(tmp_path / name, 8, {"mode": "inherit"})
        again = DeployedNetwork.load(path.parent)
        assert again.design == network.design
        assert again.class_names == DATASET.class_names
        x = DATASET.split("search").first(8).x
        assert torch.equal(again(again.inputs(x)), network(network.inputs(x)))
        parts = json.loads(path.read_text())["parts"]
        assert [part["blocks"][1] for part in parts[:-1]] == list(network.design.cuts)
        for part in parts:
            assert file_sha256(tmp_path / name / part["file"]) == part["sha256"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory, evaluators):
    folder = tmp_path_factory.mktemp("network")
    deploy(evaluators[FBNET].supernet, design(), DATASET, 32).save(folder, 8, {})
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("network.json", b"network 1", b"network 2", "its format is"),
        ("network.json", b'"fbnet"', b'"mbnet"', "there is no space 'mbnet'"),
        ("network.json", b"k3_e1_g2", b"k3_e9", "Operation 1 of the FBNet architecture"),
        ("network.json", b'"10110001"', b'"1011"', "is no design of fbnet"),
        ("network.json", b"skip|skip|skip|skip", b"k3_e1|skip|skip|skip", "does not hold"),
        ("network.json", b'"parts"', b'"part"', "KeyError: 'parts'"),
        ("tail.safetensors", b"convs", b"convx", "does not have the sha256"),
        ("head.safetensors", None, None, "FileNotFoundError"),
    ],
)
def test_other_files_are_refused(saved, tmp_path, name, old, new, message):
    for file, content in saved.items():
        if file == name:
            if old is None:
                continue
            assert old in content
            content = content.replace(old, new, 1)
        (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        DeployedNetwork.load(tmp_path)


def test_onnx_files_compute_what_the_parts_do(tmp_path, evaluators):
    pytest.importorskip("onnx", reason="the optional extra onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="the optional extra onnx is not installed")
    for name in ("masked", "all local", "cells", "cells with a dead end"):
        space = NB201 if "cell" in name else FBNET
        network = deploy(evaluators[space].supernet, DESIGNS[name], DATASET, 32)
        folder = tmp_path / name
        folder.mkdir()
        files = write_onnx(network, folder)
        assert files == (["head.onnx"] if name == "all local" else ["head.onnx", "tail.onnx"])
        x = network.inputs(DATASET.split("search").first(1).x)
        for file, part in zip(files, network.parts, strict=False):
            session = runtime.InferenceSession(folder / file)
            (y,) = session.run(None, {"input": x.contiguous().numpy()})
            x = part(x)
            np.testing.assert_allclose(y, x.numpy(), rtol=1e-3, atol=1e-4)


class Bands(Blobs):
    """Bright above or below, so that an image that is flipped keeps its class."""

    name = "bands"

    def _split(self, name):
        images = super()._split(name)
        return Images(images.x.transpose(0, 2, 1, 3).copy(), images.y)


BANDS = Bands()
SPLIT_DESIGN = replace(design(SPACE, cuts=(3,), masks=("11110000",)), bits=(4,))
TRAINED = replace(CONFIG, epochs=3, validation_images=20, threads=1)


def network_trainer(folder, config=TRAINED, chosen=SPLIT_DESIGN):
    return NetworkTrainer(SPACE, BANDS, config, folder, chosen)


def test_a_network_trained_alone_learns_and_is_written(tmp_path):
    one = network_trainer(tmp_path, replace(TRAINED, epochs=8, learning_rate=0.1))
    before = [p.detach().clone() for p in one.supernet.parameters()]
    seen = []
    path = one.run(seen.append)
    network = DeployedNetwork.load(path.parent)
    figures = json.loads(path.read_text())
    assert figures["accuracy"]["test"]["accuracy"] >= 0.9
    scored = network.score(BANDS.split("test"))
    assert 1 - scored.error == figures["accuracy"]["test"]["accuracy"]
    assert figures["recipe"]["epochs"] == 8
    assert figures["dataset"]["dataset"] == "bands"
    assert max(p.validation["search"] for p in seen if p.validation) >= 0.9
    pairs = zip(before, one.supernet.parameters(), strict=True)
    moved = [not torch.equal(a, b) for a, b in pairs]
    assert any(moved)
    assert not all(moved)  # operations of other networks stay as they are


def test_training_that_goes_on_equals_uninterrupted(tmp_path):
    whole = network_trainer(tmp_path / "whole")
    whole.run()
    first = network_trainer(tmp_path / "parts")

    def stop(progress):
        if progress.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run(stop)
    second = network_trainer(tmp_path / "parts")
    assert second.step == 5
    second.run()
    for name in ("head.safetensors", "tail.safetensors"):
        assert file_sha256(tmp_path / "whole" / name) == file_sha256(tmp_path / "parts" / name)
    with pytest.raises(UserError, match="belongs to another"):
        network_trainer(tmp_path / "parts", chosen=replace(SPLIT_DESIGN, bits=(8,)))


def test_the_quantiser_and_the_mask_are_in_the_training(tmp_path, monkeypatch):
    one = network_trainer(tmp_path)
    seen = []
    monkeypatch.setattr(
        "nasc_evo.supernet.model.transmit",
        lambda x, kept, bits: seen.append((x.shape[1], int(kept.sum()), bits)) or x,
    )
    one.train_step()
    channels = SPACE.cut_shapes[3][0]
    assert seen == [(channels, channels // 2, 4)]
