"""What a simulator is and what it has done: of values that its source does not tell, the first alone counts."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal

from mfsbi.simulating.fingerprint import agree, fingerprint
from mfsbi.sources import simulator
from simulators.lhc.process import WBFHiggs
from simulators.lorenz import Lorenz
from simulators.polynomial import PolynomialSurface
from simulators.sphere import Sphere


def with_default(sigma):
    def simulate(theta, noise=sigma):
        return theta, noise

    return simulate


def with_keyword_default(sigma):
    def simulate(theta, *, noise=(sigma, 1)):
        return theta, noise

    return simulate


def with_default_of_a_method(sigma):
    class Simulator:
        def simulate(self, theta, noise=sigma):
            return theta, noise

    return Simulator()


def with_defaults_of_lambdas(sigma):
    return [lambda theta, s=each: s * theta for each in (1.0, sigma)]


def with_class_attribute(sigma):
    class Simulator:
        sigma = 1.0

    Simulator.sigma = sigma
    return Simulator()


def with_attribute_of_a_base(sigma):
    class Base:
        sigma = None

    class Simulator(Base):
        pass

    Base.sigma = sigma
    return Simulator()


class Private:
    def __init__(self, sigma):
        self._sigma, self.prior = sigma, None

    def simulate(self, theta):
        return theta * self._sigma


class Mangled:
    def __init__(self, sigma):
        self.__sigma = sigma

    def simulate(self, theta):
        return theta * self.__sigma


class WithSetter(Private):
    @property
    def sigma(self):
        return self._sigma

    @sigma.setter
    def sigma(self, value):
        self._sigma = value


class Appending:
    def __init__(self, sigma):
        self._sigmas = []
        self._sigmas.append(sigma)


@dataclass(frozen=True)
class Frozen:
    _sigma: object
    twice: object = field(default=None, init=False)

    def __post_init__(self):
        object.__setattr__(self, "_twice", [self._sigma, self._sigma])


@dataclass(slots=True)
class Slotted:
    _sigma: object = None


def with_setter(sigma):
    made = WithSetter(1.0)
    made.sigma = sigma
    return made


def set_from_outside(sigma):
    made = Private(1.0)
    made._sigma = sigma
    return made


MADE = [
    with_default,
    with_keyword_default,
    with_default_of_a_method,
    with_defaults_of_lambdas,
    with_class_attribute,
    with_attribute_of_a_base,
    Private,
    Mangled,
    with_setter,
    set_from_outside,
    Appending,
    Frozen,
    Slotted,
]
Width = Enum("Width", ["NARROW", "WIDE"])
VALUES = {
    "numbers": (0.1, 0.2),
    "words": ("narrow", "wide"),
    "tensors": (torch.zeros(9), torch.eye(9)[4]),
    "arrays": (np.zeros(9), np.eye(9)[4]),
    "containers": ({"widths": [1.0, {3}]}, {"widths": [1.0, {4}]}),
    "distributions": (Normal(0.0, 1.0), Normal(0.0, 2.0)),
    "objects": (Private(0.1), Private(0.2)),
    "members of enumerations": (Width.NARROW, Width.WIDE),
}


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("make", MADE)
def test_a_value_that_the_source_does_not_tell_tells_simulators_apart(make, values):
    one, again, other = (fingerprint(make(value)) for value in (VALUES[values][0], *VALUES[values]))
    assert one == again
    assert one != other


class Worker:
    """Remembers what it did, in all the ways there are."""

    parameter_names, prior = ("a",), Independent(Normal(torch.zeros(1), 1.0), 1)
    calls, seen, _made = 0, [0], None

    def __init__(self):
        self._grid, self._memo, self._kept, self._table, self._scale = None, {}, [1], torch.zeros(3), 2.0
        self._filled, self._alias, self.__hidden, self._log = None, {}, 0, print
        self._total = 0

    def simulate(self, theta, *, seed=None, memo={}):  # noqa: B006 - as users have it
        if self._grid is None:
            self._grid = torch.linspace(0, 1, 5)
        Worker.calls += 1
        type(self)._made = self.seen[0] = seed
        memo[seed] = self._memo[seed] = 1
        alias, self.__hidden = self._alias, self.__hidden + 1
        alias[seed] = theta
        self._kept.append(seed)
        self._table.add_(1.0)
        self._total += 1
        (self._last, *_), self._log = [theta], repr
        setattr(self, "_filled", 3)  # noqa: B010
        fill(self)
        return theta * self._scale


def fill(worker):
    worker._late = worker._early = 3


@dataclass(frozen=True)
class Lazy:
    """Fills a frozen dataclass when it is first used."""

    _grid: object = None
    _memo: dict = field(default_factory=dict, init=False)
    parameter_names, prior = ("a",), Independent(Normal(torch.zeros(1), 1.0), 1)

    def simulate(self, theta, *, seed=None):
        object.__setattr__(self, "_grid", theta)
        self._memo[seed] = theta
        return theta


def worked_in_a_function(theta, seen=[]):  # noqa: B006 - as users have it
    seen.append(len(theta))
    return theta


class Case(NamedTuple):
    make: Callable
    parameters: int = 1


WORKERS = {
    "an object": Case(Worker),
    "a frozen one": Case(Lazy),
    "a function": Case(lambda: simulator(f"{__name__}:worked_in_a_function", ["0:1"])),
    "WBFHiggs": Case(WBFHiggs, 3),
    "Lorenz": Case(lambda: Lorenz(trajectories=10, end=60), 0),
    "PolynomialSurface": Case(PolynomialSurface),
    "Sphere": Case(lambda: Sphere(2, 5), 2),
}


@pytest.mark.parametrize("name", WORKERS)
def test_work_changes_nothing(name):
    make, parameters = WORKERS[name]
    worker = make()
    before = fingerprint(worker)
    for seed in range(2):
        worker.simulate(torch.full((3, parameters), 0.1), seed=seed)
        assert fingerprint(worker) == before == fingerprint(make())


def test_what_a_worker_is_tells_it_apart_all_the_same():
    one, other = Worker(), Worker()
    other._scale = 3.0
    assert fingerprint(one) != fingerprint(other)


NEW, OLD, OLDEST = "source-2:0123456789abcdef", "source-1:0123456789abcdef", "0123456789abcdef"


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (NEW, NEW, True),
        (NEW, NEW.replace("0", "1"), False),
        ({"spec": ["FOM()", OLD], "rows": 3}, {"rows": 3, "spec": ["FOM()", NEW]}, None),
        ([f"twice {OLDEST} of weight 1"], [f"twice {NEW} of weight 1"], None),
        ([f"twice {OLD} of weight 1"], [f"twice {NEW} of weight 2"], False),
        (["MFlow(2)", 0.1], ["MFlow(2)", 0.1], True),
        (["MFlow(2)"], ["MFlow(3)"], False),
    ],
)
def test_values_agree_as_far_as_fingerprints_can_tell(one, other, expected):
    assert agree(one, other) is expected
