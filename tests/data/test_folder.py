import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nasc_evo.assembly import build_dataset
from nasc_evo.data import get_dataset
from nasc_evo.data.folder import FITS, read_image
from nasc_evo.errors import UserError
from nasc_evo.hydra_app import own_images
from nasc_evo.space import FBNetSpace
from nasc_evo.supernet.deploy import DeployedNetwork
from nasc_evo.supernet.weights import file_sha256, find_weights, read_manifest, save_supernet

COLOURS = {"apple": (200, 40, 40), "leaf": (40, 180, 60), "sky": (60, 90, 220)}


def fill(folder: Path, counts: tuple[int, ...] = (20, 20, 20), seed: int = 0) -> Path:
    """Write images of three classes of colours, each of another size; return the folder."""
    rng = np.random.default_rng(seed)
    for (name, colour), count in zip(COLOURS.items(), counts, strict=True):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            noise = rng.normal(0, 20, (*rng.integers(20, 60, 2), 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:03}.{('png', 'jpg')[i % 2]}")
    return folder


@pytest.fixture
def photos(tmp_path):
    return fill(tmp_path / "My photos")


def test_splits_are_disjoint_complete_and_follow_the_seed(photos):
    dataset = get_dataset("folder", path=photos)
    assert dataset.name == "folder_my_photos"
    assert dataset.class_names == ("apple", "leaf", "sky")
    splits = {name: dataset.files(name) for name in ("train", "search", "test")}
    everything = sorted(str(p.relative_to(photos)) for p in photos.glob("*/*"))
    assert sorted(name for files in splits.values() for name in files) == everything
    assert {name: len(files) for name, files in splits.items()} == {
        "train": 42,
        "search": 6,
        "test": 12,
    }
    assert set(dataset.files("calibration")) <= set(splits["train"])
    for name, files in splits.items():
        images = dataset.split(name)
        assert images.x.shape == (len(files), 32, 32, 3)
        assert [dataset.class_names[y] for y in images.y] == [f.split("/")[0] for f in files]
        hues = images.x.mean(axis=(1, 2)).argmax(axis=1)
        assert hues.tolist() == images.y.tolist()  # the images are those of their labels
    again = get_dataset("folder", path=photos)
    assert again.describe() == dataset.describe()
    assert again.files("search") == splits["search"]
    assert get_dataset("folder", path=photos, seed=1).files("search") != splits["search"]


def test_classes_keep_their_shares_and_none_is_without_images(tmp_path):
    dataset = get_dataset("folder", path=fill(tmp_path / "p", (100, 10, 3)), search_share=0.2)
    counts = {name: np.bincount(dataset.split(name).y).tolist() for name in ("search", "test")}
    assert counts == {"search": [16, 2, 1], "test": [20, 2, 1]}
    assert np.bincount(dataset.split("train").y).tolist() == [64, 6, 1]


def test_given_train_and_test_folders_are_kept_apart(tmp_path):
    fill(tmp_path / "p" / "train")
    fill(tmp_path / "p" / "test", (2, 3, 4), seed=1)
    dataset = get_dataset("folder", path=tmp_path / "p")
    assert all(name.startswith("test") for name in dataset.files("test"))
    assert np.bincount(dataset.split("test").y).tolist() == [2, 3, 4]
    assert all(name.startswith("train") for name in dataset.files("search"))
    assert len(dataset.split("train")) + len(dataset.split("search")) == 60


def test_idx_files_as_torchvision_keeps_them_are_read(tmp_path):
    rng = np.random.default_rng(0)
    for prefix, n in (("train", 40), ("t10k", 10)):
        shape = np.array([n, 28, 28], dtype=">u4").tobytes()
        pixels = rng.integers(0, 256, n * 784, dtype=np.uint8).tobytes()
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + shape + pixels)
        labels = (np.arange(n) % 4).astype(np.uint8).tobytes()
        header = bytes([0, 0, 8, 1]) + np.array([n], dtype=">u4").tobytes()
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels)
    dataset = get_dataset("folder", path=tmp_path)
    assert dataset.n_classes == 4
    assert dataset.split("test").x.shape == (10, 28, 28, 1)
    assert len(dataset.split("train")) == 36
    assert dataset.mean == pytest.approx([0.5] * 3, abs=0.02)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match="is damaged"):
        get_dataset("folder", path=tmp_path)


def test_normalisation_is_that_of_the_calibration_images(photos):
    dataset = get_dataset("folder", path=photos)
    pixels = dataset.split("calibration").x.reshape(-1, 3) / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(dataset.std, pixels.std(axis=0), atol=1e-4)


def test_a_worker_gets_no_images_and_finds_the_same_ones(photos):
    dataset = get_dataset("folder", path=photos)
    dataset.split("train")
    content = pickle.dumps(dataset)
    assert len(content) < 2000
    copy = pickle.loads(content)
    assert copy.digest(copy.split("search")) == dataset.digest(dataset.split("search"))
    copy = pickle.loads(content)
    (photos / "sky" / "000.png").unlink()
    with pytest.raises(UserError, match="may not be added or changed"):
        copy.split("search")


def test_images_become_squares_as_asked(tmp_path):
    pixels = np.zeros((32, 64, 3), dtype=np.uint8)
    pixels[:, 16:48, 0], pixels[:, :16, 1], pixels[:, 48:, 2] = 250, 250, 250
    Image.fromarray(pixels).save(tmp_path / "a.png")
    crop, stretch, pad = (read_image(tmp_path / "a.png", 32, fit) for fit in FITS)
    assert crop.tolist() == pixels[:, 16:48].tolist()
    assert stretch[:, 2].tolist() == [[0, 250, 0]] * 32
    assert pad[:8].max() == 0
    assert pad[16, 16].tolist() == [250, 0, 0]
    turned = Image.fromarray(pixels)
    exif = turned.getexif()
    exif[0x0112] = 6  # rotate by 90 degrees
    turned.save(tmp_path / "b.png", exif=exif)
    assert read_image(tmp_path / "b.png", 32, "stretch")[2, 16].tolist() == [0, 250, 0]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_images_of_any_8_bit_mode_are_read(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new(mode, (10, 10)).save(path)
    assert read_image(path, 32, "crop").shape == (32, 32, 3)


def link(folder):
    (folder / "sky" / "link.png").symlink_to(folder / "sky" / "000.png")


def outside(folder):
    (folder / "moon").symlink_to(folder / "sky")


def few(folder):
    for path in sorted((folder / "sky").iterdir())[2:]:
        path.unlink()


def only(folder):
    for name in ("sky", "leaf"):
        (folder / name).rename(folder.parent / name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (link, "link.png is a symbolic link"),
        (outside, "moon is a symbolic link"),
        (few, "Class 'sky' of .* has 2 images; every class needs at least 3"),
        (only, "has 1 subfolders with images; one a class is needed"),
        (lambda f: (f / "sky" / "a.txt").touch(), "a.txt is no image file; .*.png"),
        (lambda f: (f / "sky" / "deep").mkdir(), "deep is no image file"),
        (lambda f: (f / "sky" / "000.png").write_bytes(b"x"), "000.png cannot be read"),
        (lambda f: (f / "a.png").touch(), "a.png lies in no class"),
        (
            lambda f: Image.new("I;16", (9, 9)).save(f / "sky" / "000.png"),
            "more than 8 bits a value",
        ),
        (
            lambda f: Image.new("1", (9000, 9000)).save(f / "sky" / "000.png"),
            "9000x9000 pixels, more than",
        ),
    ],
)
def test_folders_that_are_wrong_are_refused(photos, change, message):
    def read():
        dataset = get_dataset("folder", path=photos)
        return [dataset.split(split) for split in ("train", "search", "test")]

    read()
    change(photos)
    with pytest.raises(UserError, match=message):
        read()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_share": 0}, "dataset.test_share must be above 0 and at most 0.5, got 0"),
        ({"search_share": "x"}, "dataset.search_share must be"),
        ({"seed": -1}, "dataset.seed must be a whole number"),
        ({"fit": "zoom"}, "dataset.fit must be one of crop, stretch, pad, got 'zoom'"),
        ({"geometry": 64}, "geometry must be 32 or 224, got 64"),
        ({"path": "/no/such"}, "There is no folder of images /no/such"),
        ({"path": 3}, "dataset.path must be the path of a folder, got 3"),
        ({"colour": 1}, "wrong options: got an unexpected keyword argument 'colour'"),
    ],
)
def test_options_out_of_range_are_refused(photos, options, message):
    with pytest.raises(UserError, match=message):
        get_dataset("folder", **{"path": photos, **options})


def test_a_folder_is_given_by_its_path_alone(photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    assert build_dataset(str(photos)).name == build_dataset(photos.name).name == "folder_my_photos"
    assert own_images("dataset=My photos") == ["dataset=folder", "dataset.path='My photos'"]
    Path("fashion_mnist").mkdir()
    for word in ("dataset=fashion_mnist", "dataset=none", "dataset.path=My photos", "dataset="):
        assert own_images(word) == [word]


def test_weights_belong_to_the_content_of_the_folder(photos, tmp_path):
    import torch

    space = FBNetSpace(32, 3)
    network = torch.nn.Linear(2, 2)
    network.space = space
    dataset = get_dataset("folder", path=photos)
    path = save_supernet(network, dataset, tmp_path, {}, {})
    manifest = read_manifest(path, space, dataset)
    assert manifest["images"] == {"train": 42, "calibration": 42, "search": 6, "test": 12}
    assert manifest["mean"] == list(dataset.mean)
    with pytest.raises(UserError, match="is for seed 0, this run needs 1"):
        read_manifest(path, space, get_dataset("folder", path=photos, seed=1))
    Image.new("RGB", (9, 9)).save(photos / "sky" / "new.png")
    with pytest.raises(UserError, match="is for files_sha256"):
        read_manifest(path, space, get_dataset("folder", path=photos))
    with pytest.raises(UserError, match=r"train them with .* 'dataset=/.*My photos'"):
        find_weights(space, dataset)


OPTIONS = ("dataset=My photos", "dataset.test_share=0.5", "dataset.search_share=0.5")
TRAINING = (
    *("training.batch_size=12", "training.epochs=1"),
    *("training.learning_rate=0.05", "training.threads=1"),
)
SUPERNET = ("training.random_paths=1", "training.validation_paths=1")


@pytest.mark.slow
def test_from_a_folder_of_60_images_to_weights_a_search_and_a_network(cli, tmp_path):
    fill(tmp_path / "My photos")
    trained = cli(*OPTIONS, *TRAINING, *SUPERNET, "hydra.run.dir=t", module="train")
    assert trained.returncode == 0, trained.stderr
    weights = "t/fbnet_32_folder_my_photos.safetensors"
    assert f"evaluator.weights={weights}" in trained.stdout
    searched = cli(
        *(*OPTIONS, f"evaluator.weights={weights}", "evaluator.images=full"),
        *("evaluator.calibration_images=15", "evaluator.threads=1", "n_eval=4"),
        *("algorithm=nsga2", "algorithm.pop_size=4", "rescore=1", "hydra.run.dir=r"),
    )
    assert searched.returncode == 0, searched.stderr
    document = json.loads((tmp_path / "r" / "pareto.json").read_text())
    assert document["problem"]["space"]["n_classes"] == 3
    assert document["front"][0]["test_images"] == 30
    tuned = cli("run=r", *TRAINING, "hydra.run.dir=n", module="finetune")
    assert tuned.returncode == 0, tuned.stderr
    network = DeployedNetwork.load(tmp_path / "n")
    assert network.class_names == ("apple", "leaf", "sky")
    written = network.manifest
    assert written["run"]["design_id"] == document["recommended"]["design_id"]
    assert written["recipe"]["init"] == file_sha256(tmp_path / weights)
    test = get_dataset("folder", path=tmp_path / "My photos", test_share=0.5, search_share=0.5)
    assert network.score(test.split("test")).correct == 30 * written["accuracy"]["test"]["accuracy"]
