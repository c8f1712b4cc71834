"""Words that stand for simulators, priors and arrays, as a command line has them.

| word | stands for |
|---|---|
| `polynomial` | a registered simulator (see `mfsbi.registry`) |
| `mymodule:surface` | a simulator: `prior`, `parameter_names`, `simulate(theta, seed=...)`; or a class of such |
| `mymodule:simulate` | a function theta -> x, rows to rows; its prior comes as bounds |
| `sims.npz` | arrays by name |
| `theta.npy x.npy` | one array each |
| `sims` | a store of `mfsbi simulate`; its prior is the one it was made with, if no bounds come |

A `Source` is any of these, or a folder of MadMiner's, as something to learn from.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mfsbi.checks import require_finite
from mfsbi.gold import read_madminer, simulate
from mfsbi.priors import box, prior_of_record
from mfsbi.registry import named
from mfsbi.seeds import derived, seeded
from mfsbi.simulations import Simulations
from mfsbi.store import Store
from mfsbi.types import HasGold, Prior, Simulator
from mfsbi.warp import converted

__all__ = ["Source", "prior_of", "prior_of_store", "read_arrays", "simulator", "source_of"]

KEPT = {"x"}
"""Arrays that keep their type, whose offsets may need more digits than torch's default type has."""


@dataclass(frozen=True)
class Source:
    """A simulator, or the simulations that one has left behind.

    Arguments:
        prior: of theta
        parameter_names: one for each parameter
        simulator: None where there are simulations or a store
        simulations: None where a simulator or a store is there
        store: None where a simulator or simulations are there
        manifold_dim: the dimension of the manifold, if it is known
    """

    prior: Prior
    parameter_names: Sequence[str]
    simulator: Simulator | None = None
    simulations: Simulations | None = None
    store: Store | None = None
    manifold_dim: int | None = None

    def for_likelihood(self, count: int, *, seed: int, gold: bool = True, events: int = 1) -> Simulations:
        """Return the rows drawn at theta, with the joint score if it is known.

        Arguments:
            count: rows to draw from a simulator
            seed: of the draws
            gold: whether to take the joint score along
            events: rows of each of them that share one theta
        """
        if self.simulations is None:
            found = self._drawn(count, seed, gold=gold, events=events, to_reference=False)
        else:
            found = self.simulations.at_theta()
        return replace(found, joint_log_ratio=None) if gold else found.without_gold()

    def for_ratio(self, count: int, *, seed: int, gold: bool = True) -> Simulations:
        """Return rows with all gold there is; a simulator that has it draws every other x at the mean theta.

        The reference is then a point in the middle of the prior. Without gold every x is drawn at its theta, and the
        reference is the distribution of all x, which no label needs to know.

        Arguments:
            count: rows to draw from a simulator
            seed: of the draws
            gold: whether to take joint score and joint log ratio along
        """
        if self.simulations is None:
            return self._drawn(count, seed, gold=gold, events=1, to_reference=True)
        return self.simulations if gold else self.simulations.without_gold()

    def _drawn(self, count: int, seed: int, *, gold: bool, events: int, to_reference: bool) -> Simulations:
        assert self.simulator is not None
        with seeded(derived(seed, 0)):
            theta = self.prior.sample((count,)).repeat_interleave(events, 0)
        seed = derived(seed, 1)
        try:
            if not (gold and isinstance(self.simulator, HasGold)):
                return Simulations(theta, self.simulator.simulate(theta, seed=seed))
            at_theta = torch.arange(len(theta)) % 2 == 0 if to_reference else None
            reference = theta.mean(0) if to_reference else None
            return simulate(self.simulator, theta, theta_ref=reference, from_theta=at_theta, seed=seed)
        except Exception as error:
            raise RuntimeError(
                f"The simulator failed: {type(error).__name__}: {error}. `mfsbi simulate` notes what fails, goes on, "
                "and leaves a store that can be learned from."
            ) from error


@dataclass(frozen=True)
class _Function:
    """A function theta -> x as a simulator; it draws from torch's and numpy's global generators."""

    function: Callable[[Tensor], Tensor]
    prior: Prior
    parameter_names: Sequence[str]

    @property
    def version(self) -> str:
        """What the function says, or else its module."""
        module = sys.modules.get(self.function.__module__)
        return str(getattr(self.function, "version", getattr(module, "__version__", "")))

    def simulate(self, theta: Tensor, *, seed: int | None = None) -> Tensor:
        """Return x of each row of theta.

        Raises:
            TypeError: if the function does not return an array of real numbers
            ValueError: if it is of another shape
        """
        with nullcontext() if seed is None else seeded(seed):
            x = _tensor(self.function(theta))
        if x.ndim != 2 or len(x) != len(theta):
            raise ValueError(
                f"A simulator's x should have shape (rows, features), one row for each of the {len(theta)} rows of "
                f"theta; got {tuple(x.shape)}."
            )
        return x


def _tensor(x: object) -> Tensor:
    """Return what a simulator returned as a tensor, or raise TypeError if it holds no numbers.

    It is of torch's default type, unless offsets need more digits.

    Lists of numbers or of tensors will do, and whatever numpy makes an array of numbers of, such as a data frame.
    """
    found: Any = x
    if not isinstance(x, Tensor):
        with suppress(TypeError, ValueError, RuntimeError):  # lists whose parts do not match, for example
            found = np.asarray(x)
    if not _is_real(found):
        kind, remedy = _kind_and_remedy(x, found)
        raise TypeError(
            "A simulator's x should be an array or tensor of numbers, shape (rows, features), one row for each row of "
            f"theta; got {kind}. {remedy}"
        )
    return converted(torch.as_tensor(found), torch.get_default_dtype())


def _is_real(found: object) -> bool:
    """Return whether something is an array or tensor of real numbers."""
    if isinstance(found, Tensor):
        return not found.is_complex()
    return getattr(getattr(found, "dtype", None), "kind", "O") in "fiub"


def _kind_and_remedy(x: object, found: object) -> tuple[str, str]:
    """Return what x is that holds no real numbers, and what to do about it."""
    if isinstance(x, Mapping):
        stack = "Return one array, e.g. by stacking its values: `torch.stack(list(x.values()), dim=-1)`."
        return f"a {type(x).__name__} with keys {', '.join(map(repr, x))}", stack
    if x is None:
        return "None", "Let the function end with `return x`."
    kind = f"a {type(x).__name__}"
    if isinstance(x, Sequence) and not isinstance(x, str) and len(x):
        kind += f" of {len(x)}, the first of them a {type(x[0]).__name__}"
    array = isinstance(found, np.ndarray) and issubclass(found.dtype.type, np.complexfloating)
    if array or isinstance(found, Tensor):  # that is not real
        return f"{kind} of {getattr(found, 'dtype', None)}", "Return real and imaginary parts as features of their own."
    kind += f" of type {x.dtype}" if isinstance(x, np.ndarray) else ""
    return kind, "Return one array of numbers, e.g. by `numpy.stack`."


def source_of(
    words: Sequence[str], bounds: Sequence[str] = (), madminer: Path | None = None, sample: str = "train"
) -> Source:
    """Return what words or a folder of MadMiner's stand for, as something to learn from.

    Arguments:
        words: a simulator, or files of theta and x
        bounds: of the prior, `low:high` of each parameter; those of a simulator or store if there are none
        madminer: a folder of MadMiner's instead of words
        sample: the name of the sample in it

    Raises:
        ValueError: if there are words and a folder, or neither, or they do not stand for a source
        FileNotFoundError: if there is no such file or folder
    """
    names = [f"theta_{i}" for i in range(len(bounds))]
    if madminer is not None and not words:
        return Source(box(bounds), names, simulations=read_madminer(madminer, sample))
    if madminer is None and any(word.endswith((".npy", ".npz")) for word in words):
        arrays = read_arrays([Path(word) for word in words], ["theta", "x"])
        return Source(box(bounds), names, simulations=Simulations(*arrays))
    if madminer is None and len(words) == 1 and Path(words[0]).is_dir():
        return _stored(Store(words[0]), bounds)
    if madminer is not None or len(words) != 1:
        got = " ".join([*words, *([f"--madminer {madminer}"] if madminer is not None else [])])
        raise ValueError(
            f"Expected one simulator, or files of arrays, or --madminer FOLDER alone; got {got or 'nothing'}."
        )
    known = simulator(words[0], bounds)
    dim = getattr(known, "manifold_dim", None)
    return Source(prior_of(known, bounds), list(known.parameter_names), simulator=known, manifold_dim=dim)


def prior_of(known: Simulator, bounds: Sequence[str]) -> Prior:
    """Return the uniform prior between bounds, or the simulator's own if there are none.

    Raises:
        ValueError: if bounds are not as many as the simulator has parameters
    """
    if not bounds:
        return known.prior
    if len(bounds) != len(known.parameter_names):
        raise ValueError(
            f"There should be a --prior for each of {', '.join(known.parameter_names)}, or none; got {len(bounds)}."
        )
    return box(bounds)


def _stored(store: Store, bounds: Sequence[str]) -> Source:
    """Return a store with the prior that bounds say, or the one it was made with."""
    known = None
    with suppress(Exception):  # it is needed for what it knows alone
        known = simulator(store.attributes["simulator"], bounds)
    prior = prior_of_store(store, known, bounds)
    dim = getattr(known, "manifold_dim", None)
    return Source(prior, store.attributes["parameter_names"], store=store, manifold_dim=dim)


def prior_of_store(store: Store, known: Simulator | None, bounds: Sequence[str] = ()) -> Prior:
    """Return the uniform prior between bounds, or the one that a store was made with.

    Raises:
        ValueError: if there are no bounds, and the store has a prior that is neither uniform nor the simulator's
    """
    prior = box(bounds) if bounds else prior_of_record(store.attributes, getattr(known, "prior", None))
    if prior is None:
        raise ValueError(
            f"The prior of {store.path} is {store.attributes['prior']}, which cannot be made again from that. Do it in "
            "Python, with that prior, or say one --prior LOW:HIGH for each parameter."
        )
    return prior


def simulator(word: str, prior: Sequence[str] = ()) -> Simulator:
    """Return the simulator that a word stands for: a registered name, or `module:attribute` within reach.

    Arguments:
        word: see the table above
        prior: bounds `low:high` of each parameter, for a function

    Raises:
        ValueError: if there is no such simulator, or a function comes without bounds
        TypeError: if what is there is neither
    """
    module, colon, attribute = word.partition(":")
    if not colon:
        return named(word)
    found = _imported(module, attribute)
    if isinstance(found, Simulator):
        return found
    if not callable(found) or hasattr(found, "simulate"):
        missing = [name for name in ("prior", "parameter_names", "simulate") if not hasattr(found, name)]
        raise TypeError(
            f"{word!r} should be a simulator or a function theta -> x; it is {type(found).__name__}, which has no "
            f"{' and no '.join(missing)} as a simulator has."
        )
    if not prior:
        raise ValueError(f"{word!r} is a function: say its prior by one --prior LOW:HIGH for each parameter.")
    return _Function(found, box(prior), [f"theta_{i}" for i in range(len(prior))])


def _imported(module: str, attribute: str) -> object:
    """Return what a module within reach has by that name, or an object of it if that is a class."""
    word = f"{module}:{attribute}"
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"Cannot find {word!r}: {error}. Say MODULE:NAME of something Python can import.") from error
    if not isinstance(found, type):
        return found
    try:
        return found()
    except TypeError as error:
        raise TypeError(f"{word!r} cannot be made without arguments: {error}. Name an object of it.") from error


def read_arrays(paths: Sequence[Path], names: Sequence[str]) -> list[Tensor]:
    """Return arrays from one `.npz` file that has these names, or from as many `.npy` files in this order.

    Raises:
        ValueError: if files or names do not fit, or a number is not finite or not real
        FileNotFoundError: if there is no such file
    """
    endings, wanted = [path.suffix for path in paths], " and ".join(names)
    if endings not in ([".npz"], [".npy"] * len(names)):
        raise ValueError(
            f"Expected one .npz file with {wanted}, or one .npy file each for {wanted}; "
            f"got {', '.join(map(str, paths)) or 'nothing'}."
        )
    if endings == [".npz"]:
        stored = _load(paths[0])
        if any(name not in stored for name in names):
            raise ValueError(f"{paths[0]} should hold {wanted}; it holds {', '.join(stored) or 'nothing'}.")
        arrays = [stored[name] for name in names]
    else:
        arrays = [array for path in paths for array in _load(path).values()]
    return [_numbers(name, array) for name, array in zip(names, arrays, strict=True)]


def _numbers(name: str, array: NDArray) -> Tensor:
    """Return an array of finite numbers as a tensor, of torch's default type unless its own may be needed."""
    if array.dtype.kind not in "fiu":
        raise ValueError(f"`{name}` should be an array of numbers; its type is {array.dtype}.")
    tensor = torch.as_tensor(array)
    if name not in KEPT or not tensor.is_floating_point():
        tensor = tensor.to(torch.get_default_dtype())
    require_finite(name, tensor, "Remove these rows from all arrays.")
    return tensor


def _load(path: Path) -> dict[str, NDArray]:
    """Return what numpy reads without unpickling anything: arrays by name, or a single one by that of its file."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        with path.open("rb") as file:
            stored = np.load(file, allow_pickle=False)
            return dict(stored.items()) if isinstance(stored, np.lib.npyio.NpzFile) else {path.stem: stored}
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as arrays of numbers: {error}.") from error
