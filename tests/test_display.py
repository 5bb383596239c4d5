"""The two faces of progress: a bar in a terminal, plain lines elsewhere."""

import io

import pytest
from rich.console import Console

from nasc_evo.report.display import SearchDisplay, TrainingDisplay
from nasc_evo.supernet.progress import TrainingProgress
from tests.search.test_search import problem, search


@pytest.mark.parametrize("terminal", [True, False])
def test_a_search_shows_evaluations_hypervolume_and_accuracy(terminal):
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=150)
    one = problem(limits={"latency_ms": 12.0})
    with SearchDisplay(one, 20, console) as display:
        one.on_evaluation = display.add
        search(one, n_eval=20)
    text = output.getvalue()
    assert "20/20" in text
    assert "hypervolume 0." in text
    assert "best accuracy under the limits" in text
    assert ("\x1b[" in text) == terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_a_training_shows_rate_loss_and_accuracy(terminal):
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=150)
    validation = {"largest": 0.93, "median": 0.9, "lowest": 0.8}
    with TrainingDisplay(3, 10, console) as display:
        display.update(TrainingProgress(4, 10, 0.51234, 1000.0, None))
        display.update(TrainingProgress(5, 10, 0.5, 1000.0, validation))
    text = output.getvalue()
    assert "5/10" in text
    assert "1000 images/s, loss 0.500, accuracy 93.0 % largest, 90.0 % median" in text
