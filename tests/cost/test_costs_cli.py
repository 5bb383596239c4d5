"""`python -m nasc_evo.costs`, mostly in this process."""

import csv
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import yaml

from nasc_evo import costs
from nasc_evo.cost import CostTable
from nasc_evo.cost.table import COLUMNS, FORMAT, TABLES
from nasc_evo.costs import main, shipped_tables
from nasc_evo.space import FBNetSpace, NASBench201Space
from tests.cost.test_import import COUNT, Hostile, few, nats_files, write_nats

__all__ = ["few"]
SHIPPED = str(TABLES / "fbnet_32_pixel3.csv")
TEXT = (TABLES / "fbnet_32_pixel3.csv").read_text()


def run(capsys, *args):
    """Return exit code, output and errors of one command."""
    code = main([str(arg) for arg in args])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


def write_table(path, space, figure, energy=None):
    """Write a table whose figures are `figure(position, op)`."""
    header = {"format": FORMAT, "name": "mine", "space": space.name, "geometry": space.geometry}
    with open(path, "w", newline="") as file:
        file.write("".join(f"# {line}\n" for line in yaml.safe_dump(header).splitlines()))
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        rows = {
            (position.name, op): (i, j)
            for i, position in enumerate(space.positions)
            for j, op in enumerate(position.ops)
        }
        for (name, op), (i, j) in rows.items():
            writer.writerow([name, op, figure(i, j), "" if energy is None else energy(i, j)])


def scaled(factor):
    table = CostTable.shipped("edgegpu", FBNetSpace(32, 10))
    return lambda i, j: float(table.latency_ms[i, j]) * factor


def test_help_is_quick_and_needs_no_torch(tmp_path):
    code = (
        "import sys; from nasc_evo.costs import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print([m for m in ('torch', 'pymoo') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    for command in ("list", "show", "check", "import-hwnasbench", "import-natsbench"):
        assert command in done.stdout
    assert done.stdout.endswith("[]\n")


def test_module_runs_and_tells_mistakes_in_one_line(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "NASC_EVO_DATA"}
    done = subprocess.run(
        [sys.executable, "-m", "nasc_evo.costs", "import-hwnasbench", "file.pickle"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Error: NASC_EVO_DATA is not set")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["lists"], "invalid choice: 'lists'"),
        (["show"], "the following arguments are required: NAME"),
        (["show", "nokia"], "No cost table of 'nokia' ships; available are edgegpu, edgetpu,"),
        (["check"], "the following arguments are required: FILE"),
        (["check", "x.csv"], "There is no cost table file x.csv"),
        (["check", "x.csv", "--space", "resnet"], "invalid choice: 'resnet'"),
        (["check", "x.csv", "--space", "fbnet", "--geometry", "big"], "invalid int value: 'big'"),
        (["check", SHIPPED, "--geometry", "64"], "geometry 32 and 224, got 64"),
        (["check", SHIPPED, "--space", "nasbench201", "--geometry", "224"], "32, got 224"),
        (["check", "no.csv", "--space", "fbnet"], "There is no cost table file no.csv"),
        (["list", "--all"], "unrecognized arguments: --all"),
    ],
)
def test_mistakes_are_one_sentence_and_code_2(capsys, args, message):
    code, out, err = run(capsys, *args)
    assert code == 2
    assert out == ""
    assert err.startswith("Error: ")
    assert message in err
    assert err.count("\n") == 1


def test_list_has_every_table_that_ships(capsys):
    code, out, err = run(capsys, "list")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["machine", "space", "geometry", "latency", "energy", "description"]
    assert "edgegpu              fbnet" in out
    row = next(line for line in lines if line.startswith("edgegpu ") and "fbnet" in line)
    assert "32, 224   ms       mJ      NVIDIA Jetson TX2" in row
    row = next(line for line in lines if line.startswith("raspi4 ") and "fbnet" in line)
    assert "32, 224   ms       -       Raspberry Pi 4" in row
    tables = shipped_tables()
    assert len(tables) == len(list(TABLES.glob("*.csv")))
    kinds = {(table.name, space.name, table.energy_mj is None) for table, space in tables}
    assert len(lines) == 1 + len(kinds)


def test_list_tells_geometries_with_energies_from_those_without(capsys, monkeypatch):
    tables = [
        (replace(table, energy_mj=None) if space.geometry == 224 else table, space)
        for table, space in shipped_tables()
        if table.name == "edgegpu"
    ]
    monkeypatch.setattr(costs, "shipped_tables", lambda: tables)
    lines = run(capsys, "list")[1].splitlines()
    rows = [line.split()[2:5] for line in lines if line.split()[:2] == ["edgegpu", "fbnet"]]
    assert sorted(rows) == [["224", "ms", "-"], ["32", "ms", "mJ"]]


def test_show_prints_what_is_known(capsys):
    code, out, err = run(capsys, "show", "titan_rtx")
    assert (code, err) == (0, "")
    assert "# titan_rtx: fbnet at 32x32" in out
    for key in ("description", "source", "licence", "date", "quirks", "mape_percent", "unit"):
        assert key in out
    _, out, _ = run(capsys, "show", "edgegpu")
    assert "fbnet at 32x32" in out
    assert "fbnet at 224x224" in out


@pytest.mark.parametrize("path", sorted(TABLES.glob("*.csv")), ids=lambda path: path.stem)
def test_check_accepts_every_table_that_ships(capsys, path):
    space, geometry, machine = path.stem.split("_", 2)
    code, out, err = run(capsys, "check", path)
    assert (code, err) == (0, "")
    assert f"is a cost table of '{machine}' for {space} at {geometry}x{geometry}, with" in out
    assert "Warning" not in out


def test_check_refuses_what_a_run_refuses(capsys, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(TEXT.replace("layer_1,skip", "layer_1,jump"))
    code, out, err = run(capsys, "check", path, "--space", "fbnet")
    assert (code, out) == (2, "")
    assert "no position 'layer_1', op 'jump'" in err
    path.write_text(TEXT.replace("# space: fbnet", "# space: resnet"))
    code, out, err = run(capsys, "check", path)
    assert code == 2
    assert "is for space 'resnet'; there are fbnet, nasbench201" in err
    path.write_text(TEXT.replace("# geometry: 32", "# geometry: [32]"))
    code, out, err = run(capsys, "check", path)
    assert code == 2
    assert "must be a name and a whole number, got 'fbnet' and a list" in err
    path.write_text(TEXT)
    code, out, err = run(capsys, "check", path, "--space", "fbnet", "--geometry", "224")
    assert code == 2
    assert "is for geometry 32, this run needs 224" in err


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (1e-3, "latency_ms looks like seconds: an average network costs 0.0182, where"),
        (1e3, "latency_ms looks like microseconds: an average network costs 1.82e+04, where"),
        (0.3, None),
        (10.0, None),
    ],
)
def test_check_warns_of_other_units(capsys, tmp_path, factor, message):
    path = tmp_path / "mine.csv"
    write_table(path, FBNetSpace(32, 10), scaled(factor), energy=scaled(1.0))
    code, out, err = run(capsys, "check", path, "--space", "fbnet")
    assert (code, err) == (0, "")
    if message is None:
        assert "Warning" not in out
    else:
        (line,) = out.splitlines()[1:]
        assert line.startswith(f"Warning: {message}")


@pytest.mark.parametrize(
    ("agreement", "error", "tau", "message"),
    [
        ("agreement", 4.9, 0.91, None),
        ("agreement", 5.1, 0.91, "measured whole networks are predicted with an error of 5.1 %"),
        ("agreement", 4.9, 0.89, "and Kendall's tau 0.89; 5 % and 0.9 are usual"),
        ("energy_agreement", 4.9, 0.5, None),
        ("energy_agreement", 5.1, 0.99, "energies of measured whole networks are predicted with"),
    ],
)
def test_check_warns_of_bad_predictions(capsys, tmp_path, agreement, error, tau, message):
    path = tmp_path / "mine.csv"
    write_table(path, FBNetSpace(32, 10), scaled(1.0), energy=scaled(1.0))
    scores = {"mape_percent": error, "kendall_tau": tau}
    line = f"# {agreement}: {json.dumps({'whole': {'as_corrected': scores}})}\n"
    path.write_text(path.read_text().replace("position,op", f"{line}position,op", 1))
    code, out, err = run(capsys, "check", path, "--space", "fbnet")
    assert (code, err) == (0, "")
    assert ("Warning" in out) == (message is not None)
    assert message is None or message in out


def test_check_warns_of_joules(capsys, tmp_path):
    path = tmp_path / "mine.csv"
    write_table(path, FBNetSpace(32, 10), scaled(1.0), energy=scaled(1e-3))
    _, out, _ = run(capsys, "check", path, "--space", "fbnet")
    assert "Warning: energy_mj looks like joules" in out


def test_check_warns_of_skips_that_are_not_the_fastest_and_of_equal_figures(capsys, tmp_path):
    path = tmp_path / "mine.csv"
    space, usual = FBNetSpace(32, 10), scaled(1.0)

    def figure(i, j):
        position = space.positions[i]
        if position.name == "layer_7":
            return 1.0
        if position.name in ("layer_3", "layer_6") and position.ops[j] == "skip":
            return 50.0  # layer_6 changes the shape: its skip is work
        return usual(i, j)

    write_table(path, space, figure)
    _, out, _ = run(capsys, "check", path, "--space", "fbnet")
    faster, equal = out.splitlines()[1:]
    assert "which does nothing, for 8 of the operations, the first is 'layer_3 k3_e1'" in faster
    assert equal.endswith("is the same for every operation: 1, the first is 'layer_7'.")


def test_check_knows_the_other_space(capsys, tmp_path):
    path, space = tmp_path / "mine.csv", NASBench201Space()
    order = [0, 0.001, 0.2, 0.5, 0.1]  # none is faster than a skip
    write_table(path, space, lambda i, j: order[j] if len(space.positions[i].ops) > 1 else 0.1)
    code, out, err = run(capsys, "check", path, "--space", "nasbench201")
    assert (code, err) == (0, "")
    assert "for nasbench201 at 32x32, without energy" in out
    assert "Warning" not in out


@pytest.mark.parametrize(("pools", "warned"), [(0.0, True), (0.1, False)])
def test_check_looks_for_poolings_beside_the_edges(capsys, tmp_path, pools, warned):
    path, space = tmp_path / "mine.csv", NASBench201Space()
    order = [0, 0.01, 0.2, 0.5, 0.002]  # a pooling is faster than a skip but for its row `pools`

    def figure(i, j):
        position = space.positions[i]
        if position.optional:  # relus and adds cost nothing, however many
            return pools * j if position.name.endswith("_pools") else 0
        return order[j] if len(position.ops) > 1 else 0.1

    write_table(path, space, figure)
    out = run(capsys, "check", path, "--space", "nasbench201")[1]
    assert ("below that of the skip" in out) == warned
    assert "is the same for every operation" not in out
    # 5 cells of 3 stages pool 0.865 nodes on average
    edges = 15 * 6 * np.mean(order) + 4 * 0.1
    assert f"takes {edges + 15 * 0.865 * pools:.3g} ms" in out


def test_import_natsbench_writes_where_it_is_told(capsys, tmp_path, few, monkeypatch):
    write_nats(tmp_path, nats_files())
    out_folder = tmp_path / "new" / "folder"
    code, out, err = run(capsys, "import-natsbench", tmp_path, "--out", out_folder)
    assert (code, err.strip()) == (0, "")
    assert out.startswith(f"{out_folder / 'nb201_accuracy.npz'}: ")
    with np.load(out_folder / "nb201_accuracy.npz", allow_pickle=False) as file:
        assert file["cifar10_oritest_200"].shape == (COUNT,)
    monkeypatch.setenv("NASC_EVO_DATA", str(tmp_path))
    assert run(capsys, "import-natsbench", tmp_path)[0] == 0
    assert (tmp_path / "hwnas" / "nb201_accuracy.npz").is_file()


def test_interrupt_leaves_nothing(capsys, tmp_path, few, monkeypatch):
    write_nats(tmp_path, nats_files())

    def interrupted(indices):
        yield next(iter(indices))
        raise KeyboardInterrupt

    monkeypatch.setattr("nasc_evo.costs._progress", interrupted)
    code, out, err = run(capsys, "import-natsbench", tmp_path, "--out", tmp_path / "out")
    assert (code, out, err) == (130, "", "Interrupted.\n")
    assert list((tmp_path / "out").iterdir()) == []


def test_hostile_file_is_refused_by_the_command(capsys, tmp_path):
    path = tmp_path / "file.pickle"
    path.write_bytes(pickle.dumps(Hostile()))
    code, out, err = run(capsys, "import-hwnasbench", path, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert ".system, which no official benchmark file needs" in err
    assert list((tmp_path / "out").iterdir()) == []
