"""The door to ArviZ, for its versions 0.23 (InferenceData) and 1.x (DataTree).

Everything that differs between the two is in this module; both write netCDF files that `arviz.from_netcdf` opens.
"""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import quote, unquote

import numpy as np
import xarray
from matplotlib.figure import Figure
from torch import Tensor

from mfsbi.checks import require_features, require_kind, require_tensor
from mfsbi.inference.chains import Chains
from mfsbi.plots.figure import mend

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # 0.23 announces 1.x at every import
    import arviz

__all__ = ["Diagnostics", "diagnose", "plot_rank", "plot_trace", "read", "require_names", "to_arviz", "write"]

RESERVED = "chain", "draw"

ORDER = "mfsbi_variables"
"""The attribute of a group that notes their order."""

APART = 1.05
"""R-hat, about the spread of all draws over that within chains, above which chains do not describe one posterior.

Vehtari et al. advise 1.01, which walkers of emcee often exceed although they are right (`notebooks/measurements.md`).
"""

MODERN = int(arviz.__version__.split(".")[0]) >= 1

Groups: TypeAlias = Any
"""ArviZ's InferenceData (0.23) or xarray's DataTree (1.x)."""


class Diagnostics(NamedTuple):
    """Convergence of chains, one entry per parameter (Vehtari et al., arXiv:1903.08008).

    Arguments:
        r_hat: rank-normalised split R-hat; about 1.01 when chains agree
        ess_bulk: effective sample size for means
        ess_tail: effective sample size for the 5 % and 95 % quantiles
    """

    r_hat: list[float]
    ess_bulk: list[float]
    ess_tail: list[float]

    @property
    def converged(self) -> bool:
        """Whether R-hat is at most 1.05 and both sample sizes at least 400 for every parameter."""
        return max(self.r_hat) <= APART and self.enough

    @property
    def enough(self) -> bool:
        """Whether both sample sizes are at least 400 for every parameter, which is enough for independent draws."""
        return min(self.ess_bulk + self.ess_tail) >= 400

    @property
    def complaint(self) -> str:
        """What is wrong with the chains, what it means for the posterior and what to do; empty if nothing is wrong."""
        if max(self.r_hat) > APART:
            return (
                f"The chains have not converged: {self}. They disagree by so much that the draws are not those of the "
                "posterior, whose spread may be far off. Take a longer warm-up and more draws, and look at the trace "
                "plot for separate modes, which chains cannot cross."
            )
        if not self.enough:
            error = min(self.ess_bulk) ** -0.5  # of the worst mean
            return (
                f"There are few independent draws: {self}. Means are uncertain by {error:.0%} of a standard "
                "deviation, and bounds of intervals by more. Take more draws."
            )
        return ""

    def __str__(self) -> str:
        return f"largest R-hat {max(self.r_hat):.3f}, {self.sizes}"

    @property
    def sizes(self) -> str:
        """The smallest sample sizes, in words."""
        return f"smallest effective sample size {min(self.ess_bulk):.0f} (bulk) and {min(self.ess_tail):.0f} (tails)"


def diagnose(chains: Chains) -> Diagnostics:
    """Return R-hat and effective sample sizes of each parameter.

    Arguments:
        chains: at least two, of at least four draws; they may be independent draws split into chains

    Raises:
        ValueError: if there are fewer
    """
    if chains.draws.shape[0] < 2 or chains.draws.shape[1] < 4:
        raise ValueError(f"`chains` should be at least 2 of at least 4 draws; got {tuple(chains.draws.shape[:2])}.")
    each = [np.asarray(column) for column in chains.draws.double().cpu().unbind(-1)]
    return Diagnostics(
        r_hat=[float(arviz.rhat(draws)) for draws in each],
        ess_bulk=[float(arviz.ess(draws, method="bulk")) for draws in each],
        ess_tail=[float(arviz.ess(draws, method="tail", prob=(0.05, 0.95))) for draws in each],
    )


def to_arviz(
    chains: Chains,
    parameter_names: Sequence[str] | None = None,
    x: Tensor | None = None,
    prior: Tensor | None = None,
    posterior_predictive: Tensor | Mapping[str, Tensor] | None = None,
) -> Groups:
    """Return chains and what belongs to them as ArviZ's InferenceData (0.23) or DataTree (1.x).

    Arguments:
        chains: the draws
        parameter_names: a name for each parameter; theta_0, theta_1, ... if not given
        x: the observations, shape `(observations, data)`
        prior: draws of theta from the prior, shape `(draw, parameter)`
        posterior_predictive: new x for each draw, shape `(chain, draw, *)`, as `mfsbi.posterior_predictive` gives;
            several by name, such as {"x": the model's, "x_simulator": the simulator's}

    Raises:
        ValueError: if there are not as many names as parameters, two are the same, or draws do not fit the chains
    """
    require_kind("chains", chains, Chains, "`Chains`, as `sample_chains` returns them")
    names = require_names(parameter_names, chains.draws.shape[-1])
    stats = {"lp": np.asarray(chains.log_prob.cpu())}
    groups: dict[str, Mapping[str, Any]] = {"posterior": _by_name(names, chains.draws), "sample_stats": stats}
    if x is not None:
        require_tensor("x", x)
        groups["observed_data"] = {"x": np.asarray(x.cpu())}
    if prior is not None:
        require_features("prior", prior, len(names), "the draws")
        groups["prior"] = _by_name(names, prior[None])
    if posterior_predictive is not None:
        new = {"x": posterior_predictive} if isinstance(posterior_predictive, Tensor) else posterior_predictive
        for name, value in new.items():
            if value.ndim < 3 or len(value) != len(chains.draws) or value.shape[1] > chains.draws.shape[1]:
                raise ValueError(
                    f"`posterior_predictive` should have shape (chain, draw, *), for {tuple(chains.draws.shape[:2])} "
                    f"chains and draws or fewer of the latter; {name!r} has shape {tuple(value.shape)}."
                )
        groups["posterior_predictive"] = {name: np.asarray(x.cpu()) for name, x in new.items()}
    attributes = chains.info.told | {"markov": int(chains.info.markov)}  # files hold no truth values
    if MODERN:
        return arviz.from_dict(groups, attrs={"/": attributes})
    return arviz.from_dict(**groups, attrs=attributes)


def write(data: Groups, path: Path) -> None:
    """Write what `to_arviz` returned: to a Zarr store if the path ends in .zarr, else to a netCDF file by h5netcdf.

    Names that a file cannot hold, such as those with a slash or a backslash, are percent-encoded in it; `read` gives
    them back. A missing folder is created, and the file is read back before it is trusted.

    Arguments:
        data: groups of named arrays, whichever version of ArviZ made them
        path: whose suffix decides the format; what lies there is replaced

    Raises:
        OSError: if the file cannot be written, or holds something else than what was to be written
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tree = _noted(_renamed(_tree(data), _encoded))
    zarr = {".zarr": partial(tree.to_zarr, mode="w", consolidated=False)}
    zarr.get(path.suffix, partial(tree.to_netcdf, engine="h5netcdf"))(str(path))
    wanted, found = _contents(_tree(data)), _contents(_tree(read(path)))
    if wanted != found:
        lost = ", ".join(f"{group}: {name}" for group, name in sorted(set(wanted) - set(found))) or "their shapes"
        raise OSError(f"{path} does not hold what was written to it: {lost} differ. The draws are still in memory.")


def read(path: Path) -> Groups:
    """Return what `write` wrote, as ArviZ's InferenceData (0.23) or DataTree (1.x).

    Arguments:
        path: a Zarr store if it ends in .zarr, else a netCDF file; all of it is loaded, and nothing stays open
    """
    zarr: dict[str, dict[str, Any]] = {".zarr": {"engine": "zarr", "consolidated": False}}
    with xarray.open_datatree(str(path), **zarr.get(path.suffix, {"engine": "h5netcdf"})) as stored:
        tree = _renamed(_ordered(stored.load()), unquote)
    if MODERN:
        return tree
    groups = {name: node.to_dataset() for name, node in tree.children.items()}
    return arviz.InferenceData(**groups, attrs=dict(tree.attrs))


def _tree(data: Groups) -> xarray.DataTree:
    """Return the groups as a DataTree: ArviZ 0.23 itself writes only the old version of Zarr."""
    if MODERN:
        return data
    groups = {name: data[name] for name in data.groups()}
    return xarray.DataTree.from_dict({"/": xarray.Dataset(attrs=data.attrs), **groups})


def _noted(tree: xarray.DataTree) -> xarray.DataTree:
    """Return the groups with a note of the order of their variables, which a Zarr store does not keep."""
    groups = {name: node.to_dataset() for name, node in tree.children.items()}
    noted = {name: each.assign_attrs({ORDER: json.dumps(list(map(str, each)))}) for name, each in groups.items()}
    return xarray.DataTree.from_dict({"/": tree.to_dataset(), **noted})


def _ordered(tree: xarray.DataTree) -> xarray.DataTree:
    """Return the groups with variables in the order that `_noted` noted, without the notes."""
    ordered = {}
    for name, node in tree.children.items():
        group = node.to_dataset()
        names = [known for known in json.loads(group.attrs.pop(ORDER, "[]")) if known in group]
        variables = {known: group[known] for known in (*names, *group)}
        ordered[name] = xarray.Dataset(variables, coords=group.coords, attrs=group.attrs)
    return xarray.DataTree.from_dict({"/": tree.to_dataset(), **ordered})


def _encoded(name: str) -> str:
    """Return a name as files hold it: all but plain letters, digits, spaces and _-~ is percent-encoded."""
    return quote(name, safe=" ").replace(".", "%2E")


def _renamed(tree: xarray.DataTree, new: Callable[[str], str]) -> xarray.DataTree:
    """Return the groups with the variables' names changed by a function."""
    groups = {name: node.to_dataset() for name, node in tree.children.items()}
    renamed = {name: each.rename({old: new(str(old)) for old in each.data_vars}) for name, each in groups.items()}
    return xarray.DataTree.from_dict({"/": tree.to_dataset(), **renamed})


def _contents(tree: xarray.DataTree) -> dict[tuple[str, str], tuple[int, ...]]:
    """Return the shape of each variable by its group and name."""
    groups = tree.children.items()
    return {(group, str(name)): array.shape for group, node in groups for name, array in node.data_vars.items()}


def plot_trace(data: Groups) -> Figure:
    """Return ArviZ's figure of the chains: each draw against its number."""
    return _figure(arviz.plot_trace(data))


def plot_rank(data: Groups) -> Figure:
    """Return ArviZ's figure of the ranks of each chain's draws among all: flat where the chains agree."""
    return _figure(arviz.plot_rank(data))


def _figure(plot: Groups) -> Figure:
    """Return the figure behind an array of axes (0.23) or a PlotCollection (1.x)."""
    figure: Figure = plot.viz["figure"].item() if MODERN else np.ravel(plot)[0].figure
    mend(figure)
    return figure


def require_names(given: Sequence[str] | None, count: int) -> list[str]:
    """Return a name for each parameter, theta_0, theta_1, ... if none are given.

    Raises:
        ValueError: if there are not as many as parameters, two are the same, or ArviZ takes one for something else
    """
    names = list(given) if given is not None else [f"theta_{i}" for i in range(count)]
    if isinstance(given, str) or len(set(names)) != count or len(names) != count:
        raise ValueError(
            f"`parameter_names` should have {count} entries, one per parameter, no two the same; got {given!r}."
        )
    for name in names:
        if not isinstance(name, str) or not name.strip(" .") or PurePosixPath(name).name != name or name in RESERVED:
            raise ValueError(
                f"`parameter_names` should be words other than {' and '.join(RESERVED)}, ArviZ's names for the axes "
                f"of draws, neither dots alone nor with a slash, which separates groups; got {name!r}. Choose another."
            )
    return names


def _by_name(names: Sequence[str], draws: Tensor) -> dict[str, np.ndarray]:
    """Return one array of shape `(chain, draw)` per parameter."""
    return {name: np.asarray(column) for name, column in zip(names, draws.cpu().unbind(-1), strict=True)}
