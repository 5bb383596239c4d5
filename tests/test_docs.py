"""The commands of docs/costs.md."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from nasc_evo import repick
from nasc_evo.config import check_used, config_folder
from nasc_evo.hydra_app import instantiate, register
from nasc_evo.search.operators import random_genomes
from tests.test_repick import Recorded, write_run

PAGE = (Path(__file__).parents[1] / "docs" / "costs.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]


def commands(module: str) -> list[list[str]]:
    """Return the options of every command of the page that runs a module."""
    words = [shlex.split(line, comments=True) for line in COMMANDS]
    return [w[3:] for w in words if w[:3] == ["python", "-m", f"nasc_evo.{module}"]]


@pytest.mark.parametrize("overrides", commands("run"), ids=" ".join)
def test_a_search_of_the_page_composes_and_has_costs(overrides, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = config_folder().parent / "nasc_evo/cost/tables/fbnet_32_pixel3.csv"
    Path("my.csv").write_bytes(table.read_bytes())
    Path("rates.csv").write_text("uplink_mbps\n3\n5.5\n12\n")
    register()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = compose("config", overrides)
    keys = [override.split("=")[0] for override in overrides]
    check_used(keys, OmegaConf.to_container(config.chain, resolve=False))
    problem = instantiate(config.problem)
    X = random_genomes(problem.space, 50, np.random.default_rng(0))
    costs = problem.costs(problem.space.decode_batch(X))
    assert np.isfinite(costs["latency_ms"]).all()
    assert all(value > 0 for value in problem.reference_point.values())


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "run"
    write_run(folder, n=60)
    return folder


@pytest.mark.parametrize("words", commands("repick"), ids=" ".join)
def test_a_repick_of_the_page_ends_well(words, run_folder, monkeypatch):
    def create(config, changed, **objects):
        return original(config, changed, **{"evaluator": Recorded(), **objects})

    original = repick.create_problem
    monkeypatch.setattr(repick, "create_problem", create)
    assert repick.main([word.replace("<dir>", str(run_folder)) for word in words]) == 0
    assert list((run_folder / "repick").glob("*/*.csv"))


def test_every_python_line_of_the_page_is_valid():
    from nasc_evo.cost import Link
    from problems import FBNetSplit

    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(compile(block, "docs/costs.md", "exec"), {"FBNetSplit": FBNetSplit, "Link": Link})


def test_the_page_has_no_other_commands():
    assert len(COMMANDS) == sum(len(commands(module)) for module in ("run", "repick"))
