import pytest

from mfsbi.blocks import rows_at_work


@pytest.mark.parametrize(("features", "rows"), [(64, 4096), (2**11 + 1, 127), (2**19, 1), (2**30, 1)])
def test_a_block_holds_32_mebibytes_and_at_least_one_row(features, rows):
    assert rows_at_work(features) == rows
    numbers = 4 * 32 * features
    assert rows == 1 or numbers * rows <= 2**25 < numbers * (rows + 1)


@pytest.mark.parametrize("features", [1, 3, 40, 64])
def test_a_network_takes_as_much_for_few_features_as_for_many(features):
    assert rows_at_work(features) == 4096


def test_rows_of_many_features_or_with_many_tangents_are_fewer():
    assert rows_at_work(3 * 64 * 64) == 21
    assert rows_at_work(40, tangents=14) == 292
    assert rows_at_work(10**6, tangents=10**6) == 1
