import io

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.colors import same_color
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.image import imread
from scipy import stats

from mfsbi import plots
from mfsbi.plots.figure import MODEL, TRUTH

RNG = np.random.default_rng(0)
GRID = np.linspace(-1, 1, 50)
CLOUDS = {name: RNG.normal(size=(50, 3)) for name in "abcd"}
PLANES = {name: RNG.normal(size=(50, 2)) for name in "ab"}
PAIRS = {name: RNG.normal(size=(2000, 3)) * scale for name, scale in (("wide", 1.0), ("narrow", 0.5))}
NAMES = "one", "two", "three"
SQUARES = GRID[:, None] ** 2 + GRID**2
DRAWS = {name: RNG.normal(size=99) * 0.3 for name in "abcd"}

FIGURES = {
    "training": lambda: plots.training_curves({"reconstruction": ([1.0, 0.1], [0.9, 0.2]), "nll": ([1.0], [-1.0])}),
    "surface": lambda: plots.surface(*(RNG.normal(size=(rows, 3)) for rows in (50, 50, 5, 5))),
    "bars": lambda: plots.bars({"one": {"a": 1.0, "b": 2.0}, "two": {"a": 0.1, "b": 3.0}}, "seconds", "problem"),
    "scan": lambda: plots.dimension_scan([1, 2], [0.5, 0.01], [0.01, 0.001], 1.7),
    "clouds": lambda: plots.clouds(CLOUDS, {"b": np.arange(50.0)}),
    "planes": lambda: plots.planes(PLANES, dict.fromkeys("ab", np.arange(50.0))),
    "posteriors": lambda: plots.posteriors(GRID, GRID**2, {"a": GRID**2, "b": GRID**4}),
    "roads": lambda: plots.roads(DRAWS, GRID, np.exp(-(GRID**2))),
    "corner": lambda: plots.corner(PAIRS, NAMES, np.array([0.1, 0.2, 0.3])),
    "outliers": lambda: plots.outliers({name: RNG.uniform(1, 2, 50) for name in "ab"}, dict.fromkeys("ab", GRID**2)),
    "calibration": lambda: plots.calibration(
        {name: RNG.uniform(size=50) for name in "ab"}, {"highest density": RNG.uniform(size=50)}
    ),
    "profile": lambda: plots.profile(
        GRID,
        10 * GRID**2,
        {"one": 0 * GRID + 4.0, "two": 1 + GRID**2},
        {"one": [(-0.6, 0.6)], "two": [(-0.3, 0.0), (0.1, 0.3)]},
    ),
    "regions": lambda: plots.profile_regions(
        (GRID, 2 * GRID), SQUARES, {"one": 0 * SQUARES + 0.25, "two": 0 * SQUARES + 1.0}, [0.1, -0.2], ("mass", "width")
    ),
    "scaling": lambda: plots.scaling(
        {"a": {100: 2.0, 10: 3.0}, "b": {10: 1.0}}, {"a": {10: 1.0, 100: 0.1}}, "KL divergence, nats"
    ),
    "posterior": lambda: plots.posterior_against_truth(GRID, GRID**2, GRID**4, DRAWS["a"], 0.5, "width"),
}


def lines_of(axes):
    return {line.get_label(): tuple(map(list, line.get_data())) for line in axes.get_lines()}


def legend_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_drawn_without_a_window(name):
    windows = pyplot.get_fignums()
    figure = FIGURES[name]()
    assert isinstance(figure, Figure)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=50)
    file.seek(0)
    picture = imread(file)
    assert picture.shape[:2] == pytest.approx(50 * figure.get_size_inches()[::-1], abs=1)
    assert 0.002 < np.mean(picture[..., :3].min(-1) < 0.9) < 0.9  # ink on white
    assert pyplot.get_fignums() == windows


@pytest.mark.parametrize("name", [name for name in FIGURES if name != "corner"])
def test_every_axis_has_a_name(name):
    for axes in FIGURES[name]().axes:
        if axes.get_label() == "<colorbar>":
            continue
        assert axes.get_xlabel()
        assert axes.get_ylabel()


def test_curves_of_training_are_the_numbers_given():
    reconstruction, nll = FIGURES["training"]().axes
    assert lines_of(reconstruction) == {"training": ([1, 2], [1.0, 0.1]), "validation": ([1, 2], [0.9, 0.2])}
    assert lines_of(nll) == {"training": ([1], [1.0]), "validation": ([1], [-1.0])}
    assert (reconstruction.get_ylabel(), nll.get_ylabel()) == ("reconstruction", "nll")


@pytest.mark.parametrize(("losses", "scale"), [([1.0, 0.05], "log"), ([1.0, 0.2], "linear"), ([1.0, -9.0], "linear")])
def test_losses_that_fall_far_get_a_logarithmic_axis(losses, scale):
    assert plots.training_curves({"loss": (losses, losses)}).axes[0].get_yscale() == scale


def test_a_course_is_drawn_where_there_is_one():
    losses, course = {"a": ([1.0], [0.9]), "b": ([2.0], [1.9])}, ([0.25, 0.75], [1.5, 0.5])
    ours, others = (lines_of(axes) for axes in plots.training_curves(losses, {"a": course}).axes)
    assert ours["training"] == course
    assert others["training"] == ([1], [2.0])


def test_a_surface_is_drawn_from_both_sides_and_points_are_drawn_onto_it():
    truth, generated, observed = RNG.normal(size=(500, 3)), RNG.normal(size=(400, 3)), 0.1 * RNG.normal(size=(7, 3))
    simulator, model, off = plots.surface(truth, generated, observed, observed + 0.1).axes
    limits = np.quantile(truth, [0.002, 0.998], axis=0)
    for axes, cloud in ((simulator, truth), (model, generated)):
        (points,) = axes.collections
        inside = cloud[((cloud >= limits[0]) & (cloud <= limits[1])).all(1)]
        np.testing.assert_allclose(np.stack(points._offsets3d, -1), inside)
        np.testing.assert_allclose([axes.get_xlim(), axes.get_ylim(), axes.get_zlim()], limits.T)
    arrows = [np.stack(line.get_data_3d(), -1) for line in off.get_lines()]
    np.testing.assert_allclose(arrows, np.stack([observed, observed + 0.1], 1))


def test_clouds_are_coloured_by_their_values_and_others_are_grey():
    *panels, bar = FIGURES["clouds"]().axes
    assert [axes.get_title() for axes in panels] == list("abcd")
    assert bar.get_ylabel() == "distance to the manifold"
    limits = np.quantile(CLOUDS["a"], [0.002, 0.998], axis=0)
    inside = ((CLOUDS["b"] >= limits[0]) & (CLOUDS["b"] <= limits[1])).all(1)
    np.testing.assert_allclose(panels[1].collections[0].get_array(), np.arange(50.0)[inside])
    assert all(same_color(panels[at].collections[0].get_facecolor()[0, :3], TRUTH) for at in (0, 2, 3))
    assert len({axes.get_xlim() for axes in panels}) == 1


def test_planes_are_coloured_within_the_limits_of_the_first():
    figure = FIGURES["planes"]()
    panels = [axes for axes in figure.axes if axes.get_title()]
    reach = 1.15 * np.abs(PLANES["a"]).max()
    for axes, (name, cloud) in zip(panels, PLANES.items(), strict=True):
        (points,) = axes.collections
        np.testing.assert_allclose(points.get_offsets(), cloud)
        np.testing.assert_allclose(points.get_array(), np.arange(50.0))
        assert axes.get_title() == name
        assert axes.get_xlim() == axes.get_ylim() == pytest.approx((-reach, reach))


def test_a_scan_shows_each_error_with_its_bar_and_the_spread():
    (axes,) = FIGURES["scan"]().axes
    error, spread, tenth = axes.get_lines()[0], *axes.get_lines()[-2:]
    assert tuple(map(list, error.get_data())) == ([1, 2], [0.5, 0.01])
    bars = np.array(axes.collections[0].get_segments())
    np.testing.assert_allclose(bars[..., 1], [[0.49, 0.51], [0.009, 0.011]])
    assert (spread.get_ydata()[0], tenth.get_ydata()[0]) == pytest.approx((1.7, 0.17))
    assert (axes.get_yscale(), list(axes.get_xticks())) == ("log", [1, 2])


def test_bars_have_the_heights_given():
    (axes,) = FIGURES["bars"]().axes
    assert [[bar.get_height() for bar in part] for part in axes.containers] == [[1.0, 0.1], [2.0, 3.0]]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["one", "two"]
    assert (legend_of(axes), axes.get_ylabel(), axes.get_xlabel()) == (["a", "b"], "seconds", "problem")


def test_posteriors_of_models_stand_beside_the_exact_one():
    (axes,) = FIGURES["posteriors"]().axes
    expected = {"a": GRID**2, "b": GRID**4, "exact": GRID**2}
    assert lines_of(axes) == {name: (list(GRID), list(values)) for name, values in expected.items()}
    assert [line.get_linestyle() for line in axes.get_lines()] == ["-", "-", "--"]
    assert axes.get_xlim() == (-1, 1)


def test_a_posterior_is_shown_by_curve_draws_and_truth():
    (axes,) = FIGURES["posterior"]().axes
    lines = lines_of(axes)
    assert lines["exact"] == (list(GRID), list(GRID**2))
    assert lines["model"] == (list(GRID), list(GRID**4))
    assert lines["true value"][0] == [0.5, 0.5]
    assert sum(bar.get_height() * bar.get_width() for bar in axes.patches) == pytest.approx(1)
    assert axes.get_xlabel() == "width"


def test_each_sampler_has_a_histogram_and_its_intervals():
    *panels, forest = FIGURES["roads"]().axes
    assert [axes.get_title() for axes in panels] == list(DRAWS)
    for axes in panels:
        assert sum(bar.get_height() * bar.get_width() for bar in axes.patches) == pytest.approx(1)
    exact, intervals = forest.get_lines()[:5], forest.get_lines()[5:]
    middles = [line.get_xdata()[0] for line in exact]
    assert middles == sorted(middles)
    assert middles[2] == pytest.approx(0, abs=0.03)
    for number, values in enumerate(DRAWS.values()):
        outer, inner, median = (line.get_xdata() for line in intervals[3 * number : 3 * number + 3])
        np.testing.assert_allclose([*outer, *inner, *median], np.quantile(values, [0.025, 0.975, 0.25, 0.75, 0.5]))
    assert [text.get_text() for text in forest.get_yticklabels()] == list(DRAWS)


def test_a_corner_has_a_density_for_each_parameter_and_regions_for_each_pair():
    figure = FIGURES["corner"]()
    panels = np.reshape(figure.axes, (3, 3))
    truth = [0.1, 0.2, 0.3]
    for row, column in np.ndindex(3, 3):
        axes = panels[row, column]
        regions = [found for found in axes.collections if isinstance(found, ContourSet)]
        if row < column:
            assert not axes.has_data()
        elif row == column:
            wide, narrow, line = axes.get_lines()
            assert wide.get_ydata().max() < narrow.get_ydata().max() < axes.get_ylim()[1]
            assert wide.get_xdata()[wide.get_ydata().argmax()] == pytest.approx(0, abs=0.5)
            assert list(line.get_xdata()) == [truth[row]] * 2
        else:
            wide, narrow = (np.ptp(found.get_paths()[0].vertices, axis=0) for found in regions)
            assert (wide > narrow).all()
            upright, level = axes.get_lines()
            assert (upright.get_xdata()[0], level.get_ydata()[0]) == (truth[column], truth[row])
    assert [axes.get_xlabel() for axes in panels[2]] == list(NAMES)
    assert [axes.get_ylabel() for axes in panels[:, 0]] == ["density", *NAMES[1:]]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(PAIRS)


def test_regions_of_a_corner_hold_what_they_say():
    """Draws of a normal distribution within the full and the dashed line."""
    draws = np.random.default_rng(3).normal(size=(50_000, 2))
    (regions,) = plots.corner({"normal": draws}, NAMES[:2]).axes[2].collections
    shares = [path.contains_points(draws).mean() for path in regions.get_paths()]
    assert shares == pytest.approx([0.9, 0.5], abs=0.03)


@pytest.mark.parametrize(
    "draws",
    [RNG.normal(size=(500, 1)), np.stack([RNG.normal(size=500), np.full(500, 2.0)], 1), np.full((500, 2), 2.0)],
    ids=["one parameter", "a constant one", "nothing but constants"],
)
def test_a_corner_can_be_drawn_of_any_draws(draws):
    count = draws.shape[1]
    figure = plots.corner({"draws": draws, "again": draws}, NAMES[:count], draws[0])
    figure.savefig(io.BytesIO(), format="png")
    for axes, column in zip(figure.axes[:: count + 1], draws.T, strict=True):
        low, high = axes.get_xlim()
        assert low < np.median(column) < high
        assert len(axes.get_lines()) == 3


def test_a_corner_takes_tensors():
    draws = {name: torch.from_numpy(each) for name, each in PAIRS.items()}
    ours, same = plots.corner(draws, NAMES, torch.tensor([0.1, 0.2, 0.3])), FIGURES["corner"]()
    for ours_axes, axes in zip(ours.axes, same.axes, strict=True):
        for line, expected in zip(ours_axes.get_lines(), axes.get_lines(), strict=True):
            assert np.allclose(line.get_data(), expected.get_data())


@pytest.mark.parametrize("names", [["one", "one", "two"], ["one", "two"], ["one", "two", "three", "four"]])
def test_a_corner_has_one_name_for_each_parameter(names):
    with pytest.raises(ValueError, match="one for each parameter, no two the same; got .* for draws 'wide'"):
        plots.corner(PAIRS, names)


def test_outliers_are_counted_by_distance_and_p_value():
    ordinary, odd = np.full(40, 1.0), np.full(10, 100.0)
    left, right = plots.outliers({"ordinary": ordinary, "odd": odd}, {"ordinary": GRID[25:], "odd": 0 * odd}).axes
    assert [sum(bar.get_height() for bar in bars) for bars in left.containers] == [40, 10]
    assert [[bar.get_height() > 0 for bar in bars].index(True) for bars in left.containers] == [0, 48]
    assert [sum(bar.get_height() for bar in bars) for bars in right.containers] == [25, 10]
    assert right.containers[1][0].get_height() == 10
    assert (left.get_xscale(), legend_of(right)) == ("log", ["ordinary", "odd"])


def test_calibration_is_seen_within_the_band_of_chance():
    sets = 200
    uniform, narrow = (np.arange(sets) + 0.5) / sets, np.full(sets, 0.5)
    left, right = plots.calibration({"right": uniform, "wrong": narrow}, {"right": uniform, "wrong": narrow}).axes
    width = stats.kstwo.ppf(0.95, sets)
    band = left.patches[0].get_extents().transformed(left.transData.inverted())
    assert (band.y0, band.y1) == pytest.approx((-width, width))
    for axes, expected in ((left, 0), (right, np.linspace(0, 1, 201))):
        off = {name: np.abs(np.array(y) - expected).max() for name, (_, y) in lines_of(axes).items()}
        assert off["right"] < width < off["wrong"] == pytest.approx(0.5)


def test_any_number_of_models_is_drawn():
    lines = plots.scaling({name: {10: 1.0, 100: 2.0} for name in "abcdefgh"}, {}, "KL").axes[0].get_lines()
    assert len(lines) == 8


def test_values_are_drawn_in_the_order_of_simulations():
    (axes,) = FIGURES["scaling"]().axes
    lines = axes.get_lines()
    assert lines_of(axes) == {
        "a, joint scores": ([10, 100], [1.0, 0.1]),
        "a": ([10, 100], [3.0, 2.0]),
        "b": ([10], [1.0]),
    }
    assert [line.get_linestyle() for line in lines] == ["-", "--", "--"]
    assert lines[0].get_color() == lines[1].get_color() == MODEL != lines[2].get_color()
    assert (axes.get_xscale(), axes.get_yscale(), axes.get_ylabel()) == ("log", "log", "KL divergence, nats")


@pytest.mark.parametrize("name", [r"$\mean{x}$", r"$\frac{1}$", "a$b", r"$\Omega_m$", "100 %", "x_1^2"])
def test_any_name_can_be_drawn(name):
    figure = plots.calibration({name: RNG.uniform(size=20)}, {name: RNG.uniform(size=20)})
    figure.savefig(io.BytesIO(), format="png")
    assert name in legend_of(figure.axes[0])


def test_any_name_can_be_drawn_in_a_corner():
    figure = plots.corner({"draws": PAIRS["wide"][:, :2]}, [r"$\mean{x}$", "a$b"])
    figure.savefig(io.BytesIO(), format="png")
    assert figure.axes[2].get_xlabel() == r"$\mean{x}$"


def test_critical_values_stand_above_the_intervals_they_give():
    (axes,) = FIGURES["profile"]().axes
    curves = {label: values for label, values in lines_of(axes).items() if not label.startswith("_")}
    assert list(curves) == ["q", "one", "two"] == legend_of(axes)
    assert curves["q"] == (list(GRID), list(10 * GRID**2))
    assert curves["two"][1] == list(1 + GRID**2)
    bars = [line for line in axes.get_lines() if line.get_linewidth() == 4.0]
    assert [list(bar.get_xdata()) for bar in bars] == [[-0.6, 0.6], [-0.3, 0.0], [0.1, 0.3]]
    assert all(axes.get_ylim()[0] < bar.get_ydata()[0] < 0 for bar in bars)
    colours = {line.get_label(): line.get_color() for line in axes.get_lines()}
    assert [bar.get_color() for bar in bars] == [colours["one"], colours["two"], colours["two"]]
    assert axes.get_ylim()[1] > 4


def test_regions_of_two_parameters_end_where_q_is_critical():
    (axes,) = FIGURES["regions"]().axes
    regions = [found for found in axes.collections if isinstance(found, ContourSet)]
    for found, radius in zip(regions, (0.5, 1.0), strict=True):
        mass, width = found.get_paths()[0].vertices.T
        np.testing.assert_allclose(mass**2 + (width / 2) ** 2, radius**2, atol=0.01)
    assert [list(values) for values in axes.get_lines()[-1].get_data()] == [[0.1], [-0.2]]
    assert legend_of(axes) == ["one", "two"]


def test_profiles_are_drawn_of_tensors():
    grid, q = torch.from_numpy(GRID), torch.from_numpy(10 * GRID**2)
    ours = plots.profile(grid, q, {"one": q / 2}, {"one": [(0.0, 0.1)]}).axes[0]
    assert lines_of(ours)["q"] == (list(GRID), list(10 * GRID**2))
    squares = torch.from_numpy(SQUARES)
    assert plots.profile_regions((grid, grid), squares, {"one": squares.new_full((50, 50), 0.5)}, grid[:2]).axes
