"""The optimisation loop, the only one: `fit` runs a schedule.

Each group of parts (chart, latent) has one learning rate, which warms up over its first steps and then falls to zero
along a cosine over all the steps the schedule grants that group, so alternating phases continue where they left off.
One split into training and validation rows serves the whole schedule. `mfsbi.train.phase` says what happens within a
phase, `mfsbi.train.checkpoint` how a training that was stopped goes on, `mfsbi.train.ranks` how several processes share
one: `fit`, then, is called by all of them alike.
"""

import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Generator, Tensor, nn
from tqdm.auto import tqdm

from mfsbi.seeds import derived, seeded
from mfsbi.train.checkpoint import Checkpoints, Snapshot
from mfsbi.train.data import Batch, steps_per_epoch
from mfsbi.train.optimizers import PartsOptimizer
from mfsbi.train.phase import PhaseRun, rows_of_step
from mfsbi.train.ranks import Ranks
from mfsbi.train.record import History, Settings
from mfsbi.train.schedules import Phase, Schedule, require_schedule
from mfsbi.train.signals import on_signal
from mfsbi.train.stream import TrainingData

__all__ = ["fit", "require_phases"]


def fit(  # noqa: PLR0913 - a training has many sides
    model: nn.Module,
    training: TrainingData,
    validation: Batch,
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
        training: rows to learn from
        validation: rows to judge by
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
    run = _Run(model, schedule, settings, history, checkpoints)
    _require_rows(run.ranks, training, validation, schedule, settings)
    listening = nullcontext() if checkpoints is None else checkpoints.listening()
    steps = [_steps(phase, training, settings) for phase in schedule]
    with _progress_bar(sum(steps), settings) as bar, seeded(derived(settings.seed, 0)), listening, run.deferring():
        try:
            run.phases(training, validation, steps, bar, keep_going)
        except KeyboardInterrupt:
            history.interrupted = True
            warnings.warn(_interruption(run), stacklevel=2)
    return history


class _Run:
    """A schedule at work, with all that a checkpoint holds."""

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        settings: Settings,
        history: History,
        checkpoints: Checkpoints | None,
    ) -> None:
        self.model, self.schedule, self.settings = model, schedule, settings
        self.history, self.checkpoints = history, checkpoints
        self.generator = Generator().manual_seed(settings.seed)
        self.optimizers: dict[tuple[str, ...], PartsOptimizer | None] = {}
        self.ranks, self.interrupted = Ranks.current(), False
        self.number = 0
        self.phase_run: PhaseRun | None = None

    def phases(
        self,
        training: TrainingData,
        validation: Batch,
        steps: Sequence[int],
        bar: tqdm,
        keep_going: Callable[[int], bool] | None,
    ) -> None:
        """Run the schedule, or what is left of it."""
        for phase in self.schedule:
            self.optimizers[phase.trains] = _optimizer(self.model, phase.trains, self.schedule, steps, self.settings)
        start = None if self.checkpoints is None else self.checkpoints.taken()
        first = 0 if start is None else self._restore(start)
        self.ranks.hand_out(self.model)
        if keep_going is not None and not all(keep_going(number) for number in range(first)):
            return
        for number in range(first, len(self.schedule)):
            if self.phase_run is None or number > first:
                self.number, self.phase_run = number, self._phase_run(number)
            bar.update(sum(steps[:number]) - bar.n)
            if self.phase_run is not None:
                self.phase_run.epochs(training, validation, bar, self.history, self._keep)
            bar.update(sum(steps[: number + 1]) - bar.n)
            if keep_going is not None and not keep_going(number):
                break
        if self.phase_run is not None:
            self._keep(ended=False)  # what was wished for after the last step

    def _phase_run(self, number: int) -> PhaseRun | None:
        """Return a phase, not yet begun, or None if it has nothing to train."""
        phase = self.schedule[number]
        optimizer = self.optimizers[phase.trains]
        if optimizer is None:
            return None
        return PhaseRun(self.model, number, phase, optimizer, self.settings, self.generator)

    def _keep(self, *, ended: bool) -> None:
        """Write a checkpoint if it is time to, or the phase has ended; end if any process was told to."""
        kept = self.checkpoints
        due = kept is not None and self.ranks.first and kept.due()
        terminated = kept is not None and kept.terminated
        due, terminated, interrupted = self.ranks.any(due, terminated, self.interrupted)
        if kept is not None and self.ranks.first and (ended or due or terminated or interrupted):
            kept.write(self._snapshot())
        if kept is not None and terminated:
            kept.leave()
        if interrupted:
            raise KeyboardInterrupt

    @contextmanager
    def deferring(self) -> Iterator[None]:
        """Let Ctrl-C wait for the end of a step where there are checkpoints, or several processes to leave together.

        The second Ctrl-C does not wait.
        """

        def interrupt() -> None:
            if self.interrupted and self.ranks.size > 1:
                raise SystemExit(128 + signal.SIGINT)  # not to be caught by what has to be done by all together
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True

        waits = self.ranks.size > 1 or self.checkpoints is not None
        with on_signal(signal.SIGINT, interrupt) if waits else nullcontext():
            yield

    def _snapshot(self) -> Snapshot:
        """Return the training as it is, between two steps."""
        assert self.phase_run is not None
        tensors, numbers = self.phase_run.state()
        for index, optimizer in enumerate(self.optimizers.values()):
            state = {} if optimizer is None else optimizer.state()
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        tensors |= {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for phase in self.schedule:
            size = getattr(phase.loss, "size", None)
            tensors |= {} if size is None else {f"size.{name}": value for name, value in size.state_dict().items()}
        tensors["random.cpu"] = torch.get_rng_state()
        tensors |= {f"random.cuda.{i}": state for i, state in enumerate(_cuda_states())}
        return Snapshot(tensors, {"phase": self.number, **numbers, "history": self.history.as_record()})

    def _restore(self, snapshot: Snapshot) -> int:
        """Take up the training that a checkpoint holds, and return the index of its phase."""
        self.model.load_state_dict(snapshot.part("model."))
        for index, optimizer in enumerate(self.optimizers.values()):
            if optimizer is not None:
                optimizer.restore(snapshot.part(f"optimizer.{index}."))
        self.history.epochs[:] = snapshot.history.epochs
        self.number = snapshot.numbers["phase"]
        self.phase_run = self._phase_run(self.number)
        assert self.phase_run is not None
        self.phase_run.restore(snapshot)
        torch.set_rng_state(snapshot.tensors["random.cpu"])
        for name, state in snapshot.part("random.cuda.").items():
            if int(name) < torch.cuda.device_count():  # another machine may have fewer
                torch.cuda.set_rng_state(state, int(name))
        return self.number


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


def _require_rows(
    ranks: Ranks, training: TrainingData, validation: Batch, schedule: Schedule, settings: Settings
) -> None:
    """Raise ValueError unless several processes have the same rows, and each one of every step."""
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


def _cuda_states() -> list[Tensor]:
    """Return the states of the generators of all GPUs, if they are used."""
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def _interruption(run: _Run) -> str:
    best = None if run.phase_run is None else run.phase_run.best
    kept = "those it began with"
    if best is not None and best.epoch > 0:
        kept = f"those of epoch {best.epoch}, validation loss {best.loss:.4g}"
    left = ", ".join(dict.fromkeys(phase.loss.__name__ for phase in run.schedule[run.number + 1 :]))
    return (
        f"Training was interrupted in phase {run.number + 1} of {len(run.schedule)}; its best weights so far are kept: "
        f"{kept}." + (f" Phases that did not run: {left}." if left else "")
    )
