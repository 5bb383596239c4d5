import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nasc_evo.data.images import ImageDataset, Images
from nasc_evo.errors import UserError
from nasc_evo.space import FBNetSpace, NASBench201Space
from nasc_evo.space.fbnet import SKIP
from nasc_evo.supernet.model import build_supernet
from nasc_evo.supernet.training import Trainer, TrainingConfig, even_depth_path
from nasc_evo.supernet.weights import (
    load_importance,
    load_supernet,
    read_manifest,
    save_supernet,
)


class Blobs(ImageDataset):
    """Forty images of two classes: bright on the left or on the right."""

    name = "blobs"
    class_names = ("left", "right")
    mean = (0.25, 0.25, 0.25)
    std = (0.4, 0.4, 0.4)
    image_bytes = 3072

    def _split(self, name: str) -> Images:
        rng = np.random.default_rng(0)
        x = rng.integers(0, 60, (40, 32, 32, 3)).astype(np.uint8)
        y = np.arange(40) % 2
        x[y == 0, :, :16] += 150
        x[y == 1, :, 16:] += 150
        return Images(x, y.astype(np.int64))


SPACE = FBNetSpace(32, 2)
CONFIG = TrainingConfig(
    epochs=2,
    batch_size=10,
    learning_rate=0.05,
    validate_every=1,
    validation_paths=2,
    validation_images=20,
    cutout=0,
    threads=1,
)


def trainer(folder, config=CONFIG):
    return Trainer(SPACE, Blobs(), config, folder)


def test_training_runs_to_weights_that_load(tmp_path):
    seen = []
    path = trainer(tmp_path).run(seen.append)
    assert path == tmp_path / "fbnet_32_blobs.safetensors"
    assert [progress.step for progress in seen] == list(range(1, 9))
    manifest = read_manifest(path, SPACE, Blobs())
    assert manifest["recipe"]["epochs"] == 2
    assert manifest["n_classes"] == 2
    assert manifest["earlier_stages"] == []
    further = trainer(tmp_path / "further", replace(CONFIG, init=str(path)))
    assert [stage["sha256"] for stage in further.earlier_stages] == [manifest["sha256"]]
    assert further.earlier_stages[0]["recipe"] == manifest["recipe"]
    load_supernet(SPACE, Blobs(), path)
    assert sorted(load_importance(path)) == list(range(1, 24))
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [row["epoch"] for row in rows] == ["1.0", "2.0"]


def test_resumed_training_equals_uninterrupted(tmp_path):
    whole = trainer(tmp_path / "whole")
    whole.run()
    first = trainer(tmp_path / "parts")

    def stop(progress):
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run(stop)
    second = trainer(tmp_path / "parts")
    assert second.step == 3
    second.run()
    pairs = zip(whole.supernet.parameters(), second.supernet.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    pairs = zip(whole.averaged, second.averaged, strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_who_teaches_whom(tmp_path, monkeypatch):
    def networks(**options):
        """Return which networks a step runs, and what the random one should answer."""
        config = replace(CONFIG, random_paths=1, largest_every=2, transmission=0.0, **options)
        made = trainer(tmp_path / str(options), config)
        ran, targets = [], []
        logits, loss = made.logits, F.cross_entropy

        def watched_logits(x, ops, *rest):
            ran.append("largest" if tuple(ops) == made.supernet.largest() else "random")
            return logits(x, ops, *rest)

        def watched_loss(logits, target):
            if ran[-1] == "random":
                targets.append(target.detach().clone())
            return loss(logits, target)

        monkeypatch.setattr(made, "logits", watched_logits)
        monkeypatch.setattr("nasc_evo.supernet.training.F.cross_entropy", watched_loss)
        for _ in range(2):
            assert torch.isfinite(made.train_step())
        monkeypatch.undo()
        return ran, targets, made

    ran, targets, made = networks(distillation=1.0)
    assert ran == ["largest", "random"] * 2
    ran, hard, made = networks(distillation=0.0)
    assert ran == ["largest", "random", "random"]  # the second step leaves the largest out
    _, y = made.batch(0)
    smooth = F.one_hot(y, 2) * 0.9 + 0.05
    assert torch.equal(hard[0], smooth)
    ran, mixed, made = networks(distillation=0.5)
    torch.testing.assert_close(mixed[0], 0.5 * smooth + 0.5 * targets[0])


def test_a_checkpoint_that_lacks_newer_options_goes_on(tmp_path):
    first = trainer(tmp_path)
    first.run(max_seconds=0)
    state = torch.load(first.checkpoint, weights_only=True)
    identity = json.loads(state["identity"])
    del identity["recipe"]["split_batch"]
    torch.save({**state, "identity": json.dumps(identity)}, first.checkpoint)
    assert trainer(tmp_path).step == first.step > 0


def test_networks_that_split_the_batch_train_on_their_own_images(tmp_path, monkeypatch):
    config = replace(CONFIG, random_paths=2, split_batch=True, largest_every=0, distillation=0.0)
    made = trainer(tmp_path, config)
    seen = []
    logits = made.logits

    def watched(x, ops, *rest):
        seen.append(x)
        return logits(x, ops, *rest)

    monkeypatch.setattr(made, "logits", watched)
    x, _ = made.batch(0)
    made.train_step()
    assert torch.equal(torch.cat(seen), x)
    assert [len(part) for part in seen] == [config.batch_size // 2] * 2
    assert made.networks_a_step == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split_batch": True, "random_paths": 3}, "must be a multiple"),
        ({"largest_every": 0, "random_paths": 0}, "are both 0"),
        ({"largest_every": -1}, "must not be negative"),
        ({"largest_every": 0, "distillation": 0.5}, "which training.largest_every=0 never trains"),
    ],
)
def test_recipes_that_train_nothing_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        replace(CONFIG, **options)


def test_training_by_time_ends_and_its_learning_rate_falls_with_it(tmp_path, monkeypatch):
    clock = iter(range(0, 10**6, 6))
    monkeypatch.setattr("nasc_evo.supernet.processes.time.monotonic", lambda: next(clock))
    config = replace(CONFIG, epochs=1000, minutes=1.0, validate_every=1000, warmup=0.0)
    one = trainer(tmp_path, config)
    seen = []
    path = one.run(lambda progress: seen.append(one.learning_rate()))
    assert path.is_file()
    assert len(seen) == 11  # a step takes 6 seconds of this clock, the first does not count
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == pytest.approx(0, abs=1e-9)
    assert trainer(tmp_path, config).progress == 1


def test_cutmix_takes_a_rectangle_and_its_share_of_the_label(tmp_path):
    one = trainer(tmp_path, replace(CONFIG, cutmix=1.0))
    n = 8
    x = torch.arange(n).float()[:, None, None, None].expand(n, 3, 32, 32).clone()
    target = torch.eye(n)
    for step in range(20):
        mixed, labels = one.mix(x, target, step)
        for i in range(n):
            shares = torch.bincount(mixed[i, 0].flatten().long(), minlength=n) / 32**2
            torch.testing.assert_close(labels[i], shares)
    plain = trainer(tmp_path / "plain")
    assert plain.mix(x, target, 0)[0] is x


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    first = trainer(tmp_path)
    tmp_path.mkdir(exist_ok=True)
    first.save()
    with pytest.raises(UserError, match="belongs to another space, data set, recipe or number"):
        trainer(tmp_path, TrainingConfig(epochs=3, batch_size=10))


def test_a_damaged_checkpoint_is_refused(tmp_path):
    first = trainer(tmp_path)
    first.save()
    content = first.checkpoint.read_bytes()
    first.checkpoint.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="is damaged"):
        trainer(tmp_path)


def test_paths_are_fair(tmp_path):
    one = trainer(tmp_path)
    paths = np.array([one.fair_path(i) for i in range(18)])
    for turn in (paths[:9], paths[9:]):
        for layer in range(22):
            assert sorted(turn[:, layer]) == list(range(9))
    assert not np.array_equal(paths[:9], paths[9:])


def test_even_depth_skips_any_number_of_layers_equally_often():
    rng = np.random.default_rng(0)
    sizes = [len(ops) for ops in SPACE.gene_ops]
    paths = [rng.integers(0, sizes) for _ in range(4600)]
    drawn = np.array([even_depth_path(path, rng) for path in paths])
    counts = np.bincount((drawn == SKIP).sum(axis=1), minlength=23)
    assert counts.min() > 140  # 200 expected, standard deviation 14
    assert counts.max() < 260
    kept = (np.array(paths) != SKIP) & (drawn != SKIP)
    assert (drawn[kept] == np.array(paths)[kept]).all()
    assert {*np.unique(drawn)} == set(range(9))


def test_the_share_of_paths_of_even_depth(tmp_path):
    fair = [trainer(tmp_path, CONFIG).random_path(i) for i in range(40)]
    one = trainer(tmp_path, replace(CONFIG, even_depth=0.5))
    assert fair == [one.fair_path(i) for i in range(40)]
    paths = [one.random_path(i) for i in range(40)]
    assert paths == [one.random_path(i) for i in range(40)]
    assert 10 <= sum(path == other for path, other in zip(paths, fair, strict=True)) <= 30


def test_validation_scores_networks_as_training_draws_them(tmp_path):
    config = replace(CONFIG, even_depth=0.5, validation_paths=200)
    paths = np.array(trainer(tmp_path, config).validation_paths(np.random.default_rng(0)))
    skips = (paths == SKIP).sum(axis=1)
    assert skips[:100].std() > 5  # evenly 0..22: 6.6
    assert skips[100:].std() < 2.5  # each with a chance of a ninth: 1.5


def test_even_depth_is_refused_where_no_layer_can_be_skipped(tmp_path):
    space = NASBench201Space(32, 2)
    with pytest.raises(UserError, match="for the layers of FBNet, .* set it to 0 for nasbench201"):
        Trainer(space, Blobs(), replace(CONFIG, even_depth=0.5), tmp_path)


def test_transmissions_are_aligned_to_groups_at_inner_cuts(tmp_path):
    one = trainer(tmp_path)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        ((cut, kept, bits),) = one.random_transmission(rng)
        seen.add(cut)
        channels = SPACE.cut_shapes[cut][0]
        groups = kept.view(8, channels // 8)
        assert (groups.all(1) | ~groups.any(1)).all()
        assert groups.any()
        assert bits in (4, 6, 8, 32)
    assert seen == set(range(1, 24))


def test_masks_send_leading_groups_as_often_as_asked(tmp_path):
    for share in (0.0, 0.75, 1.0):
        one = trainer(tmp_path / str(share), replace(CONFIG, leading=share))
        rng = np.random.default_rng(0)
        leading = 0
        for _ in range(400):
            ((_, kept, _),) = one.random_transmission(rng)
            count = int(kept.sum())
            leading += bool(kept[:count].all())
        # of the random masks, a few lead by chance: all 8 groups always, 1 of 8 one time in 8, ...
        by_chance = np.mean([1 / math.comb(8, n) for n in (1, 2, 3, 4, 6, 8)])
        assert abs(leading / 400 - (share + (1 - share) * by_chance)) < 0.06


def test_leading_groups_are_the_most_important_of_the_weights_that_training_starts_from(tmp_path):
    supernet = build_supernet(SPACE, torch.Generator().manual_seed(0))
    importance = {c: np.arange(float(SPACE.cut_shapes[c][0])) for c in range(1, 24)}
    path = save_supernet(supernet, Blobs(), tmp_path, importance, {})
    one = trainer(tmp_path / "out", replace(CONFIG, init=str(path), leading=1.0, epochs=1))
    rng = np.random.default_rng(0)
    for _ in range(50):
        ((_, kept, _),) = one.random_transmission(rng)
        count = int(kept.sum())
        assert kept[-count:].all()
    written = load_importance(one.run())
    for cut, scores in importance.items():
        assert written[cut].tolist() == scores.tolist()


def test_augmentation_keeps_images_and_is_a_function_of_the_step(tmp_path):
    one = trainer(tmp_path)
    first, labels = one.batch(0)
    again, _ = one.batch(0)
    assert torch.equal(first, again)
    assert first.shape == (10, 3, 32, 32)
    assert not torch.equal(first, one.batch(1)[0])
    bright = first.mean(dim=(1, 2))
    assert len(labels) == len(bright) == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0.5}, "training.epochs must be a whole number, got 0.5"),
        ({"epochs": None}, "training.epochs must be a whole number, got None"),
        ({"warmup": "x"}, "training.warmup must be a number, got 'x'"),
        ({"epochs": 0}, "training.epochs must be above 0, got 0"),
        ({"learning_rate": -1.0}, "training.learning_rate must be above 0"),
        ({"ema": 1.5}, r"training.ema must be in 0..1, got 1.5"),
        ({"cutout": -1}, "training.cutout must not be negative"),
        ({"dtype": "int8"}, "training.dtype must be"),
        ({"processor": "tpu"}, "training.processor must be"),
    ],
)
def test_impossible_recipes_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        TrainingConfig(**options)


def test_more_images_a_step_than_there_are_is_refused(tmp_path):
    with pytest.raises(UserError, match="more than the 40 training images"):
        trainer(tmp_path, TrainingConfig(batch_size=64))
