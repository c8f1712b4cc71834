import os

import pytest
import torch

from mfsbi import FOM, files, load, save
from tests.laws import perturbed
from tests.problems import SPECS, plane


@pytest.fixture(params=SPECS)
def spec(request):
    return SPECS[request.param]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loaded_estimator_is_the_saved_one(spec, dtype, tmp_path):
    theta, x = plane(theta_dim=2)
    estimator = perturbed(spec(theta, x)).to(dtype)
    save(estimator, spec, tmp_path / "estimator.safetensors")
    state = torch.get_rng_state()
    twin = load(tmp_path / "estimator.safetensors", spec if isinstance(spec, FOM) else None)
    assert (torch.get_rng_state() == state).all()
    x, theta = x[:9].to(dtype), theta[:9].to(dtype)
    assert (twin.loss(x, theta) == estimator.loss(x, theta)).all()
    assert not twin.training


def test_the_functions_of_a_given_manifold_are_in_no_file(tmp_path):
    path, (theta, x) = tmp_path / "estimator.safetensors", plane()
    save(SPECS["FOM"](theta, x), SPECS["FOM"], path)
    with pytest.raises(ValueError, match="functions are not in the file: pass `spec=FOM"):
        load(path)
    with pytest.raises(ValueError, match="was written by FOM.*not by MFlow"):
        load(path, SPECS["MFlow"])


def test_an_unknown_spec_is_refused(tmp_path):
    files.write(tmp_path / "a.safetensors", {"a": torch.ones(1)}, {"spec": "os.system", "fields": {}})
    with pytest.raises(ValueError, match="names the spec 'os.system'; this version knows"):
        load(tmp_path / "a.safetensors")


def test_weights_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save(SPECS["AF"](*plane()), SPECS["AF"], path)
    tensors, description = files.read(path)
    tensors.pop("net.chart.mean")
    files.write(path, tensors, description)
    with pytest.raises(ValueError, match="does not fit the spec it names"):
        load(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_an_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="denied"):
        save(SPECS["AF"](*plane()), SPECS["AF"], tmp_path / "a.safetensors")
