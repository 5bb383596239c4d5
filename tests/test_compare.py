"""Methods x settings x seeds: units, resume, tables, and the command line."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from nasc_evo.config import config_folder, group_options
from nasc_evo.errors import UserError
from nasc_evo.experiment import (
    ComparisonFolder,
    check_experiment,
    curve_counts,
    problem_of,
    read_searches,
    run_unit,
    run_units,
    settings,
    units,
)
from nasc_evo.report.comparison import (
    Comparison,
    attainment,
    headline_table,
    p_value,
    ranks_table,
    results_table,
    speed_table,
    summary_lines,
    write_comparison,
)
from tests.conftest import needs_data


def experiment(**changes):
    needs_data("hwnas/nb201_accuracy.npz")
    values = yaml.safe_load((config_folder() / "experiment/nb201.yaml").read_text())
    small = {
        "devices": ["edgegpu", "raspi4"],
        "links": ["wifi"],
        "n_eval": 40,
        "seeds": 2,
        "checkpoints": [20, 40],
        "methods": {"surrogate": {"initial": 10}, "random": {}, "raw_offload": {}},
        "headline": None,
    }
    return check_experiment({**values, **small, **changes})


@pytest.mark.parametrize("name", group_options("experiment"))
def test_every_experiment_is_valid_and_names_real_reference_points(name):
    values = yaml.safe_load((config_folder() / f"experiment/{name}.yaml").read_text())
    checked = check_experiment(values)
    assert checked["name"] == name
    if values["evaluator"]["name"] == "tabular":
        needs_data("hwnas/nb201_accuracy.npz")
        for setting in settings(checked):
            point = problem_of(checked, setting).reference_point
            assert values["reference_points"][setting.device] == [
                pytest.approx(point["error"]),
                pytest.approx(point["latency_ms"]),
            ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices": ["edge"]}, "experiment.devices must be different ones of"),
        ({"links": ["wifi", "wifi"]}, "experiment.links must be different ones of"),
        ({"inputs": []}, "experiment.inputs must be different ones of private, raw"),
        ({"seeds": 0}, "experiment.seeds must be a whole number of at least 1"),
        ({"n_eval": "many"}, "experiment.n_eval has a wrong type"),
        ({"ours": "nsga2"}, "experiment.ours must be one of the methods surrogate, random"),
        ({"methods": {"new": {"algorithm": "nsga4"}}}, "methods.new.algorithm must be one of"),
        ({"methods": {"surrogate": 3}}, "methods.surrogate must be fields, got 3"),
        ({"reference_points": {"edgegpu": [1]}}, "reference_points.edgegpu must be an error"),
        ({"problem": "nb301"}, "experiment.problem must be one of fbnet, nasbench201"),
        ({"speed": 3}, "has no field 'speed'"),
        (
            {"methods": {"surrogate": {"batch": 0}}},
            "experiment.methods.surrogate: algorithm.batch must be a whole number in 1..",
        ),
        (
            {"methods": {"surrogate": {"pop_size": 8}}},
            "experiment.methods.surrogate: The algorithm surrogate has no option 'pop_size'",
        ),
        ({"headline": {"baselines": ["random"]}}, "experiment.headline must be null or have"),
        (
            {"headline": {"baselines": "random", "against": ["nsga2"], "points": 1}},
            "experiment.headline.against must be different ones of surrogate, random",
        ),
        (
            {"headline": {"baselines": ["random"], "against": ["random"], "points": "1"}},
            "experiment.headline.points must be a number of points",
        ),
    ],
)
def test_a_wrong_experiment_is_one_sentence(changes, message):
    with pytest.raises(UserError, match=message):
        experiment(**changes)


def test_units_are_seed_by_seed_and_raw_offload_only_where_allowed():
    found = units(experiment(), Path("x"))
    assert [unit.seed for unit in found] == sorted(unit.seed for unit in found)
    raw = [unit.setting.input for unit in found if unit.method == "raw_offload"]
    assert raw == ["raw"] * 4
    assert len(found) == 2 * (4 * 2 + 2)
    assert len({unit.key for unit in found}) == len(found)


def test_a_unit_is_the_search_it_says(tmp_path):
    unit = next(u for u in units(experiment(), tmp_path) if u.method == "surrogate")
    result, again = run_unit(unit), run_unit(unit)
    assert result["curve"] == again["curve"]
    assert result["front"] == again["front"]
    assert result["evaluations"] == 40
    assert result["curve"] == sorted(result["curve"])
    assert len(result["curve"]) == len(curve_counts(40, [20, 40]))
    points = np.array([row[:2] for row in result["front"]], dtype=float)
    point = np.array(unit.experiment["reference_points"][unit.setting.device])
    order = points[np.argsort(points[:, 1])] / point  # a plain staircase
    width = np.diff(np.append(order[:, 1], 1.0))
    assert result["curve"][-1] == pytest.approx((width * (1 - order[:, 0])).sum())


@pytest.mark.parametrize("backend", ["serial", "loky"])
def test_back_ends_leave_the_same(tmp_path, backend):
    open_units = units(experiment(seeds=1, devices=["edgegpu"]), tmp_path)
    results = {}
    run_units(
        open_units,
        {"name": backend, "n_jobs": 2},
        lambda r: results.update({(r["setting"], r["method"], r["seed"]): r}),
    )
    assert set(results) == {unit.key for unit in open_units}
    for unit in open_units:
        mine = run_unit(unit)
        assert results[unit.key]["curve"] == mine["curve"]
        assert results[unit.key]["front"] == mine["front"]


def test_an_impossible_method_is_one_sentence(tmp_path):
    methods = {"surrogate": {}, "prune_at_cut": {}}
    for parallel in ({"name": "serial"}, {"name": "loky", "n_jobs": 2}):
        with pytest.raises(UserError, match="has no masks"):
            run_units(units(experiment(methods=methods), tmp_path), parallel, lambda r: None)


def test_a_folder_goes_on_and_refuses_what_it_is_not(tmp_path):
    asked = experiment(seeds=1, devices=["edgegpu"])
    every = units(asked, tmp_path)
    folder = ComparisonFolder(tmp_path, resume=False, experiment=asked)
    folder.append(run_unit(every[0]))
    folder.append(run_unit(every[1]))
    with pytest.raises(UserError, match="in use by another comparison"):
        ComparisonFolder(tmp_path, resume=True, experiment=asked)
    folder.close()
    searches = tmp_path / "searches.jsonl"
    whole = searches.read_bytes()
    searches.write_bytes(whole[:-5])  # torn
    more = ComparisonFolder(tmp_path, resume=True, experiment={**asked, "seeds": 4})
    assert set(more.results) == {every[0].key}
    more.append(run_unit(every[1]))
    more.close()
    assert len(read_searches(searches, asked)[0]) == 2
    with pytest.raises(UserError, match="holds a comparison already"):
        ComparisonFolder(tmp_path, resume=False, experiment=asked)
    with pytest.raises(UserError, match="cannot be resumed with another n_eval: it had 40"):
        ComparisonFolder(tmp_path, resume=True, experiment={**asked, "n_eval": 50})
    manifest = tmp_path / "manifest.json"
    document = json.loads(manifest.read_text())
    for name, value in (("version", "0.0.1"), ("problems", {})):
        manifest.write_text(json.dumps({**document, name: value}))
        with pytest.raises(UserError, match=f"cannot be resumed with another {name}"):
            ComparisonFolder(tmp_path, resume=True, experiment=asked)
    manifest.write_text(json.dumps(document))
    with pytest.raises(UserError, match="no folder of an earlier comparison"):
        ComparisonFolder(tmp_path / "none", resume=True, experiment=asked)
    for damaged in (
        b"{}\n",
        b"[]\n",
        b'{"setting":1}\n',
        whole.replace(b'"curve":[', b'"curve":["a",'),
    ):
        searches.write_bytes(damaged + whole)
        with pytest.raises(UserError, match=r"Line 1 of .* is damaged"):
            read_searches(searches, asked)


def made_up(asked, values):
    """Results whose final hypervolume is given by method and seed."""
    counts = curve_counts(asked["n_eval"], asked["checkpoints"])
    return [
        {
            "setting": setting.name,
            "method": method,
            "seed": seed,
            "evaluations": 40,
            "computed": 40,
            "seconds": 1.0,
            "evaluator_seconds": 0.5,
            "stop_reason": "",
            "curve": [value * n / 40 for n in counts],
            "front": [[0.5 - value / 10, 5.0, 3.0, 1.0, 1.0, "4", "key"]],
        }
        for setting in settings(asked)
        for method, row in values.items()
        for seed, value in enumerate(row)
    ]


def test_tables_say_what_made_up_results_hold():
    methods = {"surrogate": {}, "random": {}, "nsga2": {}, "nsga2_pymoo": {}}
    asked = experiment(methods=methods, devices=["edgegpu"], inputs=["private"], seeds=8)
    ours = np.linspace(0.30, 0.37, 8)
    values = {"surrogate": ours, "random": ours - 0.1, "nsga2": ours, "nsga2_pymoo": ours / 2}
    comparison = Comparison(asked, made_up(asked, values))
    whole = comparison.whole(settings(asked)[0])
    rows = {row["method"]: row for row in results_table(comparison)[1]}
    assert rows["surrogate"]["median_40"] == pytest.approx(0.335 / whole, abs=1e-6)
    assert rows["random"]["upper_quartile_40"] == pytest.approx(
        np.quantile(ours - 0.1, 0.75) / whole, abs=1e-6
    )
    assert float(rows["random"]["p_ours_better_40"]) == pytest.approx(1 / 2**8, rel=0.01)
    assert float(rows["random"]["p_ours_worse_40"]) == 1
    assert float(rows["nsga2"]["p_ours_better_40"]) == 1
    ranks = {row["method"]: row for row in ranks_table(comparison)[1]}
    assert [ranks[m]["average_rank"] for m in values] == [1.5, 3, 1.5, 4]
    assert ranks["nsga2"]["ours_equal"] == 1
    assert ranks["random"]["ours_better"] == ranks["random"]["ours_significantly_better"] == 1
    tables = {"ranks": ranks_table(comparison), "speed": speed_table(comparison)}
    assert (
        "better in 2 of 3 pairs of setting and other method, equal in 1 and worse in 0"
        in (summary_lines(comparison, tables)[1])
    )
    assert "significantly better in 2 and worse in 0" in summary_lines(comparison, tables)[1]
    few = Comparison({**asked, "seeds": 2}, made_up(asked, {m: v[:2] for m, v in values.items()}))
    tables = {"ranks": ranks_table(few), "speed": speed_table(few)}
    assert "so few seeds allow no significance test" in summary_lines(few, tables)[1]
    (speed,) = speed_table(comparison)[1]
    assert speed["ours_evaluations"] == 20


def test_the_headline_is_paired_and_takes_the_fastest_that_is_near_enough():
    headline = {"baselines": ["random"], "against": ["surrogate"], "points": 1.0}
    methods = {"surrogate": {}, "random": {}}
    asked = experiment(
        methods=methods, headline=headline, devices=["edgegpu"], inputs=["private"], seeds=1
    )
    results = made_up(asked, {"surrogate": [0.3], "random": [0.3]})
    results[1]["front"] = [[0.30, 10.0, 6.0, 2.0, 2.0, "5", "a"], [0.4, 5.0, 5, 0, 0, "19", "b"]]
    results[0]["front"] = [
        [0.29, 9.0, 9.0, 0.0, 0.0, "19", "c"],
        [0.3099, 4.0, 1.0, 2.0, 1.0, "2", "d"],
        [0.32, 2.0, 2.0, 0.0, 0.0, "19", "e"],
    ]
    rows = {row["method"]: row for row in headline_table(Comparison(asked, results))[1]}
    assert rows["random"]["latency_ms"] == 10
    assert rows["surrogate"]["latency_ms"] == 4
    assert rows["surrogate"]["saved_percent"] == 60
    assert [rows["surrogate"][name] for name in ("cut", "device_ms", "link_ms")] == ["2", 1, 2]
    assert rows["exact"]["error"] <= 0.31
    assert {row["baseline"] for row in rows.values()} == {"random"}
    results[0]["front"] = results[0]["front"][2:]  # nothing is accurate enough
    rows = {row["method"]: row for row in headline_table(Comparison(asked, results))[1]}
    assert (rows["surrogate"]["searches"], rows["surrogate"]["found"]) == (1, 0)
    assert "saved_percent" not in rows["surrogate"]


def test_each_baseline_of_a_headline_has_rows_of_its_own():
    headline = {"baselines": ["random", "nsga2"], "against": ["surrogate"], "points": 1.0}
    methods = {"surrogate": {}, "random": {}, "nsga2": {}}
    asked = experiment(
        methods=methods, headline=headline, devices=["edgegpu"], inputs=["private"], seeds=1
    )
    results = made_up(asked, {name: [0.3] for name in methods})
    for result, latency in zip(results, (4.0, 10.0, 5.0), strict=True):
        result["front"] = [[0.3, latency, latency, 0.0, 0.0, "19", "a"]]
    rows = {(r["baseline"], r["method"]): r for r in headline_table(Comparison(asked, results))[1]}
    assert rows["random", "surrogate"]["saved_percent"] == 60
    assert rows["nsga2", "surrogate"]["saved_percent"] == 20
    assert ("nsga2", "random") not in rows


def test_p_values():
    rng = np.random.default_rng(0)
    first = rng.random(20)
    assert p_value(first, first) == 1
    assert p_value(first + 0.1, first) < 1e-5
    assert p_value(first - 0.1, first) > 0.999


def test_half_of_the_searches_attain_the_surface():
    asked = experiment(devices=["edgegpu"], inputs=["private"], methods={"surrogate": {}}, seeds=3)
    results = made_up(asked, {"surrogate": [0.1, 0.2, 0.3]})
    for result, point in zip(results, ([0.5, 4.0], [0.4, 6.0], [0.3, 8.0]), strict=True):
        result["front"] = [[*point, 1.0, 1.0, 1.0, "2", "key"]]
    surface = attainment(Comparison(asked, results), settings(asked)[0], "surrogate")
    assert surface.tolist() == [[0.5, 6.0], [0.4, 8.0]]


def test_everything_is_written(tmp_path):
    asked = experiment(seeds=2, inputs=["private"])
    results = []
    run_units(units(asked, tmp_path), {"name": "serial"}, results.append)
    summary = write_comparison(tmp_path, asked, results)
    assert "2 settings, 3 methods" in summary[0] or "2 settings, 2 methods" in summary[0]
    for name in ("results.csv", "ranks.csv", "curves.csv", "attainment.csv", "comparison.md"):
        assert (tmp_path / name).stat().st_size > 100
    for name in ("curves.png", "attainment.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "index.html").read_text()
    assert "curves.png" in page
    assert "surrogate" in page
    with open(tmp_path / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["setting"] for row in rows} == {"edgegpu-wifi-private", "raspi4-wifi-private"}
    assert all(0 < float(row["median_40"]) <= 1 for row in rows)


def test_inherited_accuracies_are_shared_by_units(tmp_path, monkeypatch):
    calls = []
    asked = check_experiment(
        {
            **experiment(),
            "problem": "fbnet",
            "dataset": {"name": "fashion_mnist", "geometry": 32},
            "evaluator": {"name": "supernet", "images": 32, "calibration_images": 16},
            "n_eval": 6,
            "checkpoints": [6],
            "methods": {"random": {"pop_size": 6}},
            "ours": "random",
            "inputs": ["private"],
            "seeds": 1,
        }
    )
    from nasc_evo.supernet.evaluation import SupernetEvaluator

    evaluate = SupernetEvaluator.evaluate

    def watched(self, designs, *arguments):
        calls.extend(design.key for design in designs)
        return evaluate(self, designs, *arguments)

    monkeypatch.setattr(SupernetEvaluator, "evaluate", watched)
    results = [run_unit(unit) for unit in units(asked, tmp_path)]
    assert len(results) == 2
    assert len(calls) == len(set(calls))
    assert results[0]["computed"] == 6
    # another device, the same random designs but the fastest: their accuracies are known
    assert results[1]["computed"] < 3
    assert 0 < results[0]["evaluator_seconds"] <= results[0]["seconds"]


SMALL = (
    "experiment=nb201",
    "experiment.devices=[edgegpu]",
    "experiment.links=[wifi]",
    "experiment.inputs=[private]",
    "experiment.seeds=2",
    "experiment.n_eval=30",
    "experiment.checkpoints=[30]",
    "hydra.run.dir=out",
)


def test_the_command_line_writes_and_resumes(cli, cli_here, tmp_path):
    needs_data("hwnas/nb201_accuracy.npz")
    result = cli(*SMALL, "experiment.seeds=1", module="compare")
    assert result.returncode == 0, result.stderr
    assert "12 searches, 12 of them to run" in result.stdout
    more = cli(*SMALL[:-1], "resume=out", module="compare")
    assert more.returncode == 0, more.stderr
    assert "24 searches, 12 of them to run" in more.stdout
    assert len((tmp_path / "out/searches.jsonl").read_text().splitlines()) == 24
    refused = cli_here(*SMALL, module="compare")
    assert refused.returncode == 2
    assert "holds a comparison already" in refused.stderr
    wrong = cli_here("experiment=nb301", module="compare")
    assert wrong.returncode == 2
    assert "There is no experiment 'nb301'; available are" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_sigterm_ends_the_workers_and_resume_goes_on(tmp_path):
    needs_data("hwnas/nb201_accuracy.npz")
    command = [sys.executable, "-m", "nasc_evo.compare", *SMALL, "experiment.seeds=200"]
    command += ["parallel=loky", "parallel.n_jobs=2"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    searches = tmp_path / "out" / "searches.jsonl"
    deadline = time.monotonic() + 200
    while not (searches.exists() and searches.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 143
    assert errors.strip() == "Terminated."
    assert json.loads(searches.read_text().splitlines()[0])["seed"] == 0
    assert os.listdir(tmp_path / "out")


def test_the_commands_of_the_page_compose():
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from nasc_evo.hydra_app import register
    from nasc_evo.search.algorithms import ALGORITHMS

    page = (Path(__file__).parents[1] / "docs" / "comparison.md").read_text()
    commands = [
        line.split("#")[0].split()[3:]
        for line in page.splitlines()
        if line.startswith("python -m nasc_evo.compare")
    ]
    assert len(commands) >= 5
    register()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        for overrides in commands:
            given = [text.replace("<folder>", "folder") for text in overrides]
            config = OmegaConf.to_container(compose("compare", given))
            check_experiment(config["experiment"])
    named = set(re.findall(r"^\| (`[a-z0-9_`, ]+`) \|", page, flags=re.M))
    names = {name.strip("` ") for cell in named for name in cell.split(",")}
    assert names == set(ALGORITHMS) - {"nsga3", "agemoea", "moead"}
