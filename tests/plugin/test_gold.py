"""Joint scores on their way through `ManifoldNLE`."""

from itertools import product

import pytest
import torch
from sbi.utils import BoxUniform

from mfsbi import (
    ManifoldNLE,
    alternating,
    ambient,
    density_only,
    load,
    load_trainer,
    save,
    sequential,
    simultaneous,
)
from mfsbi.gold import simulate
from mfsbi.train.losses import Alices, Scandal, latent_nll, reconstruction
from mfsbi.train.schedules import Phase
from simulators.polynomial import PolynomialSurface
from tests.problems import SPECS, off_plane, on_plane

PRIOR = BoxUniform(-torch.ones(2), torch.ones(2))
FEW = {"training_batch_size": 60, "restarts": 0}
SCHEDULES = {
    "sequential": sequential(2),
    "alternating": alternating(2),
    "simultaneous": simultaneous(3),
    "ambient": ambient(1),
    "density_only": density_only(1),
}
LEARNED = ("MFlow", "MeFlow", "PAE")  # whose manifold likelihood cannot find
PLANES = ("PIE", "PIE, conditional", "PAE")  # whose density is not one on a manifold
AMBIENT = ("AF", "PIE", "PIE, conditional")  # densities of data space
PAIRS = [
    (spec, name)
    for spec, name in product(SPECS, SCHEDULES)
    if not (name == "ambient" and spec in LEARNED) and not (name == "simultaneous" and spec in PLANES)
]


def noisy_plane(rows=120, seed=0, thickness=0.0):
    """Return theta and gold: z ~ N(theta, 1)^2, u = z + N(0, 1)^2, x on a plane; the ratio is to theta of zero."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.rand(rows, 2, generator=generator) * 2 - 1
    z = theta + torch.randn(rows, 2, generator=generator)
    u = z + torch.randn(rows, 2, generator=generator)
    ratio = (theta * z - theta.square() / 2).sum(-1)
    x = on_plane(u) + thickness * torch.randn(rows, 3, generator=generator)
    return theta, {"x": x, "joint_score": z - theta, "joint_log_ratio": ratio}


def trainer(spec="AF", gold=True, rows=120, **settings):
    theta, brought = noisy_plane(rows, thickness=0.3 if spec in AMBIENT else 0.0)
    made = ManifoldNLE(PRIOR, SPECS[spec], show_progress_bars=False, **settings)
    return made.append_simulations(theta, **(brought if gold else {"x": brought["x"]}))


def state(estimator):
    return torch.cat([value.flatten() for value in estimator.state_dict().values()])


@pytest.mark.filterwarnings("ignore:The chart is not clearly better")  # of PIE, where reconstruction trains it
@pytest.mark.parametrize(("spec", "schedule"), PAIRS)
def test_every_spec_trains_with_joint_scores_in_every_schedule(spec, schedule, short_noise):
    made = trainer(spec)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        estimator = made.train(SCHEDULES[schedule], **FEW)
    bases = [getattr(phase.loss, "__name__", "") for phase in SCHEDULES[schedule]]
    expected = [name if name == "reconstruction" else f"scandal({name})" for name in bases]
    moved = [name for name in dict.fromkeys(expected) if name in made.history.losses]
    assert made.history.losses == moved
    assert any(name.startswith("scandal(") for name in moved)
    assert torch.isfinite(state(estimator)).all()


@pytest.mark.parametrize("spec", SPECS)
def test_without_weight_gold_changes_nothing(spec):
    plain, golden = (trainer(spec, gold=gold).train(max_num_epochs=2, score_weight=0, **FEW) for gold in (False, True))
    assert (state(golden) == state(plain)).all()


def test_the_score_is_learned_better_with_it():
    """u ~ N(theta, 2)^2: the score is (u - theta)/2."""
    errors = []
    for weight in (0, None):
        made = trainer("FOM", rows=600)
        made.train(max_num_epochs=16, training_batch_size=60, score_weight=weight)
        theta, brought = noisy_plane(500, seed=9)
        theta.requires_grad_()
        (score,) = torch.autograd.grad(made.estimator.log_prob(brought["x"][None], theta).sum(), theta)
        errors.append((score - (off_plane(brought["x"]) - theta.detach()) / 2).square().mean())
    assert errors[1] < 0.8 * errors[0]


def test_a_joint_log_ratio_alone_is_kept_but_not_learned_from():
    theta, brought = noisy_plane()
    made = ManifoldNLE(PRIOR, SPECS["FOM"], show_progress_bars=False)
    made.append_simulations(theta, brought["x"], joint_log_ratio=brought["joint_log_ratio"])
    assert (
        state(made.train(max_num_epochs=2, **FEW)) == state(trainer("FOM", gold=False).train(max_num_epochs=2, **FEW))
    ).all()
    assert (made.simulations[0].batch.joint_log_ratio == brought["joint_log_ratio"]).all()


def test_rounds_are_split_together_with_their_gold():
    made = trainer()
    theta, brought = noisy_plane(60, seed=1)
    made.append_simulations(theta, **brought, from_round=1)
    parts = made.simulations.split(0.25, 3, discard_prior_samples=False)
    assert [part.rows for part in parts] == [135, 45]
    for part in parts:
        rebuilt = part.joint_score + part.theta  # z, of which the ratio is a function
        torch.testing.assert_close(part.joint_log_ratio, (part.theta * rebuilt - part.theta.square() / 2).sum(-1))
    assert sum(part.rows for part in made.simulations.split(0.25, 3, discard_prior_samples=True)) == 60


def test_invalid_rows_are_dropped_with_their_gold():
    theta, brought = noisy_plane()
    x, score = brought["x"].clone(), brought["joint_score"].clone()
    x[7, 1], x[30, 0], score[30] = torch.nan, torch.inf, torch.nan  # a run that failed has no gold, either
    made = ManifoldNLE(PRIOR, SPECS["AF"])
    with pytest.warns(UserWarning, match="Dropped 2 of 120"):
        made.append_simulations(theta, x, joint_score=score, exclude_invalid_x=True)
    kept = made.simulations[0].batch
    rest = [row for row in range(120) if row not in {7, 30}]
    assert (kept.theta == theta[rest]).all()
    assert (kept.joint_score == score[rest]).all()


@pytest.mark.parametrize("gold", [True, False])
@pytest.mark.parametrize("field", ["joint_score", "joint_log_ratio"])
def test_rounds_with_and_without_gold_do_not_mix(field, gold):
    theta, brought = noisy_plane()
    first, second = ({field: brought[field]}, {}) if gold else ({}, {field: brought[field]})
    made = ManifoldNLE(PRIOR, SPECS["AF"]).append_simulations(theta, brought["x"], **first)
    said = "brought it" if gold else "came without it"
    with pytest.raises(ValueError, match=f"`{field}` should come with every round or with none; .* {said}"):
        made.append_simulations(theta, brought["x"], **second)
    assert len(made.simulations) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gold_is_converted_like_everything_else(dtype):
    theta, brought = noisy_plane()
    made = ManifoldNLE(PRIOR, SPECS["AF"])
    made.append_simulations(theta.to(dtype), **{name: value.to(dtype) for name, value in brought.items()})
    assert {field.dtype for field in made.simulations[0].batch.fields.values()} == {torch.float32}


WRONG = {
    "no normalisation": (
        lambda t: t + 1.5,
        r"For parameter 0, over all theta, the mean of 120 rows is .* z = \d\d\.\d",
    ),
    "the sign of it": (lambda t: t.abs(), "`joint_score` should average to zero"),
    "NaN": (
        lambda t: t.where(torch.arange(120)[:, None] != 4, torch.nan),
        "1 of 120 rows.*row 4.*Mend it in the simulator",
    ),
    "features": (lambda t: t[:, :1], r"should have shape \(rows, 2\), 2 being the features of theta; got .*\(120, 1\)"),
    "axes": (lambda t: t[:, 0], r"should have shape \(rows, 2\)"),
    "rows": (lambda t: t[:100], "120 rows of `theta` and 100 of `joint_score`"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_score_that_cannot_be_right_is_refused_before_training(name):
    spoil, message = WRONG[name]
    theta, brought = noisy_plane()
    made = ManifoldNLE(PRIOR, SPECS["AF"])
    with pytest.raises(ValueError, match=message):
        made.append_simulations(theta, brought["x"], joint_score=spoil(brought["joint_score"]))
    assert len(made.simulations) == 0


def test_the_digest_tells_gold_from_none_and_other_gold():
    digests = [trainer().simulations.digest(), trainer().simulations.digest(), trainer(gold=False).simulations.digest()]
    theta, brought = noisy_plane()
    other = brought | {"joint_score": brought["joint_score"].flip(0)}
    digests.append(ManifoldNLE(PRIOR, SPECS["AF"]).append_simulations(theta, **other).simulations.digest())
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_a_saved_trainer_keeps_its_gold_and_trains_on_as_the_other(tmp_path):
    made = trainer()
    theta, brought = noisy_plane(60, seed=1)
    made.append_simulations(theta, **brought, from_round=1).train(density_only(2), **FEW)
    save(made, tmp_path / "trainer")
    twin = load_trainer(tmp_path / "trainer", PRIOR)
    twin.show_progress_bars = False
    assert twin.simulations.digest() == made.simulations.digest() == twin.estimator.training_record["sha256"]
    assert twin.history.losses == ["scandal(latent_nll)"]
    assert (state(twin.train(density_only(1), **FEW)) == state(made.train(density_only(1), **FEW))).all()
    assert (state(load(tmp_path / "trainer")) == state(load(tmp_path / "trainer"))).all()


def test_one_seed_gives_one_estimator_with_gold_as_well():
    first, second, other = (trainer(seed=seed).train(max_num_epochs=2, **FEW) for seed in (1, 1, 2))
    assert (state(first) == state(second)).all()
    assert not (state(first) == state(other)).all()


def test_a_schedule_of_ones_own_may_say_where_the_score_counts():
    made = trainer("MFlow")
    own = [phase if phase.loss is reconstruction else phase._replace(loss=Scandal(3.0)) for phase in sequential(2)]
    made.train(own, **FEW)
    assert made.history.losses == ["reconstruction", "scandal(latent_nll)"]


@pytest.fixture
def unmeasured(monkeypatch):
    """Let the noise of joint scores not be measured."""
    monkeypatch.setattr("mfsbi.plugin.trainer.scores_of", lambda *_: pytest.fail("the noise is measured"))


@pytest.mark.parametrize(
    ("schedule", "losses"),
    [
        ([Phase(Scandal(3.0), ("latent",), 1)], ["scandal(latent_nll)"]),
        ([Phase(Scandal(limit=torch.ones(2)), ("latent",), 1)], ["scandal(latent_nll)"]),
        ([Phase(reconstruction, ("chart",), 1)], ["reconstruction"]),
    ],
)
@pytest.mark.filterwarnings("ignore:The chart is not clearly better")
def test_noise_that_no_loss_needs_is_not_measured(schedule, losses, unmeasured):
    made = trainer("MFlow")
    made.train(schedule, **FEW)
    assert made.history.losses == losses
    assert made.history.score_noise is None


@pytest.mark.parametrize(
    ("phase", "error"),
    [(Phase(latent_nll, ("network",), 1), ValueError), (Phase(Alices(), ("latent",), 1), TypeError)],
)
def test_a_schedule_that_does_not_fit_is_refused_before_noise_is_measured_or_checkpoints_go(
    phase, error, unmeasured, tmp_path
):
    kept = tmp_path / "checkpoint-00000001.safetensors"
    kept.touch()
    with pytest.raises(error, match="parts out of|a loss of a likelihood"):
        trainer().train([phase], checkpoint=tmp_path)
    assert kept.exists()


def test_the_gold_of_a_simulator_goes_in_as_it_comes():
    surface = PolynomialSurface()
    theta = torch.rand(200, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    made = ManifoldNLE(surface.prior, SPECS["PIE"], show_progress_bars=False)
    made.append_simulations(theta, **simulate(surface, theta, seed=1)._asdict()).train(max_num_epochs=1, **FEW)
    assert made.history.losses == ["scandal(nll)"]
    assert made.history.collapses == []


def test_a_likelihood_learns_from_rows_drawn_at_theta_alone():
    surface = PolynomialSurface()
    theta, at_theta = surface.prior.sample((200,)), torch.arange(200) % 2 == 0
    gold = simulate(surface, theta, theta_ref=torch.zeros(1), from_theta=at_theta, seed=1)
    made = ManifoldNLE(surface.prior, SPECS["AF"])
    with pytest.raises(ValueError, match="`joint_score` is zero in .* of 200 rows whose joint log ratio is not"):
        made.append_simulations(theta, **gold._asdict())
    made.append_simulations(theta, **gold._asdict(), from_theta=at_theta)
    assert (made.simulations[0].theta == theta[at_theta]).all()
    assert (made.simulations[0].batch.joint_score == gold.joint_score[at_theta]).all()
    with pytest.raises(ValueError, match=r"`from_theta` should say True .* it holds \[1\]"):
        made.append_simulations(theta, **gold._asdict(), from_theta=torch.ones(200, dtype=torch.int64))
