"""Official benchmark files, built here to their published structure, and hostile ones."""

import bz2
import os
import pickle
import re
from collections import OrderedDict

import numpy as np
import pytest

from nasc_evo.cost import natsbench
from nasc_evo.cost.hwnasbench import (
    DATASETS,
    INTENSITY,
    METRICS,
    first_difference,
    import_file,
    lookup_keys,
)
from nasc_evo.cost.natsbench import ACCURACIES, CLASSES, import_folder
from nasc_evo.cost.official import output_folder, write_npz
from nasc_evo.cost.restricted import read_pickle
from nasc_evo.cost.table import CostTable
from nasc_evo.errors import UserError
from nasc_evo.space import FBNetSpace, NASBench201Space
from tests.conftest import needs_data

SPACE = NASBench201Space()
STRINGS = [SPACE.format(ops) for ops in SPACE.architectures]
N = len(STRINGS)


class Hostile:
    def __reduce__(self):
        return os.system, ("touch was_run",)


def with_old_names(content, protocol=3):
    """Pickle as numpy before version 2 did."""
    data = pickle.dumps(content, protocol=protocol)
    return data.replace(b"numpy._core", b"numpy.core")


def lookup_table():
    """The FBNet part as the tables that ship say it should be."""
    part = {}
    for geometry, classes in ((32, 100), (224, 1000)):
        space = FBNetSpace(geometry, classes)
        for metric in METRICS:
            if metric == "edgetpu_latency":
                continue
            device, kind = metric.split("_")
            table = CostTable.shipped(device, space)
            figures = table.latency_ms if kind == "latency" else table.energy_mj
            part.setdefault(metric, {}).update(
                {key: float(figures[place]) for place, key in lookup_keys(space).items()}
            )
    return part


LOOKUP = lookup_table()


def hardware_content(values=None):
    """What HW-NAS-Bench-v1_0.pickle holds, with random figures unless `values` are given."""
    if values is None:
        values = np.random.default_rng(0).uniform(0.1, 90, (3, 9, N))
        values[:, METRICS.index("edgetpu_latency"), ::7] = -1
    networks = {}
    for dataset, figures in zip(DATASETS, values, strict=True):
        networks[dataset] = dict(zip(METRICS, figures.copy(), strict=True))
        networks[dataset][INTENSITY] = np.linspace(1, 2, N)
        networks[dataset]["config"] = [
            {"name": "infer.tiny", "C": 16, "N": 5, "arch_str": string} for string in STRINGS
        ]
    lookup = {metric: dict(figures) for metric, figures in LOOKUP.items()}
    return {"nasbench201": networks, "fbnet": lookup}, values


def test_restricted_reader_gives_what_was_pickled(tmp_path):
    content = {
        "array": np.arange(6.0).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"),
        "text": np.array(["a", "bcd"]),
        "objects": np.array([{"a": 1}, None], dtype=object),
        "scalars": [np.float64(0.1), np.float32(0.5), np.int64(-3), np.bool_(True)],
        "containers": OrderedDict(a={1, 2}, b=frozenset([3]), c=(None, b"x", 1e300)),
    }
    for protocol in range(2, 6):
        for data in (pickle.dumps(content, protocol), with_old_names(content, min(protocol, 3))):
            path = tmp_path / "file.pickle"
            path.write_bytes(data)
            got = read_pickle(path, 10**6)
            assert list(got) == list(content)
            for name in ("array", "fortran", "big", "text", "objects"):
                assert np.array_equal(got[name], content[name])
                assert got[name].dtype.kind == content[name].dtype.kind
            assert got["scalars"] == content["scalars"]
            assert [type(x) for x in got["scalars"]] == [type(x) for x in content["scalars"]]
            assert got["containers"] == content["containers"]


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_hostile_pickle_is_refused_by_name_and_not_run(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "hostile.pickle"
    path.write_bytes(pickle.dumps({"nasbench201": Hostile()}, protocol))
    with pytest.raises(UserError, match=rf"asks for {os.system.__module__}\.system, .* not run"):
        read_pickle(path, 10**6)
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"cbuiltins\neval\n(V1\ntR.", "builtins.eval"),
        (b"c__builtin__\ngetattr\n(V1\ntR.", "__builtin__.getattr"),
        (b"cnumpy\nload\n(V1\ntR.", "numpy.load"),
        (b"cnumpy.core.multiarray\nfrombuffer\n.", "numpy.core.multiarray.frombuffer"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.dump\x93.", "numpy.ndarray.dump"),
        (b"cnumpy.f2py.diagnose\nrun\n(tR.", "numpy.f2py.diagnose.run"),
    ],
)
def test_other_names_are_refused(tmp_path, data, name):
    path = tmp_path / "file.pickle"
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"asks for {name},"):
        read_pickle(path, 10**6)


def test_no_view_of_an_array_is_made(tmp_path):
    # its memory could be freed under the view by a second state of the array
    array = b"cnumpy.core.multiarray\n_reconstruct\n(tR"
    dtype = b"cnumpy\ndtype\n(Vf8\nI00\nI01\ntR"
    for call in (
        b"cnumpy.core.numeric\n_frombuffer\n(" + array + dtype + b"(I0\ntVC\ntR.",
        b"cnumpy.core.multiarray\nscalar\n(" + dtype + array + b"tR.",
    ):
        path = tmp_path / "file.pickle"
        path.write_bytes(call)
        with pytest.raises(UserError, match="values read from a _Array instead of bytes"):
            read_pickle(path, 10**6)


@pytest.mark.parametrize("kind", ["U0", "S0"])
def test_texts_without_length_are_refused(tmp_path, kind):
    # an array of any number of them needs no content
    path = tmp_path / "file.pickle"
    path.write_bytes(f"cnumpy\ndtype\n(V{kind}\nI00\nI01\ntR.".encode())
    with pytest.raises(UserError, match=f"arrays of type '{kind}' are not read"):
        read_pickle(path, 10**6)


def crafted_dtype(name, state):
    """Return a pickle of a scalar of eight bytes whose data type has any state."""
    text = f"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(V{name}\nI00\nI01\ntR(I3\n"
    return (text + state + "tbC\x08AAAAAAAAtR.").encode("latin1")


@pytest.mark.parametrize(
    "data",
    [
        crafted_dtype("O8", "V|\nNNNI-1\nI-1\nI0\n"),  # would make eight bytes a pointer
        crafted_dtype("V8", "V|\nNNNI-1\nI-1\nI0\n"),
        crafted_dtype("f8", "V<\n(cnumpy\ndtype\n(Vf8\ntR(tI1\ntNNI-1\nI-1\nI0\n"),
        b"cnumpy\nndarray\n(I9\ntR.",
        b"c_codecs\nencode\n(Vx\nVzip\ntR.",
        b"",
        b"\x80\x04.",
        b"not a pickle",
        pickle.dumps(np.arange(1000.0))[:-500],
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
    ],
)
def test_damaged_pickles_are_one_sentence(tmp_path, data):
    path = tmp_path / "file.pickle"
    path.write_bytes(data)
    with pytest.raises(UserError, match="is damaged or not the expected one"):
        read_pickle(path, 10**6)


def test_sizes_are_limited_after_decompression(tmp_path):
    path = tmp_path / "bomb.pickle.pbz2"
    path.write_bytes(bz2.compress(bytes(10**7)))
    assert path.stat().st_size < 1000
    with pytest.raises(UserError, match="more than 1000000 bytes"):
        read_pickle(path, 10**6)
    path.write_bytes(bz2.compress(os.urandom(10**5))[:-100])
    with pytest.raises(UserError, match="cannot be read"):
        read_pickle(path, 10**6)
    path.write_bytes(b"not bzip2")
    with pytest.raises(UserError, match="cannot be read"):
        read_pickle(path, 10**6)
    with pytest.raises(UserError, match="There is no file"):
        read_pickle(tmp_path / "none", 10**6)


def test_hw_nas_bench_round_trip(tmp_path):
    content, values = hardware_content()
    path = tmp_path / "HW-NAS-Bench-v1_0.pickle"
    path.write_bytes(with_old_names(content))
    sentences = import_file(path, tmp_path)
    refused = (values == -1).sum()
    assert f"{values.size} figures of 15625 NAS-Bench-201 networks, {refused} of" in sentences[0]
    assert "10 FBNet tables" in sentences[1]
    assert "agree with the tables that ship" in sentences[2]
    with np.load(tmp_path / "nb201_hw.npz", allow_pickle=False) as file:
        assert np.array_equal(file["values"], values)
        assert file["values"].dtype == np.float64
        assert (file["provenance"] == 1).all()
        assert file["datasets"].tolist() == list(DATASETS)
        assert file["metrics"].tolist() == list(METRICS)
        assert np.array_equal(file[f"{INTENSITY}_cifar10"], np.linspace(1, 2, N))
    tables = sorted(tmp_path.glob("fbnet_*.csv"))
    assert {p.name for p in tmp_path.iterdir()} - {p.name for p in tables} == {
        path.name,
        "nb201_hw.npz",
    }
    assert len(tables) == 10
    for table in tables:
        _, geometry, machine = table.stem.split("_")
        space = FBNetSpace(int(geometry), 100)
        ours, imported = CostTable.shipped(machine, space), CostTable.load(table, space)
        assert np.array_equal(ours.latency_ms, imported.latency_ms, equal_nan=True)
        assert (ours.energy_mj is None) == (imported.energy_mj is None)
        if ours.energy_mj is not None:
            assert np.array_equal(ours.energy_mj, imported.energy_mj, equal_nan=True)


@pytest.mark.parametrize(
    ("figure", "message"),
    [(None, "got None"), (-0.1, "got -0.1"), (float("nan"), "got nan"), ([1.0], "got a list")],
)
def test_damaged_fbnet_figures_are_refused_and_nothing_is_written(tmp_path, figure, message):
    content, _ = hardware_content()
    content["fbnet"]["fpga_energy"]["FC_Cin1984_Cout1000"] = figure
    path = tmp_path / "file.pickle"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=f"energy_mj of fpga for FC_Cin1984.*{message}"):
        import_file(path, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["file.pickle"]


def test_hw_nas_bench_layout_is_that_of_the_data_folder(tmp_path):
    known = np.load(needs_data("hwnas/nb201_hw.npz"), allow_pickle=False)
    values = np.where(np.isnan(known["values"]), 1.0, known["values"])
    content, _ = hardware_content(values)
    path = tmp_path / "official.pickle"
    path.write_bytes(pickle.dumps(content))
    import_file(path, tmp_path)
    with np.load(tmp_path / "nb201_hw.npz", allow_pickle=False) as file:
        assert set(file.files) == set(known.files)
        for name in set(file.files) - {"provenance_code"}:
            assert file[name].shape == known[name].shape
            assert file[name].dtype == known[name].dtype
        assert file["metrics"].tolist() == known["metrics"].tolist()
        assert np.array_equal(file["values"], values)


def test_lookup_keys_are_those_of_the_official_file():
    path = needs_data("hwnas/fbnet_lut.csv")
    official = {line.split(",")[0] for line in path.read_text().splitlines()[1:]}
    ours = {
        key
        for geometry, classes in ((32, 100), (224, 1000))
        for key in lookup_keys(FBNetSpace(geometry, classes)).values()
    }
    assert official - ours == {"FC_Cin1504_Cout10"}
    assert ours <= official


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["fbnet"]["fpga_latency"].popitem(),
            r"latency_ms of fpga for FC_\S+ is None in f and",
        ),
        (
            lambda c: c["fbnet"]["raspi4_latency"].update(FC_Cin1504_Cout100=1.0),
            "latency_ms of raspi4 for FC_Cin1504_Cout100 is 1.0 in f and",
        ),
        (
            lambda c: c["fbnet"]["raspi4_latency"].update(FC_Cin1504_Cout100=10**400),
            "latency_ms of raspi4 for FC_Cin1504_Cout100 is ",
        ),
        (lambda c: c["fbnet"].update(pixel3_latency=[1.0]), "latency_ms of pixel3 for ConvNorm"),
    ],
)
def test_first_difference_of_the_fbnet_part_is_named(change, message):
    content = {"fbnet": {metric: dict(figures) for metric, figures in LOOKUP.items()}}
    assert first_difference(content, "f") is None
    change(content)
    difference = first_difference(content, "f")
    assert difference is not None
    assert re.search(message, difference)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("fbnet"), "'fbnet' is missing in"),
        (lambda c: c["nasbench201"].pop("cifar100"), "'cifar100' is missing in nasbench201 in"),
        (
            lambda c: c["nasbench201"]["cifar10"].pop("fpga_energy"),
            "'fpga_energy' is missing in cifar10 in",
        ),
        (
            lambda c: c["nasbench201"]["cifar10"].update(raspi4_latency=np.ones(N - 1)),
            r"raspi4_latency of cifar10 in \S+ must hold 15625 numbers, got .* \(15624,\)",
        ),
        (
            lambda c: c["nasbench201"]["cifar10"].update(raspi4_latency=["x"] * N),
            "must hold 15625 numbers",
        ),
        (
            lambda c: c["nasbench201"]["cifar100"]["raspi4_latency"].__setitem__(9, -1.0),
            r"raspi4_latency of cifar100 in \S+ is -1.0 for architecture 9; it must be a number",
        ),
        (
            lambda c: c["nasbench201"]["cifar100"]["edgetpu_latency"].__setitem__(9, np.nan),
            "is nan for architecture 9; it must be .* or -1 where the network did not compile",
        ),
        (
            lambda c: c["nasbench201"]["cifar10"]["fpga_energy"].__setitem__(0, 1e9),
            "is 1000000000.0 for architecture 0",
        ),
        (
            lambda c: c["nasbench201"]["cifar10"]["config"].pop(),
            "must list 15625 architectures, got 15624",
        ),
        (
            lambda c: c["nasbench201"]["cifar10"]["config"].reverse(),
            r"Architecture 0 of config of cifar10 in \S+ is '.*', but the official one is '\|avg_p",
        ),
        (lambda c: c["nasbench201"]["cifar10"].update(config=3), "must be a list of architectures"),
    ],
)
def test_wrong_hw_nas_bench_files_are_refused_and_nothing_is_written(tmp_path, change, message):
    content, _ = hardware_content()
    change(content)
    path = tmp_path / "official.pickle"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=message):
        import_file(path, tmp_path)
    assert not (tmp_path / "nb201_hw.npz").exists()


COUNT = 6


@pytest.fixture
def few(monkeypatch):
    """Make the space one of a few architectures, so that a folder is quickly built."""
    first = SPACE.architectures[:COUNT]
    monkeypatch.setattr(NASBench201Space, "architectures", first)


def trial(rng, dataset, epochs, seed, index):
    """State of one `ResultsCount` of the `-simple` files."""
    sets = {"cifar10-valid": ["x-valid", "ori-test"], "cifar10": ["ori-test"]}
    names = sets.get(dataset, ["ori-test", "x-valid", "x-test"])
    classes = CLASSES.get(dataset, 10)
    last = epochs - 1
    params = NASBench201Space(n_classes=classes).params(SPACE.architectures[index])
    return {
        "name": dataset,
        "net_state_dict": None,
        "train_acc1es": dict.fromkeys(range(epochs), 50.0),
        "train_acc5es": None,
        "train_losses": dict.fromkeys(range(epochs), 1.0),
        "train_times": OrderedDict((epoch, 20.1 + index) for epoch in range(epochs)),
        "arch_config": {"channel": 16, "num_cells": 5, "arch_str": STRINGS[index]},
        "params": np.float64(params / 1e6),
        "flop": 15.5,
        "seed": str(seed),
        "epochs": epochs,
        "latency": [0.0144],
        "eval_names": names,
        "eval_acc1es": {f"{name}@{last}": rng.uniform(1, 95) for name in names},
        "eval_times": {f"{name}@{last}": 1.0 for name in names},
        "eval_losses": {f"{name}@{last}": 1.0 for name in names},
    }


def nats_state(rng, epochs, index):
    """State of one `ArchResults`: architecture i has i % 3 + 1 seeds after 200 epochs."""
    seeds = [777, 888, 999][: index % 3 + 1] if epochs == 200 else [111 if index == 4 else 777]
    datasets = ("cifar10-valid", "cifar10", "cifar100", "ImageNet16-120")
    return {
        "arch_index": index,
        "arch_str": STRINGS[index],
        "all_results": {
            (dataset, seed): trial(rng, dataset, epochs, seed, index)
            for dataset in datasets
            for seed in seeds
        },
        "dataset_seed": {dataset: list(seeds) for dataset in datasets},
        "clear_net_done": True,
    }


def nats_files():
    """Content of each file of a folder of `COUNT` architectures, by name."""
    rng = np.random.default_rng(1)
    meta = {
        "meta_archs": STRINGS[:COUNT],
        "total_archs": COUNT,
        "arch2infos": None,
        "evaluated_indexes": set(),
    }
    files = {"meta": meta}
    for index in range(COUNT):
        files[f"{index:06d}"] = OrderedDict(
            (str(epochs), nats_state(rng, epochs, index)) for epochs in (12, 200)
        )
    return files


def write_nats(folder, files):
    for name, content in files.items():
        data = bz2.compress(pickle.dumps(content, protocol=4))
        (folder / f"{name}.pickle.pbz2").write_bytes(data)


def read_npz(path):
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def accuracy(files, index, epochs, dataset, evaluation):
    results = files[f"{index:06d}"][str(epochs)]["all_results"]
    key = f"{evaluation}@{epochs - 1}"
    return [run["eval_acc1es"][key] for (name, _), run in results.items() if name == dataset]


def test_nats_bench_means_and_seeds(tmp_path, few):
    files = nats_files()
    write_nats(tmp_path, files)
    out = tmp_path / "out"
    out.mkdir()
    (sentence,) = import_folder(tmp_path, out, iter)
    assert f"of {COUNT} architectures" in sentence
    arrays = read_npz(out / "nb201_accuracy.npz")
    for i in range(COUNT):
        for name, (dataset, evaluation, epochs, one_seed) in ACCURACIES.items():
            values = accuracy(files, i, epochs, dataset, evaluation)
            assert arrays[name][i] == (values[0] if one_seed else np.mean(values))
        half, both = arrays["cifar100_xtest_200"][i], arrays["cifar100_oritest_200"][i]
        assert arrays["cifar100_xvalid_200_derived"][i] == 2 * both - half
        assert arrays["train_time_s_200"][i] == pytest.approx(200 * (20.1 + i))
    for j, classes in enumerate(CLASSES.values()):
        expected = NASBench201Space(n_classes=classes).params(SPACE.architectures[:COUNT]) / 1e6
        assert np.allclose(arrays["params_M"][j], expected, rtol=1e-12)
    assert arrays["flops_M"].shape == (3, COUNT)
    assert arrays["arch_str"].tolist() == STRINGS[:COUNT]
    assert np.array_equal(arrays["ops"], SPACE.architectures[:COUNT])


def test_nats_bench_layout_is_that_of_the_data_folder(tmp_path, few):
    known = np.load(needs_data("hwnas/nb201_accuracy.npz"), allow_pickle=False)
    files = nats_files()
    for i in range(COUNT):
        for name, (dataset, evaluation, epochs, one_seed) in ACCURACIES.items():
            state = files[f"{i:06d}"][str(epochs)]
            seeds = state["dataset_seed"][dataset]
            for seed in seeds[1:] if not one_seed else seeds[:1]:
                run = state["all_results"][dataset, seed]
                run["eval_acc1es"][f"{evaluation}@{epochs - 1}"] = float(known[name][i])
    write_nats(tmp_path, files)
    import_folder(tmp_path, tmp_path, iter)
    arrays = read_npz(tmp_path / "nb201_accuracy.npz")
    assert set(known.files) - set(arrays) == {"cifar10_valid_seed_anomaly", "iso_rep"}
    assert set(arrays) <= set(known.files)
    for name, array in arrays.items():
        assert array.dtype.kind == known[name].dtype.kind
        assert array.ndim == known[name].ndim
        if array.dtype.kind == "f":
            assert array.dtype == known[name].dtype
    assert np.allclose(arrays["params_M"], known["params_M"][:, :COUNT], rtol=1e-12)
    assert np.array_equal(arrays["ops"], known["ops"][:COUNT])
    assert np.array_equal(arrays["op_names"], known["op_names"])
    for name in ("cifar10_oritest_12_1seed", "in16_xtest_200_1seed"):
        assert np.array_equal(arrays[name], known[name][:COUNT])


def test_official_figures_satisfy_the_derivation_of_validation_accuracies():
    known = np.load(needs_data("hwnas/nb201_accuracy.npz"), allow_pickle=False)
    for name, (both, half) in natsbench.DERIVED.items():
        assert np.array_equal(known[name], 2 * known[both] - known[half])
        images = {"cifar100": 5000, "in16": 3000}[name.split("_")[0]]
        counts = known[name] * 6 * images / 100  # whole images, summed over 1, 2 or 3 seeds
        assert np.abs(counts - counts.round()).max() < 0.01


def test_what_the_files_lack_is_said_and_left_out(tmp_path, few):
    files = nats_files()
    for run in files["000003"]["200"]["all_results"].values():
        run["eval_acc1es"].pop("x-test@199", None)
        run["train_times"] = None
    write_nats(tmp_path, files)
    sentences = import_folder(tmp_path, tmp_path, iter)
    text = "\n".join(sentences)
    assert "Warning: cifar100_xtest_200 could not be produced" in text
    assert f"lacks it for 1 of {COUNT} architectures, the first is 3." in text
    assert "Warning: train_time_s_200 could not be produced" in text
    assert "Warning: cifar100_xvalid_200_derived could not be produced without" in text
    arrays = read_npz(tmp_path / "nb201_accuracy.npz")
    assert "cifar100_xtest_200" not in arrays
    assert "cifar100_oritest_200" in arrays


def cut_off(folder):
    path = folder / "000002.pickle.pbz2"
    path.write_bytes(path.read_bytes()[:-50])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f["meta"]["meta_archs"].pop(), "must list 6 architectures, got 5"),
        (lambda f: f["meta"]["meta_archs"].reverse(), "Architecture 0 of .* but the official one"),
        (lambda f: f.update(meta=[1]), "'meta_archs' is missing"),
        (lambda f: f.pop("000005"), "There is no file .*000005.pickle.pbz2"),
        (lambda f: f["000001"].pop("200"), "'200' is missing"),
        (
            lambda f: f.update({"000001": f["000002"]}),
            "are of architecture 2 '.*', but the file should be that of 1",
        ),
        (
            lambda f: f["000001"]["200"]["all_results"].popitem(),
            r"lack results of ImageNet16-120 for one of the seeds \[777, 888\]",
        ),
        (
            lambda f: f["000001"]["200"]["all_results"]["cifar10", 777].pop("eval_acc1es"),
            "'eval_acc1es' is missing",
        ),
        (
            lambda f: f["000001"]["200"]["all_results"]["cifar10", 777]["eval_acc1es"].update(
                {"ori-test@199": 123.0}
            ),
            "ori-test@199 of cifar10 in .* must be a number from 0 to 100, got 123.0",
        ),
        (
            lambda f: f["000001"]["200"]["all_results"]["cifar100", 777].update(params=0.5),
            "Architecture 1 of cifar100 in .* million parameters",
        ),
        (lambda f: f["000001"]["200"]["dataset_seed"].pop("cifar10"), "no results after 200"),
        (
            lambda f: [
                run["eval_acc1es"].update({key: v / 100 for key, v in run["eval_acc1es"].items()})
                for name, states in f.items()
                if name != "meta"
                for state in states.values()
                for run in state["all_results"].values()
            ],
            "accuracies must be in percent",
        ),
        (lambda f: f.update({"000002": Hostile()}), r"asks for \w+\.system"),
    ],
)
def test_wrong_nats_bench_files_are_refused_and_nothing_is_written(tmp_path, few, change, message):
    files = nats_files()
    change(files)
    write_nats(tmp_path, files)
    with pytest.raises(UserError, match=message):
        import_folder(tmp_path, tmp_path, iter)
    assert not list(tmp_path.glob("*.npz"))


def test_truncated_nats_bench_file_and_missing_folder(tmp_path, few):
    write_nats(tmp_path, nats_files())
    cut_off(tmp_path)
    with pytest.raises(UserError, match="000002.pickle.pbz2 cannot be read"):
        import_folder(tmp_path, tmp_path, iter)
    with pytest.raises(UserError, match="is no folder; unpack"):
        import_folder(tmp_path / "none", tmp_path, iter)


def test_interrupted_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    write_npz(path, {"x": np.arange(3)})

    def interrupt(file, **_):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_npz(path, {"x": np.arange(4)})
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
    assert read_npz(path)["x"].tolist() == [0, 1, 2]


def test_output_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("NASC_EVO_DATA", raising=False)
    with pytest.raises(UserError, match="NASC_EVO_DATA is not set.* or give --out FOLDER"):
        output_folder(None)
    assert output_folder(tmp_path / "a" / "b").is_dir()
    monkeypatch.setenv("NASC_EVO_DATA", str(tmp_path))
    assert output_folder(None) == tmp_path / "hwnas"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        output_folder(tmp_path / "file" / "x")
