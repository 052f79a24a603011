"""Which way is better, and who is on a front; by hand."""

from lmlab.runs.measures import front, higher


def test_a_sweep_s_word_on_a_metric_counts_before_what_is_known_of_it():
    assert higher("perf/tokens_per_s", {})
    assert not higher("perf/tokens_per_s", {"perf/tokens_per_s": "minimize"})
    assert higher("own/score", {"own/score": "maximize"})
    assert not higher("own/score", {})
    assert not higher("optim/lr", {}), "of which nobody has said it"


def test_on_the_front_is_what_nothing_beats_in_everything():
    assert front({"a": [1, 4], "b": [2, 2], "c": [3, 3], "d": [4, 1], "e": [2, 2]}) == ["a", "b", "d", "e"]
    assert front({"a": [1, 4], "b": [1, 3]}) == ["b"], "equal in one, worse in the other"
