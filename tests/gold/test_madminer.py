import os

import numpy as np
import pytest
import torch

from mfsbi import ALICES, ManifoldNLE
from mfsbi.gold import read_madminer
from simulators.polynomial import PolynomialSurface
from tests.problems import SPECS, mined_surface, write_madminer, write_mined_surface

ROWS = 400
COLUMNS = {"x": 3, "theta": 2, "t_xz": 2}


@pytest.fixture
def ratios(tmp_path):
    """A sample for ratios: theta0, theta1, x, y, the joint ratio and the joint score."""
    write_mined_surface(tmp_path)
    return tmp_path


@pytest.fixture
def densities(tmp_path):
    """A sample for densities: x, theta and the joint score there."""
    write_madminer(tmp_path, **{word: np.full((30, columns), 0.5, np.float32) for word, columns in COLUMNS.items()})
    return tmp_path


def test_a_sample_for_densities_has_theta_x_and_the_joint_score(densities):
    sample = read_madminer(densities)
    assert sample.x.shape == (30, 3)
    assert sample.theta.shape == sample.joint_score.shape == (30, 2)
    assert sample.theta_ref is sample.joint_log_ratio is sample.from_theta is None


def test_a_sample_without_gold_has_theta_and_x_alone(tmp_path):
    write_madminer(tmp_path, "test", x=np.ones((4, 3)), theta=np.zeros((4, 2)))
    assert set(read_madminer(tmp_path, "test").fields) == {"theta", "x"}


def test_a_sample_for_ratios_comes_in_our_words_and_senses(ratios):
    theta, at_theta, gold = mined_surface()
    sample = read_madminer(str(ratios))
    assert (sample.theta == theta).all()
    assert (sample.theta_ref == 0).all()
    assert (sample.from_theta == at_theta).all()
    assert sample.joint_log_ratio.dtype == torch.float64
    torch.testing.assert_close(sample.joint_log_ratio, gold.joint_log_ratio.double(), rtol=1e-4, atol=1e-6)
    assert (sample.joint_score == gold.joint_score).all()


def test_a_sample_of_more_ratios_has_the_score_at_its_numerator(ratios):
    twin = read_madminer(ratios)
    (ratios / "t_xz_train.npy").rename(ratios / "t_xz0_train.npy")
    write_madminer(ratios, t_xz1=np.full_like(twin.joint_score, 7.0))
    assert (read_madminer(ratios).joint_score == twin.joint_score).all()


def test_ratios_and_labels_may_come_without_an_axis_of_one(ratios):
    twin = read_madminer(ratios)
    for word in ("y", "r_xz"):
        write_madminer(ratios, **{word: np.load(ratios / f"{word}_train.npy")[:, 0]})
    sample = read_madminer(ratios)
    assert (sample.from_theta == twin.from_theta).all()
    assert (sample.joint_log_ratio == twin.joint_log_ratio).all()


def test_both_kinds_of_trainer_learn_from_a_sample_for_ratios(ratios):
    sample = read_madminer(ratios)
    gold = {name: getattr(sample, name) for name in ("joint_score", "joint_log_ratio", "from_theta")}
    ratio = ALICES(PolynomialSurface().prior, width=8, show_progress_bars=False).append_simulations(
        sample.theta, sample.x, **gold
    )
    assert ratio.train(max_num_epochs=1).training_record["simulations"] == ROWS
    rows = sample.from_theta
    flow = ManifoldNLE(PolynomialSurface().prior, SPECS["AF"], show_progress_bars=False)
    flow.append_simulations(sample.theta[rows], sample.x[rows], joint_score=sample.joint_score[rows])
    assert flow.train(max_num_epochs=1).training_record["simulations"] == ROWS // 2


def test_rows_stay_on_disk_and_files_as_they_are(densities):
    sample = read_madminer(densities)
    with (densities / "x_train.npy").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(np.float32(7).tobytes())
    assert float(sample.x[-1, -1]) == 7
    sample.theta[0] = 9
    assert (np.load(densities / "theta_train.npy") == 0.5).all()


def without(word):
    return lambda folder: (folder / f"{word}_train.npy").unlink()


def with_arrays(**arrays):
    return lambda folder: write_madminer(folder, **arrays)


def emptied(folder):
    for path in folder.iterdir():
        path.unlink()


def cut(folder):
    path = folder / "x_train.npy"
    path.write_bytes(path.read_bytes()[:-5])


REFUSED = {
    "another sample": (lambda folder: None, "test", FileNotFoundError, "sample 'test'.*its samples are train. Name"),
    "an empty folder": (emptied, "train", FileNotFoundError, "it holds no sample at all"),
    "no x": (without("x"), "train", FileNotFoundError, "should hold x_train.npy; .* it has theta_train.npy, t_xz_"),
    "no theta": (without("theta"), "train", FileNotFoundError, "should hold theta_train.npy"),
    "a reference alone": (with_arrays(theta1=np.zeros((30, 2))), "train", FileNotFoundError, "hold theta0_train.npy"),
    "two samples of one name": (with_arrays(theta0=np.zeros((30, 2))), "train", ValueError, "it has both, two samples"),
    "rows that do not match": (
        with_arrays(theta=np.zeros((29, 2))),
        "train",
        ValueError,
        "theta_train.npy should have a row for each of the 30 rows of x_train.npy; it has 29.*empty folder",
    ),
    "nuisance parameters": (
        with_arrays(t_xz=np.zeros((30, 5))),
        "train",
        ValueError,
        "the 2 parameters; it has 5: scores of 3 nuisance parameters too.*nuisance_score=False",
    ),
    "half a score": (with_arrays(t_xz=np.zeros((30, 1))), "train", ValueError, "the 2 parameters; it has 1"),
    "a flat x": (with_arrays(x=np.zeros(30)), "train", ValueError, r"shape \(rows, features\); got \(30,\)"),
    "wide labels": (with_arrays(y=np.zeros((30, 2))), "train", ValueError, r"\(rows,\) or \(rows, 1\); got \(30, 2\)"),
    "objects": (with_arrays(x=np.array([{}, None])), "train", ValueError, "array of numbers.*Python objects"),
    "words": (with_arrays(x=np.array([["a"]] * 30)), "train", ValueError, "array of numbers.*numpy.str_"),
    "complex numbers": (with_arrays(x=np.ones((30, 3)) * 1j), "train", ValueError, "real numbers.*complex128"),
    "half a file": (cut, "train", ValueError, "array of numbers.*mmap length is greater than file size"),
    "a ratio of zero": (
        with_arrays(r_xz=np.r_[np.ones(28), 0.0, 1.0]),
        "train",
        ValueError,
        "r_xz_train.npy should hold ratios.*not their log; 1 of 30 rows do not, the first of them row 28: 0. Remove",
    ),
    "a log ratio": (with_arrays(r_xz=np.full((30, 1), -2.0)), "train", ValueError, "30 of 30 rows.*row 0: -2"),
    "a ratio without value": (with_arrays(r_xz=np.full(30, np.nan)), "train", ValueError, "30 of 30 rows.*row 0: nan"),
    "labels of three classes": (with_arrays(y=np.arange(30) % 3), "train", ValueError, "10 of 30 rows.*row 2: 2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_sample_is_refused(densities, name):
    spoil, sample, error, message = REFUSED[name]
    spoil(densities)
    with pytest.raises(error, match=message):
        read_madminer(densities, sample)


REFUSED_RATIOS = {
    "no labels": (without("y"), FileNotFoundError, "should hold y_train.npy"),
    "a reference of other parameters": (
        with_arrays(theta1=np.zeros((ROWS, 2))),
        ValueError,
        "theta1_train.npy should have the 1 parameters of theta0_train.npy; it has 2",
    ),
}


@pytest.mark.parametrize("name", REFUSED_RATIOS)
def test_what_is_no_sample_for_ratios_is_refused(ratios, name):
    spoil, error, message = REFUSED_RATIOS[name]
    spoil(ratios)
    with pytest.raises(error, match=message):
        read_madminer(ratios)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder .*Say where MadMiner"):
        read_madminer(tmp_path / "absent")
