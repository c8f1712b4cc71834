"""Two ways to do the same thing, timed side by side.

Absolute times say little on a shared machine; ratios of neighbours in time say more. A duel runs A B A B ..., and its
ratio is the median over the pairs.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

from mfsbi.bench.output import as_table

__all__ = ["Duel", "Score", "as_markdown", "run", "timed"]

Result = TypeVar("Result")


@dataclass(frozen=True)
class Duel:
    """A row of the table before it is run.

    Arguments:
        row: what is done
        peer: who does it as well
        ours: our way
        theirs: the peer's
        target: how many times longer the peer is meant to take; None where nothing was set
        pairs: how many pairs are timed at most, after one of each to warm up
    """

    row: str
    peer: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    target: float | None = None
    pairs: int = 7


@dataclass(frozen=True)
class Score:
    """A row of the table; seconds are medians, ratios theirs / ours pair by pair.

    Arguments:
        row: what is done
        peer: who does it as well
        ours_seconds: of our side
        peer_seconds: of the other
        ratio: the median, above one where ours is faster
        ratio_least: the smallest
        ratio_most: the largest
        pairs: how many there were
        target: of the duel, if it had one
    """

    row: str
    peer: str
    ours_seconds: float
    peer_seconds: float
    ratio: float
    ratio_least: float
    ratio_most: float
    pairs: int
    target: float | None


def run(duel: Duel, pairs: int = 7) -> Score:
    """Time both sides of a duel in turns, as many pairs, or as many as the duel allows.

    One more pair comes first and does not count.

    Arguments:
        duel: the row of the table
        pairs: how often each side is timed
    """
    pairs = min(pairs, duel.pairs)
    both = [(timed(duel.ours)[1], timed(duel.theirs)[1]) for _ in range(pairs + 1)][1:]
    ratios = sorted(theirs / ours for ours, theirs in both)
    ours, theirs = (median(side) for side in zip(*both, strict=True))
    return Score(duel.row, duel.peer, ours, theirs, median(ratios), ratios[0], ratios[-1], pairs, duel.target)


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """Return what the work returns, and the seconds it took.

    Arguments:
        work: is called once; seconds are of the wall clock, so that threads count once
    """
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def as_markdown(scores: Iterable[Score]) -> str:
    """Return the scores as a Markdown table; where a target was set and missed, it is in bold."""
    rows = []
    for score in scores:
        target = "" if score.target is None else f"{score.target:g}"
        missed = score.target is not None and score.ratio < score.target
        seconds = (f"{1e3 * each:.3g}" for each in (score.ours_seconds, score.peer_seconds))
        ratio = f"{score.ratio:.3g} ({score.ratio_least:.3g} to {score.ratio_most:.3g})"
        rows.append([score.row, score.peer, *seconds, ratio, f"**{target}**" if missed else target])
    return as_table(["row", "against", "ours, ms", "theirs, ms", "ratio (range)", "aim"], rows, words=2)
