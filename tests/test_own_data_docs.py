"""The commands of docs/own_data.md."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from nasc_evo.assembly import build_dataset
from nasc_evo.config import config_folder
from nasc_evo.hydra_app import own_images, register
from tests.data.test_folder import fill

PAGE = (Path(__file__).parents[1] / "docs" / "own_data.md").read_text()
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.splitlines()
]
CONFIGS = {"nasc_evo.train": "train", "nasc_evo.run": "config"}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_of_the_page_composes_and_finds_the_images(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(Path("photos"))
    assert words[:2] == ["python", "-m"]
    overrides = [override for word in words[3:] for override in own_images(word)]
    register()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = compose(CONFIGS[words[2]], overrides)
    dataset = build_dataset(dict(config.dataset))
    assert dataset.n_classes == 3
    weights = config.get("evaluator", {}).get("weights")
    assert weights in (None, f"trained/fbnet_32_{dataset.name}.safetensors")


def test_the_page_writes_any_set_as_a_folder(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    names: dict = {}
    exec(compile(code, "docs/own_data.md", "exec"), names)
    pairs = [(Image.new("RGB", (8, 8)), i % 2) for i in range(12)]
    names["write_folder"](pairs, ("cat", "dog"), tmp_path / "set")
    assert build_dataset(str(tmp_path / "set")).class_names == ("cat", "dog")
