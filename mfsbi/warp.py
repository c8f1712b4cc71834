r"""Features of any scale: a smooth, monotone map to where networks and frames can see them.

Means and spreads describe a feature whose values are of one size. Those of a parameter between 1e-4 and 1e2 are of its
largest values alone, and a few runs that blew up make all others one point. Such features are bent,

    w(v) = asinh((v - c) / k),    dw/dv = 1 / (k^2 + (v - c)^2)^(1/2),

linear within the knee k of the centre c and logarithmic beyond it, on both sides; all others stay as they are.
Densities count the derivative, so that they are densities of v, and scores of v follow by the chain rule.

Which features are bent. Up to a constant of the feature, the divergence of its distribution from the normal one of the
same mean and variance is log std(w) - E log dw/dv. So a bend gains

    log std(v) - log std(w) + E log dw/dv    nats,

whatever the unit. Centres and knees are tried from a short list (zero, the median and both ends; quantiles of the
distance), and the best is taken, for theta if it gains more than 0.7 nats: a uniform distribution cannot gain more
than 0.18, an exponential one 0.42, a log-uniform one over three decades gains 1.3. Features of data have to gain more
than 1.5, since what was a linear constraint among them is none when one is bent.

Offsets. A clock that shows 1.7e9 +- 40 seconds has five different values in float32, which has seven digits. Where a
feature's offset costs digits, it is subtracted in the precision in which values came, before they are converted; it is
kept as a sum of two numbers of the weights' type, which has the digits of both.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mfsbi.checks import require_last_axis

__all__ = ["ThetaScale", "Warp", "as_data", "converted", "lost_digits", "require_digits", "scale_of", "spreads"]

GAIN, DATA_GAIN = 0.7, 1.5
"""Nats a bend of a parameter, and of a feature of data, has to gain."""

CLEARLY = 0.1
"""Nats more that the lowest or the highest value has to gain as a centre, next to which few simulations tell much."""

FEWEST = 50
"""Rows below which nothing is bent."""

QUANTILES = 0.0, 0.001, 0.01, 0.1, 0.5
"""Of the distance from the centre, for the knee; a tenth of the first is tried, too, which is all but a logarithm."""

OFFSET = 1e4
"""Spreads from zero beyond which an offset is subtracted; in float32 a spread then has 800 different values."""

ROWS = 4000
"""Rows that bends are compared on, at most; the spread that they are compared with is that of all rows."""

WIDEST, FINEST = 1e12, 1e-30
"""Knees that the farthest value may be away, and the smallest knee: float32 has the derivative of asinh up to 1e19."""

ATOM = 0.05
"""Share of rows with one and the same value, such as zero, from which they say nothing of the spread of the others."""

SKEWED, HEAVY = 1.0, 6.0
"""Skewness and kurtosis, of which a feature that is bent has one."""

LOST = 0.05
"""Spreads between neighbouring numbers of a type beyond which digits are lost that tell something."""


class Warp(nn.Module):
    """An elementwise map w(v), the identity unless it was measured otherwise.

    Arguments:
        features: how many
        like: a tensor of the type and on the device that the map shall have

    Example:
        >>> Warp.of(torch.cat([10 ** torch.linspace(-4, 2, 100)[:, None], torch.linspace(-4, 2, 100)[:, None]], 1))
        Warp(bent=[0], shifted=[])
    """

    centre: Tensor
    rest: Tensor
    rate: Tensor
    """1 / k, zero where a feature is straight."""
    fine: Tensor
    """One where values came in more digits than float32 has and an offset needs them, or else zero."""
    bent: list[int]
    """The features that are bent."""
    shifted: list[int]
    """Those that are straight, but whose offset is subtracted."""
    wide: list[int]
    """Those that came in more digits than float32 has because of their offsets, and have to come so again."""

    def __init__(self, features: int, like: Tensor | None = None) -> None:
        super().__init__()
        zeros = torch.zeros(features) if like is None else like.new_zeros(features)
        for name in ("centre", "rest", "rate", "fine"):
            self.register_buffer(name, zeros.clone())
        self.bent, self.shifted, self.wide = [], [], []

    def __repr__(self) -> str:
        return f"Warp(bent={self.bent}, shifted={self.shifted})"

    @classmethod
    def of(cls, values: Tensor, kind: torch.dtype | None = None, *, gain: float = GAIN) -> "Warp":
        """Return the map that suits values.

        Arguments:
            values: finite, shape `(rows, features)`; fewer than 50 rows are not bent
            kind: of the map's own numbers; that of the values if None
            gain: nats that a bend has to gain
        """
        warp = cls(values.shape[1], values.new_zeros(0, dtype=kind or values.dtype))
        far, worth = _is_far(values), _worth_bending(values)
        for i in (far | worth).nonzero().flatten().tolist():
            column = values[:, i].double()
            centre, knee = _bend(column, gain) if worth[i] else (0.0, math.inf)
            if math.isinf(knee) and far[i]:
                centre = float(column.median())
            warp.centre[i] = centre
            warp.rest[i] = centre - float(warp.centre[i])
            warp.rate[i] = 1 / knee
            warp.fine[i] = float(far[i] and values.dtype == torch.float64)
        warp._note()
        return warp

    @classmethod
    def of_data(cls, x: Tensor, kind: torch.dtype | None = None) -> "Warp":
        """Return the map that suits data, which have to gain more: bends hide linear constraints among features."""
        return cls.of(x, kind, gain=DATA_GAIN)

    @property
    def plain(self) -> bool:
        """Whether the map is the identity."""
        return not self.bent and not self.shifted and not self.wide

    def forward(self, values: Tensor) -> Tensor:
        """Return w, shape `(*, features)`, in the type of the map; the offset is subtracted in that of the values."""
        if self.plain:
            return values.to(self.centre.dtype)
        from_centre = self._from_centre(values)
        return torch.where(self.rate == 0, from_centre, (from_centre * self.rate).asinh())

    def inverse(self, warped: Tensor) -> Tensor:
        """Return the values v of which these are w, shape `(*, features)`; in float64 if some are wide."""
        if self.plain:
            return warped
        straight, rate = self._rates()
        values = torch.where(straight, warped, torch.where(straight, torch.zeros_like(warped), warped).sinh() / rate)
        if self.wide:
            return values.double() + self.centre.double() + self.rest.double()
        return values + self.centre + self.rest

    def log_slope(self, values: Tensor) -> Tensor:
        """Return log dw/dv at v, shape `(*, features)`: zero for straight features.

        Arguments:
            values: v, shape `(*, features)`, in its own units and in any floating type
        """
        straight, rate = self._rates()
        distance = self._from_centre(values) * rate
        return torch.where(
            straight, torch.zeros_like(distance), rate.log() - torch.hypot(torch.ones_like(distance), distance).log()
        )

    def log_slope_at(self, warped: Tensor) -> Tensor:
        """Return log dw/dv at the values of which these are w, shape `(*, features)`."""
        straight, rate = self._rates()
        size = warped.abs()
        log_cosh = size + (-2 * size).exp().log1p() - math.log(2)
        return torch.where(straight, torch.zeros_like(warped), rate.log() - log_cosh)

    def _rates(self) -> tuple[Tensor, Tensor]:
        """Return which features are straight, and the rates, one for those."""
        straight = self.rate == 0
        return straight, torch.where(straight, torch.ones_like(self.rate), self.rate)

    def _from_centre(self, values: Tensor) -> Tensor:
        """Return v - c in the type of the map."""
        if values.dtype == self.centre.dtype:
            return values - self.centre - self.rest
        return (values - self.centre.to(values) - self.rest.to(values)).to(self.centre.dtype)

    def _note(self) -> None:
        """Take down which features are bent or shifted, which is asked for at every call."""
        straight = self.rate == 0
        self.bent = (~straight).nonzero().flatten().tolist()
        self.shifted = (straight & (self.centre != 0)).nonzero().flatten().tolist()
        self.wide = (self.fine > 0).nonzero().flatten().tolist()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        """Let files that were written before there were such maps have the identity."""
        for name, value in self.named_buffers():
            state_dict.setdefault(prefix + name, value)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._note()


class ThetaScale(nn.Module):
    """What networks of theta share: the scale they see it on, (w(theta) - mean) / std.

    Arguments:
        theta_mean: of w(theta), shape `(parameter,)`
        theta_std: of w(theta), shape `(parameter,)`, positive
        theta_warp: w; the identity if not given
    """

    def __init__(self, theta_mean: Tensor, theta_std: Tensor, theta_warp: Warp | None = None) -> None:
        super().__init__()
        self.theta_warp = Warp(len(theta_mean), theta_mean) if theta_warp is None else theta_warp
        self.theta_mean, self.theta_std = nn.Buffer(theta_mean), nn.Buffer(theta_std)

    def standardize(self, theta: Tensor) -> Tensor:
        """Return (w(theta) - mean) / std, shape `(*, parameter)`, where the weights are.

        Raises:
            ValueError: if theta has another number of parameters
        """
        require_last_axis("theta", theta, len(self.theta_mean), "theta in training")
        return (self.theta_warp(theta.to(self.theta_mean.device)) - self.theta_mean) / self.theta_std

    def theta_unit(self, theta: Tensor) -> Tensor:
        """Return d theta / d standardised theta, shape `(*, parameter)`: a score times it is that of the latter."""
        return self.theta_std * (-self.theta_warp.log_slope(theta)).exp()


def spreads(values: Tensor) -> Tensor:
    """Return the standard deviation of each column, shape `(features,)`, one where a value is always the same.

    Arguments:
        values: at least two rows, shape `(rows, features)`; there may be no features
    """
    std = values.std(0) if values.shape[1] else values.new_zeros(0)
    return torch.where(std > 0, std, torch.ones_like(std))


def scale_of(theta: Tensor) -> tuple[Tensor, Tensor, Warp]:
    """Return what a `ThetaScale` takes, measured on theta of shape `(rows, parameter)`: w is the map that suits it.

    Returns:
        mean and standard deviation of w(theta), each of shape `(parameter,)`, and w
    """
    warp = Warp.of(theta)
    straight = warp(theta)
    return straight.mean(0), spreads(straight), warp


def converted(values: Tensor, kind: torch.dtype) -> Tensor:
    """Return values in another type, or as they are if they have more digits than it and offsets would cost them.

    Arguments:
        values: shape `(rows, features)`
        kind: the type
    """
    finer = values.is_floating_point() and torch.finfo(values.dtype).eps < torch.finfo(kind).eps
    return values if finer and values.ndim == 2 and _is_far(values).any() else values.to(kind)


def as_data(x: Tensor, like: Tensor, warp: Warp | None) -> Tensor:
    """Return x in the type of another tensor and where that is; with all its digits where a map of x needs them.

    Raises:
        ValueError: if it needs them and x does not have them
    """
    if warp is None or not warp.wide:
        return x.to(like)
    if x.dtype != torch.float64:
        offsets = [f"{float(warp.centre[i]):.6g}" for i in warp.wide[:3]]
        raise ValueError(
            f"`x` should be of float64, as the simulations were: features {warp.wide} have offsets "
            f"({', '.join(offsets)}) beside which {str(x.dtype).removeprefix('torch.')} lacks digits for what varies."
        )
    return x.to(like.device)


SHIFTED = {"x": ("feature", ", or let it return float64"), "theta": ("parameter", " and the prior")}
"""What a column is called, and what else helps against its offset."""


def require_digits(name: str, values: Tensor) -> None:
    """Raise ValueError if an offset has cost values digits that tell something.

    Arguments:
        name: `x` or `theta`, for the message
        values: finite, shape `(rows, features)`, in the type in which they came
    """
    word, elsewhere = SHIFTED[name]
    for number, offset, std in lost_digits(values):
        raise ValueError(
            f"`{name}` should have digits left beside its offset: {word} {number} is {offset:.6g} +- {std:.3g}, and "
            f"neighbouring numbers of {str(values.dtype).removeprefix('torch.')} are "
            f"{torch.finfo(values.dtype).eps * abs(offset):.2g} apart there, so that values are no longer told apart. "
            f"Subtract the offset in the simulator{elsewhere}."
        )


def _is_far(values: Tensor) -> Tensor:
    """Return which features are so far from zero that a type of seven digits would lose some, shape `(features,)`."""
    middle, spread = _bulk(values)
    return ((middle.abs() > OFFSET * spread) & (spread > 0)).cpu()


def _bulk(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return median and half the central 68 % of some rows, or their spread where that is zero, in float64.

    Both are zero of fewer than two rows.
    """
    if len(values) < 2 or values.numel() == 0:
        nothing = values.new_zeros(values.shape[1]).double()
        return nothing, nothing
    some = _excerpt(values).double()
    low, middle, high = torch.quantile(some, torch.tensor([0.16, 0.5, 0.84]).to(some), dim=0)
    return middle, torch.where(high > low, (high - low) / 2, some.std(0))


def _worth_bending(values: Tensor) -> Tensor:
    """Return which features are skewed or heavy-tailed enough to be looked at, shape `(features,)`."""
    if len(values) < FEWEST or values.numel() == 0:
        return torch.zeros(values.shape[1], dtype=torch.bool)
    some = _excerpt(values).double()
    ends = torch.stack([values.amin(0), values.amax(0)]).double()
    z = (some - some.mean(0)) / spreads(some)
    nearly_all, farthest = ((each - some.median(0).values).abs().amax(0) for each in (some, ends))
    rare = farthest > 1.5 * nearly_all
    return ((z.pow(3).mean(0).abs() > SKEWED) | (z.pow(4).mean(0) > HEAVY) | rare).cpu()


def lost_digits(values: Tensor, kind: torch.dtype | None = None) -> Iterator[tuple[int, float, float]]:
    """Yield features whose values lose digits to an offset: their number, that offset, and their spread.

    Arguments:
        values: finite, shape `(rows, features)`
        kind: in which type; their own if None
    """
    offset, spread = _bulk(values)
    step = torch.finfo(kind or values.dtype).eps * offset.abs()
    for i in ((step > LOST * spread) & (spread > 0)).nonzero().flatten().tolist():
        yield i, float(offset[i]), float(spread[i])


def _excerpt(values: Tensor) -> Tensor:
    """Return some 4,000 of the rows, evenly spaced."""
    return values[:: -(-len(values) // ROWS)]


def _bend(column: Tensor, gain: float) -> tuple[float, float]:
    """Return the centre and the knee that suit the values of a feature; zero and infinity if it should stay straight.

    Arguments:
        column: in float64, shape `(rows,)`
        gain: nats that a bend has to gain
    """
    bend, some = (0.0, math.inf), _excerpt(column)
    found, counts = some.unique(return_counts=True)
    atoms = found[counts > ATOM * len(some)]
    if len(atoms):
        column, some = (values[~torch.isin(values, atoms)] for values in (column, some))
    if len(some) < FEWEST or not 0 < float(column.std()) < math.inf:
        return bend
    std, low, high = (float(value) for value in (column.std(), column.min(), column.max()))
    for centre in (0.0, float(some.median()), low, high):
        farthest = max(high - centre, centre - low)
        distance = (some - centre).abs()
        for knee in _knees(distance[distance > 0]):
            if knee < FINEST or farthest > WIDEST * knee:
                continue
            scaled = (some - centre) / knee
            slope = -0.5 * scaled.square().log1p() - math.log(knee)
            nats = float(math.log(std) - scaled.asinh().std().log() + slope.mean())
            if nats > gain + (CLEARLY if centre in (low, high) and centre != bend[0] else 0.0):
                gain, bend = nats, (centre, knee)
    return bend


def _knees(distance: Tensor) -> list[float]:
    """Return the knees to try for such distances from the centre."""
    if len(distance) == 0:
        return []
    knees: list[float] = torch.quantile(distance, torch.tensor(QUANTILES).to(distance)).tolist()
    return [knees[0] / 10, *knees]
