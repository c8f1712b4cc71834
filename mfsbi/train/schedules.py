r"""How a training is done, as data: lists of phases, and settings that hold for all of them.

A phase says which loss moves which parts of a model for how many passes over the data. The schemes of the paper
are here (Brehmer & Cranmer, arXiv:2003.13913, §2.3):

    sequential     M M M M ... D D D D    first the manifold, then the density on it
    alternating    M D M D M D ...        one pass each, repeated
    simultaneous   M M ... S S ... D D    in between both by one loss, which holds the volume term; the cautionary tale
    ambient        A A A A ...            the likelihood in data space, for models that have one there
    density_only   D D D D ...            for models whose chart is given

A density that learns as long as the data ask for, after a chart, first looks for coordinates in which it is simple
(`mfsbi.train.directions`).

`epochs` counts passes over the data, of all kinds together, so that schemes with the same number cost about the same. A
phase whose parts have nothing to train is passed over.

Charts of affine couplings whose masks are the cut between u and v reach a given error soonest, and densities keep their
splines, which affine couplings cannot replace (`notebooks/measurements.md`).
"""

import math
import re
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from torch import Tensor, nn

from mfsbi.checks import require_kind, require_not_negative, require_positive, require_positive_integer, require_whole
from mfsbi.flows import StackedDensity
from mfsbi.train.course import rows_of_chart, rows_of_step, steps_of_chart
from mfsbi.train.data import steps_per_epoch
from mfsbi.train.losses import Kind, Loss, Scandal, ScoreLoss, as_loss, joint_nll, latent_nll, nll, reconstruction

__all__ = [
    "Phase",
    "Schedule",
    "Settings",
    "alternating",
    "ambient",
    "density_only",
    "measured",
    "needs_noise",
    "require_decay",
    "require_schedule",
    "sequential",
    "simultaneous",
    "unfolded",
    "with_noise",
    "with_score",
]


STEADY = 0.7
"""Factor on the learning rate of a density whose rate stays until held-out rows gain no more."""

MEMBER = re.compile(r"\.flow\.members\.(\d+)")


class Phase(NamedTuple):
    """A stretch of training.

    Arguments:
        loss: what is minimised, (model, batch) -> (rows,)
        trains: the parts it moves, of "chart" and "latent", or parts of these by their names in the model
        epochs: passes over the data; None for as many as the data ask for (`mfsbi.train.course`)
        rate: factor on the learning rate; phases that train the same parts share that of the first
        decay: factor on the weight decay, likewise
        rows: rows per step; those of the settings if None, or fewer where there are few and no number of epochs
    """

    loss: Loss
    trains: tuple[str, ...]
    epochs: int | None
    rate: float = 1.0
    decay: float = 1.0
    rows: int | None = None

    def moves(self, part: str) -> bool:
        """Return whether it moves that part, or a part of it."""
        return any(name == part or name.startswith(f"{part}.") for name in self.trains)

    @property
    def label(self) -> str:
        """What it moves, in few letters: `latent 2` is the second member of a stacked density."""
        return "+".join(MEMBER.sub(lambda found: f" {int(found[1]) + 1}", name) for name in self.trains)


Schedule = list[Phase]


@dataclass(frozen=True)
class Settings:
    """How to optimise, whatever the loss.

    Arguments:
        training_batch_size: rows per step
        learning_rate: peak of the learning rate
        weight_decay: decoupled, as in AdamW; a phase has a factor on it
        clip_max_norm: largest norm of the gradient; None for no such limit
        stop_after_epochs: epochs without a better validation loss (averaged over five) before a phase stops; None for
            no early end
        longest: steps after which the rate of a phase without a number of epochs falls in any case; 30,000 if None
        seed: of the order of the rows
        show_progress_bars: True, False, or None for "only on a terminal"

    Raises:
        ValueError: if a number is not positive, not whole where rows or epochs are counted, or weight_decay is negative
        TypeError: if it is not a number
    """

    training_batch_size: int = 500
    learning_rate: float = 7e-3
    weight_decay: float = 0.1
    clip_max_norm: float | None = 5.0
    stop_after_epochs: int | None = None
    longest: int | None = None
    seed: int = 0
    show_progress_bars: bool | None = None

    def __post_init__(self) -> None:
        require_positive_integer("training_batch_size", self.training_batch_size)
        require_positive("learning_rate", self.learning_rate)
        require_not_negative("weight_decay", self.weight_decay)
        if self.clip_max_norm is not None:
            require_positive("clip_max_norm", self.clip_max_norm)
        if self.stop_after_epochs is not None:
            require_positive_integer("stop_after_epochs", self.stop_after_epochs)
        if self.longest is not None:
            require_positive_integer("longest", self.longest)

    @property
    def described(self) -> dict[str, object]:
        """What tells a training of a user's from another, as values: all but bars, and what no user sets."""
        values = asdict(self) | {"show_progress_bars": None}
        del values["longest"]
        return values


def sequential(epochs: int | None = 50) -> Schedule:
    """Return half the epochs for the chart, then half for the density on it.

    Arguments:
        epochs: passes in all; if the number is odd, the density has one more. None for as many as the data ask for

    Raises:
        ValueError: if epochs is below 2, one pass for each part
    """
    if epochs is None:
        return [Phase(reconstruction, ("chart",), None, decay=0.0), *density_only(None)]
    passes = _passes_for_each_part(epochs)
    return [Phase(reconstruction, ("chart",), passes, decay=0.0), Phase(latent_nll, ("latent",), epochs - passes)]


def alternating(epochs: int = 50) -> Schedule:
    """Return one pass for the chart and one for the density in turn; it does not stop early.

    Arguments:
        epochs: passes in all; one less if the number is odd

    Raises:
        ValueError: if epochs is below 2, one pass for each part
    """
    return [phase._replace(epochs=1) for phase in sequential(2)] * _passes_for_each_part(epochs)


def simultaneous(epochs: int = 50) -> Schedule:
    """Return a third of the epochs for the chart, a third for both by `joint_nll`, the rest for the density.

    Arguments:
        epochs: passes in all; what is left over by three is the density's, too

    Raises:
        ValueError: if epochs is below 3, one pass for each
    """
    require_whole("epochs", epochs)
    if epochs < 3:
        raise ValueError(f"`epochs` should be at least 3, one pass over the data for each phase; got {epochs}.")
    third = epochs // 3
    return [
        Phase(reconstruction, ("chart",), third, decay=0.0),
        Phase(joint_nll, ("chart", "latent"), third, rate=0.2, decay=0.0),
        Phase(latent_nll, ("latent",), epochs - 2 * third),
    ]


def ambient(epochs: int | None = 50) -> Schedule:
    """Return all epochs for chart and density together by the likelihood in data space.

    Arguments:
        epochs: passes; None for as many as the data ask for

    Raises:
        ValueError: if epochs is below 1
    """
    return [phase._replace(loss=nll, trains=("chart", "latent"), decay=0.0) for phase in density_only(epochs)]


def density_only(epochs: int | None = 50) -> Schedule:
    """Return all epochs for the density, for a chart that is given.

    Arguments:
        epochs: passes; None for as many as the data ask for

    Raises:
        ValueError: if epochs is below 1
    """
    if epochs is None:
        return [Phase(latent_nll, ("latent",), None, rate=STEADY)]
    require_whole("epochs", epochs)
    if epochs < 1:
        raise ValueError(f"`epochs` should be at least 1; got {epochs}.")
    return [Phase(latent_nll, ("latent",), epochs)]


def with_score(
    schedule: Schedule, weight: float | None = None, limit: Tensor | None = None, size: nn.Module | None = None
) -> Schedule:
    """Return the schedule with the joint score as a second label wherever the density is trained by likelihood.

    Arguments:
        schedule: any; where it has `Scandal` already, that keeps its own weight, limit and size
        weight: of the score, as `Scandal` has it; by the noise of the scores if None
        limit: of that noise, as `Scandal` has it
        size: of the scores, as `Scandal` has it

    Raises:
        ValueError: if the weight is negative
    """

    def scored(phase: Phase) -> Phase:
        if not phase.moves("latent") or as_loss(phase.loss).kind is Kind.DISTANCE:
            return phase
        if isinstance(phase.loss, ScoreLoss):
            return phase
        return phase._replace(loss=Scandal(weight, base=phase.loss))

    return with_noise([scored(phase) for phase in schedule], limit, size)


def with_noise(schedule: Schedule, limit: Tensor | None, size: nn.Module | None) -> Schedule:
    """Return the schedule with what was measured of joint scores, in the losses that need it.

    Arguments:
        schedule: any; losses with a weight, a limit or a size of their own stay as they are
        limit: of the noise, as `Scandal` has it
        size: of the scores, as `Scandal` has it
    """

    def measured(phase: Phase) -> Phase:
        if isinstance(phase.loss, ScoreLoss) and phase.loss.unmeasured:
            return phase._replace(loss=replace(phase.loss, limit=limit, size=size))
        return phase

    return [measured(phase) for phase in schedule]


def needs_noise(schedule: Schedule) -> bool:
    """Return whether a loss needs what `with_noise` gives it."""
    return any(isinstance(phase.loss, ScoreLoss) and phase.loss.unmeasured for phase in schedule)


def measured(schedule: Schedule, rows: int, size: int) -> Schedule:
    """Return the schedule with what follows from the number of rows, in phases without a number of epochs.

    Charts get that number, since they learn without noise, and most once the learning rate has fallen. All others go on
    as long as held-out rows gain. Both take fewer rows a step where there are few.

    Arguments:
        schedule: any
        rows: to learn from
        size: rows of a step where a phase does not say otherwise
    """

    def of(phase: Phase) -> Phase:
        if phase.epochs is not None:
            return phase
        if as_loss(phase.loss).kind is Kind.DISTANCE:
            taken = rows_of_chart(rows, size) if phase.rows is None else phase.rows
            return phase._replace(epochs=math.ceil(steps_of_chart(rows) / steps_per_epoch(rows, taken)), rows=taken)
        return phase if phase.rows is not None else phase._replace(rows=rows_of_step(rows, size))

    return [of(phase) for phase in schedule]


def unfolded(schedule: Schedule, model: nn.Module) -> Schedule:
    """Return the schedule with each phase that trains a stacked latent density once for every member of it.

    A phase that moves a learned chart as well stays one, in which the members learn by their mean likelihood.

    Arguments:
        schedule: that fits the model
        model: whose modules are looked for a `StackedDensity`
    """
    stacked = {name: len(each.members) for name, each in model.named_modules() if isinstance(each, StackedDensity)}
    if not stacked:
        return schedule
    chart = any(weight.requires_grad for weight in model.get_submodule("chart").parameters())
    members = [f"{name}.members.{number}" for name, count in stacked.items() for number in range(count)]

    def of(phase: Phase) -> Schedule:
        if "latent" not in phase.trains or (chart and phase.moves("chart")):
            return [phase]
        others = tuple(name for name in phase.trains if name != "latent")
        return [phase._replace(trains=(*others, member)) for member in members]

    return [each for phase in schedule for each in of(phase)]


def require_schedule(schedule: Schedule) -> None:
    """Raise ValueError or TypeError unless a schedule is a list of phases, each with a loss and epochs."""
    require_kind("schedule", schedule, list | tuple, "a list of phases, such as `sequential(epochs=50)`")
    if not schedule:
        raise ValueError("`schedule` should have at least one phase; it is empty.")
    for phase in schedule:
        require_kind("schedule", phase, Phase, "a list of `Phase`s")
        if not callable(phase.loss) or not hasattr(phase.loss, "__name__"):
            raise TypeError(
                f"`Phase.loss` should be a function of a model and a batch, with a `__name__`; got {phase.loss!r}."
            )
        if phase.epochs is not None:
            require_positive_integer("Phase.epochs", phase.epochs)
        if phase.rows is not None:
            require_positive_integer("Phase.rows", phase.rows)


def require_decay(schedule: Schedule, weight_decay: float | None) -> None:
    """Raise ValueError if a weight decay was given, and no phase of the schedule has any.

    Arguments:
        schedule: of which phases have factors on the weight decay
        weight_decay: what was given; None if nothing was
    """
    if weight_decay and not any(phase.decay for phase in schedule):
        raise ValueError(
            "`weight_decay` should be zero or None, since no phase of this schedule has weight decay; got "
            f"{weight_decay}. Pass a schedule that has, e.g. `[phase._replace(decay=1.0) for phase in schedule]`, or "
            "leave `weight_decay` out."
        )


def _passes_for_each_part(epochs: int) -> int:
    require_whole("epochs", epochs)
    if epochs < 2:
        raise ValueError(f"`epochs` should be at least 2, one pass over the data for each part; got {epochs}.")
    return epochs // 2
