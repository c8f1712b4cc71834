import io

import arviz_base
import numpy as np
import pytest
import torch
import xarray
from matplotlib.figure import Figure
from matplotlib.text import Text

from mfsbi import Chains, to_arviz
from mfsbi.inference import to_arviz as module
from mfsbi.inference.chains import Info
from mfsbi.inference.to_arviz import diagnose, plot_rank, plot_trace, read, write


def chains(parameters=2, offset=0.0):
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(4, 300, parameters, generator=generator)
    draws[0] += offset
    return Chains(draws, -0.5 * draws.square().sum(-1), Info("exact", seed=0, acceptance=0.5))


@pytest.fixture(params=["as installed", "1.x"])
def version(request, monkeypatch):
    """ArviZ as it is installed, and the conversion of 1.x, which has moved to arviz_base."""
    if request.param == "1.x":
        monkeypatch.setattr(module, "arviz", arviz_base)
        monkeypatch.setattr(module, "MODERN", True)
    return request.param


def test_new_data_sets_of_every_tenth_draw_go_along(version):
    written = to_arviz(chains(), ["a", "b"], posterior_predictive=torch.randn(4, 30, 5, 3))
    assert written["posterior_predictive"]["x"].shape == (4, 30, 5, 3)


@pytest.mark.parametrize("ending", ["nc", "zarr"])
def test_a_file_gives_back_names_draws_and_observations(tmp_path, version, ending):
    given = chains()
    x, prior = torch.randn(5, 3), torch.randn(50, 2)
    predictive = torch.randn(4, 300, 3)
    written = to_arviz(given, ["a", "b"], x, prior, predictive)
    assert isinstance(written, xarray.DataTree) == (version == "1.x" or module.MODERN)
    path = tmp_path / f"posterior.{ending}"
    write(written, path)
    data = read(path)
    assert type(data) is type(written)
    told = {"sampler": "exact", "markov": 1, "seed": 0, "seconds": 0.0, "acceptance": 0.5}
    assert {name: data.attrs[name] for name in told} == told
    assert not {"warmup_steps", "divergences", "evaluations"} & set(data.attrs)
    assert set(data["posterior"].data_vars) == {"a", "b"}
    np.testing.assert_array_equal(data["posterior"]["b"].values, given.draws[..., 1].numpy())
    np.testing.assert_array_equal(data["sample_stats"]["lp"].values, given.log_prob.numpy())
    np.testing.assert_array_equal(data["observed_data"]["x"].values, x.numpy())
    np.testing.assert_array_equal(data["prior"]["a"].values[0], prior[:, 0].numpy())
    np.testing.assert_array_equal(data["posterior_predictive"]["x"].values, predictive.numpy())


def test_chains_that_agree_have_converged():
    diagnostics = diagnose(chains())
    assert diagnostics.converged
    assert max(diagnostics.r_hat) < 1.01
    assert all(900 < size < 1600 for size in diagnostics.ess_bulk)


def test_one_chain_elsewhere_is_noticed():
    diagnostics = diagnose(chains(offset=3.0))
    assert not diagnostics.converged
    assert "R-hat" in str(diagnostics)


@pytest.mark.parametrize("plot", [plot_trace, plot_rank])
def test_plots_are_figures(plot):
    assert isinstance(plot(to_arviz(chains())), Figure)


@pytest.mark.parametrize("plot", [plot_trace, plot_rank])
def test_names_that_matplotlib_cannot_read_are_drawn_as_they_stand(plot):
    names = [r"$\mean{x}$", r"$\Omega_m$"]
    figure = plot(to_arviz(chains(), names))
    figure.savefig(io.BytesIO())
    told = {text.get_text(): text.get_parse_math() for text in figure.findobj(Text)}
    assert any(names[0] in text and not parsed for text, parsed in told.items())
    assert any(names[1] in text and parsed for text, parsed in told.items())


def test_a_wrong_number_of_names_is_refused():
    with pytest.raises(ValueError, match="`parameter_names` should have 2 entries"):
        to_arviz(chains(), ["a"])


def test_too_few_chains_are_refused():
    with pytest.raises(ValueError, match="at least 2 of at least 4 draws"):
        diagnose(Chains(torch.zeros(1, 300, 1), torch.zeros(1, 300)))


NAMES = [r"$\Omega_m$", "a.b", "a b", "µ", "C:\\x", "%41", "n" * 200, "sample", "x", "lp"]


@pytest.mark.parametrize("ending", ["nc", "zarr"])
def test_any_name_in_any_file_comes_back_with_its_draws(tmp_path, version, ending):
    given = chains(len(NAMES))
    path = tmp_path / "a folder that is not there yet" / f"draws of θ.{ending}"
    write(to_arviz(given, NAMES), path)
    back = read(path)["posterior"]
    for name, draws in zip(NAMES, given.draws.unbind(-1), strict=True):
        assert np.array_equal(back[name].values, draws.numpy())


@pytest.mark.parametrize("name", ["chain", "draw", "", " ", ".", "..", "a/b"])
def test_names_that_arviz_has_for_something_else_are_refused(name):
    with pytest.raises(ValueError, match="`parameter_names` should be words other than chain and draw"):
        to_arviz(chains(), ["a", name])


def test_a_file_that_lost_draws_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "quote", lambda name, safe: name)
    with pytest.raises(OSError, match=r"does not hold what was written to it: posterior: a\\b"):
        write(to_arviz(chains(), ["a\\b", "c"]), tmp_path / "draws.zarr")


def test_arviz_itself_opens_a_netcdf_file(tmp_path):
    write(to_arviz(chains(), ["a", "b"]), tmp_path / "draws.nc")
    assert module.arviz.from_netcdf(str(tmp_path / "draws.nc"))["posterior"]["a"].shape == (4, 300)
