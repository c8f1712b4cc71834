"""Random seeds, and blocks in which libraries may use or change global state, which is restored after them."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.distributions import Distribution

__all__ = ["alone", "derived", "distinct", "seeded", "spawned", "undisturbed"]


_ALONE = threading.RLock()


@contextmanager
def alone() -> Iterator[None]:
    """Let one thread of this process compute, by one thread of torch and in float32, and put everything back.

    What is computed inside depends neither on the process's settings nor, by the global generators, on its threads.
    """
    with _ALONE:
        threads, kind = torch.get_num_threads(), torch.get_default_dtype()
        torch.set_num_threads(1)
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.set_default_dtype(kind)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, numpy and Python inside the block and restore them after it.

    Example:
        >>> with seeded(3):
        ...     first = torch.rand(2)
        >>> with seeded(3):
        ...     bool((torch.rand(2) == first).all())
        True
    """
    state, pythons = np.random.get_state(), random.getstate()  # noqa: NPY002 - sbi's slice sampler draws from numpy's
    gpus = range(torch.cuda.device_count())
    used = torch.cuda.is_initialized()  # those that are not stay so: they would take memory, and forbid to fork
    try:
        with torch.random.fork_rng(devices=gpus if used else []):
            torch.manual_seed(seed)
            np.random.seed([seed % 2**32, seed >> 32] if seed >= 2**32 else seed % 2**32)  # noqa: NPY002
            random.seed(seed)
            yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
        random.setstate(pythons)
        if gpus and not used:
            torch.cuda.manual_seed_all(torch.initial_seed())  # what they begin with once they are used


def derived(seed: int, *keys: int) -> int:
    """Return a seed for one use of many, independent of the others: same seed and keys, same result."""
    return int(np.random.SeedSequence(seed, spawn_key=keys).generate_state(1)[0])


def spawned(seed: int, *keys: int) -> int:
    """Return a seed like `derived` of 63 bits, for so many uses that those of 32 would collide."""
    return int(np.random.SeedSequence(seed, spawn_key=keys).generate_state(1, np.uint64)[0] >> np.uint64(1))


def distinct(seed: int, number: int) -> int:
    """Return a seed like `spawned(seed, number)` whose last 32 bits are no other number's, for numbers below 2^32.

    torch's generator of the CPU takes no more bits than those, so that among 100,000 seeds drawn at random two would
    probably be one. The bits are a Feistel cipher of the number, which is a bijection whatever its rounds compute.
    """
    left, right = number >> 16, number & 0xFFFF
    for key in np.random.SeedSequence(seed).generate_state(4).tolist():
        left, right = right, left ^ (((right ^ key) * 0x9E3779B1 & 0xFFFFFFFF) >> 16)
    return spawned(seed, number) >> 32 << 32 | left << 16 | right


@contextmanager
def undisturbed() -> Iterator[None]:
    """Import a library inside the block and undo what that does to everybody else.

    zuko, which sbi imports, switches torch.distributions' argument checks off, and sbi draws from Python's generator.
    """
    checks, state = Distribution._validate_args, random.getstate()
    try:
        yield
    finally:
        Distribution.set_default_validate_args(checks)
        random.setstate(state)
