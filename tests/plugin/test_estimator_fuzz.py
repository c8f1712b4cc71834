"""Whatever the shapes, types, strides and broadcasts: values and gradients are those of one plain row at a time.

The oracle is the same model in float64, called with one contiguous row of x and one of theta. `-m slow` draws thousands
of examples of each law.
"""

import math
from contextlib import nullcontext
from functools import cache
from typing import NamedTuple
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mfsbi.plugin import estimator as module
from mfsbi.plugin.ratio import GoldenRatio
from mfsbi.ratio import RatioModel
from mfsbi.seeds import seeded
from mfsbi.train.data import Batch
from mfsbi.train.losses import joint
from tests.laws import perturbed
from tests.problems import DENSITIES, SPECS, plane

FEW, MANY = 12, 1000
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
TOLERANCE = {torch.float64: 1e-8, torch.float32: 2e-3}
DATA, PARAMETERS = 3, 2


def holds_for(strategy):
    """Make a law of one example a test of few of them, and a slow one of many."""

    def made(law):
        @pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
        def test(examples):
            about = settings(
                max_examples=examples,
                derandomize=True,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            about(given(strategy)(law))()

        test.__name__, test.__doc__ = law.__name__, law.__doc__
        return test

    return made


@cache
def estimator(name, parameters, dtype, device):
    """Return an estimator with weights at random, and its model in float64 on the CPU, the oracle."""
    torch.manual_seed(0)
    theta, x = plane(theta_dim=PARAMETERS)
    made, twin = (SPECS[name](theta[:, :parameters], x) for _ in range(2))
    perturbed(made, 0.05).eval().requires_grad_(requires_grad=False)
    twin = twin.double()
    twin.load_state_dict(made.state_dict())
    return made.to(device, dtype), twin.eval().requires_grad_(requires_grad=False).model


@cache
def ratio(dtype, device):
    """Return a ratio with weights at random, and its network in float64 on the CPU."""
    torch.manual_seed(0)
    frames = torch.ones(DATA), 2 * torch.ones(DATA), torch.ones(PARAMETERS), 3 * torch.ones(PARAMETERS)
    made = GoldenRatio(perturbed(RatioModel(*frames, width=8, depth=2), 0.3)).requires_grad_(requires_grad=False)
    twin = RatioModel(*frames, width=8, depth=2).double()
    twin.load_state_dict(made.model.state_dict())
    return made.to(device, dtype), twin.requires_grad_(requires_grad=False)


LAYOUTS = {
    "plain": lambda value, axis: value,
    "column by column": lambda value, axis: value.mT.contiguous().mT,
    "axes turned round": lambda value, axis: value.movedim(axis, 0).contiguous().movedim(0, axis),
    "every other": lambda value, axis: torch.stack([value, value + 7], axis + 1).flatten(axis, axis + 1)[
        (slice(None),) * axis + (slice(None, None, 2),)
    ],
    "cut out": lambda value, axis: torch.cat([value + 5, value, value - 5], axis).narrow(
        axis, value.shape[axis], value.shape[axis]
    ),
    "repeated": lambda value, axis: value.narrow(axis, 0, 1).expand(value.shape) if value.shape[axis] else value,
    "repeated along all": lambda value, axis: (
        value.reshape(-1, value.shape[-1])[:1].expand(value.shape) if value.numel() else value
    ),
}


class Made(NamedTuple):
    """How a tensor is made."""

    shape: tuple[int, ...]
    layout: str
    axis: int
    scale: float
    dtype: torch.dtype
    seed: int

    def tensor(self, device="cpu"):
        """Return it, a leaf of any graph, with the strides of its layout."""
        generator = torch.Generator().manual_seed(self.seed)
        value = (self.scale * torch.randn(self.shape, generator=generator, dtype=torch.float64)).to(self.dtype)
        if value.ndim > 1:
            value = LAYOUTS[self.layout](value, self.axis % (value.ndim - 1))
        return value.to(device).detach()


def made(shape, scale, dtype):
    """Return a strategy for tensors of a shape."""
    return st.builds(
        Made,
        st.just(tuple(shape)),
        st.sampled_from(sorted(LAYOUTS)),
        st.integers(0, 2),
        st.just(scale),
        st.just(dtype),
        st.integers(0, 99),
    )


class Case(NamedTuple):
    """An estimator and what it is called with."""

    name: str
    parameters: int
    dtype: torch.dtype
    device: str
    x: Made
    theta: Made
    mode: str
    chunk: int


MODES = {"gradients": nullcontext, "none": torch.no_grad, "inference": torch.inference_mode}


@st.composite
def calls(draw, names, shapes):
    """Draw a case whose shapes of x and theta come from another strategy."""
    dtype = draw(st.sampled_from([torch.float64, torch.float32]))
    scale = draw(st.sampled_from([1.0, 1.0, 0.0, 1e3, 1e6] if dtype is torch.float64 else [1.0, 3.0, 0.0]))
    types = [*[dtype] * 4, torch.float32 if dtype is torch.float64 else torch.float64]
    x, theta = draw(shapes)
    parameters = PARAMETERS if names == ["ratio"] else draw(st.sampled_from([PARAMETERS, PARAMETERS, 0]))
    return Case(
        draw(st.sampled_from(names)),
        parameters,
        dtype,
        draw(st.sampled_from(DEVICES)),
        draw(made((*x, DATA), scale, draw(st.sampled_from(types)))),
        draw(made((*theta, parameters), min(scale, 1e3), draw(st.sampled_from(types)))),
        draw(st.sampled_from(["gradients", *MODES])),
        draw(st.sampled_from([4096, 1, 2, 3])),
    )


@st.composite
def as_sbi(draw):
    """Draw leading axes of x and theta as sbi has them: (sample, batch) or (batch,), equal or one."""
    sample, batch = draw(st.sampled_from([1, 1, 2, 3, 0])), draw(st.sampled_from([2, 3, 4, 1, 0]))
    shapes = []
    for _ in range(2):
        axes = draw(st.sampled_from([sample, 1])), draw(st.sampled_from([batch, batch, 1]))
        shapes.append(axes[1:] if axes[0] == 1 and draw(st.booleans()) else axes)
    return tuple(shapes)


@st.composite
def batches(draw):
    """Draw leading axes of x, any number of them, and those of theta that broadcast to them."""
    x = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 0]), max_size=3)))
    theta = tuple(draw(st.sampled_from([axis, 1])) for axis in x)
    return x, theta


@st.composite
def equal(draw):
    """Draw one shape for both."""
    axes = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 0]), max_size=3)))
    return axes, axes


def plain(value, shape):
    """Return contiguous rows in float64 on the CPU of a tensor that broadcasts to a shape, and where they come from."""
    leaf = value.detach().cpu().double().clone(memory_format=torch.contiguous_format).requires_grad_()
    return leaf, list(leaf.expand(*shape, leaf.shape[-1]).reshape(math.prod(shape), leaf.shape[-1]))


def one_by_one(function, x, theta, shape):
    """Return function(x, theta) row by row in float64, and its gradients by x and theta."""
    (x, xs), (theta, thetas) = plain(x, shape), plain(theta, shape)
    rows = [function(a.contiguous()[None], b.contiguous()[None])[0] for a, b in zip(xs, thetas, strict=True)]
    total = sum((weight(i) * row.sum() for i, row in enumerate(rows)), torch.zeros(()).double())
    gradients = torch.autograd.grad(total, (x, theta), allow_unused=True) if rows else (None, None)
    zero = [torch.zeros_like(leaf) if by is None else by for leaf, by in zip((x, theta), gradients, strict=True)]
    value = torch.stack(rows).detach() if rows else None
    return value, zero


def weight(row):
    """Return the weight of a row in the sum whose gradient is taken: another for each."""
    return 1.0 + 0.5 * (row % 5)


def assert_same(value, expected, dtype):
    """Assert equality up to rounding, relative to the largest number of the row."""
    assert value.shape == expected.shape
    size = expected.abs().amax(-1, keepdim=True) if expected.numel() and expected.ndim else expected.abs()
    assert ((value.cpu().double() - expected).abs() <= TOLERANCE[dtype] * (1 + size)).all(), (value, expected)


def check(case, call, oracle, shape, feature_axes=()):
    """Assert that a call gives the values and the gradients of the oracle."""
    x, theta = case.x.tensor(case.device), case.theta.tensor(case.device)
    graph = case.mode == "gradients"
    x.requires_grad_(graph), theta.requires_grad_(graph)
    with mock.patch.object(module, "rows_at_work", return_value=case.chunk), MODES[case.mode]():
        value = call(x, theta)
    expected, by = one_by_one(oracle, x, theta, shape)
    assert tuple(value.shape) == (*shape, *feature_axes)
    if expected is None:
        return
    coarse = torch.float32 if torch.float32 in (case.dtype, x.dtype, theta.dtype) else torch.float64
    flat = value.detach().reshape(len(expected), -1)
    assert_same(flat, expected.reshape(len(expected), -1), coarse)
    if graph and value.requires_grad:
        weights = torch.tensor([weight(row) for row in range(len(expected))]).to(flat)[:, None]
        total = (value.reshape(len(expected), -1) * weights).sum()
        found = torch.autograd.grad(total, (x, theta), allow_unused=True)
        for leaf, gradient, wanted in zip((x, theta), found, by, strict=True):
            assert_same(
                (torch.zeros_like(leaf) if gradient is None else gradient).reshape(-1), wanted.reshape(-1), coarse
            )


@holds_for(calls(DENSITIES, as_sbi()))
def test_log_prob_is_that_of_each_row_alone(case):
    made, model = estimator(case.name, case.parameters, case.dtype, case.device)
    shape = torch.broadcast_shapes(*(two_axes(each.shape[:-1]) for each in (case.x, case.theta)))
    check(case, made.log_prob, model.log_prob, shape)


def two_axes(shape):
    return (1, *shape)[-2:]


@holds_for(calls(list(SPECS), as_sbi()))
def test_the_loss_is_that_of_each_row_alone(case):
    made, model = estimator(case.name, case.parameters, case.dtype, case.device)
    shape = torch.broadcast_shapes(*(two_axes(each.shape[:-1]) for each in (case.x, case.theta)))
    check(
        case,
        lambda x, theta: made.loss(x, condition=theta).view(shape),
        lambda x, theta: joint(model, Batch(theta, x)),
        shape,
    )


@holds_for(calls(DENSITIES, batches()))
def test_a_models_log_prob_is_that_of_each_row_alone(case):
    _, model = estimator(case.name, case.parameters, torch.float64, "cpu")
    case = case._replace(dtype=torch.float64, device="cpu", x=wide(case.x), theta=wide(case.theta))
    check(case, model.log_prob, model.log_prob, case.x.shape[:-1])


def wide(made):
    return made._replace(dtype=torch.float64)


@holds_for(calls(list(SPECS), batches()))
def test_a_models_coordinates_are_those_of_each_row_alone(case):
    _, model = estimator(case.name, case.parameters, torch.float64, "cpu")
    case = case._replace(dtype=torch.float64, device="cpu", x=wide(case.x), theta=wide(case.theta))
    check(case, model.encode, model.encode, case.x.shape[:-1], (model.chart.manifold_dim,))


@holds_for(calls(list(SPECS), batches()))
def test_a_models_projection_is_that_of_each_row_alone(case):
    _, model = estimator(case.name, case.parameters, torch.float64, "cpu")
    case = case._replace(dtype=torch.float64, device="cpu", x=wide(case.x), theta=wide(case.theta))
    check(case, model.project, model.project, case.x.shape[:-1], (DATA,))


@holds_for(calls(["ratio"], equal()))
def test_a_ratio_is_that_of_each_row_alone(case):
    made, model = ratio(case.dtype, case.device)
    check(case, lambda x, theta: made.unnormalized_log_ratio(theta, x), model.log_ratio, case.x.shape[:-1])


@st.composite
def draws(draw):
    """Draw a case to sample from, and the shape of its draws."""
    batch = draw(st.sampled_from([0, 1, 2, 5]))
    case = draw(calls(list(SPECS), st.just(((1,), (batch,)))))
    return case, tuple(draw(st.lists(st.sampled_from([1, 2, 3, 0]), max_size=2)))


@holds_for(draws())
def test_draws_are_those_of_the_plain_rows_in_order(example):
    case, shape = example
    made, _ = estimator(case.name, case.parameters, case.dtype, case.device)
    theta = case.theta.tensor(case.device)
    with seeded(case.x.seed), MODES[case.mode]():
        x = made.sample(shape, theta)
    rows = theta.to(case.dtype).contiguous().repeat(math.prod(shape), 1)
    with seeded(case.x.seed), torch.no_grad():
        expected = made.model.sample(rows).reshape(*shape, len(theta), DATA)
    assert x.shape == expected.shape
    torch.testing.assert_close(x, expected, rtol=TOLERANCE[case.dtype], atol=TOLERANCE[case.dtype] * 10)


@holds_for(draws().filter(lambda example: example[0].name != "PAE"))
def test_draws_come_with_their_own_log_prob(example):
    case, shape = example
    made, model = estimator(case.name, case.parameters, case.dtype, case.device)
    theta = case.theta.tensor(case.device)
    with seeded(case.x.seed), mock.patch.object(module, "rows_at_work", return_value=case.chunk), MODES[case.mode]():
        x, log_prob = made.sample_and_log_prob(torch.Size(shape), theta)
    assert log_prob.shape == x.shape[:-1] == (*shape, len(theta))
    if x.numel():
        rows = theta.cpu().double().contiguous().repeat(math.prod(shape), 1)
        expected = torch.stack(
            [model.log_prob(a[None], b[None])[0] for a, b in zip(x.cpu().double().reshape(-1, DATA), rows, strict=True)]
        )
        assert_same(log_prob.detach().reshape(-1, 1), expected.reshape(-1, 1), torch.float32)
