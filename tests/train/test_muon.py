import pytest
import torch

from mfsbi.train.optimizers import Muon, orthogonalized


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (3, 6, 6)])
def test_all_singular_values_are_brought_near_one_and_directions_kept(shape):
    matrices = torch.randn(*shape, dtype=torch.float64)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    found = orthogonalized(matrices)
    inner = (u.mT @ found @ v.mT).diagonal(dim1=-2, dim2=-1)
    assert ((inner > 0.6) & (inner < 1.3)).all()
    torch.testing.assert_close(u * inner[..., None, :] @ v, found, rtol=0, atol=1e-9)


def test_a_matrix_without_gradient_has_no_direction():
    assert (orthogonalized(torch.zeros(4, 3)) == 0).all()


def test_steps_are_those_of_torch_up_to_its_bfloat16():
    torch.manual_seed(0)
    start, gradients = torch.randn(8, 6), torch.randn(5, 8, 6)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    for optimizer in (Muon([ours], 0.02, 0.1), torch.optim.Muon([theirs], 0.02, 0.1, adjust_lr_fn="match_rms_adamw")):
        (weight,) = optimizer.param_groups[0]["params"]
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
    moved = (theirs - start).norm()
    assert moved > 0.1
    assert (ours - theirs).norm() < 0.02 * moved


def test_matrices_of_one_shape_move_as_each_would_alone():
    torch.manual_seed(1)
    start = torch.randn(2, 4, 3)
    together, alone = [[torch.nn.Parameter(each.clone()) for each in start] for _ in range(2)]
    for weight, other in zip(together, alone, strict=True):
        weight.grad = torch.randn(4, 3)
        other.grad = weight.grad.clone()
    Muon(together, 0.1).step()
    for weight in alone:
        Muon([weight], 0.1).step()
    torch.testing.assert_close(torch.stack(together), torch.stack(alone))
