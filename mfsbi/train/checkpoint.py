r"""A training on disk, so that one that was killed goes on where it was, bit for bit.

A checkpoint is one file in the format of `mfsbi.files`, without pickle; `mfsbi.train.state` says what it holds. It is
written aside, flushed to the disk and renamed into place, and the one before it stays until the next is there. A
checksum detects a file that is torn or was changed, and `about` one of other data, schedule, settings, seed or version.
Such a file is not used: the one before it is, with a warning. Where there is none, a checkpoint of another training is
an error, since going on would train something else than was asked for. Where it cannot be told whether functions of the
user's are still the same, the training goes on with a warning.

A training that goes on repeats no step and skips none, so on the same machine, with as many threads and the same
versions, its weights are those of a training that was never stopped.

**SIGTERM** is what schedulers of clusters send some time before they kill. While checkpoints are kept, the step under
way ends, a checkpoint is written, and the program leaves by `SystemExit(143)`; only the main thread can listen to it.
Ctrl-C writes one, too. Where several processes train (`mfsbi.train.ranks`) the first one keeps checkpoints and hands
out what it finds.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from hashlib import sha256
from operator import eq
from pathlib import Path
from types import FrameType
from typing import TypeAlias

import numpy as np
from torch import Tensor

from mfsbi import files
from mfsbi.checks import require_positive, warn
from mfsbi.train.ranks import Ranks
from mfsbi.train.state import Snapshot

__all__ = ["Checkpoints", "Keeper", "opened"]

KEPT = 2

Agreement: TypeAlias = Callable[[object, object], bool | None]


class Checkpoints:
    """A folder of checkpoints of one training.

    Arguments:
        folder: made if it is not there; checkpoints of earlier trainings in it are replaced unless `resume`
        about: what tells this training from others, as JSON can hold it
        minutes: between two checkpoints
        resume: go on from the newest checkpoint; begin anew if there is none
        agree: returns whether two values of `about` are the same, or None if that cannot be told

    Attributes:
        start: where to go on, or None to begin anew; `taken` gives it away

    Raises:
        ValueError: if all there is to resume is torn or of another training
        OSError: if nothing can be written there
    """

    def __init__(
        self, folder: str | Path, about: dict[str, object], *, minutes: float, resume: bool, agree: Agreement = eq
    ) -> None:
        self.folder, self.minutes, self.agree = Path(folder), minutes, agree
        self.about = json.loads(json.dumps(about, default=files.plain))
        self.start = Ranks.current().from_first(lambda: self._opened(resume=resume))
        self.written = time.monotonic()

    @property
    def paths(self) -> list[Path]:
        """The files that are there, the newest first."""
        return sorted(self.folder.glob(f"checkpoint-{'[0-9]' * 8}.safetensors"), reverse=True)

    def taken(self) -> Snapshot | None:
        """Return where to go on; to be asked once, since another start of the same training begins anew."""
        start, self.start = self.start, None
        return start

    def due(self) -> bool:
        """Return whether it is time to write one."""
        return time.monotonic() - self.written >= 60 * self.minutes

    def write(self, snapshot: Snapshot) -> None:
        """Write a checkpoint, then remove all but the one before it.

        A disk that is full is a warning: the training goes on, and so does the checkpoint before.

        Arguments:
            snapshot: of the training between two steps
        """
        there = self.paths
        number = 1 + int(there[0].stem.split("-")[1]) if there else 0
        path = self.folder / f"checkpoint-{number:08}.safetensors"
        numbers = json.loads(json.dumps(snapshot.numbers, default=files.plain))
        checked = {"about": self.about, "numbers": numbers, "sha256": _digest(snapshot.tensors, numbers)}
        try:
            files.write(path, snapshot.tensors, checked)
            for old in there[KEPT - 1 :]:
                old.unlink()
        except OSError as error:
            warn(f"A checkpoint could not be written, and training goes on without it: {error}")
        self.written = time.monotonic()

    def _opened(self, *, resume: bool) -> Snapshot | None:
        """Make the folder, and return the checkpoint to go on from or remove those that are there."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"Checkpoints need a folder, and {self.folder} cannot be one: {error.strerror}.") from error
        if not os.access(self.folder, os.W_OK):
            raise OSError(f"Checkpoints cannot be written to {self.folder}: choose another folder.")
        for left in self.folder.glob(".checkpoint-*"):  # by writers that were killed
            left.unlink(missing_ok=True)
        if resume:
            return self._newest()
        for path in self.paths:
            path.unlink()
        return None

    def _newest(self) -> Snapshot | None:
        """Return the newest checkpoint that is whole and of this training."""
        refused = []
        for path in self.paths:
            try:
                found = self._read(path)
            except ValueError as error:
                refused.append(str(error))
                continue
            if refused:
                warn(f"{' '.join(refused)} The one before it, {path.name}, is used.")
            return found
        if refused:
            raise ValueError(f"{' '.join(refused)} Choose another folder, or begin anew without resuming.")
        return None

    def _read(self, path: Path) -> Snapshot:
        """Return a checkpoint.

        Raises:
            ValueError: if it is torn, or not of this training
        """
        tensors, description = files.read(path)
        if description.get("sha256") != _digest(tensors, description.get("numbers")):
            raise ValueError(f"{path} is torn: its contents do not fit its checksum.")
        theirs = description["about"]
        keys = sorted(theirs.keys() | self.about.keys())
        same = {key: self.agree(theirs.get(key), self.about.get(key)) for key in keys}
        differing = [key for key in keys if same[key] is False]
        if differing:
            said = "; ".join(f"{key} {theirs.get(key)} there, {self.about.get(key)} here" for key in differing)
            raise ValueError(f"{path} is of another training: {said}.")
        if None in same.values():
            warn(
                f"{path} notes the code of functions as another version of mfsbi does. Whether yours are still those "
                "that the training began with cannot be told from that: make sure that they are."
            )
        return Snapshot(tensors, description["numbers"])


def opened(
    folder: str | Path | None,
    about: Callable[[], dict[str, object]],
    *,
    minutes: float,
    resume: bool,
    agree: Agreement = eq,
) -> Checkpoints | None:
    """Return the checkpoints in a folder as `Checkpoints` has them, or None if none are wanted.

    Arguments:
        folder: where they are; None for no checkpoints
        about: returns what tells this training from others; it is asked only if there is a folder, since it takes time
        minutes: between two checkpoints
        resume: go on from the newest checkpoint
        agree: returns whether two values of what `about` returns are the same, or None if that cannot be told

    Raises:
        ValueError: if minutes is not positive, or there is no folder to resume from
    """
    require_positive("checkpoint_minutes", minutes)
    if folder is not None:
        return Checkpoints(folder, about(), minutes=minutes, resume=resume, agree=agree)
    if resume:
        raise ValueError("`resume_training` needs `checkpoint`, the folder where an earlier training was kept.")
    return None


@dataclass
class Keeper:
    """Writes checkpoints as a training goes on, and ends it between two steps where a signal asks for that.

    Ctrl-C waits for the end of a step where there are checkpoints, or several processes to leave together.

    Arguments:
        checkpoints: where to write; None for no checkpoints
        ranks: the processes that train together; the present ones if not given
        outer: the keeper of the training that this one is a part of: it listens for both, and writes nothing meanwhile
        terminated: whether SIGTERM has come
        interrupted: whether Ctrl-C has
    """

    checkpoints: Checkpoints | None = None
    ranks: Ranks = field(default_factory=Ranks.current)
    outer: "Keeper | None" = None
    terminated: bool = False
    interrupted: bool = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM and Ctrl-C inside the block as wishes; the second Ctrl-C does not wait.

        Raises:
            SystemExit: with code 143 at the end of the block, if SIGTERM came when there was no step left
        """
        if self.outer is not None:
            yield
            return

        def terminate() -> None:
            self.terminated = True

        def interrupt() -> None:
            if self.interrupted and self.ranks.size > 1:
                raise SystemExit(128 + signal.SIGINT)  # not to be caught by what has to be done by all together
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True

        kept = self.checkpoints is not None
        with (
            on_signal(signal.SIGTERM, terminate) if kept else nullcontext(),
            on_signal(signal.SIGINT, interrupt) if kept or self.ranks.size > 1 else nullcontext(),
        ):
            yield
        if self.terminated:
            raise SystemExit(128 + signal.SIGTERM)

    def keep(self, snapshot: Callable[[], Snapshot], *, ended: bool) -> None:
        """Write a checkpoint if it is time to, or the phase has ended; leave if any process was told to.

        Arguments:
            snapshot: returns the state; it is asked only if a checkpoint is written, since it takes time
            ended: whether the phase has

        Raises:
            SystemExit: with code 143 after SIGTERM
            KeyboardInterrupt: after Ctrl-C
        """
        kept, told = self.checkpoints, self.outer or self
        due = kept is not None and self.ranks.first and kept.due()
        due, terminated, interrupted = self.ranks.any(due, told.terminated, told.interrupted)
        if kept is not None and self.ranks.first and (ended or due or terminated or interrupted):
            kept.write(snapshot())
        if told.checkpoints is not None and terminated:
            raise SystemExit(128 + signal.SIGTERM)
        if interrupted:
            raise KeyboardInterrupt


@contextmanager
def on_signal(number: signal.Signals, note: Callable[[], None]) -> Iterator[None]:
    """Call `note` inside the block instead of what a signal does; only the main thread hears.

    A signal that is ignored stays so, as does one that is handled outside of Python, which could not be put back.

    Arguments:
        number: of the signal; what it did before comes back after the block
        note: is called between two instructions of Python, whatever runs then
    """
    kept = signal.getsignal(number) in (signal.SIG_IGN, None)
    if kept or threading.current_thread() is not threading.main_thread():
        yield
        return

    def heard(_number: int, _frame: FrameType | None) -> None:
        note()

    before = signal.signal(number, heard)
    try:
        yield
    finally:
        signal.signal(number, before)


def _digest(tensors: dict[str, Tensor], numbers: object) -> str:
    """Return a hash of tensors, their names, and numbers."""
    digest = sha256(json.dumps(numbers, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(np.ascontiguousarray(value.detach().cpu()).data)
    return digest.hexdigest()
