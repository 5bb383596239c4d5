"""What pictures show, by what is drawn on their axes."""

from types import SimpleNamespace

import numpy as np
from matplotlib.figure import Figure

from nasc_evo.report.pictures import _draw_objectives


def evaluation(error, latency_ms):
    score = SimpleNamespace(error=error, standard_error=0.01)
    return SimpleNamespace(score=score, failed=False, metric=lambda name: latency_ms)


def test_the_line_of_a_front_never_rises():
    """A design that has more error and more latency than another is there for its energy."""
    front = [evaluation(0.3, 2.0), evaluation(0.5, 1.0), evaluation(0.4, 3.0), evaluation(0.2, 4.0)]
    problem = SimpleNamespace(
        objectives=("error", "latency_ms", "energy_mj"),
        evaluator=SimpleNamespace(images=512),
        limits={},
    )
    result = SimpleNamespace(
        front=[SimpleNamespace(evaluation=e) for e in front], recommended=None, references=[]
    )
    axes = Figure().subplots()
    _draw_objectives(axes, problem, SimpleNamespace(evaluations=front), result)
    points, line = axes.get_lines()[0], axes.get_lines()[-1]
    np.testing.assert_allclose(points.get_ydata(), [30, 50, 40, 20])
    assert points.get_linestyle() == "None"
    np.testing.assert_allclose(line.get_xdata(), [1, 2, 3, 4])
    np.testing.assert_allclose(line.get_ydata(), [50, 30, 30, 20])
    assert line.get_drawstyle() == "steps-post"
