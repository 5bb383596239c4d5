"""Many runs put together; runs of real searches are collected in test_clusters.py."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from nasc_evo.collect import main
from nasc_evo.errors import UserError
from nasc_evo.report.collection import read_runs
from nasc_evo.report.files import CHAIN_PARTS, write_rows
from nasc_evo.report.pictures import MAX_PANELS
from nasc_evo.search.final import COLUMNS
from nasc_evo.search.folder import write_json

POINTS = ((0.2, 9.0), (0.4, 5.0), (0.6, 3.0))


def problem_of(**changes) -> dict:
    """Return a problem as a manifest describes it."""
    problem = {
        "space": {"architecture": "fbnet"},
        "nodes": [{"name": "edgegpu"}, {"name": "titan_rtx"}],
        "links": [{"name": "wifi", "uplink_mbps": 18.88}],
        "objectives": ["error", "latency_ms"],
        "limits": {},
        "evaluator": {"dataset": "fashion_mnist", "numerics": {"threads": 2}},
    }
    return problem | changes


def write_run(folder: Path, points=POINTS, *, seed=1, algorithm="nsga2", problem=None, parts=()):
    """Write a finished run with a front of (error, latency) or more objectives."""
    problem = problem or problem_of()
    folder.mkdir(parents=True)
    manifest = {
        "format": "nasc_evo run 1",
        "identity": {"problem": problem, "algorithm": {"name": algorithm}, "seed": seed},
        "finished": {
            "stop_reason": "the budget of 40 evaluations is spent",
            "interrupted": False,
            "evaluations": 40,
            "wall_seconds": 1.5,
        },
    }
    write_json(folder / "manifest.json", manifest)
    reference = dict.fromkeys(problem["objectives"], 10.0) | {"error": 0.9}
    document = {
        "format": "nasc_evo front 1",
        "problem": problem,
        "hypervolume": {"reference_point": reference},
    }
    write_json(folder / "pareto.json", document)
    rows = []
    for i, values in enumerate(points):
        row = dict.fromkeys(COLUMNS, "0") | {"design_id": i, "arch": "skip|k3_e1", "energy_mj": ""}
        row |= dict(zip(problem["objectives"], map(repr, values), strict=True))
        rows.append(row | dict.fromkeys(parts, "1.0/2.0"))
    write_rows(folder / "pareto.csv", (*COLUMNS, *parts), rows)
    return folder


def change(path: Path, *keys, to) -> None:
    """Change one value deep in a JSON file."""
    document = inner = json.loads(path.read_text())
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    path.write_text(json.dumps(document))


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def dominated(a: tuple, others: list[tuple]) -> bool:
    return any(b != a and all(x <= y for x, y in zip(b, a, strict=True)) for b in others)


@pytest.mark.parametrize("objectives", [2, 3])
def test_the_union_front_is_what_no_design_dominates(objectives):
    rng = np.random.default_rng(0)
    names = ["error", "latency_ms", "payload_bytes"][:objectives]
    scale = np.array([0.9, 10.0, 10.0])[:objectives]
    fronts = []
    for seed in range(4):
        points = [tuple(row) for row in (rng.random((30, objectives)) * scale).tolist()]
        fronts.append([p for p in points if not dominated(p, points)])
        write_run(Path(f"runs/{seed}"), fronts[-1], seed=seed, problem=problem_of(objectives=names))
    assert main(["runs"]) == 0
    everything = [point for front in fronts for point in front]
    expected = sorted((p for p in everything if not dominated(p, everything)), key=lambda p: p[1])
    union = read(Path("runs/union.csv"))
    assert [tuple(float(row[name]) for name in names) for row in union] == expected
    assert {row["seed"] for row in union} > {"0"}
    assert len(read(Path("runs/collected.csv"))) == len(everything)
    *runs, total = read(Path("runs/summary.csv"))
    assert float(total["hypervolume"]) > max(float(row["hypervolume"]) for row in runs)
    if objectives == 2:
        assert float(total["hypervolume"]) == pytest.approx(staircase(expected, scale))


def staircase(front: list[tuple], scale: np.ndarray) -> float:
    """Return the hypervolume of a front of two objectives, sorted by the second, box by box."""
    area, error = 0.0, scale[0]
    for point in front:
        area += (error - point[0]) * (scale[1] - point[1])
        error = point[0]
    return area / scale.prod()


def test_columns_values_and_order():
    for name in ("10", "9", "b"):
        write_run(Path("runs") / name, seed=7, algorithm="random")
    assert main(["runs", "--out", "new/out"]) == 0
    rows = read(Path("new/out/collected.csv"))
    assert list(rows[0]) == [
        *("run", "device", "server", "link", "dataset", "seed", "algorithm"),
        *COLUMNS,
    ]
    assert [row["run"] for row in rows] == [f"runs/{n}" for n in ("b", "9", "10") for _ in POINTS]
    first = ["edgegpu", "titan_rtx", "wifi", "fashion_mnist", "7", "random"]
    assert list(rows[0].values())[1:7] == first
    # of equal designs the first is kept, sorted by latency
    union = read(Path("new/out/union.csv"))
    assert [(row["run"], row["latency_ms"]) for row in union] == [
        ("runs/b", "3.0"),
        ("runs/b", "5.0"),
        ("runs/b", "9.0"),
    ]
    summary = read(Path("new/out/summary.csv"))
    assert [row["run"] for row in summary] == ["runs/b", "runs/9", "runs/10", "union"]
    assert summary[-1]["evaluations"] == "120"
    assert summary[-1]["wall_seconds"] == "4.5"
    assert summary[0]["stop_reason"] == "the budget of 40 evaluations is spent"


def test_only_runs_of_one_problem_are_comparable(capsys):
    changes = [
        {},
        {"links": [{"name": "wifi", "uplink_mbps": 3}]},
        {"limits": {"latency_ms": 9.5}},
        {"evaluator": {"dataset": "fashion_mnist", "numerics": {"threads": 8}}},
        {"objectives": ["error", "macs"]},
        {},
    ]
    for i, changed in enumerate(changes):
        write_run(Path(f"runs/{i}"), problem=problem_of(**changed), seed=i)
    assert main(["runs"]) == 0
    out = capsys.readouterr().out
    title = "fbnet, fashion_mnist: edgegpu, wifi"
    for line in (
        f"Group 1: {title} 18.88 Mbps, titan_rtx",
        f"Group 2: {title} 3 Mbps, titan_rtx",
        f"Group 3: {title} 18.88 Mbps, titan_rtx, latency_ms <= 9.5",
        f"Group 4: {title} 18.88 Mbps, titan_rtx, evaluator.numerics.threads 8",
        f"Group 5: {title} 18.88 Mbps, titan_rtx, minimising error, macs",
        "Runs: 6, groups: 5. Written: collected.csv, union.csv, summary.csv and fronts.png in runs",
    ):
        assert line in out.splitlines()
    groups = [row["group"] for row in read(Path("runs/summary.csv")) if row["run"] != "union"]
    assert groups == ["1", "1", "2", "3", "4", "5"]


def test_chains_and_empty_fronts_are_collected():
    chain = problem_of(nodes=[{"name": n} for n in ("pixel3", "edge", "cloud")])
    chain["links"] = [{"name": "wifi", "uplink_mbps": 20}, {"name": "lte", "uplink_mbps": 5.85}]
    write_run(Path("runs/0"), problem=chain, parts=CHAIN_PARTS)
    write_run(Path("runs/1"), points=())
    assert main(["runs"]) == 0
    rows = read(Path("runs/collected.csv"))
    assert len(rows) == 3
    assert rows[0]["node_ms"] == "1.0/2.0"
    assert (rows[0]["server"], rows[0]["link"]) == ("edge/cloud", "wifi/lte")
    summary = read(Path("runs/summary.csv"))
    assert [row["front"] for row in summary] == ["3", "3", "0", "0"]
    assert float(summary[-1]["hypervolume"]) == 0


def test_folders_may_overlap_and_be_a_run_themselves():
    write_run(Path("runs/0"))
    write_run(Path("runs/deep/er/1"), seed=2)
    write_run(Path("other"), seed=3)
    assert main(["other", "runs", "runs/0", "runs/deep/er/1"]) == 0
    names = [row["run"] for row in read(Path("other/summary.csv"))]
    assert names == ["other", "runs/deep/er/1", "runs/0", "union"]
    assert main(["other", "runs"]) == 0  # what it wrote is no run
    assert [row["run"] for row in read(Path("other/summary.csv"))] == names


def test_what_has_not_finished_is_named_and_left_out(capsys):
    write_run(Path("runs/0"))
    change(write_run(Path("runs/1")) / "manifest.json", "finished", "interrupted", to=True)
    change(write_run(Path("runs/2")) / "manifest.json", "finished", to=None)
    change(write_run(Path("runs/[red]")) / "manifest.json", "finished", to=None)
    (Path("runs/[red]") / "pareto.csv").unlink()
    (Path("runs/[red]") / "evaluations.jsonl").touch()
    (Path("runs") / "manifest.json").write_text("{}")  # something else
    assert main(["runs"]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Note: ")]
    assert notes == [
        "Note: runs/[red] is left out, it has not finished; continue it with resume=runs/[red]",
        "Note: runs/1 is left out, it was interrupted; continue it with resume=runs/1",
        "Note: runs/2 is left out, it has not finished; continue it with resume=runs/2",
    ]
    assert [row["run"] for row in read(Path("runs/summary.csv"))] == ["runs/0", "union"]
    assert main(["runs/1", "runs/2"]) == 2
    assert "No run below the folders has finished, unfinished: 2." in capsys.readouterr().err


def test_pictures_show_each_group_up_to_a_number(capsys):
    for i in range(MAX_PANELS + 1):
        problem = problem_of(links=[{"name": "wifi", "uplink_mbps": i + 1}])
        write_run(Path(f"runs/{i}"), problem=problem)
    assert main(["runs"]) == 0
    note = f"Note: fronts.png shows the first {MAX_PANELS} of {MAX_PANELS + 1} groups."
    assert note in capsys.readouterr().out.splitlines()
    drawing = Path("runs/fronts.svg").read_text()
    assert drawing.count('id="axes_') == MAX_PANELS
    assert Path("runs/fronts.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([], "the following arguments are required: FOLDER"),
        (["runs", "--ou", "x"], "unrecognized arguments: --ou"),
        (["nowhere"], "The folder nowhere cannot be read"),
        (["empty"], "There is no run in empty: no folder with manifest.json and pareto.csv."),
        (["runs", "--out", "file"], "The folder file cannot be written"),
        (["runs", "--out", "file/below"], "The folder file/below cannot be written"),
        (["runs", "--out", "taken"], "The folder taken cannot be written"),
    ],
)
def test_a_users_mistake_is_one_sentence(capsys, command, message):
    write_run(Path("runs/0"))
    Path("empty").mkdir()
    Path("file").touch()
    Path("taken/union.csv").mkdir(parents=True)
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"Error: {message}")
    assert len(error.splitlines()) == 1


DAMAGES = [
    ("manifest.json", ("format",), "nasc_evo run 2", "is no manifest of format 'nasc_evo run 1'"),
    ("manifest.json", ("identity",), None, "'NoneType' object is not subscriptable"),
    ("manifest.json", ("finished",), {}, "no 'interrupted'"),
    ("manifest.json", ("finished", "interrupted"), "no", "'no' where a bool must be"),
    ("manifest.json", ("finished", "evaluations"), True, "True where a int must be"),
    ("manifest.json", ("finished", "wall_seconds"), float("inf"), "inf where a finite number"),
    ("manifest.json", ("finished", "wall_seconds"), 10**400, "int too large"),
    ("manifest.json", ("identity", "seed"), "1", "'1' where a int must be"),
    ("manifest.json", ("identity", "problem", "nodes"), [], "not enough values"),
    ("manifest.json", ("identity", "problem", "objectives"), ["error", "x"], "unknown objectives"),
    ("manifest.json", ("identity", "problem", "limits"), {"error": "x"}, "'x' where a finite"),
    ("pareto.json", ("format",), "nasc_evo front 2", "is no front of format 'nasc_evo front 1'"),
    ("pareto.json", ("hypervolume",), 3, "'int' object is not subscriptable"),
    ("pareto.json", ("hypervolume", "reference_point"), {"error": 1}, "no 'latency_ms'"),
    ("pareto.json", ("hypervolume", "reference_point", "error"), float("nan"), "nan where a"),
    ("pareto.json", ("hypervolume", "reference_point", "error"), 0, "must be above 0"),
    ("pareto.json", ("problem", "limits"), {"error": 1}, "of another problem than manifest.json"),
]


@pytest.mark.parametrize(("name", "keys", "value", "message"), DAMAGES)
def test_a_damaged_document_is_refused_by_name(capsys, name, keys, value, message):
    write_run(Path("runs/0"))
    path = write_run(Path("runs/1")) / name
    change(path, *keys, to=value)
    assert main(["runs"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert f"runs/1/{name}" in error
    assert message in error
    assert len(error.splitlines()) == 1
    assert not Path("runs/collected.csv").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("design_id,", "", "its columns are not those of a front"),
        ("0.4", "nan", "line 3 has error nan"),
        ("0.4", "1e999", "line 3 has error 1e999"),
        ("0.4", "__import__('os')", "could not convert string to float"),
        ("0.4", "", "could not convert string to float"),
        ("0.4", "0.4,1", "line 3 has 18 fields instead of 17"),
        ("0.4", '"0.4', "unexpected end of data"),
        ("0.4", "0" * 200_000, "field larger than field limit"),
        ("0.4", "\udcff", "invalid start byte"),
    ],
)
def test_a_damaged_front_is_refused_by_name(capsys, old, new, message):
    path = write_run(Path("runs/0")) / "pareto.csv"
    text = path.read_text()
    assert old in text
    path.write_bytes(text.replace(old, new, 1).encode(errors="surrogateescape"))
    assert main(["runs"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: The front runs/0/pareto.csv is damaged (")
    assert message in error


def test_one_problem_with_two_reference_points_is_refused(capsys):
    write_run(Path("runs/0"))
    path = write_run(Path("runs/1")) / "pareto.json"
    change(path, "hypervolume", "reference_point", "error", to=0.8)
    assert main(["runs"]) == 2
    assert "The runs runs/0 and runs/1 have one problem but different" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["manifest.json", "pareto.json", "pareto.csv"])
def test_no_flipped_byte_is_more_than_a_sentence(name):
    path = write_run(Path("runs/0")) / name
    intact = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = []
    for _ in range(300):
        damaged = bytearray(intact)
        for place in rng.integers(len(intact), size=rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged[: rng.integers(20, 2 * len(intact))])
        try:
            read_runs([Path("runs")])
        except UserError as error:
            refused.append(str(error))
    assert len(refused) > 100
    assert all("runs/0/" in sentence for sentence in refused)
