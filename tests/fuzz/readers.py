"""Every reader of files: valid files for it, and how it reads them."""

import bz2
import csv
import gzip
import io
import json
import pickle
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import yaml
from PIL import Image

from nasc_evo import __version__, experiment
from nasc_evo.config import config_folder
from nasc_evo.cost import Link, hwnasbench, natsbench, network
from nasc_evo.cost.rate import slowdown
from nasc_evo.cost.table import TABLES, CostTable
from nasc_evo.data import cifar100, fashion_mnist, get_dataset
from nasc_evo.data.images import read_idx, read_npz
from nasc_evo.errors import UserError
from nasc_evo.finetune import choose, inherited_weights
from nasc_evo.measurement import journal as measurement_journal
from nasc_evo.report.collection import read_runs
from nasc_evo.report.comparison import write_comparison
from nasc_evo.report.files import read_truth
from nasc_evo.search.calibration import (
    MIN_NETWORKS,
    Calibration,
    read_calibration,
    write_calibration,
)
from nasc_evo.search.final import COLUMNS
from nasc_evo.search.folder import JOURNAL, MANIFEST, RunFolder
from nasc_evo.search.indicators import hypervolume
from nasc_evo.search.journal import Journal
from nasc_evo.search.warm_start import read_warm_start
from nasc_evo.space import Design, FBNetSpace, NASBench201Space, SplitSpace
from nasc_evo.supernet import deploy, training, weights
from nasc_evo.tabular import TABLES as ACCURACY_TABLES
from nasc_evo.tabular import TabularEvaluator
from problems import FBNetSplit
from tests import test_collect
from tests.conftest import FAST
from tests.fuzz.command import command_line
from tests.supernet import test_training
from tests.test_repick import repicked, write_run

Files = dict[str, bytes]
IMAGES = {"train": 2, "test": 1}
FBNET, NB201 = FBNetSpace(32, 10), NASBench201Space(32, 100)
CELLS = NASBench201Space(32, 10)
NETWORKS = 6
NETWORK_STEP = 4
STRINGS = [NB201.format(ops) for ops in NB201.architectures[:NETWORKS]]


@dataclass(frozen=True)
class Layer:
    """A container that a corruption may look into."""

    unpack: Callable[[bytes], bytes]
    pack: Callable[[bytes], bytes]


@dataclass(frozen=True)
class Document:
    """A file that holds a tree of mappings, lists and values."""

    load: Callable[[bytes], Any]
    dump: Callable[[Any], bytes]


@dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        make: Returns valid files by name.
        read: Reads them from a folder.
        corrupted: Names of the files that are corrupted; all if empty.
        layers: Containers of the corrupted files.
        document: If the first corrupted file is one.
        step: Only each so-many-th input is tried, where reading is slow.
    """

    make: Callable[[], Files]
    read: Callable[[Path], Any]
    corrupted: tuple[str, ...] = ()
    layers: tuple[Layer, ...] = ()
    document: Document | None = None
    step: int = 1


JSON = Document(json.loads, lambda tree: json.dumps(tree).encode())
GZIP = Layer(gzip.decompress, lambda content: gzip.compress(content, 1))
BZ2 = Layer(bz2.decompress, lambda content: bz2.compress(content, 1))


def npz(arrays: dict[str, Any], compressed: bool = False) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def first_member(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read(archive.namelist()[0])


def with_first_member(valid: Callable[[], Files]) -> Layer:
    """Return a layer that changes the first array of the .npz file, checksums kept right."""

    def pack(member: bytes) -> bytes:
        (content,) = valid().values()
        file = io.BytesIO()
        with (
            zipfile.ZipFile(io.BytesIO(content)) as old,
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new,
        ):
            for index, name in enumerate(old.namelist()):
                new.writestr(name, member if index == 0 else old.read(name))
        return file.getvalue()

    return Layer(first_member, pack)


@cache
def image_arrays() -> Files:
    rng = np.random.default_rng(0)
    return {
        "set.npz": npz(
            {
                "x_train": rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8),
                "y_train": np.array([3, 1], dtype=np.uint8),
            }
        )
    }


def read_image_arrays(folder: Path) -> Any:
    return read_npz(folder / "set.npz", {"x_train": (2, 32, 32, 3), "y_train": (None,)})


@cache
def embedded_images() -> Files:
    return {"embedded.npz": fashion_mnist.EMBEDDED.read_bytes()}


def read_embedded_images(folder: Path) -> Any:
    with mock.patch.object(fashion_mnist, "EMBEDDED", folder / "embedded.npz"):
        return get_dataset("fashion_mnist").split("search")


@cache
def idx_file() -> Files:
    return {"images.gz": gzip.compress(bytes([0, 0, 8, 2, 0, 0, 0, 20, 0, 0, 0, 30]) + bytes(600))}


@cache
def image_folder() -> Files:
    rng = np.random.default_rng(0)
    kinds = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "BMP": "bmp", "PPM": "ppm"}
    files = {}
    for label in ("cat", "dog"):
        for kind, suffix in kinds.items():
            file = io.BytesIO()
            pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file, kind)
            files[f"{label}/a.{suffix}"] = file.getvalue()
    return files


def read_image_folder(folder: Path) -> Any:
    dataset = get_dataset("folder", path=folder)
    return [dataset.digest(dataset.split(split)) for split in ("train", "search", "test")]


@cache
def cifar_archive() -> Files:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as archive:
        for part, count in IMAGES.items():
            info = tarfile.TarInfo(f"cifar-100-binary/{part}.bin")
            info.size = count * cifar100.RECORD_BYTES
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    return {"cifar-100-binary.tar.gz": file.getvalue()}


def read_cifar_archive(folder: Path) -> Any:
    with mock.patch.object(cifar100, "IMAGES", IMAGES):
        return cifar100.read_archive(folder / "cifar-100-binary.tar.gz")


@cache
def cost_table() -> Files:
    return {"table.csv": (TABLES / "fbnet_32_edgegpu.csv").read_bytes()}


def read_cost_table(folder: Path) -> Any:
    return CostTable.load(folder / "table.csv", FBNET)


@cache
def flagged_table() -> Files:
    return {"table.csv": (TABLES / "nasbench201_32_edgetpu.csv").read_bytes()}


def read_flagged_table(folder: Path) -> Any:
    return CostTable.load(folder / "table.csv", NB201)


def header_tree(content: bytes) -> Any:
    lines = [line[2:] for line in content.decode().splitlines() if line.startswith("#")]
    return yaml.safe_load("\n".join(lines))


def with_header(tree: Any) -> bytes:
    (content,) = cost_table().values()
    rows = [line for line in content.decode().splitlines() if not line.startswith("#")]
    header = yaml.safe_dump(tree, allow_unicode=True).splitlines()
    return "\n".join([*(f"# {line}" for line in header), *rows]).encode("utf-8", "replace")


@contextmanager
def data_in(folder: Path) -> Iterator[None]:
    with mock.patch.dict("os.environ", NASC_EVO_DATA=str(folder)):
        yield


@cache
def official_totals() -> Files:
    values = np.random.default_rng(0).uniform(1, 9, (3, 9, NETWORKS))
    arrays = {"values": values, "datasets": hwnasbench.DATASETS, "metrics": hwnasbench.METRICS}
    return {"hwnas/nb201_hw.npz": npz(arrays)}


def read_official_totals(folder: Path) -> Any:
    with data_in(folder):
        return network.official_totals("edgegpu", NETWORKS)


@cache
def official_accuracies() -> Files:
    accuracies = np.linspace(1, 70, len(NB201.architectures))
    columns = ACCURACY_TABLES["cifar100"].values()
    arrays = {column.name: accuracies.astype(np.float32) for column in columns}
    return {"hwnas/nb201_accuracy.npz": npz(arrays)}


def read_official_accuracies(folder: Path) -> Any:
    with data_in(folder):
        return TabularEvaluator(NB201, get_dataset("cifar100"))


shipped_table, fbnet_space = cache(CostTable.shipped), cache(FBNetSpace)


@cache
def hw_nas_bench() -> Files:
    values = np.random.default_rng(0).uniform(0.1, 90, (len(hwnasbench.METRICS), NETWORKS))
    configs = [{"name": "infer.tiny", "arch_str": string} for string in STRINGS]
    figures: dict[str, Any] = dict(zip(hwnasbench.METRICS, values, strict=True))
    figures |= {"config": configs, hwnasbench.INTENSITY: np.ones(NETWORKS)}
    lookup: dict[str, dict[str, float]] = {}
    for geometry, classes in hwnasbench.REFERENCE_CLASSES.items():
        space = fbnet_space(geometry, classes)
        for metric in set(hwnasbench.METRICS) - {hwnasbench.NOT_COMPILING_METRIC}:
            device, kind = metric.split("_")
            table = shipped_table(device, space)
            costs = table.latency_ms if kind == "latency" else table.energy_mj
            lookup.setdefault(metric, {}).update(
                {key: float(costs[at]) for at, key in hwnasbench.lookup_keys(space).items()}
            )
    networks = dict.fromkeys(hwnasbench.DATASETS, figures)
    return {"official.pickle": pickle.dumps({"nasbench201": networks, "fbnet": lookup}, 2)}


def read_hw_nas_bench(folder: Path) -> Any:
    out = folder / "out"
    out.mkdir(exist_ok=True)
    with (
        mock.patch.object(hwnasbench, "official_strings", return_value=STRINGS),
        mock.patch.object(hwnasbench, "FBNetSpace", fbnet_space),
        mock.patch.object(hwnasbench.CostTable, "shipped", shipped_table),
    ):
        return hwnasbench.import_file(folder / "official.pickle", out)


@cache
def nats_bench() -> Files:
    runs = {
        (dataset, 777): {
            "eval_acc1es": {
                f"{name}@{epochs - 1}": 50.0
                for name in ("x-valid", "x-test", "ori-test")
                for epochs in (12, 200)
            },
            "train_times": dict.fromkeys(range(200), 1.0),
            "flop": 15.6,
            "params": 0.1,
        }
        for dataset in ("cifar10-valid", *natsbench.CLASSES)
    }
    state = {
        "arch_index": 0,
        "arch_str": STRINGS[0],
        "all_results": runs,
        "dataset_seed": {dataset: [777] for dataset, _ in runs},
    }
    content = pickle.dumps({"12": state, "200": state})
    return {"000000.pickle.pbz2": bz2.compress(content, 1)}


def read_nats_bench(folder: Path) -> Any:
    return natsbench.read_architecture(folder / "000000.pickle.pbz2", 0, STRINGS[0])


PICKLE = Document(pickle.loads, pickle.dumps)
BZ2_PICKLE = Document(
    lambda content: pickle.loads(bz2.decompress(content)),
    lambda tree: bz2.compress(pickle.dumps(tree), 1),
)


@cache
def fbnet_problem() -> FBNetSplit:
    return FBNetSplit(evaluator=FAST)


@cache
def journal() -> Files:
    lines = [
        {
            "index": index,
            "key": f"skip|k3_e1;{index};1;8",
            "genome": [1, 2, index],
            "split": "search",
            "correct": None if index == 3 else 60 + index,
            "images": 64,
            "status": "ok",
            "message": "",
        }
        for index in range(5)
    ]
    return {JOURNAL: b"".join(json.dumps(line).encode() + b"\n" for line in lines)}


def read_journal(folder: Path) -> Any:
    read = Journal(folder / JOURNAL)
    read.close()
    return dict(sorted({**read.scores, **dict.fromkeys(read.failures)}.items()))


JOURNAL_LINE = Document(
    lambda content: json.loads(content.splitlines()[1]),
    lambda tree: b"\n".join([*journal()[JOURNAL].splitlines()[:3], json.dumps(tree).encode(), b""]),
)
IDENTITY = {"seed": 1, "problem": {"links": [{"uplink_mbps": 18.88}], "limits": {}}}


@cache
def run_manifest() -> Files:
    document = {
        "format": "nasc_evo run 1",
        "created": "2026-01-01T00:00:00+00:00",
        "versions": {"python": "3.11"},
        "identity": IDENTITY,
        "config": {"seed": 1},
        "finished": None,
    }
    return {MANIFEST: json.dumps(document, indent=2).encode()}


def read_run_manifest(folder: Path) -> Any:
    run = RunFolder(folder, resume=True, identity=IDENTITY, config={}, overrides=[])
    run.close()
    return run.manifest


MEASURED = {"space": "fbnet", "threads": 1}


@cache
def samples() -> Files:
    lines = [
        {"format": measurement_journal.FORMAT, **MEASURED},
        {
            "item": "block stem",
            "round": 0,
            "samples_ms": [0.5, 0.25],
            "left_out": 1,
            "references_ms": None,
            "sitting": 0,
        },
        {
            "item": "run 1",
            "round": 1,
            "samples_ms": [5.5],
            "left_out": 0,
            "references_ms": [0.1],
            "sitting": 1,
        },
        {"item": "block stem", "energy_mj": 2.5},
    ]
    return {"a.samples.jsonl": b"".join(json.dumps(line).encode() + b"\n" for line in lines)}


def read_samples(folder: Path) -> Any:
    read = measurement_journal.SampleJournal(folder / "a.samples.jsonl", MEASURED)
    read.close()
    return read.bursts, read.energies


SAMPLES_LINE = Document(
    lambda content: json.loads(content.splitlines()[1]),
    lambda tree: b"\n".join(
        [samples()["a.samples.jsonl"].splitlines()[0], json.dumps(tree).encode(), b""]
    ),
)


@cache
def trace() -> Files:
    lines = [f"{second},{3.5 + second % 7}" for second in range(40)]
    return {"rates.csv": "\n".join(["time_s,uplink_mbps", *lines, ""]).encode()}


def read_trace(folder: Path) -> Any:
    link = Link.create({"name": "t", "trace": str(folder / "rates.csv")})
    return link.describe(), slowdown(link.variation, 0.95)


def run_files(*overrides: str, **options: Any) -> Files:
    """Return manifest and journal of a run."""
    with tempfile.TemporaryDirectory() as folder:
        write_run(Path(folder) / "run", *overrides, n=6, **options)
        names = (MANIFEST, JOURNAL)
        return {name: (Path(folder) / "run" / name).read_bytes() for name in names}


@cache
def repicked_run() -> Files:
    return run_files()


@cache
def repicked_chain() -> Files:
    return run_files("chain=device_edge_cloud", "device=raspi4")


def read_repicked_run(folder: Path) -> Any:
    picked = repicked(folder, "link.uplink_mbps=3", "limits.latency_ms=40")
    front = picked.front()
    return picked.result(front).hypervolume, picked.offers(front, 2)


@cache
def warm_start() -> Files:
    key = f"{'|'.join(['skip'] * 22)};5;10101010;8"
    record = json.loads(journal()[JOURNAL].splitlines()[0]) | {"key": key}
    document = {
        "format": "nasc_evo run 1",
        "identity": {"problem": fbnet_problem().describe()},
    }
    return {
        MANIFEST: json.dumps(document).encode(),
        JOURNAL: json.dumps(record).encode() + b"\n" + journal()[JOURNAL],
    }


def read_warm_start_files(folder: Path) -> Any:
    read = read_warm_start(folder, fbnet_problem())
    return read.X.tolist(), read.sha256


@cache
def compared() -> dict[str, Any]:
    """Return an experiment of three searches."""
    values = yaml.safe_load((config_folder() / "experiment/fashion_mnist.yaml").read_text())
    few = {
        "devices": ["pixel3"],
        "links": ["wifi"],
        "inputs": ["private"],
        "n_eval": 3,
        "seeds": 3,
        "checkpoints": [1],
        "methods": {"random": {}},
        "ours": "random",
        "headline": None,
    }
    return experiment.check_experiment(values | few)


FINGERPRINT = "0" * 64


@cache
def comparison() -> Files:
    points = len(experiment.curve_counts(compared()["n_eval"], compared()["checkpoints"]))
    lines = [
        {
            "setting": experiment.settings(compared())[0].name,
            "method": "random",
            "seed": seed,
            "evaluations": 3,
            "seconds": 1.5,
            "curve": [0.25] * points,
            "front": [[0.5, 4.0, 1.0, 2.0, 1.0, "2", "key"]],
        }
        for seed in range(3)
    ]
    document = {
        "format": experiment.FORMAT,
        "version": __version__,
        "experiment": compared(),
        "problems": {setting.name: FINGERPRINT for setting in experiment.settings(compared())},
    }
    return {
        experiment.SEARCHES: b"".join(json.dumps(line).encode() + b"\n" for line in lines),
        experiment.MANIFEST: json.dumps(document).encode(),
    }


def read_comparison(folder: Path) -> Any:
    """Resume a comparison that has ended, and write its tables."""
    with mock.patch.object(experiment, "fingerprint", return_value=FINGERPRINT):  # takes long
        read = experiment.ComparisonFolder(folder, resume=True, experiment=compared())
    read.close()
    out = folder / "out"
    out.mkdir(exist_ok=True)
    pictures = mock.patch.multiple(
        "nasc_evo.report.comparison", draw_curves=mock.DEFAULT, draw_attainment=mock.DEFAULT
    )
    exact = mock.patch("nasc_evo.report.comparison.exact_values", return_value=None)
    with pictures, exact:
        return write_comparison(out, compared(), list(read.results.values()))


SEARCH_LINE = Document(
    lambda content: json.loads(content.splitlines()[1]),
    lambda tree: comparison()[experiment.SEARCHES] + json.dumps(tree).encode() + b"\n",
)


@cache
def collected() -> Files:
    with tempfile.TemporaryDirectory() as folder:
        run = test_collect.write_run(Path(folder) / "run")
        return {path.name: path.read_bytes() for path in sorted(run.iterdir())}


@cache
def truth() -> Files:
    file = io.StringIO()
    rows = csv.DictWriter(file, COLUMNS, restval="1", lineterminator="\n")
    rows.writeheader()
    rows.writerows([{"error": 0.1, "latency_ms": 9.5}, {"error": 0.2, "latency_ms": 7.25}])
    problem = fbnet_problem()
    reference = np.array([problem.reference_point[name] for name in problem.objectives])
    value = hypervolume(np.array([[0.1, 9.5], [0.2, 7.25]]), reference)
    document = {"problem": problem.describe(), "hypervolume": {"value": value}}
    return {"truth.json": json.dumps(document).encode(), "truth.csv": file.getvalue().encode()}


def read_truth_files(folder: Path) -> Any:
    return read_truth(folder / "truth.csv", fbnet_problem())


@cache
def small_network() -> Any:
    """Return what stands for a supernet: reading one of four million weights takes long."""
    network: Any = torch.nn.Linear(16, 10)
    network.space = FBNET
    return network


@cache
def calibration() -> Files:
    rng = np.random.default_rng(0)
    different = np.unique(NB201.index(NB201.canonical(NB201.architectures)))
    ops = NB201.architectures[rng.choice(different, MIN_NETWORKS, replace=False)]
    errors = rng.uniform(0.2, 0.6, (2, MIN_NETWORKS))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.calibration.json"
        write_calibration(path, Calibration(NB201, ops, *errors), "abc", {})
        return {path.name: path.read_bytes()}


@cache
def weight_files() -> Files:
    importance = {cut: np.arange(FBNET.cut_shapes[cut][0], 0, -1.0) for cut in (1, 5)}
    details = {"recipe": {"epochs": 60, "init": None}, "validation": {"largest": 0.93}}
    with tempfile.TemporaryDirectory() as folder:
        dataset = get_dataset("fashion_mnist")
        path = weights.save_supernet(small_network(), dataset, Path(folder), importance, details)
        return {
            "weights.safetensors": path.read_bytes(),
            "weights.json": path.with_suffix(".json").read_bytes(),
        }


def read_weights(folder: Path) -> Any:
    """Read weights whose manifest has the right hash, whatever they are."""
    path = folder / "weights.safetensors"
    if path.is_file():
        sha256 = weights.file_sha256(path)
        manifest = json.loads(weight_files()["weights.json"]) | {"sha256": sha256}
        (folder / "weights.json").write_text(json.dumps(manifest))
    SplitSpace(FBNET, channel_importance=weights.load_importance(path))
    with mock.patch("nasc_evo.supernet.model.build_supernet", return_value=small_network()):
        return weights.load_supernet(FBNET, get_dataset("fashion_mnist"), path)


def read_weight_manifest(folder: Path) -> Any:
    path = folder / "weights.safetensors"
    return weights.read_manifest(path, FBNET, get_dataset("fashion_mnist"))


class TwoNumbers(test_training.Blobs):
    """Images of two classes, made once."""

    split = cache(test_training.Blobs.split)


@contextmanager
def small_trainer(folder: Path) -> Iterator[training.Trainer]:
    """Give a trainer of the network of :func:`small_network`."""
    with mock.patch.object(training, "build_supernet", return_value=torch.nn.Linear(16, 2)):
        yield training.Trainer(test_training.SPACE, TwoNumbers(), test_training.CONFIG, folder)


@cache
def checkpoint() -> Files:
    with tempfile.TemporaryDirectory() as folder, small_trainer(Path(folder)) as trainer:
        for parameter in trainer.supernet.parameters():
            parameter.grad = torch.ones_like(parameter)
        trainer.optimizer.step()
        trainer.step = 3
        trainer.save()
        return {"checkpoint.pt": trainer.checkpoint.read_bytes()}


def read_checkpoint(folder: Path) -> Any:
    with small_trainer(folder) as trainer:
        return trainer.step, trainer.best


def pickled_member(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read("checkpoint/data.pkl")


def with_pickled_member(member: bytes) -> bytes:
    """Return a checkpoint that says something else of its tensors."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(checkpoint()["checkpoint.pt"])) as old,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, member if name == "checkpoint/data.pkl" else old.read(name))
    return file.getvalue()


def tensors_aside(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), weights_only=True)


def saved(tree: Any) -> bytes:
    file = io.BytesIO()
    torch.save(tree, file)
    return file.getvalue()


@cache
def network_files() -> Files:
    dataset = get_dataset("fashion_mnist")
    ops = (3, 1, 2, 4, 3, 3)
    chosen = Design(CELLS.format(np.array(ops)), ops, (8,), ("11101111",), (6,))
    path = weights.find_weights(CELLS, dataset)
    network = deploy.deploy(weights.load_supernet(CELLS, dataset, path), chosen, dataset, 8)
    with tempfile.TemporaryDirectory() as folder:
        network.save(Path(folder), 8, {"accuracy": {"test": {"accuracy": 0.9}}})
        return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def read_network(folder: Path) -> Any:
    return deploy.DeployedNetwork.load(folder).design


def read_network_part(folder: Path) -> Any:
    """Read a part that has the right hash, whatever it is."""
    manifest = json.loads(network_files()[deploy.MANIFEST])
    part = folder / "head.safetensors"
    if part.is_file():
        manifest["parts"][0]["sha256"] = weights.file_sha256(part)
    (folder / deploy.MANIFEST).write_text(json.dumps(manifest))
    return read_network(folder)


@cache
def chosen_design() -> Files:
    """Return what a run leaves of one design, and the manifest last."""
    row = dict.fromkeys(COLUMNS, "1") | {"design_id": 5, "arch": "|".join(["skip"] * 22)}
    row |= {"cut": 5, "mask": "10101010", "bits": 8}
    file = io.StringIO()
    rows = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    rows.writeheader()
    rows.writerow(row)
    config = {"dataset": {"name": "fashion_mnist", "geometry": 32}, "evaluator": FAST}
    document = {
        "format": "nasc_evo run 1",
        "identity": {"problem": fbnet_problem().describe()},
        "config": config,
    }
    return {
        MANIFEST: json.dumps(document).encode(),
        "pareto.csv": file.getvalue().encode(),
        "pareto.json": json.dumps({"recommended": {"design_id": 5}}).encode(),
    }


def read_chosen_design(folder: Path) -> Any:
    chosen = choose(folder, None)
    return chosen.design, inherited_weights(folder, chosen)


@cache
def configuration() -> Files:
    return {"link/mine.yaml": (config_folder() / "link" / "lte.yaml").read_bytes()}


def read_configuration(folder: Path) -> None:
    """Compose a configuration with a link of a user's own folder."""
    run = [
        "device=raspi4",
        f"hydra.run.dir={folder / 'out'}",
        "link=mine",
        f"--config-dir={folder}",
    ]
    code, errors = command_line(run)
    if code:
        raise UserError(errors.removesuffix("\n"))


def safetensors_header(content: bytes) -> bytes:
    return content[8 : 8 + int.from_bytes(content[:8], "little")]


def with_safetensors_header(header: bytes) -> bytes:
    content = weight_files()["weights.safetensors"]
    body = content[8 + int.from_bytes(content[:8], "little") :]
    return len(header).to_bytes(8, "little") + header + body


SAFETENSORS_HEADER = Document(
    lambda content: json.loads(safetensors_header(content)),
    lambda tree: with_safetensors_header(json.dumps(tree).encode()),
)

READERS = {
    "weights": Reader(
        weight_files,
        read_weights,
        ("weights.safetensors",),
        (Layer(safetensors_header, with_safetensors_header),),
        SAFETENSORS_HEADER,
    ),
    "chosen_design": Reader(chosen_design, read_chosen_design, document=JSON),
    "network": Reader(
        network_files, read_network, (deploy.MANIFEST,), document=JSON, step=NETWORK_STEP
    ),
    "network_part": Reader(
        network_files, read_network_part, ("head.safetensors",), step=NETWORK_STEP
    ),
    "calibration": Reader(
        calibration,
        lambda folder: read_calibration(folder / "w.calibration.json", NB201, "abc"),
        document=JSON,
    ),
    "weight_manifest": Reader(weight_files, read_weight_manifest, ("weights.json",), document=JSON),
    "image_arrays": Reader(
        image_arrays, read_image_arrays, layers=(with_first_member(image_arrays),)
    ),
    "embedded_images": Reader(embedded_images, read_embedded_images),
    "idx_file": Reader(
        idx_file,
        lambda folder: read_idx(folder / "images.gz", (20, 30)),
        layers=(GZIP,),
    ),
    "image_folder": Reader(image_folder, read_image_folder),
    "cifar_archive": Reader(cifar_archive, read_cifar_archive, layers=(GZIP,)),
    "cost_table": Reader(cost_table, read_cost_table, document=Document(header_tree, with_header)),
    "cost_table_with_flags": Reader(flagged_table, read_flagged_table),
    "official_totals": Reader(
        official_totals, read_official_totals, layers=(with_first_member(official_totals),)
    ),
    "official_accuracies": Reader(
        official_accuracies,
        read_official_accuracies,
        layers=(with_first_member(official_accuracies),),
    ),
    "hw_nas_bench": Reader(hw_nas_bench, read_hw_nas_bench, document=PICKLE),
    "nats_bench": Reader(nats_bench, read_nats_bench, layers=(BZ2,), document=BZ2_PICKLE),
    "journal": Reader(journal, read_journal, document=JOURNAL_LINE),
    "samples": Reader(samples, read_samples, document=SAMPLES_LINE),
    "warm_start": Reader(warm_start, read_warm_start_files, document=JSON),
    "comparison": Reader(comparison, read_comparison, document=SEARCH_LINE),
    "collected": Reader(collected, lambda folder: read_runs([folder]), document=JSON),
    "checkpoint": Reader(
        checkpoint,
        read_checkpoint,
        layers=(Layer(pickled_member, with_pickled_member),),
        document=Document(tensors_aside, saved),
    ),
    "run_manifest": Reader(run_manifest, read_run_manifest, document=JSON),
    "configuration": Reader(configuration, read_configuration, step=10),
    "repicked_run": Reader(
        repicked_run, read_repicked_run, (MANIFEST, JOURNAL), document=JSON, step=4
    ),
    "repicked_chain": Reader(
        repicked_chain, read_repicked_run, (MANIFEST, JOURNAL), document=JSON, step=4
    ),
    "trace": Reader(trace, read_trace),
    "truth": Reader(truth, read_truth_files, document=JSON),
}
