"""Estimates of trained errors: what they learn, what they are added to, and their file."""

import csv
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kendalltau

from nasc_evo.errors import UserError
from nasc_evo.report.collection import read_runs
from nasc_evo.report.files import read_front
from nasc_evo.search.algorithms import create_algorithm
from nasc_evo.search.calibration import (
    Calibration,
    calibration_file,
    fit_calibration,
    read_calibration,
    write_calibration,
)
from nasc_evo.search.final import CALIBRATED, calibrated_errors, final_result, front_rows
from nasc_evo.search.loop import run_search
from nasc_evo.space import FBNetSpace, NASBench201Space
from nasc_evo.supernet.weights import PRETRAINED
from tests.conftest import FAST_OPTIONS
from tests.search.test_search import problem

CELLS, FBNET = NASBench201Space(32, 100), FBNetSpace(32, 10)


def networks(n, seed=0):
    """Return different cells; the supernet favours few convolutions, training many."""
    rng = np.random.default_rng(seed)
    different = np.unique(CELLS.index(CELLS.canonical(CELLS.architectures)))
    ops = CELLS.architectures[rng.choice(different, n, replace=False)]
    size = np.log(CELLS.macs(ops))
    size = (size - size.min()) / np.ptp(size)
    luck = rng.normal(0, 0.08, n)
    trained = np.clip(0.6 - 0.3 * size + luck + rng.normal(0, 0.01, n), 0, 1)
    inherited = np.clip(0.7 - 0.05 * size + luck + rng.normal(0, 0.01, n), 0, 1)
    return ops, inherited, trained


def test_estimates_order_networks_better_than_inherited_errors():
    ops, inherited, trained = networks(400)
    calibration = Calibration(CELLS, ops[:50], inherited[:50], trained[:50])
    error, low, high = calibration.estimate(ops[50:], inherited[50:]).T
    assert kendalltau(error, trained[50:]).statistic > 0.85
    assert kendalltau(inherited, trained).statistic < 0.7
    inside = (low <= trained[50:]) & (trained[50:] <= high)
    assert 0.8 < inside.mean() < 0.99
    figures = calibration.cross_validated
    assert figures["kendall_tau"] > figures["kendall_tau_inherited"] + 0.1
    assert figures["mean_absolute_error"] < 0.03
    assert 0.7 <= figures["share_in_interval"] <= 1


def test_cross_validation_estimates_no_network_by_itself():
    ops, inherited, _ = networks(40)
    guess = np.random.default_rng(1).uniform(0.2, 0.6, 40)  # nothing can be learnt from this
    figures = Calibration(CELLS, ops, inherited, guess).cross_validated
    assert abs(figures["kendall_tau"]) < 0.4
    assert figures["mean_absolute_error"] > 0.05


def test_outliers_are_learnt_like_all_others():
    """A search draws large errors in; estimates of them would then be far too small."""
    ops, _, _ = networks(40)
    trained = np.concatenate([np.linspace(0.05, 0.08, 33), np.linspace(0.5, 0.9, 7)])
    estimates = Calibration(CELLS, ops, trained, trained).estimate(ops, trained)
    assert np.abs(estimates[:, 0] - trained).max() < 0.1


def test_networks_that_inherit_nothing_have_no_estimate():
    ops, inherited, trained = networks(40)
    calibration = Calibration(CELLS, ops, inherited, trained)
    estimates = calibration.estimate(ops[:3], np.array([0.99, 0.5, 0.9885]))
    assert np.isnan(estimates).all(axis=1).tolist() == [True, False, True]


def test_a_calibration_is_read_as_it_was_written(tmp_path):
    ops, inherited, trained = networks(30)
    calibration = Calibration(CELLS, ops, inherited, trained)
    path = tmp_path / "w.calibration.json"
    write_calibration(path, calibration, "abc", {"source": "a formula"})
    again = read_calibration(path, CELLS, "abc")
    asked = networks(20, seed=1)[:2]
    assert np.array_equal(calibration.estimate(*asked), again.estimate(*asked))
    with pytest.raises(UserError, match="it is for weights_sha256 'abc', not 'abd'"):
        read_calibration(path, CELLS, "abd")
    with pytest.raises(UserError, match="it is for space 'nasbench201', not 'fbnet'"):
        read_calibration(path, FBNET, "abc")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="nasc_evo supernet 1"), "it is not of format"),
        (lambda d: d.update(networks=3), "it has no list of networks"),
        (lambda d: d["networks"].pop(), "takes 20 to 500 trained networks, got 19"),
        (lambda d: d["networks"][3].update(trained_error=1.5), "an error is 1.5, not a number"),
        (lambda d: d["networks"][3].update(trained_error=True), "an error is True, not a number"),
        (lambda d: d["networks"][3].pop("inherited_error"), "an error is None, not a number"),
        (lambda d: d["networks"][3].update(arch=7), "a network has no arch"),
        (lambda d: d["networks"][3].update(arch="|x~0|"), "'|x~0|'"),
        (lambda d: d["networks"].append(d["networks"][0]), "compute the same; give one"),
        (lambda d: [n.update(inherited_error=0.5) for n in d["networks"]], "weights tell nothing"),
        (lambda d: [n.update(trained_error=0.5) for n in d["networks"]], "have the error 0.5"),
    ],
)
def test_a_damaged_calibration_is_one_sentence(tmp_path, change, message):
    path = tmp_path / "w.calibration.json"
    write_calibration(path, Calibration(CELLS, *networks(20)), "abc", {})
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match=re.escape(message)) as error:
        read_calibration(path, CELLS, "abc")
    assert "nasc_evo.calibrate" in str(error.value)


def test_what_sending_costs_is_added_to_the_estimate_of_the_whole_network():
    one = problem()
    rng = np.random.default_rng(0)
    ops = rng.integers(0, 9, (40, 22))
    archs = [FBNET.format(genes) for genes in ops]
    errors = rng.uniform(0.1, 0.5, (2, 40))
    calibration = fit_calibration(FBNET, archs, *errors.tolist())
    found = run_search(one, create_algorithm("random", one, seed=1, n_eval=60), 60, seed=1)
    result = final_result(one, found.evaluations, calibration=calibration)
    rows = front_rows(result)
    sending = 0
    for design, row in zip(result.front, rows, strict=True):
        e = design.evaluation
        whole = replace(e.design, cuts=(one.space.architecture.n_blocks,), masks=("",), bits=(0,))
        ((_, score),) = one.evaluator.evaluate([whole], "search", result.images)
        estimate = calibration.estimate(np.array([e.design.ops]), np.array([score.error]))
        sending += e.score.error != score.error
        expected = np.clip(estimate[0] + e.score.error - score.error, 0, 1)
        assert [row[name] for name in CALIBRATED] == pytest.approx(expected)
    assert sending
    assert not any(
        name in row
        for row in front_rows(final_result(one, found.evaluations))
        for name in CALIBRATED
    )
    assert set(calibrated_errors(one, [d.evaluation for d in result.front], calibration)) == {
        d.evaluation.design.key for d in result.front
    }


def test_from_trained_networks_to_a_front_with_estimates(cli, tmp_path):
    name = "fbnet_32_fashion_mnist"
    for suffix in ("safetensors", "json"):
        shutil.copy(PRETRAINED / f"{name}.{suffix}", tmp_path)
    weights = f"evaluator.weights={name}.safetensors"
    rng = np.random.default_rng(0)
    with open(tmp_path / "mine.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["arch", "error"])
        for genes in rng.integers(0, 9, (20, 22)):
            rows.writerow([FBNET.format(genes), rng.uniform(0.05, 0.2)])
    result = cli("trained=mine.csv", weights, "evaluator.threads=1", module="calibrate")
    assert result.returncode == 0, result.stderr
    assert "over 20 networks, each estimated without it, Kendall's tau" in result.stdout
    again = cli("trained=mine.csv", weights, module="calibrate")
    assert again.returncode == 2
    assert "calibration.json exists" in again.stderr
    assert calibration_file(tmp_path / f"{name}.safetensors").is_file()
    result = cli(*FAST_OPTIONS, weights, "hydra.run.dir=out")
    assert result.returncode == 0, result.stderr
    assert "What error training would leave" in result.stdout
    rows, _ = read_front(tmp_path / "out" / "pareto.csv", ["error", "latency_ms"])
    for row in rows:
        error, low, high = (float(row[column]) for column in CALIBRATED)
        assert low < error < high
    document = json.loads((tmp_path / "out" / "pareto.json").read_text())
    assert document["calibration"]["networks"] == 20
    assert document["front"][0]["error_calibrated"] == float(rows[0]["error_calibrated"])
    (run,), _ = read_runs([tmp_path / "out"])
    assert run.rows == rows


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "trained"),
        (["trained=no.csv"], "The trained networks no.csv cannot be read"),
        (["trained=wrong.csv"], "it has no column error"),
        (["trained=few.csv"], "takes 20 to 500 trained networks, got 1"),
        (["trained=far.csv"], "error 12.0 in line 2 is not in 0..1"),
        (["trained=official"], "is for problem=nasbench201 dataset=cifar100, not for fbnet"),
        (["trained=surplus.csv"], "line 2 has another number of fields"),
        (["trained=few.csv", "networks=30"], "networks has no effect: it is for trained=official"),
        (["trained=few.csv", "~evaluator"], "evaluator=supernet"),
        (["trained=few.csv", "dataset=folder"], "dataset.path must be given"),
        (["trained=few.csv", "evaluator=tabular"], "evaluator=supernet"),
    ],
)
def test_mistakes_are_one_sentence(cli_here, tmp_path, words, message):
    arch = FBNET.format(np.zeros(22, dtype=int))
    (tmp_path / "wrong.csv").write_text("arch,accuracy\n")
    (tmp_path / "few.csv").write_text(f'arch,error\n"{arch}",0.1\n')
    (tmp_path / "surplus.csv").write_text(f'arch,error\n"{arch}",0,1\n')
    (tmp_path / "far.csv").write_text(f'arch,error\n"{arch}",12\n')
    result = cli_here(*words, module="calibrate")
    assert result.returncode == 2
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
