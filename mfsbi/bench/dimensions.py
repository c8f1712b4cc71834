"""Dimensions of curved manifolds: `dimension_scan` beside two estimators of scikit-dimension.

TwoNN (Facco et al., Sci. Rep. 7 (2017) 12140) takes the dimension from the distances to the two nearest neighbours,
local PCA counts the axes of neighbourhoods. Neither says how well so many coordinates reconstruct the data. The
manifolds are the lifted laws of the panel, whose dimensions are known.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from mfsbi.bench.output import as_table, keep, torch_threads
from mfsbi.bench.tables import LIFT, PANEL
from mfsbi.dimension import dimension_scan
from mfsbi.registry import named
from mfsbi.seeds import derived, seeded

__all__ = ["DimensionRow", "as_markdown", "compare_dimensions"]


@dataclass(frozen=True)
class DimensionRow:
    """What was found of one manifold.

    Arguments:
        law: its name
        features: of x
        true: its dimension
        scan: by `dimension_scan`; None if no number passed
        seconds: CPU time of that
        two_nn: by the two nearest neighbours
        local_pca: by the axes of neighbourhoods
    """

    law: str
    features: int
    true: int
    scan: int | None
    seconds: float
    two_nn: float
    local_pca: float


def compare_dimensions(
    laws: Iterable[str] = PANEL,
    rows: int = 10_000,
    *,
    threads: int = 1,
    out: Path | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> list[DimensionRow]:
    """Return a row for each lifted law.

    Arguments:
        laws: by name
        rows: simulations of each
        threads: of torch; the number before comes back
        out: folder for `dimensions.md` and `dimensions.json`, created if needed
        tell: called with each row as it is measured

    Raises:
        ImportError: without scikit-dimension, the extra `bench`
    """
    try:
        from skdim.id import TwoNN, lPCA  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ImportError("The estimators beside come from scikit-dimension: pip install 'mfsbi[bench]'.") from error
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    found = []
    with torch_threads(threads):
        for name in laws:
            law = cast(Any, named("law", name=name, factor=LIFT))
            with seeded(derived(0, 0)):
                x = law.simulate(law.prior.sample((rows,)), seed=derived(0, 1))
            began = time.process_time()
            scan = dimension_scan(x, show_progress_bars=False).suggested
            seconds, values = time.process_time() - began, ((x - x.mean(0)) / x.std(0)).numpy()
            others = (float(each.fit(values).dimension_) for each in (TwoNN(), lPCA()))
            found.append(DimensionRow(name, law.data_dim, law.manifold_dim, scan, seconds, *others))
            tell(as_markdown(found[-1:]).splitlines()[-1])
    if out is not None:
        keep(out, "dimensions", as_markdown(found), [asdict(row) for row in found])
    return found


def as_markdown(rows: Iterable[DimensionRow]) -> str:
    """Return the rows as a Markdown table."""
    heads = ["law, lifted", "features", "dimension", "`dimension_scan`", "CPU s", "TwoNN", "local PCA"]
    cells = []
    for row in rows:
        found = str(row.scan), f"{row.seconds:.0f}", f"{row.two_nn:.1f}", f"{row.local_pca:.1f}"
        cells.append([row.law, str(row.features), str(row.true), *found])
    return as_table(heads, cells)
