"""The optimisation loop, the only one: `fit` runs a schedule.

Each group of parts (chart, latent) has one learning rate, which warms up over its first steps and then falls to zero
along a cosine over all the steps the schedule grants that group, so alternating phases continue where they left off.
One split into training and validation rows serves the whole schedule. `mfsbi.train.phase` says what happens within a
phase, `mfsbi.train.state` what a training has come to, `mfsbi.train.checkpoint` how one that was stopped goes on, and
`mfsbi.train.ranks` how several processes share one: all of them then call `fit` alike.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from tqdm.auto import tqdm

from mfsbi.seeds import derived, seeded
from mfsbi.train.checkpoint import Checkpoints, Keeper
from mfsbi.train.data import steps_per_epoch
from mfsbi.train.optimizers import PartsOptimizer
from mfsbi.train.phase import PhaseRun, rows_of_step
from mfsbi.train.ranks import Ranks
from mfsbi.train.record import History, Settings
from mfsbi.train.schedules import Phase, Schedule, require_schedule
from mfsbi.train.state import State
from mfsbi.train.stream import Split, TrainingData

__all__ = ["fit", "require_phases"]


def fit(
    model: nn.Module,
    data: Split,
    schedule: Schedule,
    settings: Settings | None = None,
    *,
    keep_going: Callable[[int], bool] | None = None,
    history: History | None = None,
    checkpoints: Checkpoints | None = None,
) -> History:
    """Train a model in place and return the record of it.

    Ctrl-C ends the training, not the program: the best weights so far are in place and a warning says so.

    Arguments:
        model: its parts, such as chart and latent, are its children; on the device and in the type of the data
        data: rows to learn from, and rows to judge by
        schedule: phases in order, as `sequential()` returns them
        settings: how to optimise; the defaults if not given
        keep_going: asked after each phase, with its index; training ends when it says no
        history: the record to write to, which then survives an error; a new one if not given
        checkpoints: what keeps the training on disk, and where it goes on from one that was stopped

    Raises:
        ValueError: if the schedule is empty, or a phase has no epochs or rows or names parts that models do not have;
            if several processes have different rows, or a step has fewer rows than there are processes
        ArithmeticError: if a loss becomes NaN or infinite; the best weights before that are in place
        SystemExit: after SIGTERM, where there are checkpoints; after a second Ctrl-C, where there are several processes
    """
    require_phases(schedule, model)
    settings = Settings() if settings is None else settings
    history = History() if history is None else history
    ranks = Ranks.current()
    _require_rows(ranks, data, schedule, settings)
    steps = [_steps(phase, data[0], settings) for phase in schedule]
    optimizers = {phase.trains: _optimizer(model, phase.trains, schedule, steps, settings) for phase in schedule}
    state = State(model, schedule, optimizers, history, seed=settings.seed, patience=settings.stop_after_epochs)
    keeper = Keeper(checkpoints, ranks)
    with _progress_bar(sum(steps), settings) as bar, seeded(derived(settings.seed, 0)), keeper.listening():
        run = PhaseRun(state, settings, bar, keeper)
        try:
            _run(run, data, steps, keep_going or (lambda _: True))
        except KeyboardInterrupt:
            history.interrupted = True
            warnings.warn(_interruption(state), stacklevel=2)
    return history


def _run(run: PhaseRun, data: Split, steps: Sequence[int], keep_going: Callable[[int], bool]) -> None:
    """Run the schedule, or what is left of it."""
    state, checkpoints, first = run.state, run.keeper.checkpoints, 0
    start = None if checkpoints is None else checkpoints.taken()
    if start is not None:
        state.restore(start)
        first = state.number
    run.ranks.hand_out(state.model)
    if not all(keep_going(number) for number in range(first)):
        return
    for number in range(first, len(state.schedule)):
        trainable = state.optimizers[state.schedule[number].trains] is not None
        if trainable and (start is None or number > first):
            state.begin(number)
        run.bar.update(sum(steps[:number]) - run.bar.n)
        if trainable:
            run.epochs(data)
        run.bar.update(sum(steps[: number + 1]) - run.bar.n)
        if not keep_going(number):
            break
    if trainable:
        run.keeper.keep(state.snapshot, ended=False)  # what was wished for after the last step


def _optimizer(
    model: nn.Module, trains: tuple[str, ...], schedule: Schedule, steps: Sequence[int], settings: Settings
) -> PartsOptimizer | None:
    """Return what moves some parts through the whole schedule, or None if they have nothing to train."""
    parts = nn.ModuleList([getattr(model, name) for name in trains])
    if not any(weight.requires_grad for weight in parts.parameters()):
        return None
    phases = [number for number, phase in enumerate(schedule) if phase.trains == trains]
    first = schedule[phases[0]]
    rate, decay = first.rate * settings.learning_rate, first.decay * settings.weight_decay
    return PartsOptimizer(parts, rate, decay, sum(steps[number] for number in phases))


def _steps(phase: Phase, training: TrainingData, settings: Settings) -> int:
    """Return the steps of a phase that does not stop early."""
    return phase.epochs * steps_per_epoch(training.rows, rows_of_step(phase, settings))


@contextmanager
def _progress_bar(steps: int, settings: Settings) -> Iterator[tqdm]:
    hidden = None if settings.show_progress_bars is None else not settings.show_progress_bars
    hidden = hidden if Ranks.current().first else True
    with tqdm(total=steps, disable=hidden, unit="step", leave=False, dynamic_ncols=True) as bar:
        yield bar


def require_phases(schedule: Schedule, model: nn.Module) -> None:
    """Raise ValueError or TypeError unless a schedule can train a model."""
    require_schedule(schedule)
    parts = tuple(name for name, _ in model.named_children())
    for phase in schedule:
        if not isinstance(phase.trains, tuple) or not set(phase.trains) <= set(parts):
            raise ValueError(f"A phase should train a tuple of parts out of {parts}; got {phase.trains!r}.")


def _require_rows(ranks: Ranks, data: Split, schedule: Schedule, settings: Settings) -> None:
    """Raise ValueError unless several processes have the same rows, and each one of every step."""
    training, validation = data
    ranks.require_same("numbers of rows to learn from and to judge by", (training.rows, validation.rows))
    if ranks.size > 1:
        digests = training.digest[:8], validation.digest[:8]
        ranks.require_same("digests of rows, which one seed or `Ranks.from_first` gives", digests)
    rows = min(training.rows, *(rows_of_step(phase, settings) for phase in schedule))
    if rows < ranks.size:
        raise ValueError(
            f"A step should have a row for each of {ranks.size} processes; one has {rows}. Take fewer processes, or a "
            "larger `training_batch_size`."
        )


def _interruption(state: State) -> str:
    """Return what an interrupted training has kept and left out."""
    kept = "those it began with"
    if state.best.epoch > 0:
        kept = f"those of epoch {state.best.epoch}, validation loss {state.best.loss:.4g}"
    left = ", ".join(dict.fromkeys(phase.loss.__name__ for phase in state.schedule[state.number + 1 :]))
    return (
        f"Training was interrupted in phase {state.number + 1} of {len(state.schedule)}; its best weights so far are "
        f"kept: {kept}." + (f" Phases that did not run: {left}." if left else "")
    )
