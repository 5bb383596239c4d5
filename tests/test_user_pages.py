"""Commands and code of docs/own_data.md and docs/finetune.md."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from nasc_evo.assembly import build_dataset
from nasc_evo.config import config_folder
from nasc_evo.data import get_dataset
from nasc_evo.finetune import MODES
from nasc_evo.hydra_app import own_images, register
from nasc_evo.space import Design, NASBench201Space
from nasc_evo.supernet.deploy import deploy
from nasc_evo.supernet.weights import find_weights, load_supernet
from tests.data.test_folder import fill

PAGES = {
    name: (Path(__file__).parents[1] / "docs" / f"{name}.md").read_text()
    for name in ("own_data", "finetune")
}
COMMANDS = [
    shlex.split(line.replace("<date_time>", "now"))
    for page in PAGES.values()
    for block in re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL)
    for line in block.splitlines()
]
CONFIGS = {"nasc_evo.train": "train", "nasc_evo.run": "config", "nasc_evo.finetune": "finetune"}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_composes_and_finds_its_images(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(Path("photos"))
    assert words[:2] == ["python", "-m"]
    overrides = [override for word in words[3:] for override in own_images(word)]
    register()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = compose(CONFIGS[words[2]], overrides)
    if words[2] == "nasc_evo.finetune":
        assert config.mode in MODES
        return
    dataset = build_dataset(dict(config.dataset))
    assert dataset.n_classes == 3
    weights = config.get("evaluator", {}).get("weights")
    assert weights in (None, f"trained/fbnet_32_{dataset.name}.safetensors")


def code_of(page: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", PAGES[page], flags=re.DOTALL)
    return code


def test_any_set_is_written_as_a_folder(tmp_path):
    names: dict = {}
    exec(compile(code_of("own_data"), "docs/own_data.md", "exec"), names)
    pairs = [(Image.new("RGB", (8, 8)), i % 2) for i in range(12)]
    names["write_folder"](pairs, ("cat", "dog"), tmp_path / "set")
    assert build_dataset(str(tmp_path / "set")).class_names == ("cat", "dog")


def test_a_network_runs_on_two_machines(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    dataset, space = get_dataset("fashion_mnist"), NASBench201Space(32, 10)
    ops = (3,) * 6
    chosen = Design(space.format(ops), ops, (7,), ("11110000",), (4,))
    supernet = load_supernet(space, dataset, find_weights(space, dataset))
    deploy(supernet, chosen, dataset, 32).save(Path("final"), 8, {})
    images = dataset.split("test").first(1)
    exec(compile(code_of("finetune"), "docs/finetune.md", "exec"), {"images": images.x})
    n_bytes, label = capsys.readouterr().out.strip().split(" ", 1)
    channels, height, width = space.cut_shapes[7]
    assert int(n_bytes) == channels // 2 * (4 + height * width // 2) + 1
    assert label in dataset.class_names
