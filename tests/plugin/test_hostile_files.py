import json
import time
import tracemalloc
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import save_file

from mfsbi import AF, PAE, PIE, ManifoldNLE, MeFlow, MFlow, density_only, files, load, load_trainer, save
from mfsbi.flows import AffineCouplings, AutoregressiveSplines, SplineCouplings
from mfsbi.plugin.ratio import GoldenRatio
from mfsbi.ratio import RatioModel
from tests.problems import SMALL, SPECS, plane, surface_data
from tests.test_own_parts import MyChart, MyFlow

BILLION = 10**9
TINY = AutoregressiveSplines(layers=2, width=8, theta_width=8)
MODELS = {name: spec for name, spec in SPECS.items() if name != "FOM"} | {"autoregressive": AF(TINY)}
WRONG = [BILLION, 10**400, -1, True, 2.5, "3", float("nan"), None]
NUMBERS = {
    "AF": ["latent.width", "latent.depth", "latent.layers", "latent.bins"],
    "PIE": ["chart.width", "chart.layers", "latent.bins", "manifold_dim"],
    "MFlow": ["chart.width", "chart.depth", "latent.layers"],
    "MeFlow": ["encoder_width", "encoder_blocks", "chart.bins", "latent.depth"],
    "PAE": ["width", "blocks", "manifold_dim", "latent.width"],
    "autoregressive": ["latent.width", "latent.theta_width", "latent.depth", "latent.layers", "latent.bins"],
    "ratio": ["width", "depth"],
}
HOSTILE = [
    (model, field, wrong)
    for model, names in NUMBERS.items()
    for field in [*(f"fields.{name}" for name in names), "data_dim", "parameter_dim"]
    for wrong in WRONG
]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Return the path of a small good file of each kind."""
    folder, (theta, x) = tmp_path_factory.mktemp("good"), plane()
    for name, spec in MODELS.items():
        save(spec(theta, x), folder / name)
    save(ratio(3, 1), folder / "ratio")
    surface, theta, x = surface_data(60)
    trainer = ManifoldNLE(surface.prior, SPECS["AF"], show_progress_bars=False)
    trainer.append_simulations(theta, x).train(density_only(1))
    save(trainer, folder / "trainer")
    return folder


def ratio(features, parameters, width=8, depth=2):
    x, theta = torch.ones(features), torch.ones(parameters)
    return GoldenRatio(RatioModel(x, x.clone(), theta, theta.clone(), width, depth))


def example(parameters, features):
    """Return theta and x that a spec can be built for."""
    rows = 2 * max(parameters, features) + 2
    return torch.randn(rows, parameters), torch.randn(rows, features)


def forged(path, description, tensors, header=None):
    save_file(tensors, path, header or {"format": "mfsbi 1", "description": json.dumps(description)})
    return path


def changed(description, place, value):
    """Return a description with another value at a place such as fields.latent.width."""
    first, _, rest = place.partition(".")
    return description | {first: changed(description[first], rest, value) if rest else value}


def refused(path, reading, match="."):
    """Require a ValueError that names the file, soon and with little memory."""
    tracemalloc.start()
    start = time.perf_counter()
    try:
        with pytest.raises(ValueError, match=match) as error:
            reading(path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - start < 20  # a billion of anything takes longer
    assert path.name in str(error.value)


@pytest.mark.parametrize(("model", "place", "wrong"), HOSTILE)
def test_a_number_that_the_file_cannot_hold_is_refused(good, tmp_path, model, place, wrong):
    tensors, description = files.read(good / model)
    path = forged(tmp_path / "forged.safetensors", changed(description, place, wrong), tensors)
    refused(path, load)
    refused(path, lambda path: load_trainer(path, None))


@pytest.mark.parametrize("place", ["fields", "data_dim", "parameter_dim", "fields.manifold_dim"])
def test_what_is_missing_is_told(good, tmp_path, place):
    tensors, description = files.read(good / "PAE")
    first, _, rest = place.partition(".")
    inner = description[first] if rest else description
    inner.pop(rest or first)
    refused(forged(tmp_path / "forged", description, tensors), load, "describes its spec in a way")


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        ("kind", []),
        ("spec", {}),
        ("fields", [1, 2]),
        ("fields.latent.kind", "Affine"),
        ("fields.latent.lu", "yes"),
        ("fields.latent.sharpness", 10**400),
        ("fields.latent.bound", float("inf")),
        ("fields.coordinates", [BILLION]),
        ("fields.coordinates", list(range(1000))),
        ("fields.coordinates", [[0]]),
        ("fields.coordinates", json.loads("[" * 900 + "]" * 900)),
        ("fields.latent", json.loads('{"kind":' * 900 + "1" + "}" * 900)),
        ("training", [1]),
    ],
)
def test_a_field_of_another_kind_is_refused(good, tmp_path, place, wrong):
    tensors, description = files.read(good / "PIE")
    refused(forged(tmp_path / "forged", changed(description, place, wrong), tensors), load)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000, "[]", "3", '"x"', "null", "", "9" * 5000, "{"]
)
def test_a_description_that_is_no_object_is_refused(tmp_path, text):
    header = {"format": "mfsbi 1", "description": text}
    path = forged(tmp_path / "forged", None, {"a": torch.ones(1)}, header)
    for reading in (files.read, load, lambda path: load_trainer(path, None)):
        refused(path, reading, "no description")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("simulations.0.other", torch.ones(60)),
        ("simulations.1.x", torch.ones(60, 3)),
        ("simulations.../x", torch.ones(60, 3)),
        ("simulations.0.x", torch.ones(60)),
        ("simulations.0.x", torch.ones(())),
        ("simulations.0.x", torch.ones(59, 2)),
        ("simulations.0.theta", torch.ones(60, 1, 1)),
        ("../../weights", torch.ones(1)),
        ("net.latent.theta_mean", torch.ones(1, 1, 1, 1)),
        ("net.latent.theta_mean", torch.ones(2**16)),
    ],
)
def test_tensors_of_other_names_or_shapes_are_refused(good, tmp_path, name, value):
    tensors, description = files.read(good / "trainer")
    path = forged(tmp_path / "forged", description, tensors | {name: value})
    prior = surface_data(2)[0].prior
    refused(path, lambda path: load_trainer(path, prior))


@pytest.mark.parametrize(
    "about",
    [None, [], 3, {}]
    + [
        {"rounds": rounds, "seed": 0}
        for rounds in ([0, 1], [], "0", 3, [-1], [0.5], ["0"], [True], [None], [0] * 10**4)
    ]
    + [{"rounds": [0], "seed": seed} for seed in (-1, 0.5, "1", None, True, 10**400)],
)
def test_rounds_and_seeds_that_were_never_written_are_refused(good, tmp_path, about):
    tensors, description = files.read(good / "trainer")
    prior = surface_data(2)[0].prior
    path = forged(tmp_path / "forged", description | {"trainer": about}, tensors)
    refused(path, lambda path: load_trainer(path, prior), "should hold a trainer")


@pytest.mark.parametrize("model", [*MODELS, "ratio", "trainer"])
def test_a_good_file_loads(good, model):
    assert not load(good / model).training


def test_a_good_trainer_loads(good):
    assert load_trainer(good / "trainer", surface_data(2)[0].prior).simulations.rows == 60


@pytest.mark.parametrize("features", [3, 40])
@pytest.mark.parametrize(
    "spec",
    [AF(), PIE(2), PIE(2, conditional_chart=True), MFlow(2), MFlow(50), MeFlow(2), PAE(2), AF(AutoregressiveSplines())]
    + [AF(kind(layers=1, width=1, depth=1)) for kind in (AffineCouplings, AutoregressiveSplines, SplineCouplings)]
    + [MFlow(1, replace(SMALL, lu=True), AutoregressiveSplines(layers=1, depth=1)), PAE(1, SMALL, 1, 1)],
)
@pytest.mark.filterwarnings("ignore:`manifold_dim` is 50")
def test_files_of_all_sizes_load(spec, features, tmp_path):
    for parameters in (0, 2):
        save(spec(*example(parameters, features)), tmp_path / "good")
        assert load(tmp_path / "good").spec == spec


@pytest.mark.parametrize("kind", [AffineCouplings, AutoregressiveSplines, SplineCouplings])
def test_files_of_a_single_feature_load(kind, tmp_path):
    for parameters in (0, 2):
        spec = AF(kind())
        save(spec(*example(parameters, 1)), tmp_path / "good")
        assert load(tmp_path / "good").spec == spec


def test_files_of_given_manifolds_load_and_forged_dimensions_are_refused(tmp_path):
    spec = SPECS["FOM"]
    save(spec(*plane()), tmp_path / "good")
    assert load(tmp_path / "good", spec).spec == spec
    tensors, description = files.read(tmp_path / "good")
    for name in ("data_dim", "parameter_dim"):
        path = forged(tmp_path / "forged", description | {name: BILLION}, tensors)
        refused(path, lambda path: load(path, spec), "describes an estimator")


@pytest.mark.parametrize(("features", "width", "depth"), [(3, 100, 3), (40, 1, 1), (1, 1, 9)])
def test_files_of_ratios_of_all_sizes_load(features, width, depth, tmp_path):
    save(ratio(features, 2, width, depth), tmp_path / "good")
    assert load(tmp_path / "good").model.depth == depth


@dataclass(frozen=True)
class Odd(MyChart):
    """A chart of one's own whose settings no file can hold, or whose building asks for values."""

    given: object = None

    def build(self, data_dim, manifold_dim, parameters=0):
        if self.given == "asks":
            torch.zeros(data_dim).tolist()
        return super().build(data_dim, manifold_dim, parameters)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Return the path of a small good file with parts of one's own."""
    path = tmp_path_factory.mktemp("own") / "good"
    save(MFlow(2, MyChart(), MyFlow())(*plane()), path)
    return path


@pytest.mark.parametrize("wrong", [BILLION, 60_000, 10**400, -1, 2.5, "3", None])
@pytest.mark.parametrize("place", ["fields.chart.width", "data_dim", "parameter_dim"])
def test_parts_of_ones_own_claim_no_more_than_the_file_holds(own, tmp_path, place, wrong):
    tensors, description = files.read(own)
    path = forged(tmp_path / "forged", changed(description, place, wrong), tensors)
    refused(path, lambda path: load(path, parts=[MyChart, MyFlow]))


@pytest.mark.parametrize("name", ["os.system", "system", "MyChart", "FOM", "", "tests.test_own_parts:MyChart"])
def test_no_name_in_a_file_is_imported(own, tmp_path, name):
    tensors, description = files.read(own)
    path = forged(tmp_path / "forged", changed(description, "fields.chart.kind", name), tensors)
    refused(path, lambda path: load(path, parts=[MyFlow]), "names the part '.*', which is not known here")


@pytest.mark.parametrize("given", [torch.sin, torch.ones(2), {"a": 1}, "asks", [1]])
def test_parts_that_no_file_can_hold_are_refused_before_they_are_written(given, tmp_path):
    estimator = MFlow(2, Odd(given=given), SMALL)(*plane())
    with pytest.raises(TypeError, match="has a part that no file can hold"):
        save(estimator, tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("given", ["a word", 1.5, True, None, (1, (2, 3)), SMALL])
def test_fields_of_parts_come_back(given, tmp_path):
    spec = MFlow(2, Odd(given=given), SMALL)
    save(spec(*plane()), tmp_path / "a")
    assert load(tmp_path / "a", parts=[Odd]).spec == spec
