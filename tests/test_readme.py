"""The Python example of the README, run in smoke mode."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_python_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert "minimize(" in code
    code = code.replace('("n_eval", 400)', '("n_eval", 8)').replace("pop_size=40", "pop_size=8")
    code = code.replace("FBNetSplit(", 'FBNetSplit(evaluator={"images": 32},')
    exec(compile(code, str(README), "exec"), {})
