r"""The door to PyTensor, PyMC's language of graphs: log likelihoods of groups as an Op with a gradient.

A value l_g(theta_g) that depends on its own row of theta alone has the gradient of a sum row by row,

    d/dtheta_g  sum_h a_h l_h(theta_h)  =  a_g s_g,    s_g = dl_g/dtheta_g,

for any weights a. So one Op returns l and the scores s together, from one pass of torch forwards and back, and its
gradient is a product of what it has returned: a sampler that asks for value and gradient runs the network once.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

try:
    import pytensor.tensor as pt
    from pytensor.gradient import DisconnectedType
    from pytensor.graph.basic import Apply
    from pytensor.graph.op import Op
except ImportError as error:
    raise ImportError("PyTensor, which PyMC runs on, is missing: pip install 'mfsbi[pymc]'.") from error

__all__ = ["ValuesAndScores", "to_pytensor"]

Variable = Any
"""One of PyTensor's."""


def to_pytensor(function: Callable[[Tensor], Tensor], theta: Variable) -> Variable:
    """Return values of a torch function of theta as a PyTensor variable of shape `(groups,)`, with a gradient.

    Arguments:
        function: theta of shape `(groups, parameter)` -> one value for each row, which depends on that row alone
        theta: a variable of PyTensor, or what makes one, shape `(groups, parameter)`

    Raises:
        ValueError: if theta is no matrix
    """
    return ValuesAndScores(function)(theta)[0]


class ValuesAndScores(Op):
    """theta -> (values, scores), shapes `(groups,)` and `(groups, parameter)`, in the type of theta.

    Arguments:
        function: as `to_pytensor` takes it
    """

    __props__ = ("function",)

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def make_node(self, theta: Variable) -> Apply:
        """Return the node of this Op on a theta."""
        theta = pt.as_tensor_variable(theta)
        if theta.ndim != 2:
            raise ValueError(
                f"`theta` should be a matrix of PyTensor's, one row for each group; it has {theta.ndim} "
                f"{'axis' if theta.ndim == 1 else 'axes'}. "
                "Write `theta[:, None]` for groups of one parameter."
            )
        if theta.dtype not in ("float32", "float64"):
            theta = theta.astype("float64")
        return Apply(self, [theta], [pt.tensor(dtype=theta.dtype, shape=theta.type.shape[:1]), theta.type()])

    def perform(self, node: Apply, inputs: Sequence[np.ndarray], output_storage: list[list[np.ndarray | None]]) -> None:
        """Compute both with torch."""
        theta = torch.tensor(inputs[0], requires_grad=True)
        with torch.enable_grad():
            values = self.function(theta)
            (scores,) = torch.autograd.grad(values.sum(), theta)
        for storage, found, output in zip(output_storage, (values.detach(), scores), node.outputs, strict=True):
            storage[0] = found.cpu().numpy().astype(output.dtype, copy=False)

    def pullback(
        self,
        inputs: Sequence[Variable],  # noqa: ARG002 - PyTensor's signature
        outputs: Sequence[Variable],
        cotangents: Sequence[Variable],
    ) -> list[Variable]:
        """Return the gradient by theta."""
        of_values, of_scores = cotangents
        if not isinstance(of_scores.type, DisconnectedType):
            raise NotImplementedError(
                "The log likelihood has no second derivatives in PyTensor: take a sampler without, such as NUTS."
            )
        return [of_values[:, None] * outputs[1]]

    L_op = pullback
    """What PyTensor called it before version 3."""
