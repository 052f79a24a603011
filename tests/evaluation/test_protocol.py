from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import nn

from lmlab.data.store import Split
from lmlab.evaluation.protocol import Protocol, at_once, batches, resolve

OPTIONS = sorted((Path(__file__).parents[2] / "conf/evaluation").glob("*.yaml"))
START = 999


class Text(Split):
    """A split in memory: token i is i + 1, and sizes differ from token to token."""

    def __init__(self, *document_lengths):
        n = sum(document_lengths)
        self.ids = np.arange(1, n + 1, dtype=np.uint16)
        self.n_bytes = (np.arange(n) % 5 + 1).astype(np.uint8)
        self.n_chars = (np.arange(n) % 3 + 1).astype(np.uint8)
        self.n_words = (np.arange(n) % 2).astype(np.uint8)
        self.doc_starts = np.cumsum([0, *document_lengths[:-1]], dtype=np.int64)


def protocol(policy, lanes=None, stride=None, max_context=None, limit_tokens=None):
    return Protocol(1, policy, lanes, stride, max_context, "32", limit_tokens)


def model(recurrent, max_context, slides=True):
    module = nn.Module()
    module.recurrent, module.max_context, module.slides = recurrent, max_context, slides
    return module


def asked(policy="auto", lanes=16, **options):
    return resolve(policy, "32", lanes=lanes, **options)


CARRIED, SLIDING, DOCUMENTS_CARRIED, DOCUMENTS_SLIDING = (
    protocol("carried", lanes=4),
    protocol("sliding", stride=2, max_context=5),
    protocol("documents"),
    protocol("documents", stride=2, max_context=5),
)
POLICIES = [CARRIED, SLIDING, DOCUMENTS_CARRIED, DOCUMENTS_SLIDING]
IDS = ["carried", "sliding", "documents-carried", "documents-sliding"]


def contexts(split, protocol, batch_size, **options):
    """Each scored token with all the tokens that it can see, as a model that carries its state sees them.

    Fails when a token is scored twice.
    """
    seen, carried = {}, []
    for batch in batches(split, protocol, START, batch_size, **options):
        n_rows, width = batch.inputs.shape
        if batch.reset is None or batch.reset.all():
            carried = [()] * n_rows
        else:
            assert not batch.reset.any()
            assert len(carried) == n_rows
        mask = torch.ones(n_rows, width, dtype=torch.bool) if batch.mask is None else batch.mask
        for row in range(n_rows):
            at = []
            for column in range(width):
                carried[row] = (*carried[row], int(batch.inputs[row, column]))
                if mask[row, column]:
                    target = int(batch.targets[row, column])
                    assert target not in seen
                    seen[target] = carried[row]
                    at.append(target - 1)
            sizes = [int(size[at].sum()) for size in (split.n_bytes, split.n_chars, split.n_words)]
            assert batch.counts[row].tolist() == sizes
    return seen


# What each token sees


def test_carried_tokens_see_their_lane_from_its_start():
    seen = contexts(Text(7), protocol("carried", lanes=2), batch_size=2, chunk=2)
    # 7 tokens in two lanes: 1 2 3 and 4 5 6 7; a lane begins with the token before it.
    assert seen == {
        1: (START,),
        2: (START, 1),
        3: (START, 1, 2),
        4: (3,),
        5: (3, 4),
        6: (3, 4, 5),
        7: (3, 4, 5, 6),
    }


def test_more_lanes_than_tokens_are_one_lane_a_token():
    assert contexts(Text(2), protocol("carried", lanes=5), batch_size=8) == {1: (START,), 2: (1,)}


def test_sliding_scores_the_first_window_whole_and_then_the_last_stride():
    seen = contexts(Text(9), protocol("sliding", stride=3, max_context=4), batch_size=2)
    # Targets of the windows: 1 2 3 4, then 4 5 6 7 without 4, then 7 8 9 without 7.
    assert seen == {
        1: (START,),
        2: (START, 1),
        3: (START, 1, 2),
        4: (START, 1, 2, 3),
        5: (3, 4),
        6: (3, 4, 5),
        7: (3, 4, 5, 6),
        8: (6, 7),
        9: (6, 7, 8),
    }


def test_a_stride_of_one_gives_every_token_full_context():
    seen = contexts(Text(20), protocol("sliding", stride=1, max_context=6), batch_size=4)
    assert all(len(context) == min(target, 6) for target, context in seen.items())


def test_documents_see_nothing_of_each_other():
    expected = {1: (START,), 2: (START, 1), 3: (START, 1, 2), 4: (START,), 5: (START,), 6: (START, 5)}
    assert contexts(Text(3, 1, 2), DOCUMENTS_CARRIED, batch_size=2, chunk=2) == expected
    assert contexts(Text(3, 1, 2), DOCUMENTS_SLIDING, batch_size=2) == expected


def test_a_document_longer_than_the_context_slides_inside_itself():
    seen = contexts(Text(2, 6), protocol("documents", stride=2, max_context=4), batch_size=3)
    # The second document is 3 to 8: a window 3 4 5 6, then 5 6 7 8 without 5 and 6.
    assert seen[6] == (START, 3, 4, 5)
    assert seen[7] == (4, 5, 6)
    assert seen[8] == (4, 5, 6, 7)


def test_a_limit_takes_the_first_tokens():
    for policy in POLICIES:
        assert sorted(contexts(Text(5, 9), policy, 2, limit_tokens=8)) == list(range(1, 9))
    assert sorted(contexts(Text(14), protocol("documents", limit_tokens=6), 2, limit_tokens=8)) == list(range(1, 7))


# Every token once, whatever the batch size, the chunk and the ranks


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(0, 19), min_size=1, max_size=8).filter(any),
    lanes=st.integers(1, 6),
    context=st.integers(1, 7),
    stride=st.integers(1, 7),
    batch_size=st.integers(1, 7),
    chunk=st.integers(1, 9),
)
def test_every_token_is_scored_exactly_once(lengths, lanes, context, stride, batch_size, chunk):
    stride = min(stride, context)
    split = Text(*lengths)
    for policy in (
        protocol("carried", lanes=lanes),
        protocol("sliding", stride=stride, max_context=context),
        protocol("documents"),
        protocol("documents", stride=stride, max_context=context),
    ):
        seen = contexts(split, policy, batch_size, chunk=chunk)
        assert sorted(seen) == list(range(1, len(split) + 1))
        if policy.stride:
            assert all(len(context_of) <= context for context_of in seen.values())


@pytest.mark.parametrize("policy", POLICIES, ids=IDS)
def test_contexts_do_not_depend_on_batch_size_or_chunk(policy):
    split = Text(13, 1, 8, 21)
    expected = contexts(split, policy, 1)
    for size in range(1, 8):
        assert contexts(split, policy, size) == expected
        assert contexts(split, policy, 3, chunk=size) == expected
    for tokens in (1, 4, 9, 100, None):
        assert contexts(split, policy, None, at_once=tokens) == expected


def test_windows_are_grouped_by_their_tokens_where_nobody_says_how_many():
    sizes = [batch.inputs.shape for batch in batches(Text(3, 9, 2, 2), DOCUMENTS_SLIDING, START, None, at_once=10)]
    # Windows of 5, 5, 5, 3, 2 and 2 tokens, the longest first; two of the longest have ten.
    assert sizes == [(2, 5), (2, 5), (2, 2)]
    (carried,) = {batch.inputs.shape[0] for batch in batches(Text(99), protocol("carried", lanes=9), START, None)}
    assert carried == 9
    layers = nn.Module()
    layers.recurrent, layers.d_model = False, 256
    assert (at_once(layers, "cpu"), at_once(layers, "cuda")) == (1024, 2**15)
    layers.recurrent = True
    assert at_once(layers, "cpu") is None


@pytest.mark.parametrize("policy", POLICIES, ids=IDS)
@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_share_the_tokens_out(policy, world_size):
    split = Text(13, 1, 8, 21)
    together = {}
    for rank in range(world_size):
        share = contexts(split, policy, 2, rank=rank, world_size=world_size)
        assert not together.keys() & share.keys()
        together |= share
    assert together == contexts(split, policy, 2)


@pytest.mark.parametrize("policy", POLICIES, ids=IDS)
def test_counts_sum_to_the_size_of_the_split(policy):
    split = Text(13, 1, 8, 21)
    total = sum(batch.counts.sum(0) for batch in batches(split, policy, START, 3))
    assert total.tolist() == [int(size.sum()) for size in (split.n_bytes, split.n_chars, split.n_words)]


@pytest.mark.parametrize("policy", [CARRIED, DOCUMENTS_CARRIED], ids=["carried", "documents"])
def test_chunks_of_one_pass_have_one_shape(policy):
    shapes = {batch.inputs.shape for batch in batches(Text(40), policy, START, 4, chunk=4)}
    assert len(shapes) == 1


def test_nothing_to_score_is_refused():
    with pytest.raises(ValueError, match="has no tokens"):
        next(batches(Text(0), CARRIED, START, 2))
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        next(batches(Text(3), CARRIED, START, 0))


# Choosing a protocol


def test_auto_carries_the_state_of_recurrent_models_and_slides_the_others():
    assert asked(model=model(True, None)) == protocol("carried", lanes=16)
    assert asked(model=model(False, 64)) == protocol("sliding", stride=32, max_context=64)


def test_documents_slide_or_carry_as_the_model_does():
    assert asked("documents", model=model(True, None)) == DOCUMENTS_CARRIED
    assert asked("documents", model=model(False, 9)) == protocol("documents", stride=4, max_context=9)


def test_a_transformer_that_slides_may_carry_and_its_context_is_stated():
    assert asked("carried", lanes=2, model=model(False, 64)) == protocol("carried", lanes=2, max_context=64)
    with pytest.raises(ValueError, match="learned positions cannot; use evaluation=sliding"):
        asked("carried", model=model(False, 64, slides=False))


def test_a_model_of_unbounded_context_slides_when_told_how_far():
    assert asked("sliding", max_context=8, model=model(True, None)).stride == 4
    with pytest.raises(ValueError, match=r"needs evaluation\.max_context=N"):
        asked("sliding", model=model(True, None))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "whole"}, r"evaluation\.policy='whole' must be auto or one of"),
        ({"max_context": 65}, r"evaluation\.max_context=65 must be at least 1 and at most model\.max_context=64"),
        ({"stride": 65}, r"evaluation\.stride=65 must be at least 1 and at most max_context=64"),
        ({"stride": 0}, r"evaluation\.stride=0"),
        ({"limit_tokens": 0}, r"evaluation\.limit_tokens=0"),
        ({"policy": "carried", "stride": 3}, r"evaluation\.stride=3 needs evaluation=sliding"),
        ({"policy": "carried", "lanes": 0}, r"evaluation\.lanes=0 must be at least 1"),
    ],
)
def test_what_cannot_be_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        asked(**options, model=model(False, 64))


def test_precision_may_be_given_as_a_number_and_unknown_ones_are_refused():
    assert resolve("auto", 32, model(True, None), lanes=1).precision == "32"
    with pytest.raises(ValueError, match=r"evaluation\.precision=8 must be one of 32, bf16-mixed"):
        resolve("auto", 8, model(True, None), lanes=1)


@pytest.mark.parametrize("path", OPTIONS, ids=[path.stem for path in OPTIONS])
def test_every_option_makes_the_policy_of_its_name(path):
    made = instantiate(OmegaConf.load(path))(model=model(False, 64))
    assert made.policy == ("sliding" if path.stem == "auto" else path.stem)
    assert made.limit_tokens is None


# Stating it


def test_a_protocol_survives_the_way_through_results():
    assert all(Protocol(**policy.as_dict()) == policy for policy in POLICIES)


def test_what_was_measured_by_older_code_is_another_protocol_where_its_numbers_would_be_others_today():
    recorded = replace(protocol("carried", lanes=4), unknown="spelled")
    today = recorded.now()
    assert (recorded.name, today.name) == ("carried-4-spelled", "carried-4-spelled-v2")
    assert recorded.differences(today) == ["version: 1 against 2"]
    assert today.now(unknown="token") == protocol("carried", lanes=4) == protocol("carried", lanes=4).now()


def test_a_protocol_is_described_in_one_line():
    assert [policy.describe() for policy in POLICIES] == [
        "carried through 4 lanes, unbounded context, precision 32 (protocol 1)",
        "sliding windows of 5 tokens, stride 2, precision 32 (protocol 1)",
        "each document alone, state carried, unbounded context, precision 32 (protocol 1)",
        "each document alone, windows of 5 tokens, stride 2, precision 32 (protocol 1)",
    ]
    assert "first 1,000 tokens" in protocol("carried", lanes=1, limit_tokens=1000).describe()


def test_unknown_words_that_cost_their_token_alone_are_told():
    own = protocol("carried", lanes=4)
    more = "that cost no more than the token (evaluation.unknown=spelled charges their letters)"
    assert own.describe({"test": 1_037}) == f"{own.describe()}; 1,037 <unk> {more}"
    assert own.describe({"val": 37, "test": 41}) == f"{own.describe()}; 37 <unk> of val, 41 <unk> of test {more}"
    assert own.describe({"val": 0, "test": 41}) == f"{own.describe()}; 41 <unk> of test {more}"
    assert own.describe({"val": 0}) == own.describe()
    spelled = replace(own, unknown="spelled")
    assert spelled.describe({"val": 37}) == spelled.describe()


def test_differences_name_what_makes_numbers_incomparable():
    assert SLIDING.differences(protocol("sliding", stride=2, max_context=5)) == []
    assert SLIDING.differences(protocol("sliding", stride=1, max_context=5)) == ["stride: 2 against 1"]
    assert len(CARRIED.differences(SLIDING)) == 4
