import gzip
import io
import tarfile

import numpy as np
import pytest

from nasc_evo.data import get_dataset
from nasc_evo.data.cifar100 import RECORD_BYTES, read_archive
from nasc_evo.data.fashion_mnist import EMBEDDED, FashionMnist
from nasc_evo.data.images import read_idx, read_npz, stratified_order
from nasc_evo.errors import UserError
from tests.conftest import needs_data


def test_shipped_splits_are_balanced_and_do_not_overlap():
    dataset = get_dataset("fashion_mnist")
    sizes = {"search": 2000, "calibration": 512, "test": 2000}
    digests = set()
    for name, size in sizes.items():
        images = dataset.split(name)
        assert images.x.shape == (size, 28, 28, 1)
        counts = np.bincount(images.y, minlength=10)
        assert counts.max() - counts.min() <= 1
        digests.update(image.tobytes() for image in images.x)
    assert len(digests) == sum(sizes.values())


def test_search_images_are_held_out_from_training():
    needs_data("fashion-mnist/train-images-idx3-ubyte.gz")
    dataset = get_dataset("fashion_mnist")
    train, search = dataset.split("train"), dataset.split("search")
    assert len(train) == 58000
    trained_on = {image.tobytes() for image in train.x}
    assert sum(image.tobytes() in trained_on for image in search.x) == 0
    calibration = dataset.split("calibration")
    assert all(image.tobytes() in trained_on for image in calibration.x)


def test_cifar100_splits():
    needs_data("cifar100.npz")
    dataset = get_dataset("cifar100")
    sizes = {"train": 45000, "search": 5000, "calibration": 512, "test": 10000}
    for name, size in sizes.items():
        images = dataset.split(name)
        assert images.x.shape == (size, 32, 32, 3)
    assert (np.bincount(dataset.split("search").y) == 50).all()


def test_stratified_order_balances_every_prefix():
    y = np.repeat(np.arange(4), 25)
    order = stratified_order(y, np.random.default_rng(0))
    assert sorted(order) == list(range(100))
    for n in range(1, 101):
        counts = np.bincount(y[order[:n]], minlength=4)
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mnist",), "no data set 'mnist'; available are cifar100, fashion_mnist, folder"),
        (("fashion_mnist", 64), "must be 32 or 224, got 64"),
    ],
)
def test_unknown_data_sets_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        get_dataset(*arguments)


def test_unknown_splits_are_refused():
    with pytest.raises(UserError, match="A split is one of"):
        get_dataset("fashion_mnist").split("validation")


def test_a_data_folder_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv("NASC_EVO_DATA", "/no/such/folder")
    with pytest.raises(UserError, match="NASC_EVO_DATA must name a folder"):
        get_dataset("cifar100").split("test")


def test_a_download_that_fails_says_where_to_put_the_file(monkeypatch, tmp_path):
    monkeypatch.delenv("NASC_EVO_DATA", raising=False)
    monkeypatch.setattr("nasc_evo.data.images.pooch.os_cache", lambda name: tmp_path / name)
    monkeypatch.setattr("nasc_evo.data.cifar100.URL", "https://127.0.0.1:9/cifar.tar.gz")
    with pytest.raises(UserError, match="Could not download CIFAR-100 .* set NASC_EVO_DATA"):
        get_dataset("cifar100").split("test")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "text"])
def test_damaged_shipped_images_are_refused(monkeypatch, tmp_path, damage):
    content = bytearray(EMBEDDED.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[len(content) // 2] ^= 255
    else:
        content = bytearray(b"no zip file")
    path = tmp_path / "images.npz"
    path.write_bytes(bytes(content))
    monkeypatch.setattr("nasc_evo.data.fashion_mnist.EMBEDDED", path)
    with pytest.raises(UserError, match=r"is damaged|recorded sha256"):
        FashionMnist().split("search")


def test_npz_files_are_never_unpickled(tmp_path):
    path = tmp_path / "evil.npz"
    np.savez(path, x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match="is damaged or not the expected one"):
        read_npz(path, {"x": (1,)})
    np.savez(path, x=np.zeros(3))
    with pytest.raises(UserError, match="must be whole numbers of shape"):
        read_npz(path, {"x": (3,)})
    with pytest.raises(UserError, match="does not exist"):
        read_npz(tmp_path / "none.npz", {"x": (3,)})


def idx(shape=(2, 3), body=bytes(range(6)), magic=(0, 0, 8, 2)) -> bytes:
    return bytes(magic) + np.array(shape, dtype=">u4").tobytes() + body


def test_idx_files_are_read_and_checked(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(idx()))
    assert read_idx(path, (2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]
    for content in (
        gzip.compress(idx())[:-9],
        b"no gzip",
        gzip.compress(idx(body=b"12345")),
        gzip.compress(idx(body=b"1234567")),
        gzip.compress(idx(shape=(3, 2))),
        gzip.compress(idx(magic=(0, 0, 13, 2))),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"is damaged|is no IDX file"):
            read_idx(path, (2, 3))


def archive(path, sizes):
    with tarfile.open(path, "w:gz") as file:
        for part, content in sizes.items():
            info = tarfile.TarInfo(f"cifar-100-binary/{part}.bin")
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


def test_the_binary_archive_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr("nasc_evo.data.cifar100.IMAGES", {"train": 2, "test": 1})
    record = bytes([3, 42]) + bytes([10]) * 1024 + bytes([20]) * 1024 + bytes([30]) * 1024
    assert len(record) == RECORD_BYTES
    path = tmp_path / "cifar.tar.gz"
    archive(path, {"train": 2 * record, "test": record})
    arrays = read_archive(path)
    assert arrays["x_train"].shape == (2, 32, 32, 3)
    assert arrays["x_train"][0, 5, 7].tolist() == [10, 20, 30]
    assert arrays["y_test"].tolist() == [42]
    for sizes in (
        {"train": record, "test": record},
        {"train": 2 * record},
        {"train": 3 * record, "test": record},
    ):
        archive(path, sizes)
        with pytest.raises(UserError, match="is damaged or not the official"):
            read_archive(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match="is damaged or not the official"):
        read_archive(path)
