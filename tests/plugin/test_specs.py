import pytest
import torch

from mfsbi import AF, FOM, PAE, PIE, MeFlow, MFlow
from tests.problems import SMALL, SPECS, off_plane, on_plane, plane


@pytest.fixture(params=SPECS)
def spec(request):
    return SPECS[request.param]


def test_a_spec_builds_an_estimator_of_the_right_shapes(spec):
    estimator = spec(*plane(theta_dim=2))
    assert (tuple(estimator.input_shape), tuple(estimator.condition_shape)) == ((3,), (2,))
    assert estimator.model.chart.manifold_dim == (3 if isinstance(spec, AF) else 2)
    assert estimator.sample((2,), torch.zeros(4, 2)).shape == (2, 4, 3)


def test_a_new_manifold_is_the_plane_of_principal_components(spec):
    theta, x = plane()
    torch.testing.assert_close(spec(theta, x).model.project(x, theta), x, rtol=0, atol=1e-4)


def test_the_start_does_not_depend_on_the_order_of_features():
    theta, x = plane()
    x = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([2, 0, 1])
    torch.manual_seed(0)
    straight = SPECS["MFlow"](theta, x).model.project(x)
    torch.manual_seed(0)
    turned = SPECS["MFlow"](theta, x[:, order]).model.project(x[:, order])
    torch.testing.assert_close(turned, straight[:, order], rtol=0, atol=1e-4)


def test_weights_come_from_torchs_generator(spec):
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(spec(*plane()).state_dict())
    assert all((states[0][name] == states[1][name]).all() for name in states[0])


def test_the_features_units_do_not_matter(spec):
    theta, x = plane()
    torch.manual_seed(0)
    one = spec(theta, x).model
    torch.manual_seed(0)
    other = spec(theta, 1e3 * x).model
    torch.testing.assert_close(1e3 * one.project(x, theta), other.project(1e3 * x, theta), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("kind", [MeFlow, PIE, PAE])
@pytest.mark.parametrize("dims", [3, 4])
def test_an_encoder_needs_fewer_dimensions_than_features(kind, dims):
    with pytest.raises(ValueError, match=f"`manifold_dim` should be below the number of features of x, 3.*got {dims}"):
        kind(dims)(*plane())


@pytest.mark.parametrize(
    ("decode", "encode", "message"),
    [
        (on_plane, lambda x: off_plane(x)[:5], "`encode` should give finite u of shape"),
        (on_plane, lambda x: off_plane(x) / 0, "`encode` should give finite u"),
        (lambda u: on_plane(u)[:, :2], off_plane, r"`decode` should give finite x of shape \(400, 3\)"),
        (lambda u: 2 * on_plane(u), off_plane, "`encode` should undo `decode`"),
    ],
)
def test_functions_that_do_not_fit_are_refused(decode, encode, message):
    with pytest.raises(ValueError, match=message):
        FOM(decode, encode, SMALL)(*plane())


def test_a_manifold_that_depends_on_theta_needs_it():
    theta, x = plane()
    model = SPECS["PIE, conditional"](theta, x).model
    with pytest.raises(ValueError, match="depends on theta: pass `theta`"):
        model.project(x)
    assert model.distance(x, theta).shape == (400,)


@pytest.mark.parametrize("dims", [3, 4])
def test_an_m_flow_without_codimension_is_an_ambient_flow_and_says_so(dims):
    with pytest.warns(UserWarning, match=f"`manifold_dim` is {dims} and x has 3 features.*ordinary conditional flow"):
        model = MFlow(dims, SMALL, SMALL)(*plane()).model
    assert model.chart.manifold_dim == 3


def spoiled(value):
    theta, x = plane()
    x[7, 1] = value
    return theta, x


BAD = {
    "NaN": (spoiled(float("nan")), "`x` should be finite; 1 of 400 rows hold NaN or infinity, the first of them row 7"),
    "infinity": (spoiled(float("inf")), "`x` should be finite; 1 of 400 rows"),
    "rows": ((plane()[0][:5], plane()[1]), "got 5 rows of `theta` and 400 of `x`"),
    "one row": ((plane()[0][:1], plane()[1][:1]), "at least 2 rows of `x`.*got 1"),
    "constant": ((plane()[0], torch.cat([plane()[1], torch.ones(400, 1)], 1)), r"features \[3\] are constant"),
    "integers": ((plane()[0], plane()[1].long()), "floating point.*got torch.int64"),
    "no features": ((plane()[0], plane()[1][:, :0]), r"got torch.float32 and \(400, 0\)"),
    "axes": (
        (plane()[0], plane()[1][:, 0]),
        r"`x` should be of floating point and shape \(rows, features\); got torch.float32 and \(400,\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_simulations_are_refused(name, spec):
    data, message = BAD[name]
    if isinstance(spec, FOM) and name == "constant":
        pytest.skip("a given manifold may be anywhere")
    with pytest.raises(ValueError, match=message):
        spec(*data)


def test_a_parameter_that_never_varies_is_left_as_it_is(spec):
    _, x = plane()
    estimator = spec(torch.ones(400, 1), x)
    assert torch.isfinite(estimator.loss(x[:5], torch.ones(5, 1))).all()
