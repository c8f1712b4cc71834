"""The matrix element against spinors, currents and the epsilon tensor, and against tabulated points."""

from itertools import permutations

import numpy as np
import pytest
import torch

from simulators.lhc.amplitude import G0, HIGGS_MASS, N0, ROOT_S, W_MASS, HardProcess, Partons, amplitude_of, fractions
from simulators.lhc.partons import flux

METRIC = np.diag([1.0, -1.0, -1.0, -1.0])
SIGMA_BAR = np.array(
    [[[1, 0], [0, 1]], [[0, -1], [-1, 0]], [[0, 1j], [-1j, 0]], [[-1, 0], [0, 1]]],
)
EPSILON = np.zeros((4, 4, 4, 4))
for order in permutations(range(4)):
    EPSILON[order] = np.linalg.det(np.eye(4)[list(order)])

# k3, eta3, k4, eta4, Dphi, y; x1, x2, w; G0 v_W, G0 v_Wtilde, G0 v_WW
POINTS = torch.tensor(
    [[60, 2.5, 80, -2.0, 1.2, 0.3], [45, 3.2, 600, -0.4, -2.8, 0.1], [350, 1.0, 250, -1.5, 2.4, -0.6]],
    dtype=torch.float64,
)
FRACTIONS = [[0.07477380788, 0.16445489, 0.0887702909], [0.05557166161, 0.1087821971, 0.1335908829]]
WEIGHTS = [0.3194095362, 8.172689774e-05, 2.351006101e-05]
VERTICES = [
    [1.4089247 + 0.23585502j, -1.9498495 + 0.17776891j, -0.73482134 - 0.47171005j],
    [38.854491 - 1.4252467j, 5.8388558 - 8.250097j, 16.899224 + 2.8504935j],
    [4.4788574 + 3.256624j, -26.040889 - 7.9019379j, 31.593068 - 6.513248j],
]


def fractions_at(points):
    return fractions(Partons(*points[:, :5].T), points[:, 5])


def evaluated(points):
    x1, x2 = fractions_at(points)
    return HardProcess.at(Partons(*points[:, :5].T), x1, x2), x1, x2


def squared(process, theta):
    return amplitude_of(process.vertices.permute(2, 0, 1), theta).square().sum(-1)


def random_points(rows, seed=0):
    u = torch.rand(10 * rows, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    low = torch.tensor([np.log(20), -4, np.log(20), -4, -np.pi, -2.5], dtype=torch.float64)
    high = torch.tensor([np.log(800), 4, np.log(800), 4, np.pi, 2.5], dtype=torch.float64)
    points = low + (high - low) * u
    points[:, [0, 2]] = points[:, [0, 2]].exp()
    x1, x2 = fractions_at(points)
    points = points[(x1 < 1) & (x2 < 1)][:rows]
    assert len(points) == rows
    return points


def massless(k, eta, phi):
    return np.array([k * np.cosh(eta), k * np.cos(phi), k * np.sin(phi), k * np.sinh(eta)])


def left_handed(p):
    """Return the Weyl spinor of helicity -1/2, of norm 2E."""
    direction = p[1:] / p[0]
    sigma = np.array(
        [[direction[2], direction[0] - 1j * direction[1]], [direction[0] + 1j * direction[1], -direction[2]]]
    )
    values, vectors = np.linalg.eigh(sigma)
    return np.sqrt(2 * p[0]) * vectors[:, np.argmin(values)]


def by_spinors(point):
    """Return A0 and the vertices 1, G0 v_i from currents and the vertex of the module's docstring, up to a phase."""
    k3, eta3, k4, eta4, turn, y = point
    x1, x2 = (float(x) for x in fractions_at(torch.tensor(point, dtype=torch.float64)[None]))
    p1, p2 = 0.5 * ROOT_S * x1 * np.array([1, 0, 0, 1]), 0.5 * ROOT_S * x2 * np.array([1, 0, 0, -1])
    p3, p4 = massless(k3, eta3, turn + 0.4), massless(k4, eta4, 0.4)
    q1, q2 = p1 - p3, p2 - p4
    higgs = q1 + q2
    assert higgs @ METRIC @ higgs == pytest.approx(HIGGS_MASS**2, rel=1e-6)
    currents = [
        METRIC @ np.einsum("a,mab,b->m", left_handed(out).conj(), SIGMA_BAR, left_handed(into))
        for out, into in ((p3, p1), (p4, p2))
    ]
    low1, low2 = METRIC @ q1, METRIC @ q2
    tensors = [
        METRIC,
        G0 / 2 * (2 * np.outer(q2, q1) - HIGGS_MASS**2 * METRIC),
        2 * G0 * np.einsum("mnab,a,b->mn", EPSILON, low1, low2),
        2 * G0 * ((q1 @ METRIC @ q2) * METRIC - np.outer(q2, q1)),
    ]
    contracted = np.array([currents[0] @ tensor @ currents[1] for tensor in tensors])
    propagators = np.prod([q @ METRIC @ q - W_MASS**2 for q in (q1, q2)])
    return contracted / propagators


def test_the_closed_form_is_that_of_spinors_and_the_epsilon_tensor():
    points = random_points(100)
    process, _, _ = evaluated(points)
    theta = torch.randn(100, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = 4 * process.standard_model * squared(process, theta)
    for row, point in enumerate(points.numpy()):
        amplitude = by_spinors(point)
        theirs = abs(np.array([1, *theta[row].numpy()]) @ amplitude) ** 2
        assert float(ours[row]) == pytest.approx(theirs, rel=1e-10)
        vertices = torch.view_as_complex(process.vertices[..., row].contiguous()).numpy()
        np.testing.assert_allclose(vertices, amplitude / amplitude[0], rtol=1e-9, atol=1e-9 * abs(vertices).max())


def test_an_i_in_the_vertex_that_violates_cp_would_show():
    point = random_points(1)[0]
    amplitude = by_spinors(point.numpy())
    process, _, _ = evaluated(point[None])
    theta = torch.tensor([[0.5, 0.5, 0.5]], dtype=torch.float64)
    ours = float(4 * process.standard_model * squared(process, theta))
    wrong = abs(np.array([1, 0.5, 0.5j, 0.5]) @ amplitude) ** 2
    assert abs(wrong / ours - 1) > 1e-3


def test_tabulated_points():
    process, x1, x2 = evaluated(POINTS)
    torch.testing.assert_close(torch.stack([x1, x2]), torch.tensor(FRACTIONS, dtype=torch.float64), rtol=1e-9, atol=0)
    weights = flux(x1, x2) * process.standard_model
    torch.testing.assert_close(weights, torch.tensor(WEIGHTS, dtype=torch.float64), rtol=1e-9, atol=0)
    np.testing.assert_allclose(
        torch.view_as_complex(process.vertices.permute(2, 0, 1).contiguous())[:, 1:].numpy(), VERTICES, rtol=1e-7
    )
    assert pytest.approx(2.18188869e-11, rel=1e-8) == N0


def test_exchanged_beams_change_nothing():
    points = random_points(50)
    turned = points[:, [2, 3, 0, 1, 4, 5]] * torch.tensor([1, -1, 1, -1, 1, -1])
    (one, x1, x2), (two, other_x1, other_x2) = evaluated(points), evaluated(turned)
    torch.testing.assert_close(torch.stack([x1, x2]), torch.stack([other_x2, other_x1]), rtol=1e-12, atol=0)
    torch.testing.assert_close(one.standard_model, two.standard_model, rtol=1e-10, atol=0)
    torch.testing.assert_close(one.vertices, two.vertices, rtol=1e-9, atol=1e-9)
