"""The LHC process: its likelihood, score and gold against its events, and posteriors against their truth.

Tolerances are those of the process' specification; negative controls show that the checks can fail.
"""

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from simulators.lhc.decay import observe
from simulators.lhc.detector import PHI, accepted, encode
from simulators.lhc.hard_process import COMPONENTS, load_grids, of_component
from simulators.lhc.likelihood import SIGMA, QuadraticForm
from simulators.lhc.process import WBFHiggs
from tests.laws import exam_p_value

pytestmark = pytest.mark.slow

EVENTS = 200_000
POINTS = [(0.0, 0.0, 0.0), (0.5, 0.0, 0.0), (-1.0, -1.0, 0.0), (0.3, -0.4, 0.5)]
PROCESS = WBFHiggs()


def z_values(values):
    """Return mean over its standard error of each column."""
    return values.mean(0) / values.std(0) * len(values) ** 0.5


def repeated(theta, rows=EVENTS):
    return torch.tensor(theta, dtype=torch.float64).expand(rows, -1)


@pytest.fixture(scope="module", params=POINTS, ids=str)
def sample(request):
    """Return theta, events with their gold, and their quadratic forms."""
    theta = repeated(request.param)
    gold = PROCESS.simulate_with_gold(theta, seed=POINTS.index(request.param))
    return theta, gold, PROCESS.likelihood(gold.x)


def test_every_event_has_a_likelihood(sample):
    theta, gold, form = sample
    assert torch.isfinite(form.log_prob(theta)).all()
    assert accepted(encode(gold.x)).all()
    assert (PROCESS.distance(gold.x) / gold.x.abs().amax(-1)).max() < 1e-12


def test_scores_are_zero_on_average(sample):
    theta, gold, form = sample
    assert z_values(gold.joint_score).abs().max() < 4
    assert z_values(form.score(theta)).abs().max() < 4


def test_the_score_is_what_the_joint_score_is_on_average(sample):
    theta, gold, form = sample
    score = form.score(theta)
    pt_a1, _, _, _, _, _, pt_j1, eta_j1, phi_j1, _, pt_j2, eta_j2, phi_j2, _ = encode(gold.x).unbind(-1)
    turn = torch.where(eta_j1 > eta_j2, phi_j1 - phi_j2, phi_j2 - phi_j1)
    functions = [torch.ones_like(turn), pt_j1.log(), pt_j2.log(), turn.sin(), turn.cos(), eta_j1 * eta_j2, pt_a1.log()]
    functions += [(eta_j1 - eta_j2).cosh().clamp(max=100), *score.clamp(-20, 20).unbind(-1)]
    residual = gold.joint_score - score
    values = torch.cat([residual * function[:, None] for function in functions], dim=-1)
    assert z_values(values).abs().max() < 4


def test_a_score_of_the_wrong_sign_would_show(sample):
    theta, gold, form = sample
    wrong = gold.joint_score - flipped(form).score(theta)
    assert z_values(wrong * gold.joint_score.clamp(-5, 5)).abs().max() > 10


@pytest.mark.parametrize("other", [(0, 0, 0), (0.05, 0, 0), (-0.1, 0, 0), (0, 0.1, 0), (-1, -1, 0)])
def test_densities_of_two_parameters_have_one_norm(other):
    theta = repeated((0.5, 0, 0))
    gold = PROCESS.simulate_with_gold(theta, theta_ref=torch.tensor(other, dtype=torch.float64), seed=7)
    form = PROCESS.likelihood(gold.x)
    ratio = (form.log_prob(repeated(other)) - form.log_prob(theta)).exp()
    assert z_values(ratio[:, None] - 1).abs() < 4
    assert z_values((-gold.joint_log_ratio).exp()[:, None] - 1).abs() < 4


@pytest.mark.parametrize(
    ("theta", "asymmetry"),
    [
        ((0, 0, 0), 0.0),
        ((0, 0.1, 0), -0.352),
        ((0, -0.1, 0), 0.353),
        ((0, 0.3, 0), -0.438),
        ((0.5, 0.5, 0), -0.615),
        ((0.5, -0.5, 0), 0.612),
    ],
)
def test_the_operator_that_violates_cp_turns_the_jets(theta, asymmetry):
    chart = encode(PROCESS.simulate(repeated(theta, 100_000), seed=3))
    turn = torch.where(chart[:, 7] > chart[:, 11], chart[:, 8] - chart[:, 12], chart[:, 12] - chart[:, 8])
    assert float(turn.sin().sign().mean()) == pytest.approx(asymmetry, abs=0.013)


@pytest.mark.parametrize("parameters", [2, 3])
def test_features_are_spread_as_specified_and_as_published(parameters):
    process = WBFHiggs(parameters)
    theta = torch.randn(EVENTS, parameters, generator=torch.Generator().manual_seed(1))
    x = process.simulate(theta, seed=2)
    table = Path(__file__).parents[1] / "simulators" / "lhc" / "features.csv"
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["feature"] for row in rows] == list(process.feature_names)
    mean, std = (
        torch.tensor([float(row[f"{name}_{parameters}"]) for row in rows], dtype=torch.float64)
        for name in ("mean", "std")
    )
    error = x.std(0) / EVENTS**0.5
    error_of_std = (x - x.mean(0)).square().std(0) / (2 * x.std(0)) / EVENTS**0.5
    odd = mean.abs() < 0.02 * std  # by symmetry their means are zero, and those of the table are noise
    assert ((x.mean(0) - torch.where(odd, 0, mean)).abs() < 5 * error + 0.002 * mean.abs() * ~odd).all()
    assert ((x.std(0) - std).abs() < 5 * error_of_std + 0.002 * std).all()
    published = torch.tensor([float(row["published_std"]) for row in rows], dtype=torch.float64)
    others = torch.tensor([row["feature"] != "m_aa" for row in rows])
    if parameters == 2:
        assert ((x.std(0) / published - 1).abs()[others] < 0.1).all()


def test_the_cross_section_is_what_unweighted_events_say():
    """Events of two components are mixed, weighed by both: the weight is bounded. 2 pi is the common azimuth."""
    grids, generator, count = load_grids(), torch.Generator().manual_seed(4), 500_000
    events = [of_component(which, count, grids, generator) for which in range(COMPONENTS)]
    seen = [accepted(observe(each, generator)) for each in events]
    for p, q in itertools.combinations_with_replacement(range(4), 2):
        parts = []
        for which in {p, q}:
            vertices = events[which].vertices
            squares = vertices.square().sum(-1) / grids.integrals
            density = squares[:, p] if p == q else 0.5 * (squares[:, p] + squares[:, q])
            parts.append(2 * np.pi * (vertices[:, p] * vertices[:, q]).sum(-1) / density * seen[which])
        values = torch.cat(parts)
        error = 5 * float(values.std()) / len(values) ** 0.5 + 1e-3 * float(values.abs().mean())
        assert float(values.mean()) == pytest.approx(float(SIGMA[p, q]), abs=error)


def coordinates(chart):
    """Return coordinates in which events are a cloud, and ln |d coordinates / d chart|.

    They are the asymmetry and mass of the photons, pseudorapidities, azimuths from the first photon, and transverse
    momenta and masses of the jets over what balance and response make of them.
    """
    pt_a, eta_a, phi_a, pt_b, eta_b, phi_b, pt_1, eta_1, phi_1, m_1, pt_2, eta_2, phi_2, m_2 = chart.unbind(-1)
    mass = (2 * pt_a * pt_b * ((eta_a - eta_b).cosh() - (phi_a - phi_b).cos())).log() - 2 * np.log(125.0)
    turn = [torch.remainder(phi - phi_a + np.pi, 2 * np.pi) - np.pi for phi in (phi_b, phi_1, phi_2)]
    across = (phi_2 - phi_1).sin()
    k_1 = (-(pt_a * (phi_2 - phi_a).sin() + pt_b * (phi_2 - phi_b).sin()) / across).abs()
    k_2 = (-(pt_a * (phi_a - phi_1).sin() + pt_b * (phi_b - phi_1).sin()) / across).abs()
    jets = [(pt_1 / k_1).log(), (pt_2 / k_2).log(), (m_1 / pt_1).log(), (m_2 / pt_2).log()]
    y = torch.stack([(pt_a / pt_b).log(), mass, eta_a, eta_b, eta_1, eta_2, *turn, *jets], dim=-1)
    return y, np.log(2) - (pt_a * pt_b * pt_1 * pt_2 * m_1 * m_2).log()


def charts(y, generator):
    """Return the charts of coordinates, with random azimuths of the first photon."""
    asymmetry, mass, eta_a, eta_b, eta_1, eta_2, turn_b, turn_1, turn_2, over_1, over_2, heavy_1, heavy_2 = y.unbind(-1)
    product = (mass + 2 * np.log(125.0)).exp() / (2 * ((eta_a - eta_b).cosh() - turn_b.cos()))
    pt_a, pt_b = (product * asymmetry.exp()).sqrt(), (product / asymmetry.exp()).sqrt()
    across = (turn_2 - turn_1).sin()
    pt_1 = (-(pt_a * turn_2.sin() + pt_b * (turn_2 - turn_b).sin()) / across).abs() * over_1.exp()
    pt_2 = (-(-pt_a * turn_1.sin() + pt_b * (turn_b - turn_1).sin()) / across).abs() * over_2.exp()
    phi_a = 2 * np.pi * torch.rand(len(y), generator=generator, dtype=torch.float64)
    columns = [pt_a, eta_a, phi_a, pt_b, eta_b, phi_a + turn_b]
    columns += [pt_1, eta_1, phi_a + turn_1, pt_1 * heavy_1.exp(), pt_2, eta_2, phi_a + turn_2, pt_2 * heavy_2.exp()]
    return torch.stack(columns, dim=-1)


@pytest.mark.parametrize("theta", POINTS[:3], ids=str)
def test_the_density_is_normalised(theta):
    """E_p[q/p 1(q/p < W)] = P_q(accepted, q/p < W) for a mixture of Gaussians q, and not if a Jacobian is missing."""
    x = PROCESS.simulate(repeated(theta, 300_000), seed=11)
    chart = encode(x)
    y, _ = coordinates(chart)
    mixture = GaussianMixture(40, covariance_type="full", max_iter=300, tol=0.01, random_state=0).fit(
        y[:20_000].numpy()
    )

    def log_ratios(chart):
        """Return ln q/p and, of the same with |sin(phi_j1 - phi_j2)| left out of p, ln q/p."""
        y, log_volume = coordinates(chart)
        log_q = torch.from_numpy(mixture.score_samples(y.numpy())) + log_volume - np.log(2 * np.pi)
        log_p = PROCESS.likelihood(PROCESS.decode(chart)).log_prob(torch.tensor(theta, dtype=torch.float64))
        across = (chart[:, PHI[3]] - chart[:, PHI[2]]).sin().abs().log()
        return log_q - log_p, log_q - log_p - across

    drawn = torch.from_numpy(mixture.sample(300_000)[0])
    inside = (drawn[:, 6:9].abs() < np.pi).all(-1)
    other = charts(drawn[inside], torch.Generator().manual_seed(5))
    other = other[accepted(other)]
    of_p, of_q = log_ratios(chart[20_000:]), log_ratios(other)
    for bound in (3, 10, 30):
        (right, error), (wrong, _) = (norm(p, q, bound, len(drawn)) for p, q in zip(of_p, of_q, strict=True))
        print(theta, bound, round(right, 4), round(error, 4), round(wrong, 4))  # noqa: T201
        assert abs(right - 1) < 0.01
        assert abs(wrong - 1) > 0.1


def norm(log_ratio_p, log_ratio_q, bound, drawn):
    """Return the ratio of both sides and its error."""
    left = torch.where(log_ratio_p < np.log(bound), log_ratio_p.exp(), 0)
    right = float((log_ratio_q < np.log(bound)).sum()) / drawn
    error = float(left.std() / left.mean()) / len(left) ** 0.5 + ((1 - right) / right / drawn) ** 0.5
    return float(left.mean()) / right, error


def flipped(form):
    """Return the likelihood with the sign of the operator that violates CP wrong."""
    sign = torch.tensor([1.0, 1.0, -1.0, 1.0], dtype=torch.float64)
    return QuadraticForm(form.matrix * sign[:, None] * sign, form.log_factor)


@pytest.mark.parametrize("parameters", [2, 3])
def test_exact_posteriors_are_calibrated_and_wrong_ones_are_not(parameters):
    """Hundreds of sets of 20 events, posteriors by importance sampling from a prior with more points near zero."""
    process, sets, points = WBFHiggs(parameters), {2: 1000, 3: 600}[parameters], 100_000
    generator = torch.Generator().manual_seed(6)
    theta = torch.randn(sets, parameters, generator=generator, dtype=torch.float64)
    form = process.likelihood(process.simulate(theta[:, None].expand(-1, 20, -1), seed=8))
    proposal = torch.randn(points, parameters, generator=generator, dtype=torch.float64)
    proposal[: points // 2] *= 0.15
    wide, near = (torch.distributions.Normal(0.0, scale).log_prob(proposal).sum(-1) for scale in (1.0, 0.15))
    log_weight = wide - torch.logaddexp(wide, near)
    for likelihood, right in ((form, True), (flipped(form), False)):
        ranks, levels = [], []
        for one, truth in enumerate(theta):
            events = QuadraticForm(likelihood.matrix[one], likelihood.log_factor[one])
            values = events.log_likelihood(torch.cat([truth[None], proposal]))
            weight = (values[1:] + log_weight).softmax(0)
            density = values - 0.5 * torch.cat([truth[None], proposal]).square().sum(-1)
            ranks.append((weight[:, None] * (proposal < truth)).sum(0))
            levels.append((weight * (density[1:] > density[0])).sum())
        p_values = [exam_p_value(column) for column in [*torch.stack(ranks).unbind(-1), torch.stack(levels)]]
        covered = [float((torch.stack(levels) < level).double().mean()) for level in (0.5, 0.9)]
        print(parameters, right, p_values, covered)  # noqa: T201
        if right:
            assert min(p_values) > 0.01
            assert covered == [pytest.approx(0.5, abs=0.05), pytest.approx(0.9, abs=0.05)]
        else:
            assert min(p_values) < 1e-3
            assert covered[1] < 0.5
