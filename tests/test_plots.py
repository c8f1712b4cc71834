import io

import numpy as np
import pytest
from matplotlib.figure import Figure

from mfsbi import plots

RNG = np.random.default_rng(0)
GRID = np.linspace(-1, 1, 50)

FIGURES = {
    "training": lambda: plots.training_curves({"reconstruction": ([1.0, 0.1], [0.9, 0.2]), "nll": ([1.0], [-1.0])}),
    "surface": lambda: plots.surface(*(RNG.normal(size=(rows, 3)) for rows in (50, 50, 5, 5))),
    "bars": lambda: plots.bars({"one": {"a": 1.0, "b": 2.0}, "two": {"a": 0.1, "b": 3.0}}, "seconds", "problem"),
    "scan": lambda: plots.dimension_scan([1, 2], [0.5, 0.01], [0.01, 0.001], 1.7),
    "clouds": lambda: plots.clouds({name: RNG.normal(size=(50, 3)) for name in "abcd"}, {"b": np.arange(50.0)}),
    "planes": lambda: plots.planes(
        {name: RNG.normal(size=(50, 2)) for name in "ab"}, dict.fromkeys("ab", np.arange(50.0))
    ),
    "posteriors": lambda: plots.posteriors(GRID, GRID**2, {"a": GRID**2, "b": GRID**4}),
    "roads": lambda: plots.roads({name: RNG.normal(size=99) for name in "abcd"}, GRID, np.exp(-(GRID**2))),
    "corner": lambda: plots.corner(
        {name: RNG.normal(size=(200, 3)) for name in "ab"}, ["one", "two", "three"], np.zeros(3)
    ),
    "outliers": lambda: plots.outliers({name: RNG.uniform(1, 2, 50) for name in "ab"}, dict.fromkeys("ab", GRID**2)),
    "calibration": lambda: plots.calibration(
        {name: RNG.uniform(size=50) for name in "ab"}, {"highest density": RNG.uniform(size=50)}
    ),
    "scaling": lambda: plots.scaling(
        {"a": {100: 2.0, 10: 3.0}, "b": {10: 1.0}}, {"a": {10: 1.0, 100: 0.1}}, "KL divergence, nats"
    ),
    "posterior": lambda: plots.posterior_against_truth(GRID, GRID**2, GRID**2, RNG.uniform(-1, 1, 100), 0.0),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_drawn_without_a_window(name):
    figure = FIGURES[name]()
    assert isinstance(figure, Figure)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    assert picture.tell() > 5000


@pytest.mark.parametrize("name", FIGURES)
def test_every_axis_has_a_name(name):
    for axes in FIGURES[name]().axes:
        if axes.get_label() == "<colorbar>":
            continue
        assert axes.get_xlabel()
        assert axes.get_ylabel()


def test_curves_are_the_numbers_given():
    axes = FIGURES["training"]().axes[0]
    assert [list(line.get_ydata()) for line in axes.get_lines()] == [[1.0, 0.1], [0.9, 0.2]]


def test_a_course_is_drawn_where_there_is_one():
    losses, course = {"a": ([1.0], [0.9]), "b": ([2.0], [1.9])}, ([0.25, 0.75], [1.5, 0.5])
    ours, others = (axes.get_lines() for axes in plots.training_curves(losses, {"a": course}).axes)
    assert [list(values) for values in ours[0].get_data()] == list(course)
    assert [list(values) for values in others[0].get_data()] == [[1], [2.0]]


def test_any_number_of_models_is_drawn():
    lines = plots.scaling({name: {10: 1.0, 100: 2.0} for name in "abcdefgh"}, {}, "KL").axes[0].get_lines()
    assert len(lines) == 8


def test_values_are_drawn_in_the_order_of_simulations():
    lines = FIGURES["scaling"]().axes[0].get_lines()
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in lines] == [
        ([10, 100], [1.0, 0.1]),
        ([10, 100], [3.0, 2.0]),
        ([10], [1.0]),
    ]
    assert lines[0].get_color() == lines[1].get_color() != lines[2].get_color()


@pytest.mark.parametrize("name", [r"$\mean{x}$", r"$\frac{1}$", "a$b", r"$\Omega_m$", "100 %", "x_1^2"])
def test_any_name_can_be_drawn(name):
    figure = plots.calibration({name: RNG.uniform(size=20)}, {name: RNG.uniform(size=20)})
    figure.savefig(io.BytesIO(), format="png")
    assert name in [text.get_text() for legend in figure.axes[0].get_legend().texts for text in [legend]]
