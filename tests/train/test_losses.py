import pytest
import torch

from mfsbi import MFlow
from mfsbi.train.data import Batch
from mfsbi.train.losses import RECONSTRUCTION_WEIGHT, joint, latent_nll, reconstruction
from tests.laws import perturbed
from tests.problems import plane


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return perturbed(MFlow(2).build(*plane()), 0.03)


@pytest.fixture
def batch():
    return Batch(*plane(20, seed=5))


@pytest.mark.parametrize("loss", [reconstruction, latent_nll, joint])
def test_a_loss_is_one_finite_number_per_row(loss, model, batch):
    values = loss(model, batch)
    assert values.shape == (20,)
    assert torch.isfinite(values).all()


def test_joint_is_the_weighted_sum(model, batch):
    expected = RECONSTRUCTION_WEIGHT * reconstruction(model, batch) + latent_nll(model, batch)
    torch.testing.assert_close(joint(model, batch), expected)


def test_cached_coordinates_give_the_same_likelihood(model, batch):
    cached = batch._replace(u=model.chart.encode(batch.x).detach())
    torch.testing.assert_close(latent_nll(model, cached), latent_nll(model, batch))


def moved_by(loss, model, batch):
    model.zero_grad()
    loss(model, batch).mean().backward()
    parts = {"chart": model.chart, "latent": model.latent}
    return {name for name, part in parts.items() if any(w.grad is not None and w.grad.any() for w in part.parameters())}


@pytest.mark.parametrize(
    ("loss", "parts"), [(reconstruction, {"chart"}), (latent_nll, {"latent"}), (joint, {"chart", "latent"})]
)
def test_each_loss_moves_its_own_parts(loss, parts, model, batch):
    assert moved_by(loss, model, batch) == parts
