import pytest

from mfsbi.blocks import rows_at_work


@pytest.mark.parametrize(("features", "rows"), [(64, 8192), (2**11 + 1, 255), (2**19, 1), (2**30, 1)])
def test_a_block_holds_64_mebibytes_and_at_least_one_row(features, rows):
    assert rows_at_work(features) == rows
    numbers = 4 * 32 * features
    assert rows == 1 or numbers * rows <= 2**26 < numbers * (rows + 1)


@pytest.mark.parametrize("features", [1, 3, 40, 64])
def test_a_network_takes_as_much_for_few_features_as_for_many(features):
    assert rows_at_work(features) == 8192


def test_rows_of_many_features_or_with_many_tangents_are_fewer():
    assert rows_at_work(3 * 64 * 64) == 42
    assert rows_at_work(40, tangents=14) == 585
    assert rows_at_work(10**6, tangents=10**6) == 1
