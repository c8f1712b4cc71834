import pytest
import torch
from torch import nn

from mfsbi.train.optimizers import PartsOptimizer


def layer_with_gradients(size=1.0):
    torch.manual_seed(0)
    layer = nn.Linear(12, 9)
    for weight in layer.parameters():
        weight.grad = size * torch.randn_like(weight)
    return layer


def moved(layer, **settings):
    """Return by how much one step at the peak of the learning rate moves matrix and vector."""
    before = [weight.detach().clone() for weight in layer.parameters()]
    defaults = {"learning_rate": 0.01, "weight_decay": 0.0, "steps": 10}
    PartsOptimizer(layer, **(defaults | settings)).step(None)
    return [new.detach() - old for new, old in zip(layer.parameters(), before, strict=True)]


def test_steps_have_one_size_whatever_the_gradient():
    small, large = moved(layer_with_gradients(1e-3)), moved(layer_with_gradients(1e3))
    for a, b in zip(small, large, strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=1e-4)


def test_a_matrix_is_moved_along_all_its_directions_alike():
    """Muon: the singular values of a step are about equal, and as large as AdamW's would be together."""
    step, bias = moved(layer_with_gradients())
    values = torch.linalg.svdvals(step)
    assert values.max() < 2.5 * values.min()
    assert float(step.square().mean().sqrt()) == pytest.approx(0.2 * 0.01, rel=0.3)  # the scale of arXiv:2502.16982
    assert float(bias.abs().mean()) == pytest.approx(0.01, rel=0.01)


def test_weights_without_gradients_only_decay():
    layer = layer_with_gradients(0.0)
    before = [weight.detach().clone() for weight in layer.parameters()]
    for step, old in zip(moved(layer, weight_decay=0.5), before, strict=True):
        torch.testing.assert_close(step, -0.01 * 0.5 * old)


def test_frozen_weights_stay():
    layer = layer_with_gradients()
    layer.weight.requires_grad_(requires_grad=False)
    assert [bool(step.any()) for step in moved(layer)] == [False, True]


def test_the_learning_rate_warms_up_and_falls_to_zero():
    layer = layer_with_gradients()
    optimizer = PartsOptimizer(layer, 0.01, 0.0, steps=100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.learning_rate)
        optimizer.step(None)
    assert rates[0] == pytest.approx(0.01 / 5)
    assert max(rates) == pytest.approx(0.01, rel=0.01)
    assert optimizer.learning_rate == pytest.approx(0, abs=1e-12)
    assert rates[50] == pytest.approx(0.005, rel=1e-6)


@pytest.mark.parametrize(("max_norm", "allowed"), [(None, 3.0), (2.0, 2.0)])
def test_a_gradient_is_shortened_to_three_usual_ones(max_norm, allowed):
    layer = nn.Linear(3, 2)
    optimizer = PartsOptimizer(layer, 0.01, 0.0, steps=10)

    def clipped(norm):
        for weight in layer.parameters():
            weight.grad = torch.full_like(weight, norm / 8**0.5)
        optimizer.clip(max_norm)
        return float(torch.cat([weight.grad.flatten() for weight in layer.parameters()]).norm())

    assert [clipped(1.0) for _ in range(5)] == pytest.approx([1.0] * 5)
    assert clipped(1e6) == pytest.approx(allowed)
    assert clipped(1.5) == pytest.approx(1.5)


def test_a_first_gradient_of_zero_is_not_the_usual_one():
    layer = nn.Linear(1, 1, bias=False)
    optimizer = PartsOptimizer(layer, 0.01, 0.0, steps=10)
    for norm in (0.0, 0.0, 5.0):
        layer.weight.grad = torch.full_like(layer.weight, norm)
        optimizer.clip(None)
    assert float(layer.weight.grad) == pytest.approx(5.0)


def test_the_usual_gradient_follows_what_lasts():
    layer = nn.Linear(1, 1, bias=False)
    optimizer = PartsOptimizer(layer, 0.01, 0.0, steps=10)
    for step in range(200):
        layer.weight.grad = torch.full_like(layer.weight, 1.0 if step == 0 else 10.0)
        optimizer.clip(None)
    assert float(layer.weight.grad) == pytest.approx(10.0)
