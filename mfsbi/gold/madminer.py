r"""Samples that MadMiner's `SampleAugmenter` writes: where a detector simulation brings its gold from.

    trainer.append_simulations(read_madminer("data/samples"))

A sample named `train` is the files `x_train.npy`, `theta_train.npy` and so on of one folder, a row for each event:

| file | holds | here |
|---|---|---|
| `x` | observables | `x` |
| `theta`; `theta0` in samples for ratios | parameters; those of the numerator | `theta` |
| `theta1` | parameters of the denominator | `theta_ref` |
| `t_xz`; `t_xz0` beside more ratios | d/dtheta log p(x, z\|theta) | `joint_score` |
| `r_xz` | p(x, z\|theta0) / p(x, z\|theta1), not its log | `joint_log_ratio` |
| `y` | 0 where x was drawn at theta0, 1 where at theta1 | `from_theta`, the other way round |

(J. Brehmer, F. Kling, I. Espejo, K. Cranmer, arXiv:1907.10621). The collider data of the M-flow paper
(arXiv:2003.13913) have the first of each. Files are mapped into memory: all but the ratios stay on disk until
somebody asks for their rows. Events are drawn with replacement from weighted ones, so that one x may stand in many rows
and held-out rows of a sample are not quite new: judge by a sample of another partition.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mfsbi.simulations import Simulations

__all__ = ["MadMinerSample", "read_madminer"]

WIDE = ("x", "theta", "theta0", "theta1", "t_xz", "t_xz0")
"""Words of MadMiner's for a row of numbers for each event; the others have one number."""

WORDS = (*WIDE, "r_xz", "y")


@dataclass(frozen=True, eq=False)
class MadMinerSample(Simulations):
    """A sample of MadMiner's, in the types of its files; None is what it does not have.

    Arguments:
        theta: shape `(rows, parameter)`
        x: shape `(rows, data)`
        joint_score: t(x, z|theta), shape `(rows, parameter)`; in samples for ratios also where x was drawn at theta_ref
        joint_log_ratio: log r(x, z|theta, theta_ref), shape `(rows,)`, in float64
        from_theta: whether x was drawn at theta, or else at theta_ref, shape `(rows,)`
        theta_ref: the reference of the log ratio, shape `(rows, parameter)`; for `ALICES` it should not depend on theta
    """

    theta_ref: Tensor | None = None


def read_madminer(folder: str | Path, name: str = "train") -> MadMinerSample:
    """Return a sample of MadMiner's from its folder.

    Arguments:
        folder: where `SampleAugmenter` wrote it
        name: of the sample, the `filename` that `SampleAugmenter` was told

    Raises:
        FileNotFoundError: if there is no such folder or sample, or a file is missing without which rows mean nothing
        ValueError: if a file is no array of numbers, shapes do not fit, or a value cannot be a ratio or a label
    """
    files = _files(Path(folder), name)
    read = {word: _mapped(path) for word, path in files.items()}
    for word, value in read.items():
        _require_shape(files[word], value, wide=word in WIDE)
        if len(value) != len(read["x"]):
            raise ValueError(
                f"{files[word].name} should have a row for each of the {len(read['x'])} rows of {files['x'].name}; it "
                f"has {len(value)}. Files of several runs seem to be mixed: sample again into an empty folder."
            )
    theta, theta_ref = read.get("theta", read.get("theta0")), read.get("theta1")
    assert theta is not None
    if theta_ref is not None and theta_ref.shape != theta.shape:
        raise ValueError(
            f"{files['theta1'].name} should have the {theta.shape[1]} parameters of {files['theta0'].name}; it has "
            f"{theta_ref.shape[1]}. Sample again into an empty folder."
        )
    score = next((word for word in ("t_xz", "t_xz0") if word in read), None)
    if score:
        _require_score_of(theta, read[score], files[score])
    known = {word: MEANT[word](read[word].reshape(-1), files[word]) for word in MEANT.keys() & read.keys()}
    return MadMinerSample(
        theta,
        read["x"],
        theta_ref=theta_ref,
        joint_score=read[score] if score else None,
        joint_log_ratio=known.get("r_xz"),
        from_theta=known.get("y"),
    )


def _files(folder: Path, name: str) -> dict[str, Path]:
    """Return the files of a sample by MadMiner's words."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}. Say where MadMiner's SampleAugmenter wrote its samples.")
    every = {word: folder / f"{word}_{name}.npy" for word in WORDS}
    files = {word: path for word, path in every.items() if path.is_file()}
    if not files:
        others = sorted(path.stem.removeprefix("x_") for path in folder.glob("x_*.npy"))
        raise FileNotFoundError(
            f"{folder} should hold a sample {name!r}, files such as x_{name}.npy; "
            + (f"its samples are {', '.join(others)}. Name one of them." if others else "it holds no sample at all.")
        )
    if {"theta", "theta0"} <= files.keys():
        raise ValueError(
            f"{folder} should hold theta_{name}.npy or theta0_{name}.npy; it has both, two samples of one name. Remove "
            "the files of one, or sample again under another name."
        )
    for needed in ("x", "theta0", "y") if {"theta0", "theta1"} & files.keys() else ("x", "theta"):
        if needed not in files:
            raise FileNotFoundError(
                f"{folder} should hold {every[needed].name}; of the sample {name!r} it has "
                f"{', '.join(path.name for path in files.values())}. Copy it there, or sample again."
            )
    return files


def _mapped(path: Path) -> Tensor:
    """Return a file's numbers, read when used; to write to them changes no file."""
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
        tensor = torch.from_numpy(array)
    except (TypeError, ValueError, OSError, EOFError) as error:
        raise ValueError(
            f"{path} should be an array of numbers, as np.save writes it: {error} Sample again."
        ) from error
    if tensor.is_complex():
        raise ValueError(f"{path} should be an array of real numbers; its type is {tensor.dtype}. Sample again.")
    return tensor


def _require_shape(path: Path, value: Tensor, *, wide: bool) -> None:
    """Raise ValueError unless there is a row of numbers, or one number, for each event."""
    fits = value.ndim == 2 if wide else value.ndim == 1 or (value.ndim == 2 and value.shape[1] == 1)
    if not fits:
        wanted, got = "(rows, features)" if wide else "(rows,) or (rows, 1)", tuple(value.shape)
        raise ValueError(f"{path.name} should have shape {wanted}; got {got}. Sample again, or reshape it.")


def _require_score_of(theta: Tensor, score: Tensor, path: Path) -> None:
    """Raise ValueError unless the score is that of the parameters alone."""
    parameters, columns = theta.shape[1], score.shape[1]
    told = f"{path.name} should have a column for each of the {parameters} parameters; it has {columns}"
    if columns > parameters:
        more = columns - parameters
        raise ValueError(f"{told}: scores of {more} nuisance parameters too? Sample again with nuisance_score=False.")
    if columns < parameters:
        raise ValueError(f"{told}. Files of several runs seem to be mixed: sample again into an empty folder.")


def _log(ratio: Tensor, path: Path) -> Tensor:
    """Return the log of ratios in float64, in which it is as exact as they are."""
    ratio = ratio.double()
    wanted = f"{path.name} should hold ratios, finite and above zero, not their log"
    advice = "Remove such rows from all files of the sample."
    _require_rows((ratio > 0) & ratio.isfinite(), ratio, wanted, advice)
    return ratio.log()


def _from_numerator(label: Tensor, path: Path) -> Tensor:
    """Return True where x was drawn at the numerator, which MadMiner calls 0."""
    wanted = f"{path.name} should hold 0 (numerator) and 1 (denominator)"
    _require_rows((label == 0) | (label == 1), label, wanted, "Sample again.")
    return label == 0


def _require_rows(good: Tensor, value: Tensor, expected: str, advice: str) -> None:
    """Raise ValueError unless all rows are good, naming how many are not and the first one."""
    if not good.all():
        first = int((~good).nonzero()[0])
        raise ValueError(
            f"{expected}; {int((~good).sum())} of {len(value)} rows do not, the first of them row {first}: "
            f"{float(value[first]):g}. {advice}"
        )


MEANT = {"r_xz": _log, "y": _from_numerator}
"""What a file with a number for each event means here."""
