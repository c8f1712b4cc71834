"""A whole training: where it starts, new starts while the chart collapses, and what of it is kept.

    training = Training(build, (training_rows, held_out), sequential(50), Settings())
    training.run(restarts=2, retrain=False)
    training.learned, training.record

Models are what `build` returns, modules with named parts that a schedule moves; who uses them is of no concern here.
A training begins from new weights, from those of an earlier one, or where one that was stopped left off. It keeps a
model if that learned anything, also where an error or a signal ends it, and the record of it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeAlias, cast

from mfsbi.checks import warn
from mfsbi.models import AbstractModel
from mfsbi.ratio import RatioModel
from mfsbi.seeds import seeded
from mfsbi.train.checkpoint import Checkpoints, Keeper
from mfsbi.train.data import Batch, Split
from mfsbi.train.directions import learn_directions
from mfsbi.train.guard import ChartGuard, ChartVerdict
from mfsbi.train.loop import fit, require_phases
from mfsbi.train.noise import ScoreSize, score_noise
from mfsbi.train.record import History, ScoreNoise
from mfsbi.train.schedules import Schedule, Settings
from mfsbi.train.state import Snapshot

__all__ = ["Model", "Training", "scores_of"]

Model: TypeAlias = AbstractModel | RatioModel
"""What can be trained."""


def scores_of(data: Split, settings: Settings, start: Snapshot | None) -> tuple[ScoreNoise, ScoreSize]:
    """Return how noisy joint scores are, and how large: measured, or those of a training that goes on.

    Arguments:
        data: rows to learn from, with joint scores, and rows to judge by
        settings: how to optimise the regression that measures them
        start: where a training goes on that has measured them before; the losses of its checkpoint hold the weights of
            the size

    Raises:
        ValueError: if there are no rows drawn at theta to tell it
        KeyboardInterrupt: after Ctrl-C, since there are no weights yet
    """
    if start is None or start.history.score_noise is None:
        return score_noise(*data, settings)
    theta = data[0].excerpt.theta
    with seeded(0):  # its first weights are of no consequence: the checkpoint has others
        return start.history.score_noise, ScoreSize(theta.shape[1]).to(theta)


@dataclass
class Training:
    """A training, and what it has come to.

    Arguments:
        build: returns an untrained model, with other weights for each number
        data: rows to learn from, and rows to judge by
        schedule: phases in order
        settings: how to optimise
        checkpoints: where it is kept on disk, if anywhere
        learned: what an earlier training left; afterwards what this one did, if it learned anything
        score_noise: of joint scores, for the record

    Attributes:
        model: the last one that was trained
        history: the record of its training; None before that has begun
        record: that of what was learned; None if nothing was
    """

    build: Callable[[int], Model]
    data: Split
    schedule: Schedule
    settings: Settings
    checkpoints: Checkpoints | None = None
    learned: Model | None = None
    score_noise: ScoreNoise | None = None
    model: Model = field(init=False)
    history: History | None = field(default=None, init=False)
    record: History | None = field(default=None, init=False)

    def run(self, restarts: int = 0, *, retrain: bool) -> None:
        """Train.

        Arguments:
            restarts: how often to start again if the chart collapsed, unless there is nothing but noise to learn
            retrain: begin from new weights although there are earlier ones

        Raises:
            ValueError: if the schedule does not fit the model, or the weights have another type than the data
            ArithmeticError: if a loss becomes NaN or infinite
            SystemExit: after SIGTERM, where there are checkpoints
        """
        start = None if self.checkpoints is None else self.checkpoints.start
        if start is None:
            anew, collapses = retrain or self.learned is None, []
        else:
            anew, collapses = start.history.anew, start.history.collapses
        if not anew:
            self._fit(self.build(0) if self.learned is None else self.learned, [], anew=False)
            return
        for left in range(restarts - len(collapses), -1, -1):
            verdict = self._fit(self.build(restarts - left), collapses, may_stop=left > 0)
            if verdict is None or not verdict.collapsed:
                return
            if verdict.hopeless:
                told = _noise_told if verdict.noise else _few_told
                warn(told(verdict, cast(AbstractModel, self.model).chart.manifold_dim))
                return
            collapses = [*collapses, str(verdict)]
            assert self.history is not None  # of the training that has just ended
            self.history.collapses = collapses
            if left:
                warn(f"The chart is not clearly better than a hyperplane: {verdict}. Starting again; {left} left.")
        warn(
            f"The chart is not clearly better than a hyperplane after {restarts + 1} starts: {collapses[-1]}. "
            "Train longer, or take a larger `manifold_dim`: the data may have more dimensions than that."
        )

    def _fit(
        self, model: Model, collapses: list[str], *, anew: bool = True, may_stop: bool = False
    ) -> ChartVerdict | None:
        """Train a model, keep it if it learned anything however that ends, and return the verdict on its chart.

        Nothing is kept of a training that was interrupted in its first epoch if something was learned before.
        """
        require_phases(self.schedule, model)  # before the record of an earlier training is given up
        found, kind = next(model.parameters()).dtype, self.data[0].excerpt.theta.dtype
        if found != kind:
            raise ValueError(
                f"The estimator has weights of {found}, and simulations are converted to torch's default type, {kind}: "
                "set that by `torch.set_default_dtype` to what it was, or train with `retrain_from_scratch=True`."
            )
        data, guard = self.data, None
        if isinstance(data[0], Batch):  # an earlier training may have needed other digits
            data = replace(data[0], x=model.as_data(data[0].x)), replace(data[1], x=model.as_data(data[1].x))
        if anew and isinstance(model, AbstractModel):
            guard = ChartGuard(model, self.schedule, self.data, may_stop=may_stop)
        self.model, self.history = model, History(collapses=collapses, score_noise=self.score_noise, anew=anew)
        keeper = Keeper(self.checkpoints)
        try:
            fit(
                model.train(),
                data,
                self.schedule,
                self.settings,
                keep_going=None if guard is None else lambda number: self._goes_on(number, guard, keeper, data),
                history=self.history,
                keeper=keeper,
            )
        finally:
            model.eval()
            if self.history.epochs or (self.history.interrupted and self.learned is None):
                self.learned = model
            elif self.history.interrupted:
                warn("Nothing was learned anew: the earlier estimator is kept.")
            if self.learned is model:
                self.record = self.history
        return None if guard is None else guard.verdict

    def _goes_on(self, number: int, guard: ChartGuard, keeper: Keeper, data: Split) -> bool:
        """Return whether to go on after a phase; after the chart's, it may take coordinates that suit the density.

        That is for schedules whose densities learn as long as the data ask for, before they have begun.
        """
        if not guard(number):
            return False
        assert self.history is not None
        begun = self.history.coordinates or any(
            self.schedule[record.phase].moves("latent") for record in self.history.epochs
        )
        ahead = self.schedule[number + 1 :]
        if number == guard.judged and not begun and ahead and ahead[0].epochs is None:
            model = cast(AbstractModel, self.model)
            self.history.coordinates = learn_directions(model, data, self.settings, keeper)
        return True


def _noise_told(verdict: ChartVerdict, dims: int) -> str:
    """Return what to say of data that are noise about a hyperplane."""
    return (
        f"The chart is not clearly better than a hyperplane: {verdict}. What {dims} principal components leave looks "
        "like noise, which no chart can reconstruct, so there is no new start; the posterior loses what the dropped "
        "directions say about theta. Take a larger `manifold_dim`, or `AF`."
    )


def _few_told(verdict: ChartVerdict, dims: int) -> str:
    """Return what to say of a chart that reconstructs the rows it learned from alone."""
    return (
        f"The chart reconstructs the simulations it learned from, but new ones not clearly better than a hyperplane: "
        f"{verdict}. They are too few for a manifold of {dims} dimensions that is bent like this one, and posteriors "
        "will be too wide or out of place: simulate more, or compare with `AF`."
    )
