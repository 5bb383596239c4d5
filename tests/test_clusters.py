"""Sweeps with each launcher, SLURM as far as that goes without SLURM, and the page on clusters."""

import csv
import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from nasc_evo.config import config_folder
from nasc_evo.hydra_app import register
from tests.conftest import needs_data

PAGE = (Path(__file__).parents[1] / "docs" / "clusters.md").read_text()
TABULAR = (
    "problem=nasbench201",
    "dataset=cifar100",
    "evaluator=tabular",
    "n_eval=40",
    "algorithm=random",
)
LONG = (*TABULAR[:3], "n_eval=2000", "algorithm=random")
"""A search of some seconds, to be stopped on its way."""
LAUNCHERS = ("basic", "joblib", "submitit_local")

SLURM = {
    # starts a job, or the tasks of a job array, here; each again after `scontrol requeue`
    "sbatch": """
cp "${!#}" "$FAKE_SLURM/script-$$"
range=$(sed -n 's/^#SBATCH --array=\\([0-9-]*\\).*/\\1/p' "$FAKE_SLURM/script-$$")
for task in $(seq $(echo ${range:-0-0} | tr - ' ')); do
  (
    export SLURM_JOB_ID=$(($$ + task)) TASK=$task
    name=$$
    if [ "$range" ]; then
      export SLURM_ARRAY_JOB_ID=$$ SLURM_ARRAY_TASK_ID=$task
      name=$$_$task
    fi
    bash "$FAKE_SLURM/script-$$"
    while rm "$FAKE_SLURM/requeue-$name"; do bash "$FAKE_SLURM/script-$$"; done
  ) > "$FAKE_SLURM/log-$task" 2>&1 &
done
echo "Submitted batch job $$"
""",
    "srun": """
while [[ $1 == -* ]]; do [[ $1 == --unbuffered ]] || shift; shift; done
echo $$ > "$FAKE_SLURM/pid-$TASK"
exec "$@"
""",
    "scontrol": 'touch "$FAKE_SLURM/requeue-$2"',
    "sacct": "",
    "scancel": "",
}


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch):
    """Put stand-ins for SLURM's commands on the path; return the folder that they write to."""
    commands, state = tmp_path / "commands", tmp_path / "slurm"
    commands.mkdir()
    state.mkdir()
    for name, body in SLURM.items():
        (commands / name).write_text(f"#!/bin/bash\n{body}\n")
        (commands / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(state))
    return state


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def wait_for(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def start(folder: Path, *command: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HYDRA_FULL_ERROR": "0"},
        # a test run in the background of a shell would pass on that it ignores Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_sweep_runs_every_job_and_its_fronts_are_collected(cli, tmp_path, launcher):
    needs_data("hwnas/nb201_accuracy.npz")
    result = cli(
        "--multirun",
        *TABULAR,
        "device=edgegpu,raspi4",
        "seed=-1,1,2",
        f"hydra/launcher={launcher}",
        "hydra.sweep.dir=sweep",
    )
    # the mistake of two jobs is told and stops no other
    assert result.returncode == 2
    assert "Error: seed must be a whole number of at least 0, got -1." in result.stderr
    assert "Traceback" not in result.stderr
    assert "Sweep in sweep" in result.stdout
    runs = {path.name for path in (tmp_path / "sweep").iterdir() if path.name.isdecimal()}
    assert runs == {"1", "2", "4", "5"}

    collected = cli("sweep", "--out", "out", module="collect")
    assert collected.returncode == 0, collected.stderr
    assert "Runs: 4, groups: 2." in collected.stdout
    summary = read(tmp_path / "out" / "summary.csv")
    assert [(row["group"], row["run"], row["device"], row["seed"]) for row in summary] == [
        ("1", "sweep/1", "edgegpu", "1"),
        ("1", "sweep/2", "edgegpu", "2"),
        ("1", "union", "edgegpu", ""),
        ("2", "sweep/4", "raspi4", "1"),
        ("2", "sweep/5", "raspi4", "2"),
        ("2", "union", "raspi4", ""),
    ]
    for name in ("1", "2", "4", "5"):  # what a run says of itself is what is collected
        (row,) = [row for row in summary if row["run"] == f"sweep/{name}"]
        document = json.loads((tmp_path / "sweep" / name / "pareto.json").read_text())
        assert float(row["hypervolume"]) == document["hypervolume"]["value"]
        assert row["stop_reason"] == "the budget of 40 evaluations is spent"
        assert row["evaluations"] == "40"
        front = read(tmp_path / "sweep" / name / "pareto.csv")
        mine = [r for r in read(tmp_path / "out" / "collected.csv") if r["run"] == f"sweep/{name}"]
        assert [{key: r[key] for key in front[0]} for r in mine] == front


def test_a_sweep_without_mistakes_ends_with_0_and_says_how_to_collect_it(cli):
    needs_data("hwnas/nb201_accuracy.npz")
    for launcher in ("basic", "submitit_local"):
        options = ("seed=1,2", f"hydra/launcher={launcher}", f"hydra.sweep.dir={launcher}")
        result = cli("--multirun", *TABULAR, *options)
        assert result.returncode == 0, result.stderr
        assert f"Collect its runs: python -m nasc_evo.collect {launcher}" in result.stdout


def test_a_sweep_in_which_no_design_meets_the_limits_ends_with_3(cli):
    needs_data("hwnas/nb201_accuracy.npz")
    options = ("limits.latency_ms=1e-6,9", "hydra/launcher=submitit_local")
    assert cli("--multirun", *TABULAR, *options).returncode == 3


def test_a_fault_of_the_program_in_a_job_is_told_and_logged(tmp_path):
    (tmp_path / "fault.py").write_text(
        "from nasc_evo.hydra_app import launch\n"
        "def task(config):\n"
        "    raise ZeroDivisionError('oops')\n"
        "launch('config', task)\n"
    )
    options = ["--multirun", "seed=1,2", "hydra/launcher=submitit_local", "hydra.sweep.dir=sweep"]
    process = start(tmp_path, "fault.py", *options)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "A job failed, its log says where: oops" in stderr
    logs = list((tmp_path / "sweep" / ".submitit").glob("*/*_log.err"))
    assert len(logs) == 2
    assert all("ZeroDivisionError: oops" in path.read_text() for path in logs)


def test_a_sweep_refuses_an_option_that_does_not_exist_before_its_first_run(cli, tmp_path):
    result = cli("--multirun", "device=edgegpu,edgegup", "hydra.sweep.dir=sweep")
    assert result.returncode == 2
    assert "There is no device 'edgegup'; available are edgegpu" in result.stderr
    assert not (tmp_path / "sweep" / "0").exists()


@pytest.mark.slow
def test_ctrl_c_ends_a_sweep_and_the_same_command_resumes_it(cli, tmp_path):
    needs_data("hwnas/nb201_accuracy.npz")
    command = ("--multirun", *LONG, "seed=1,2", "resume=sweep")
    process = start(tmp_path, "-m", "nasc_evo.run", *command)
    journal = tmp_path / "sweep" / "0" / "evaluations.jsonl"
    wait_for(lambda: lines(journal) >= 50, process)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "Continue with the same command and resume=sweep" in stdout.splitlines()
    assert not (tmp_path / "sweep" / "1").exists()
    left_out = cli("sweep", module="collect")
    assert left_out.returncode == 2
    assert "Note: sweep/0 is left out, it was interrupted" in left_out.stdout
    assert "No run below the folders has finished, unfinished: 1." in left_out.stderr

    done = lines(journal)
    assert done < 2000
    resumed = cli(*command)
    assert resumed.returncode == 0, resumed.stderr
    whole = cli("--multirun", *LONG, "seed=1,2", "hydra.sweep.dir=whole")
    assert whole.returncode == 0, whole.stderr
    for name in ("0/pareto.csv", "0/evaluations.jsonl", "1/pareto.csv"):
        mine, theirs = (tmp_path / which / name for which in ("sweep", "whole"))
        assert mine.read_bytes() == theirs.read_bytes()
    other = cli("--multirun", *LONG, "seed=3,2", "resume=sweep")
    assert other.returncode == 2
    assert "cannot be resumed with another seed: it had 1, this command has 3" in other.stderr


@pytest.mark.slow
def test_a_pre_empted_slurm_job_goes_on_where_it_was(cli, tmp_path, fake_slurm):
    needs_data("hwnas/nb201_accuracy.npz")
    slurm = ("hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=240")
    command = ("--multirun", *LONG, "seed=1,2", "resume=sweep", *slurm)
    process = start(tmp_path, "-m", "nasc_evo.run", *command)
    journal = tmp_path / "sweep" / "0" / "evaluations.jsonl"
    wait_for(lambda: lines(journal) >= 50, process)
    for number in (signal.SIGTERM, signal.SIGUSR2):  # as SLURM announces it
        os.kill(int((fake_slurm / "pid-0").read_text()), number)
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    log = (fake_slurm / "log-0").read_text()
    assert "this job is preempted" in log
    assert log.count("Writing to sweep/0") == 2
    whole = cli(*LONG, "seed=1", "hydra.run.dir=whole")
    assert whole.returncode == 0, whole.stderr
    for name in ("pareto.csv", "evaluations.jsonl"):
        assert (tmp_path / "sweep/0" / name).read_bytes() == (
            tmp_path / "whole" / name
        ).read_bytes()


def test_the_slurm_command_of_the_page_asks_sbatch_for_what_it_says(cli, fake_slurm):
    (text,) = re.findall(r"<!-- slurm-command -->\n```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    python, _, module, multirun, *overrides = shlex.split(text.replace("\\\n", " "))
    assert (python, module, multirun) == ("python", "nasc_evo.run", "--multirun")
    register()
    single = [word for word in overrides if not word.startswith(("device=", "seed="))]
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = compose("config", single, return_hydra_config=True)
    assert config.hydra.sweep.dir == "sweeps/night1"
    assert config.evaluator.threads == config.hydra.launcher.cpus_per_task == 8
    assert config.hydra.launcher.max_num_timeout == 10

    result = cli(multirun, *overrides, "device=edgegpu", "seed=-1,-2", timeout=60)
    assert result.returncode == 2, result.stderr
    assert "Error: seed must be a whole number of at least 0, got -1." in result.stderr
    (script,) = fake_slurm.glob("script-*")
    asked = script.read_text().splitlines()
    for option in (
        "account=my_project",
        "array=0-1%2",
        "cpus-per-task=8",
        "job-name=nasc_evo",
        "mail-user=me@example.org",
        "mem=8GB",
        "partition=cpu",
        "time=240",
    ):
        assert f"#SBATCH --{option}" in asked


def test_a_launcher_that_is_not_installed_is_one_sentence(cli, tmp_path):
    (tmp_path / "hydra_plugins").mkdir()  # hides the installed plugins
    (tmp_path / "hydra_plugins" / "__init__.py").write_text("")
    for name in ("submitit_slurm", "submitit_local", "joblib"):
        result = cli("--multirun", f"hydra/launcher={name}", "seed=1,2")
        assert result.returncode == 2
        assert result.stderr == (
            f"Error: There is no launcher '{name}' here; submitit_slurm, submitit_local and "
            "joblib come with `pip install 'nasc-evo[cluster]'`.\n"
        )


def test_the_dask_recipe_of_the_page_starts_and_replaces_workers(
    cli, tmp_path, fake_slurm, monkeypatch
):
    from distributed import Client

    (code,) = re.findall(r"<!-- dask-recipe -->\n```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert "jobs=8" in code
    assert "sleep(60)" in code
    recipe = code.replace("jobs=8", "jobs=2").replace("sleep(60)", "sleep(0.5)")
    (tmp_path / "recipe.py").write_text(recipe)
    monkeypatch.setenv("DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT", "1s")
    process = start(tmp_path, "recipe.py")
    try:
        address = process.stdout.readline().strip().removeprefix("parallel.address=")
        assert address.startswith("tcp://")
        with Client(address, timeout=60) as client:
            client.wait_for_workers(2, timeout=120)
            workers = client.scheduler_info()["workers"].values()
            assert [worker["nthreads"] for worker in workers] == [1, 1]
            assert len(list(fake_slurm.glob("script-*"))) == 2
            os.kill(client.submit(os.getppid).result(timeout=60), signal.SIGKILL)  # a job ends
            wait_for(lambda: len(list(fake_slurm.glob("script-*"))) == 3, process)
            client.wait_for_workers(2, timeout=120)
        options = ("evaluator.threads=1", "evaluator.images=32", "n_eval=4", "rescore=1")
        search = cli("parallel=dask", f"parallel.address={address}", *options, "hydra.run.dir=out")
        assert search.returncode == 0, search.stderr
        assert "Writing to out, on 2 Dask workers" in search.stdout
        journal = (tmp_path / "out" / "evaluations.jsonl").read_text().splitlines()
        assert {json.loads(line)["status"] for line in journal} == {"ok"}
        script = next(fake_slurm.glob("script-*")).read_text().splitlines()
        assert {"#SBATCH -p cpu", "#SBATCH --cpus-per-task=4", "#SBATCH -t 04:00:00"} <= {*script}
        assert "#SBATCH --mem=4G" in script
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
