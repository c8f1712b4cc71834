"""Estimators on disk: the spec that built one, its dimensions and its weights.

Nothing is pickled, and no file says what to execute. The functions of a `FOM` are therefore not in its file: whoever
loads it brings the spec along.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mfsbi import files
from mfsbi.flows import AffineCouplings, Couplings, SplineCouplings
from mfsbi.plugin.estimator import ManifoldEstimator
from mfsbi.plugin.specs import AF, FOM, PAE, PIE, MeFlow, MFlow, Spec

__all__ = ["load", "save"]

SPECS: dict[str, type[Spec]] = {spec.__name__: spec for spec in (AF, FOM, PIE, MFlow, MeFlow, PAE)}
COUPLINGS: dict[str, type[Couplings]] = {kind.__name__: kind for kind in (AffineCouplings, SplineCouplings)}


def save(estimator: ManifoldEstimator, spec: Spec, path: str | Path) -> None:
    """Write a trained estimator to one file.

    Arguments:
        estimator: what `train()` returned
        spec: what built it
        path: the file, by custom ending in .safetensors

    Raises:
        TypeError: if the spec is not one of mfsbi's own
        OSError: if the file cannot be written
    """
    if type(spec) not in SPECS.values():
        raise TypeError(f"`spec` should be one of {sorted(SPECS)}; got {type(spec).__name__}.")
    description = {
        "spec": type(spec).__name__,
        "fields": _fields(spec),
        "data_dim": estimator.input_shape[0],
        "parameter_dim": estimator.condition_shape[0],
        "torch": torch.__version__,
    }
    files.write(Path(path), estimator.state_dict(), description)


def load(path: str | Path, spec: Spec | None = None) -> ManifoldEstimator:
    """Return the estimator that `save` wrote, in evaluation mode.

    Arguments:
        path: the file
        spec: what built the estimator; needed for a `FOM`, whose functions no file holds

    Raises:
        FileNotFoundError: if there is no such file
        ValueError: if the file is foreign, of an unknown version, or does not fit the spec it names or the one given
    """
    tensors, description = files.read(Path(path))
    if description.get("spec") not in SPECS:
        raise ValueError(f"{path} names the spec {description.get('spec')!r}; this version knows {sorted(SPECS)}.")
    if spec is None and description["spec"] == FOM.__name__:
        raise ValueError(
            f"{path} holds a `FOM`, whose functions are not in the file: pass `spec=FOM(decode, encode, ...)`."
        )
    try:
        if spec is None:
            spec = SPECS[description["spec"]](**{name: _field(value) for name, value in description["fields"].items()})
        elif (type(spec).__name__, _fields(spec)) != (description["spec"], description["fields"]):
            raise ValueError(f"{path} was written by {description['spec']}({description['fields']}), not by {spec!r}.")
        dims = description["parameter_dim"], description["data_dim"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} describes its spec in a way this version does not know: {error}.") from error
    with torch.random.fork_rng(devices=[]):  # first weights are drawn, then replaced
        estimator = spec(*spec.example(*dims))
    estimator.to(next(value.dtype for value in tensors.values() if value.is_floating_point()))
    try:
        estimator.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the spec it names, {spec!r}: {error}") from error
    return estimator.eval()


def _fields(spec: Spec) -> dict[str, Any]:
    """Return what a spec holds besides functions, as JSON has it."""
    return {
        name: _plain(value) for name, value in vars(spec).items() if isinstance(value, Couplings) or not callable(value)
    }


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Return a spec's field as JSON has it: couplings by their name and settings, numbers as they are."""
    return {"kind": type(value).__name__, **asdict(value)} if isinstance(value, Couplings) else value


def _field(value: Any) -> Any:  # noqa: ANN401
    """Return a spec's field from JSON."""
    if not isinstance(value, dict):
        return value
    settings = dict(value)
    return COUPLINGS[settings.pop("kind")](**settings)
