import hashlib
import os
import pickle

import pytest
import torch

from mfsbi import ALICES, FOM, ManifoldNLE, density_only, files, load, load_trainer, save
from mfsbi.gold import simulate
from mfsbi.plugin.ratio import GoldenRatio
from tests.laws import perturbed
from tests.problems import SMALL, SPECS, on_plane, plane, surface_data


@pytest.fixture(params=SPECS)
def spec(request):
    return SPECS[request.param]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loaded_estimator_is_the_saved_one(spec, dtype, tmp_path):
    theta, x = plane(theta_dim=2)
    estimator = perturbed(spec(theta, x)).to(dtype)
    save(estimator, tmp_path / "estimator.safetensors")
    state = torch.get_rng_state()
    twin = load(tmp_path / "estimator.safetensors", spec if isinstance(spec, FOM) else None)
    assert (torch.get_rng_state() == state).all()
    x, theta = x[:9].to(dtype), theta[:9].to(dtype)
    assert (twin.loss(x, theta) == estimator.loss(x, theta)).all()
    assert not twin.training


def test_the_functions_of_a_given_manifold_are_in_no_file(tmp_path):
    path, (theta, x) = tmp_path / "estimator.safetensors", plane()
    save(SPECS["FOM"](theta, x), path)
    with pytest.raises(ValueError, match="functions are not in the file: pass `spec=FOM"):
        load(path)
    with pytest.raises(ValueError, match="was written by FOM.*not by MFlow"):
        load(path, SPECS["MFlow"])


def test_an_unknown_spec_is_refused(tmp_path):
    files.write(tmp_path / "a.safetensors", {"a": torch.ones(1)}, {"spec": "os.system", "fields": {}})
    with pytest.raises(ValueError, match="names the spec 'os.system'; this version knows"):
        load(tmp_path / "a.safetensors")


def test_weights_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save(SPECS["AF"](*plane()), path)
    tensors, description = files.read(path)
    tensors.pop("net.chart.mean")
    files.write(path, tensors, description)
    with pytest.raises(ValueError, match="does not fit what it describes, ManifoldEstimator"):
        load(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_an_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="denied"):
        save(SPECS["AF"](*plane()), tmp_path / "a.safetensors")


@pytest.fixture
def trainer():
    surface, theta, x = surface_data(200)
    trainer = ManifoldNLE(surface.prior, SPECS["AF"], seed=4, show_progress_bars=False)
    trainer.append_simulations(theta[:150], x[:150]).append_simulations(theta[150:], x[150:], from_round=1)
    trainer.train(density_only(2))
    return trainer


def test_a_loaded_trainer_builds_the_same_posterior_and_trains_on(trainer, tmp_path):
    path = tmp_path / "trainer.safetensors"
    save(trainer, path)
    twin = load_trainer(path, trainer.prior)
    assert str(twin.history) == str(trainer.history)
    assert twin.summary == trainer.summary
    assert [part.number for part in twin.simulations] == [0, 1]
    theta = torch.linspace(-0.9, 0.9, 5)[:, None]
    x = trainer.simulations[0].x[:3]
    assert (twin.build_posterior().potential(theta, x) == trainer.build_posterior().potential(theta, x)).all()
    twin.show_progress_bars = False
    one, other = twin.train(density_only(1)), trainer.train(density_only(1))
    assert (one.loss(x, theta[:3]) == other.loss(x, theta[:3])).all()


def test_a_file_says_what_was_trained_and_on_what(trainer, tmp_path):
    path = tmp_path / "estimator.safetensors"
    save(trainer.estimator, path)
    record = load(path).training_record
    digest = hashlib.sha256()
    for part in trainer.simulations:
        digest.update(part.theta.numpy().tobytes() + part.x.numpy().tobytes())
    assert record["sha256"] == digest.hexdigest()
    assert record["simulations"] == 200
    assert [epoch[1] for epoch in record["epochs"]] == ["latent_nll"] * 2
    assert set(files.read(path)[1]["versions"]) == {"mfsbi", "torch", "sbi", "python"}


def test_a_trainers_file_is_an_estimators_file_but_not_the_other_way_round(trainer, tmp_path):
    x, theta = trainer.simulations[0].x, trainer.simulations[0].theta
    save(trainer, tmp_path / "trainer")
    assert (load(tmp_path / "trainer").loss(x, theta) == trainer.estimator.loss(x, theta)).all()
    save(trainer.estimator, tmp_path / "estimator")
    with pytest.raises(ValueError, match="should hold a trainer; it lacks 'trainer'.*there is `load`"):
        load_trainer(tmp_path / "estimator", trainer.prior)


@pytest.fixture
def ratio():
    """Return a trained ALICES with two rounds of gold."""
    surface, theta, _ = surface_data(200)
    at_theta = torch.arange(200) % 2 == 0
    gold = simulate(surface, theta, theta_ref=torch.zeros(1), from_theta=at_theta, seed=0)
    trainer = ALICES(surface.prior, width=8, depth=2, seed=4, show_progress_bars=False)
    for number, rows in enumerate((slice(0, 150), slice(150, 200))):
        part = {name: value[rows] for name, value in gold._asdict().items()}
        trainer.append_simulations(theta[rows], **part, from_theta=at_theta[rows], from_round=number)
    trainer.train(max_num_epochs=2)
    return trainer


def test_a_loaded_trainer_of_ratios_builds_the_same_posterior_and_trains_on(ratio, tmp_path):
    save(ratio, tmp_path / "ratio.safetensors")
    twin = load_trainer(tmp_path / "ratio.safetensors", ratio.prior)
    assert str(twin.history) == str(ratio.history)
    assert twin.simulations.digest() == ratio.simulations.digest()
    assert [part.number for part in twin.simulations] == [0, 1]
    theta, x = torch.linspace(-0.9, 0.9, 5)[:, None], ratio.simulations[0].x[:3]
    assert (twin.build_posterior().potential(theta, x) == ratio.build_posterior().potential(theta, x)).all()
    twin.show_progress_bars = False
    one, other = twin.train(max_num_epochs=1), ratio.train(max_num_epochs=1)
    assert (one.unnormalized_log_ratio(theta[:3], x) == other.unnormalized_log_ratio(theta[:3], x)).all()


def test_a_loaded_ratio_is_the_saved_one(ratio, tmp_path):
    save(ratio.estimator, tmp_path / "estimator")
    twin = load(tmp_path / "estimator")
    assert isinstance(twin, GoldenRatio)
    assert not twin.training
    assert twin.training_record["sha256"] == ratio.simulations.digest()
    theta, x = ratio.simulations[0].theta, ratio.simulations[0].x
    assert (twin.unnormalized_log_ratio(theta, x) == ratio.estimator.unnormalized_log_ratio(theta, x)).all()
    with pytest.raises(ValueError, match="should hold a trainer; it lacks 'trainer'"):
        load_trainer(tmp_path / "estimator", ratio.prior)


def test_a_ratio_has_no_spec(ratio, tmp_path):
    save(ratio, tmp_path / "ratio")
    with pytest.raises(ValueError, match="holds a ratio of `ALICES`, which no spec builds: leave `spec` out; got AF"):
        load(tmp_path / "ratio", SPECS["AF"])


def described(path, **changes):
    """Change the description of a file; None removes a key."""
    tensors, description = files.read(path)
    files.write(path, tensors, {key: value for key, value in (description | changes).items() if value is not None})


def test_files_from_before_there_were_kinds_hold_likelihoods(trainer, tmp_path):
    save(trainer, tmp_path / "early")
    described(tmp_path / "early", kind=None)
    assert load_trainer(tmp_path / "early", trainer.prior).estimator.spec == SPECS["AF"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "posterior"}, "holds the kind 'posterior'; this version knows .'likelihood', 'ratio'."),
        ({"kind": "likelihood"}, "names the spec None"),
        ({"fields": {"layers": 3}}, "describes its ratio in a way this version does not know.*'layers'"),
        ({"fields": {"width": 9, "depth": 2}}, "does not fit what it describes, GoldenRatio"),
        ({"data_dim": -1}, "describes its ratio in a way this version does not know"),
    ],
)
def test_descriptions_that_build_nothing_are_refused(ratio, tmp_path, changes, message):
    save(ratio.estimator, tmp_path / "ratio")
    described(tmp_path / "ratio", **changes)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "ratio")


def test_priors_of_other_parameters_are_refused(trainer, ratio, tmp_path):
    prior = torch.distributions.Independent(torch.distributions.Uniform(torch.zeros(2), torch.ones(2)), 1)
    for number, trained in enumerate((trainer, ratio)):
        save(trained, tmp_path / f"{number}")
        with pytest.raises(ValueError, match="The prior has 2 parameters, the estimator 1"):
            load_trainer(tmp_path / f"{number}", prior)


def test_simulations_outside_the_prior_are_refused(trainer, tmp_path):
    save(trainer, tmp_path / "trainer")
    narrow = torch.distributions.Independent(torch.distributions.Uniform(torch.zeros(1), torch.full((1,), 0.1)), 1)
    with pytest.raises(ValueError, match="`theta` should lie inside the prior"):
        load_trainer(tmp_path / "trainer", narrow)


def test_an_estimator_of_a_spec_of_ones_own_is_refused(tmp_path):
    class Own(FOM):
        pass

    with pytest.raises(TypeError, match="should be built by one of.*it was by Own"):
        save(Own(on_plane, SPECS["FOM"].encode, SMALL)(*plane()), tmp_path / "a")


def test_a_pickle_is_not_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "boom"),)

    (tmp_path / "model.pkl").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="is not a file of mfsbi"):
        load(tmp_path / "model.pkl")
    assert not (tmp_path / "boom").exists()
