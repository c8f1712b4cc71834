r"""How large joint scores are, and how much of them x tells; `mfsbi.train.losses.scores` needs both.

**Size.** F_i(theta) = E[t_i^2|theta] is found by a network of theta alone, as the variance of a normal distribution of
t_i whose mean is zero,

    E_t [t_i^2 / F_i + log F_i]    is minimal at    F_i = E[t_i^2|theta].

It starts as a constant, and departs from it where that lowers the loss of held-out rows. It is never less than a
thousandth of its mean, so that no row's weight grows without limit.

**Noise.** The joint score t(x, z|theta) is the true score plus noise, since z is more than x tells (`mfsbi.gold`), so
that for any weights w_i(x, theta) and any function g

    E w_i (t_i - g_i(x, theta))^2 = E w_i Var(t_i|x, theta) + E w_i (s_i - g_i)^2 >= E w_i Var(t_i|x, theta),

where s is the score of p(x|theta). So a regression of t bounds the noise from above, on rows it has not seen, and the
better it is the closer. For the variance w is one. For nu it is 1 / (F_i + c g_i^2), with g in place of the unknown s,
as the dispersion of a quasi-likelihood is estimated; that is a bound only where errors are small beside sizes. The
regression is cheap, since its network is no density and needs no gradients of gradients, and it finds what a flow will
find long before the flow does. The network multiplies features of x by 1 + features of theta: a score often is a sum of
such products.
"""

import math
import warnings
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mfsbi.networks import perceptron
from mfsbi.seeds import derived, seeded
from mfsbi.train.data import Batch, TrainingData, in_chunks, steps_per_epoch
from mfsbi.train.loop import fit
from mfsbi.train.losses.scores import variance_function, with_doubt
from mfsbi.train.record import ScoreNoise
from mfsbi.train.schedules import Phase, Settings
from mfsbi.warp import ThetaScale, Warp, scale_of, spreads

__all__ = ["ScoreRegression", "ScoreSize", "score_noise"]

WIDTH, SIZE_WIDTH = 100, 64
STEPS, EPOCHS = 6_000, 50
X_SHARPNESS, THETA_SHARPNESS = 3.0, 25.0
LEAST_SIZE = 1e-3


class ScoreSize(ThetaScale):
    """F(theta), the mean square of the joint score of each standardised parameter at theta.

    Arguments:
        parameters: the number of parameters
        data: rows to standardise by; none if weights of an earlier one are to be loaded
    """

    usual: Tensor

    def __init__(self, parameters: int, data: Batch | None = None) -> None:
        zeros, usual = torch.zeros(parameters), torch.ones(parameters)
        mean, std, warp = (zeros, usual.clone(), None) if data is None else scale_of(data.theta)
        super().__init__(mean, std, warp)
        if data is not None:
            usual = self.unit_score(data).square().mean(0).to(mean)
        self.register_buffer("usual", usual)
        self.first, self.second = nn.Linear(parameters, SIZE_WIDTH), nn.Linear(SIZE_WIDTH, SIZE_WIDTH)
        self.last = nn.Linear(SIZE_WIDTH, parameters)
        with torch.no_grad():
            sharpness = torch.logspace(0, math.log10(THETA_SHARPNESS), SIZE_WIDTH)
            self.first.weight.mul_(sharpness[:, None])
            self.first.bias.mul_(sharpness)
            for weight in self.last.parameters():
                weight.zero_()
        self.to(mean)

    def forward(self, theta: Tensor) -> Tensor:
        """Return F, shape `(rows, parameter)`; about one for a score that is always zero.

        Arguments:
            theta: as it comes, shape `(rows, parameter)`; F is of the scores times `theta_unit(theta)`
        """
        hidden = self.first(self.standardize(theta)).tanh()
        relative = self.last(functional.silu(self.second(hidden))).exp() + LEAST_SIZE
        return torch.where(self.usual > 0, self.usual, torch.ones_like(self.usual)) * relative

    def unit_score(self, batch: Batch) -> Tensor:
        """Return the joint scores of standardised theta, whose mean square F is, shape `(rows, parameter)`."""
        return cast(Tensor, batch.joint_score) * self.theta_unit(batch.theta)


class ScoreRegression(nn.Module):
    """A network for E[t|x, theta], with the size of t.

    Arguments:
        data: rows whose means and spreads standardise x and theta
    """

    x_mean: Tensor
    x_std: Tensor

    def __init__(self, data: Batch) -> None:
        super().__init__()
        self.x_warp = Warp.of_data(data.x, data.theta.dtype)
        x = self.x_warp(data.x)
        self.register_buffer("x_mean", x.mean(0))
        self.register_buffer("x_std", spreads(x))
        parameters, hidden = data.theta.shape[1], [WIDTH] * 3
        networks = {
            "features": perceptron([data.x.shape[1], *hidden], nn.SiLU, X_SHARPNESS),
            "gates": perceptron([parameters, *hidden], nn.SiLU, THETA_SHARPNESS),
            "last": perceptron([WIDTH, WIDTH, parameters], nn.SiLU),
        }
        self.score = nn.ModuleDict(networks).to(data.theta)
        self.size = ScoreSize(parameters, data)

    def forward(self, x: Tensor, theta: Tensor) -> Tensor:
        """Return what x and theta tell of the score of standardised theta, shape `(rows, parameter)`.

        Arguments:
            x: shape `(rows, data)`, in the type in which it came
            theta: shape `(rows, parameter)`
        """
        features = functional.silu(self.score["features"]((self.x_warp(x) - self.x_mean) / self.x_std))
        gates = self.score["gates"](self.size.standardize(theta))
        return self.score["last"](features * (1 + gates))


def score_noise(training: TrainingData, validation: Batch, settings: Settings) -> tuple[ScoreNoise, ScoreSize]:
    """Regress the joint score on x and theta and return what is left of it on the validation rows, and its size.

    Arguments:
        training: rows to learn from, with joint scores; those drawn at a reference are left out
        validation: rows to judge by
        settings: how to optimise; passes are as many as make 6,000 steps, 50 at most

    Raises:
        ValueError: if no row to learn from, or no validation row, was drawn at theta
        ArithmeticError: if the loss becomes NaN or infinite
        KeyboardInterrupt: after Ctrl-C, since there is no model yet to keep
    """
    if isinstance(training, Batch):
        training = training.at_theta()
    validation = validation.at_theta()
    if min(training.rows, validation.rows) == 0:
        raise ValueError(
            "Of the rows to learn from and of those held out, some should be drawn at theta, to tell how noisy joint "
            f"scores are; {training.rows} and {validation.rows} are. Take more rows, another `validation_fraction`, or "
            "give `score_weight`."
        )
    with seeded(derived(settings.seed, 1)):
        model = ScoreRegression(training.excerpt)
    epochs = min(EPOCHS, max(1, round(STEPS / steps_per_epoch(training.rows, settings.training_batch_size))))
    schedule = [Phase(_size_loss, ("size",), epochs), Phase(_squared_error, ("score",), epochs)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Training was interrupted")  # which speaks of weights that nobody keeps
        history = fit(model, (training, validation), schedule, settings)
    if history.interrupted:
        raise KeyboardInterrupt
    size = in_chunks(lambda rows: model.size(rows.theta), validation)
    told = in_chunks(lambda rows: model(rows.x, rows.theta), validation)
    joint = model.size.unit_score(validation)
    squared, own = (joint - told).square(), joint.square()
    variance, noise = _bound(squared, own), _bound(squared / variance_function(told, size), own / size)
    left, whole = _bound(squared / size, own / size), (own / size).mean(0)
    share = torch.where(whole > 0, left / whole, torch.ones_like(whole))
    columns = (variance, noise, share, model.size.theta_std)
    return ScoreNoise(*(column.tolist() for column in columns)), model.size


def _bound(squared: Tensor, own: Tensor) -> Tensor:
    """Return the mean square that is left, or that of saying nothing if that is less, shape `(parameter,)`."""
    return torch.minimum(with_doubt(squared, own), own.mean(0))


def _size_loss(model: ScoreRegression, batch: Batch) -> Tensor:
    """Return what is minimal at F, shape `(rows,)`; parameters whose scores are always zero have no part in it."""
    size = model.size(batch.theta)
    each = model.size.unit_score(batch).square() / size + size.log()
    return (each * (model.size.usual > 0)).sum(-1)


def _squared_error(model: ScoreRegression, batch: Batch) -> Tensor:
    """Return |t - g|^2 over the size of each parameter's score at theta, shape `(rows,)`."""
    errors = model.size.unit_score(batch) - model(batch.x, batch.theta)
    return (errors.square() / model.size(batch.theta).detach()).sum(-1)
