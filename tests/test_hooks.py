"""Shapes in annotations are executed in every test: here they are wrong."""

import pytest
import torch
from beartype.roar import BeartypeCallHintParamViolation, BeartypeCallHintReturnViolation
from jaxtyping import Float
from torch import Tensor

from mfsbi.flows import AffineCouplings
from tests.hooks import checked, jaxtyped_once


@jaxtyped_once(typechecker=checked)
def product(a: Float[Tensor, "rows inner"], b: Float[Tensor, "inner columns"]) -> Float[Tensor, "rows columns"]:
    if len(a) < 5:
        product(torch.ones(5, 6), torch.ones(6, 7))  # where the same names have other sizes
    return (a @ b)[1:] if (a < 0).any() else a @ b


def test_arguments_and_results_are_of_the_sizes_that_are_annotated():
    assert product(torch.ones(2, 3), torch.ones(3, 4)).shape == (2, 4)
    with pytest.raises(BeartypeCallHintParamViolation, match="rows inner|inner columns"):
        product(torch.ones(3, 3), torch.ones(2, 4))
    with pytest.raises(BeartypeCallHintParamViolation):
        product(torch.ones(2, 2).int(), torch.ones(2, 4))
    with pytest.raises(BeartypeCallHintReturnViolation):
        product(-torch.ones(2, 2), torch.ones(2, 4))


def test_functions_of_the_package_are_checked():
    flow = AffineCouplings(layers=2).build(3)
    with pytest.raises(BeartypeCallHintParamViolation):
        flow.inverse(torch.ones(4, 3).int())
