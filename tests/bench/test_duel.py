import time

from mfsbi.bench.duel import Duel, Score, as_markdown, run


def test_the_ratio_says_how_many_times_longer_the_peer_takes():
    score = run(Duel("sleep", "a longer sleep", lambda: time.sleep(0.005), lambda: time.sleep(0.05), 3, pairs=3))
    assert 3 < score.ratio < 11
    assert score.ratio_least <= score.ratio <= score.ratio_most


def test_sides_take_turns_and_warm_up_once():
    calls = []
    run(Duel("record", "peer", lambda: calls.append("A"), lambda: calls.append("B"), pairs=2))
    assert calls == ["A", "B"] * 3


def test_a_missed_target_is_in_bold():
    score = Score("row", "peer", 0.001, 0.002, 2.0, 1.9, 2.1, 3, target=3.0)
    assert "**3**" in as_markdown([score])
    assert "**" not in as_markdown([Score("row", "peer", 0.001, 0.004, 4.0, 3.9, 4.1, 3, target=3.0)])
