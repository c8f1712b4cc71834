import copy
import inspect
import pickle
import re
from dataclasses import replace
from functools import partial

import pytest
import torch

from mfsbi import MFlow
from mfsbi.train.data import Batch
from mfsbi.train.losses import (
    RECONSTRUCTION_WEIGHT,
    Alices,
    Kind,
    Scandal,
    as_loss,
    joint,
    joint_nll,
    latent_nll,
    nll,
    reconstruction,
    robust_reconstruction,
)
from mfsbi.train.losses.plain import FunctionLoss
from tests.laws import perturbed
from tests.problems import SPECS, plane


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return perturbed(MFlow(2).build(*plane()), 0.03)


@pytest.fixture
def batch():
    return Batch(*plane(20, seed=5))


@pytest.mark.parametrize("loss", [reconstruction, robust_reconstruction, latent_nll, joint, joint_nll])
def test_a_loss_is_one_finite_number_per_row(loss, model, batch):
    values = loss(model, batch)
    assert values.shape == (20,)
    assert torch.isfinite(values).all()


def test_robust_reconstruction_is_the_distance_but_for_a_hundredth(model, batch):
    distance = reconstruction(model, batch).sqrt()
    robust = robust_reconstruction(model, batch)
    assert (robust >= distance).all()
    assert (robust <= distance + 0.01).all()
    far = distance > 0.05
    torch.testing.assert_close(robust[far], distance[far], rtol=0.02, atol=0)


def test_joint_is_the_weighted_sum(model, batch):
    expected = RECONSTRUCTION_WEIGHT * reconstruction(model, batch) + latent_nll(model, batch)
    torch.testing.assert_close(joint(model, batch), expected)


def test_cached_coordinates_give_the_same_likelihood(model, batch):
    cached = replace(batch, u=model.chart.encode(batch.x).detach())
    torch.testing.assert_close(latent_nll(model, cached), latent_nll(model, batch))


def moved_by(loss, model, batch):
    model.zero_grad()
    loss(model, batch).mean().backward()
    parts = {"chart": model.chart, "latent": model.latent}
    return {name for name, part in parts.items() if any(w.grad is not None and w.grad.any() for w in part.parameters())}


@pytest.mark.parametrize(
    ("loss", "parts"),
    [
        (reconstruction, {"chart"}),
        (robust_reconstruction, {"chart"}),
        (latent_nll, {"latent"}),
        (joint, {"chart", "latent"}),
        (joint_nll, {"chart", "latent"}),
    ],
)
def test_each_loss_moves_its_own_parts(loss, parts, model, batch):
    assert moved_by(loss, model, batch) == parts


def test_likelihood_and_reconstruction_in_one_have_the_value_of_both(model, batch):
    expected = RECONSTRUCTION_WEIGHT * reconstruction(model, batch) - model.log_prob(batch.x, batch.theta)
    torch.testing.assert_close(joint_nll(model, batch), expected)


def test_the_gradient_of_the_volume_is_unbiased(model, batch):
    """The mean over many signs is the gradient of the exact volume, within four standard errors."""

    def gradient(loss):
        model.zero_grad()
        loss(model, batch).mean().backward()
        return torch.cat([w.grad.flatten() for w in model.chart.parameters()])

    def plain(model, batch):
        return RECONSTRUCTION_WEIGHT * reconstruction(model, batch) - model.log_prob(batch.x, batch.theta)

    exact = gradient(plain)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = torch.stack([gradient(joint_nll) for _ in range(200)])
    error = draws.std(0) / 200**0.5
    z = (draws.mean(0) - exact).norm() / error.norm()
    assert error.norm() > 0
    assert z < 1.5


@pytest.mark.parametrize("name", ["PIE", "PIE, conditional"])
def test_what_stock_trainers_minimise_is_the_likelihood_where_there_is_one_in_data_space(name, batch):
    model = SPECS[name].build(*plane())
    torch.testing.assert_close(joint(model, batch), nll(model, batch))


@pytest.mark.parametrize("name", ["MFlow", "MeFlow", "PAE"])
def test_likelihood_alone_is_refused_where_a_manifold_is_to_be_learned(name, batch):
    with pytest.raises(TypeError, match="Likelihood alone cannot find the manifold.*train it by `sequential`"):
        nll(SPECS[name].build(*plane()), batch)


@pytest.mark.parametrize("name", ["AF", "FOM", "PIE"])
def test_likelihood_is_minus_log_prob_where_nothing_else_is_to_be_learned(name, batch):
    model = SPECS[name].build(*plane())
    torch.testing.assert_close(nll(model, batch), -model.log_prob(batch.x, batch.theta))


def own(model, batch):
    return 2 * reconstruction(model, batch)


@partial(FunctionLoss, kind=Kind.DISTANCE)
def decorated(model, batch):
    """Twice the reconstruction."""
    return 2 * reconstruction(model, batch)


@pytest.mark.parametrize(
    ("loss", "module", "begins"),
    [(decorated, __name__, "Twice"), (reconstruction, "mfsbi.train.losses.plain", "Return [|]x - project")],
)
def test_a_function_that_has_become_a_loss_is_documented_as_it_was(loss, module, begins):
    assert re.match(begins, inspect.getdoc(loss))
    assert loss.__module__ == module
    assert loss.__wrapped__ is loss.function


@pytest.mark.parametrize(
    ("loss", "kind", "name"),
    [
        (reconstruction, Kind.DISTANCE, "reconstruction"),
        (robust_reconstruction, Kind.DISTANCE, "robust_reconstruction"),
        (latent_nll, Kind.DENSITY, "latent_nll"),
        (joint, Kind.DENSITY, "joint"),
        (joint_nll, Kind.DENSITY, "joint_nll"),
        (nll, Kind.LIKELIHOOD, "nll"),
        (Scandal(base=nll), Kind.LIKELIHOOD, "scandal(nll)"),
        (Scandal(base=own), Kind.UNKNOWN, "scandal(own)"),
        (Alices(), Kind.RATIO, "alices"),
        (own, Kind.UNKNOWN, "own"),
        (FunctionLoss(own, Kind.DISTANCE), Kind.DISTANCE, "own"),
        (decorated, Kind.DISTANCE, "decorated"),
    ],
)
def test_a_loss_knows_what_it_measures_and_its_name_and_can_be_copied(loss, kind, name):
    known = as_loss(loss)
    assert (known.kind, known.__name__) == (kind, name)
    assert as_loss(known) is known
    for twin in (pickle.loads(pickle.dumps(known)), copy.deepcopy(known)):
        assert twin == known


def test_a_plain_loss_has_nothing_to_keep_and_does_not_adapt(model, batch):
    known = as_loss(own)
    assert known.state() == {}
    assert known.restored({"noise": torch.ones(1)}) is known
    assert known.adapted(model, batch) is known
    assert (known(model, batch) == own(model, batch)).all()
