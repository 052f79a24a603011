"""Sides on the same text: blocks that every tokenization shares, refusals, and verdicts in words."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from lmlab.evaluation.bootstrap import Estimate
from lmlab.evaluation.comparison import Side, block_edges, check, compare, needs, one_protocol
from lmlab.evaluation.protocol import Protocol
from lmlab.evaluation.scores import Scores

CARRIED = Protocol(1, "carried", 16, None, None, "32", None)
HOW = {"blocks": "auto", "block_bytes": None, "confidence": 0.95, "resamples": 500, "seed": 0}


def scores(
    nats, n_bytes=None, documents=None, tokenizer="t", protocol=CARRIED, unknown=0, text="text", split_text=None
):
    n = len(nats)
    n_bytes = np.full(n, 4) if n_bytes is None else np.array(n_bytes)
    return Scores(
        ids=np.zeros(n, np.uint16),
        nats=np.array(nats, np.float32),
        charges=np.zeros(n, np.float32),
        positions=np.zeros(n, np.int32),
        counts=np.ones(n, np.uint32),
        documents=np.zeros(n, np.uint32) if documents is None else np.array(documents),
        n_bytes=n_bytes.astype(np.uint8),
        n_chars=n_bytes.astype(np.uint8),
        n_words=np.ones(n, np.uint8),
        about={
            "protocol": protocol.as_dict(),
            "split": "val",
            "text": text,
            "split_text": split_text,
            "tokenizer": tokenizer,
            "unknown": unknown,
            "documents": [],
        },
    )


def side(name, *runs, configuration=None):
    return Side(name, configuration or name, runs)


def noisy(seed, mean, n=8_000):
    return scores(np.random.default_rng(seed).normal(mean, 0.5, n).clip(0.01))


def told(sides, pairs="first", **how):
    return compare(sides, pairs, **{**HOW, **how})


def test_a_clear_difference_is_told_in_both_directions():
    a, b = side("a", noisy(0, 2.0)), side("b", noisy(1, 2.2))
    (found,) = told([a, b])["comparisons"]
    assert (found["verdict"], found["level"]) == ("better", "models")
    assert "a is better than b, by 0.0" in found["words"]
    assert "One seed each" in found["words"]
    low, high = found["bpb_interval"]
    assert low < found["bpb"] < high < 0
    # -0.2 nats a token of four bytes.
    assert found["bpb"] == pytest.approx(-0.2 / 4 / math.log(2), rel=0.15)
    assert told([b, a])["comparisons"][0]["verdict"] == "worse"


def test_two_seeds_of_one_configuration_are_not_distinguishable():
    sides = [side(n, noisy(s, m), configuration="c") for n, s, m in (("a", 0, 2.0), ("b", 1, 2.2))]
    (found,) = told(sides)["comparisons"]
    assert found["verdict"] == "not distinguishable"
    assert found["words"].endswith("They are one configuration, and differ as its seeds do.")


def test_replicates_make_it_about_configurations():
    means = np.random.default_rng(0).normal(2.0, 0.05, 6)
    runs = [noisy(i, m) for i, m in enumerate(means)]
    (found,) = told([side("a", *runs[:3]), side("b", *runs[3:])])["comparisons"]
    assert (found["verdict"], found["level"]) == ("not distinguishable", "configurations")
    assert found["seed_share"] > 0.5
    assert "seeds of each" in found["words"] or "repetition" in found["words"]


def test_how_many_seeds_would_tell_by_hand():
    # Five runs that differ by 0.1 and two by 0.01. To tell 0.1 takes a variance of (0.1 / (1.96 + 0.8416))^2, 0.001274;
    # seeds of each would divide 0.01 + 0.0001.
    e = Estimate(0.1, 0.0, 99, seeds=0.01 / 5 + 0.0001 / 2, seeds_df=4, each=(0.01 + 0.0001) / 2, blocks=100)
    assert needs(e, 0.95) == "To tell 0.1000, if it is the true difference, takes 8 seeds of each."


def test_a_run_on_two_sides_is_one_replicate():
    # The directory of three seeds against the best of them and another model: pooled from two degrees of freedom.
    runs, other = [noisy(i, m) for i, m in enumerate((2.0, 2.1, 2.2))], side("other", noisy(9, 2.0))
    sides = [
        Side("all", "c", runs, ["0", "1", "2"]),
        other,
        Side("best", "c", runs[:1], ["0"]),
    ]
    alone, beside = told(sides[:2])["comparisons"][0], told(sides)["comparisons"][0]
    assert alone["p"] == beside["p"]
    assert alone["seed_share"] == beside["seed_share"] > 0.5
    # Were it two, it would be another yardstick.
    twice = told([*sides[:2], Side("best", "c", runs[:1], ["3"])])["comparisons"][0]
    assert twice["p"] != alone["p"]


def test_perplexity_and_bits_are_the_same_difference():
    a, b = scores(np.full(4_000, 2.0)), scores(np.full(4_000, 2.1))
    report = told([side("a", a), side("b", b)])
    (found,) = report["comparisons"]
    assert found["ppl"] == pytest.approx(math.exp(2.0) - math.exp(2.1), rel=1e-5)
    assert report["sides"][1]["ppl"] == pytest.approx(math.exp(2.1), rel=1e-5)
    assert report["sides"][0]["bpb"] == pytest.approx(2.0 / 4 / math.log(2))


def test_many_comparisons_are_corrected():
    sides = [side(str(i), noisy(i, 2.0)) for i in range(4)]
    found = told(sides, pairs="all")["comparisons"]
    assert len(found) == 6
    assert all(c["p_holm"] >= c["p"] for c in found)
    assert min(c["p_holm"] for c in found) == pytest.approx(min(1, 6 * min(c["p"] for c in found)))
    assert "(Holm, 6 comparisons)" in found[0]["words"]


def test_what_would_be_told_is_by_the_level_of_many_comparisons():
    sides = [side(str(i), noisy(i, 2.0 + 0.01 * i)) for i in range(5)]
    alone, among = told(sides[:2])["comparisons"][0], told(sides, pairs="all")["comparisons"][0]
    # Ten comparisons at 5 %: each at 0.5 %. With some 190 blocks Student's t is 2.84 in place of 1.97, and the power of
    # four of five adds 0.84 to both: (2.84 + 0.84) / (1.97 + 0.84).
    assert alone["bpb"] == among["bpb"]
    assert among["detectable"] / alone["detectable"] == pytest.approx(3.68 / 2.81, rel=0.01)
    assert alone["verdict"] == among["verdict"] == "not distinguishable"
    # Text needed grows with the square: (2.807 + 0.842) against (1.960 + 0.842) standard errors.
    text = [float(c["words"].split("takes ")[1].split()[0]) for c in (alone, among)]
    assert text[1] / text[0] == pytest.approx((3.649 / 2.802) ** 2, rel=0.02)


# The same bytes under two tokenizations


def test_blocks_end_where_tokens_of_all_runs_end():
    # 60 bytes: tokens of 2 and tokens of 3 end together every 6.
    twos, threes = scores(np.ones(30), [2] * 30), scores(np.ones(20), [3] * 20, tokenizer="u")
    edges, stream = block_edges([twos, threes], "stream", 5)
    assert stream
    assert edges.tolist() == list(range(0, 61, 6))


def test_two_tokenizations_are_compared_on_the_same_bytes():
    random = np.random.default_rng(0)
    pairs = random.normal(1.0, 0.1, 6_000)
    # The same cost, told token by token or two at a time: no difference at all.
    one = scores(np.repeat(pairs / 2, 2), np.tile([2, 3], 6_000))
    two = scores(pairs, np.full(6_000, 5), tokenizer="u")
    report = told([side("one", one), side("two", two)])
    assert report["comparisons"][0]["bpb"] == pytest.approx(0, abs=1e-6)
    assert "word_ppl" in report["sides"][0]


def test_documents_are_blocks_where_there_are_enough():
    documents = np.repeat(np.arange(40), 10)
    run = scores(np.ones(400), documents=documents)
    edges, stream = block_edges([run], "auto", None)
    assert not stream
    assert edges.tolist() == list(range(0, 1601, 40))
    # One that outweighs all others leaves too few.
    assert block_edges([scores(np.ones(4_000), documents=np.minimum(np.arange(4_000), 40))], "auto", None)[1]


def test_an_eos_of_no_bytes_belongs_to_the_text_before_it():
    # Documents of three tokens and an <eos>: 1 + 1 + 1 + 5 nats each, in blocks of one document.
    run = scores(np.tile([1, 1, 1, 5], 40), np.tile([4, 4, 4, 0], 40), np.repeat(np.arange(40), 4))
    other = replace(run, nats=np.tile([1, 1, 1, 1], 40).astype(np.float32))
    (found,) = told([side("a", run), side("b", other)])["comparisons"]
    assert found["bpb"] == pytest.approx(4 / 12 / math.log(2))
    assert found["bpb_interval"] == pytest.approx([found["bpb"]] * 2)


def test_too_little_text_is_refused():
    with pytest.raises(ValueError, match=r"5 stretches, and at least 10 .* or blocks=stream block_bytes=(\d+)") as told:
        block_edges([scores(np.ones(25))], "stream", 20)
    length = int(re.search(r"block_bytes=(\d+)", str(told.value))[1])
    assert len(block_edges([scores(np.ones(25))], "stream", length)[0]) > 10
    # Enough to join neighbours, where there is so much text.
    with pytest.raises(ValueError, match=r"block_bytes=133$"):
        block_edges([scores(np.ones(1000))], "stream", 1000)
    with pytest.raises(ValueError, match=r"chance: give more text$"):
        block_edges([scores(np.ones(9))], "auto", None)
    with pytest.raises(ValueError, match=r"3 stretches, and at least 10 .* or blocks=documents \(15 of them\)"):
        block_edges([scores(np.ones(375), documents=np.repeat(np.arange(15), 25))], "auto", None)


# What does not mean the same is refused, saying what differs


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (scores(np.ones(50), text="other", split_text="b"), "different text: 200 and 200 bytes"),
        (
            scores(np.ones(50), text="other"),
            "does not say whether their val is one text: give them one, as with corpus=",
        ),
        (scores(np.ones(40), text="other"), "different text: 200 and 160 bytes"),
        (scores(np.ones(50), protocol=replace(CARRIED, lanes=8)), "lanes: 16 against 8"),
        (scores(np.ones(50), protocol=replace(CARRIED, options={"temperature": {"value": 1.1}})), "options"),
        (scores(np.ones(50), tokenizer="u", unknown=7), "predicts 7 words as <unk>.*evaluation.unknown=spelled"),
        (scores(np.ones(40), tokenizer="u"), "200 and 160 bytes of the same text"),
    ],
)
def test_what_differs_is_said(other, message):
    with pytest.raises(ValueError, match=message):
        check([side("a", scores(np.ones(50), split_text="a")), side("b", other)], own_protocols=False)


def test_a_split_of_two_corpora_is_one_text():
    sides = [side(name, scores(np.ones(50), text=name, split_text="a")) for name in "ab"]
    check(sides, own_protocols=False)


def test_the_one_protocol_suits_all_sides():
    sliding = replace(CARRIED, policy="sliding", lanes=None, stride=4, max_context=8)
    alone = replace(CARRIED, policy="documents", lanes=None)
    assert one_protocol([CARRIED, sliding]) == "evaluation=sliding evaluation.max_context=8"
    assert one_protocol([sliding, replace(CARRIED, max_context=3)]) == "evaluation=sliding evaluation.max_context=3"
    assert one_protocol([CARRIED, alone]) == "evaluation=carried or evaluation=documents"
    # Alone, documents are read from a context that each has of its own.
    assert one_protocol([alone, replace(alone, max_context=3)]) == "evaluation=carried"


def test_contexts_may_differ_where_that_is_asked_for():
    sides = [side("a", scores(np.ones(50))), side("b", scores(np.ones(50), protocol=replace(CARRIED, lanes=8)))]
    check(sides, own_protocols=True)


@pytest.mark.parametrize(
    "other",
    [
        {"unknown": "spelled"},
        {"precision": "bf16-mixed"},
        {"version": 2},
        {"normalisation": "tokens"},
        {"options": {"cache": {"size": 5}}},
        {"limit_tokens": 50},
    ],
)
def test_contexts_alone_may_differ_where_that_is_asked_for(other):
    sliding = replace(CARRIED, policy="sliding", lanes=None, stride=4, max_context=8)
    one = side("a", scores(np.ones(50)))
    check([one, side("b", scores(np.ones(50), protocol=sliding))], own_protocols=True)
    (key,) = other
    with pytest.raises(ValueError, match=rf"two protocols \({key}: .* in all but contexts"):
        check([one, side("b", scores(np.ones(50), protocol=replace(sliding, **other)))], own_protocols=True)


def test_spelled_unknown_words_are_comparable():
    spelled = replace(CARRIED, unknown="spelled")
    one, two = (scores(np.ones(50), tokenizer=t, protocol=spelled, unknown=u) for t, u in (("t", 7), ("u", 0)))
    check([side("a", one), side("b", two)], own_protocols=False)


def test_a_tokenizer_that_folds_text_is_told_beside_another():
    bert = scores(np.ones(4_000), tokenizer="bert")
    bert.about["lossy_steps"] = ["BertNormalizer", "BertPreTokenizer"]
    # Scores of an older version say nothing of it; our own kinds have none.
    older, own = scores(np.ones(4_000)), scores(np.ones(4_000), tokenizer="word")
    own.about["lossy_steps"] = []
    (note,) = told([side("a", older), side("b", bert), side("c", own)])["notes"]
    assert note.startswith("b has a tokenizer that changes or drops text (BertNormalizer, BertPreTokenizer): case,")
    assert told([side("a", older), side("c", own)])["notes"] == []
    # Both of one tokenizer: what it folds is as little work for either.
    assert told([side("a", bert), side("b", bert)])["notes"] == []
