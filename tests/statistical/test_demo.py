"""The promises the demo makes, for three seeds; about two minutes each on two cores."""

import pytest

from mfsbi.demo import run_demo
from simulators.polynomial import PolynomialSurface


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_demo_keeps_its_promises(seed, tmp_path):
    result = run_demo(PolynomialSurface(), tmp_path, seed=seed, quiet=True)
    print(result)  # noqa: T201 - the figures, for pytest -rP
    assert result.reconstruction_error <= 0.03
    assert result.manifold_distance <= 0.03
    assert result.total_variation <= 0.10
    assert max(result.diagnostics.r_hat) <= 1.01
    assert result.collapses == 0
