import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from lmlab.data.batching import Batching, Documents, Lanes, Windows, cut
from lmlab.data.store import Split

OPTIONS = sorted((Path(__file__).parents[2] / "conf/batching").glob("*.yaml"))
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


def lanes(split, **changes):
    return Lanes(split, START, **{"seed": 1, "batch_size": 3, "seq_len": 4, "random_lengths": False} | changes)


def windows(split, **changes):
    options = {"seed": 1, "batch_size": 3, "seq_len": 4, "order": "random", "stride": None} | changes
    return Windows(split, START, **options)


def documents(split, **changes):
    return Documents(split, START, **{"seed": 1, "batch_size": 3, "seq_len": 4, "buckets": 2} | changes)


def all_ways(split):
    return [
        lanes(split),
        lanes(split, seq_len=20, random_lengths=True),
        windows(split),
        windows(split, order="strided", stride=2),
        documents(split),
    ]


def counted(batch):
    """Targets that count, row after row."""
    return batch.targets.flatten() if batch.mask is None else batch.targets[batch.mask]


def same(a, b):
    return a.lr_scale == b.lr_scale and all(
        x is y is None or x.equal(y)
        for x, y in ((getattr(a, name), getattr(b, name)) for name in ("inputs", "targets", "mask", "reset", "counts"))
    )


# All of them


@pytest.mark.parametrize("way", range(5))
def test_random_access_equals_reading_in_order(way):
    split = Text(70, 30, 150, 5, 45)
    batching, other = all_ways(split)[way], all_ways(split)[way]
    steps = range(3 * batching.steps_per_epoch)
    in_order = [batching.batch(step) for step in steps]
    for step in np.random.default_rng(0).permutation(len(steps)):
        assert same(other.batch(int(step)), in_order[step])


@pytest.mark.parametrize("way", range(5))
def test_each_input_is_the_token_before_its_target(way):
    split = Text(70, 30, 150, 5, 45)
    batching = all_ways(split)[way]
    first_of_document = set(split.doc_starts + 1) if way == 4 else {1}
    for step in range(2 * batching.steps_per_epoch):
        batch = batching.batch(step)
        mask = torch.ones_like(batch.inputs, dtype=torch.bool) if batch.mask is None else batch.mask
        for given_token, target in zip(batch.inputs[mask].tolist(), batch.targets[mask].tolist(), strict=True):
            assert given_token == (START if target in first_of_document else target - 1)


@pytest.mark.parametrize("way", range(5))
def test_counts_are_sums_over_the_targets_of_each_row(way):
    split = Text(70, 30, 150, 5, 45)
    batching = all_ways(split)[way]
    for step in range(batching.steps_per_epoch):
        batch = batching.batch(step)
        for i, row in enumerate(batch.counts.tolist()):
            at = counted(batch.rows(i, i + 1)).numpy() - 1
            assert row == [int(size[at].sum()) for size in (split.n_bytes, split.n_chars, split.n_words)]


@pytest.mark.parametrize("way", range(5))
def test_progress_counts_epochs(way):
    batching = all_ways(Text(70, 30, 150, 5, 45))[way]
    assert batching.progress(0) == 0.0
    for epoch in range(4):
        first = batching.epoch_start(epoch)
        assert batching.progress(first) == pytest.approx(epoch)
        assert batching.epoch_of(first) == epoch
        assert batching.epoch_of(batching.epoch_start(epoch + 1) - 1) == epoch
    assert batching.epoch_start(1) == batching.steps_per_epoch
    assert batching.describe()


@pytest.mark.parametrize("way", [1, 2, 3, 4])
def test_the_seed_decides_the_order(way):
    split = Text(70, 30, 150, 5, 45)
    one, two = all_ways(split)[way], all_ways(split)[way]
    two.seed = 2
    steps = range(one.steps_per_epoch)
    assert not all(same(one.batch(step), two.batch(step)) for step in steps)


@pytest.mark.parametrize("make", [lanes, windows, documents])
def test_sizes_that_cannot_be_are_named(make):
    split = Text(60)
    with pytest.raises(ValueError, match=r"batching\.batch_size=0 must be at least 1"):
        make(split, batch_size=0)
    with pytest.raises(ValueError, match=r"batching\.seq_len=0 must be at least 1"):
        make(split, seq_len=0)
    with pytest.raises(ValueError, match="seed=-1 must not be negative"):
        make(split, seed=-1)
    with pytest.raises(ValueError, match="the train split has no tokens"):
        make(Text(0))


@pytest.mark.parametrize("path", OPTIONS, ids=[path.stem for path in OPTIONS])
def test_every_option_makes_the_batching_of_its_name(path):
    batching = instantiate(OmegaConf.load(path))(split=Text(3000), start_id=START, seed=0)
    assert batching.name == path.stem
    assert len(batching.batch(0).inputs) == batching.batch_size
    assert isinstance(batching, Batching)


# Lanes


@settings(deadline=None)
@given(n=st.integers(12, 200), random_lengths=st.booleans())
def test_lanes_rebuild_the_text(n, random_lengths):
    batching = lanes(Text(n), seq_len=5 if random_lengths else 4, batch_size=2, random_lengths=random_lengths)
    for epoch in range(3):
        steps = range(batching.epoch_start(epoch), batching.epoch_start(epoch + 1))
        rows = torch.cat([batching.batch(step).targets for step in steps], 1)
        assert rows.flatten().tolist() == list(range(1, n - batching.dropped + 1))
    assert batching.dropped < (2 if random_lengths else 2 * 4)


def test_lanes_start_anew_at_each_epoch_and_carry_on_in_between():
    batching = lanes(Text(50))
    # 50 tokens in 3 lanes of 4 rows of 4; 2 are left out.
    assert (batching.lane_len, batching.steps_per_epoch, batching.dropped) == (16, 4, 2)
    resets = [batching.batch(step).reset.tolist() for step in range(9)]
    for step, reset in enumerate(resets):
        assert reset == [step % 4 == 0] * 3
    assert batching.carries_state


def test_the_first_inputs_of_lanes_are_the_ends_of_the_lanes_before():
    batch = lanes(Text(48)).batch(0)
    assert batch.inputs[:, 0].tolist() == [START, 16, 32]


def test_random_lengths_are_about_seq_len_and_scale_the_learning_rate():
    batching = lanes(Text(60_000), batch_size=2, seq_len=70, random_lengths=True)
    lengths = []
    for step in range(batching.epoch_start(2)):
        batch = batching.batch(step)
        length = batch.inputs.shape[1]
        assert batch.lr_scale == length / 70
        lengths.append(length)
    lengths = np.array(lengths)
    halved = lengths < 52
    # 860 draws: 5 % of them about 35, the others about 70 (the fraction is cut off).
    assert 0.02 < halved.mean() < 0.09
    assert abs(lengths[~halved].mean() - 69.5) < 1
    assert 4 < lengths[~halved].std() < 6
    assert lengths.min() >= 5
    epochs = [batching.epoch_start(e + 1) - batching.epoch_start(e) for e in range(5)]
    assert len(set(epochs)) > 1


def test_a_text_shorter_than_its_lanes_is_refused_with_the_numbers():
    with pytest.raises(ValueError, match=r"has 11 tokens and batching=lanes needs 12 .*batch_size=3 .*seq_len=4"):
        lanes(Text(11))
    with pytest.raises(ValueError, match="must be at least 5 with random_lengths=true"):
        lanes(Text(60), random_lengths=True)


# Windows


def test_random_windows_reach_every_offset():
    batching = windows(Text(12))
    starts = {int(t) for step in range(100) for t in batching.batch(step).targets[:, 0]}
    assert starts == set(range(1, 10))
    assert batching.batch(0).reset is None
    assert not batching.carries_state


def test_strided_windows_come_at_most_once_an_epoch_and_vary_between_epochs():
    batching = windows(Text(31), order="strided", stride=3)
    # Windows of 4 begin at 0, 3, ..., 27: ten of them, three steps of three.
    assert (batching.n_windows, batching.steps_per_epoch) == (10, 3)
    epochs = []
    for epoch in range(6):
        batches = [batching.batch(epoch * 3 + i) for i in range(3)]
        starts = [int(t) for batch in batches for t in batch.targets[:, 0]]
        assert len(set(starts)) == 9
        assert set(starts) <= set(range(1, 31, 3))
        epochs.append(tuple(starts))
    assert len(set(epochs)) == 6
    assert len(set(itertools.chain(*epochs))) == 10


def test_pairings_of_windows_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"batching\.stride=2 means nothing with order=random"):
        windows(Text(20), stride=2)
    with pytest.raises(ValueError, match=r"batching\.stride=0 must be at least 1"):
        windows(Text(20), order="strided", stride=0)
    with pytest.raises(ValueError, match="must be random or strided"):
        windows(Text(20), order="sorted")
    with pytest.raises(ValueError, match="has 3 tokens and batching=windows needs 4"):
        windows(Text(3))
    with pytest.raises(ValueError, match=r"the text has 2 windows .*batch_size=3 must not be larger"):
        windows(Text(8), order="strided")


# Documents


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(0, 23), min_size=1, max_size=12).filter(any),
    batch_size=st.integers(1, 5),
    seq_len=st.integers(1, 9),
    buckets=st.integers(1, 10),
)
def test_each_token_of_documents_is_a_target_once_an_epoch(lengths, batch_size, seq_len, buckets):
    split = Text(*lengths)
    batching = documents(split, batch_size=batch_size, seq_len=seq_len, buckets=buckets)
    for epoch in range(2):
        first = epoch * batching.steps_per_epoch
        batches = [batching.batch(first + i) for i in range(batching.steps_per_epoch)]
        assert sorted(torch.cat([counted(b) for b in batches]).tolist()) == list(range(1, len(split) + 1))
        total = sum(b.counts.sum(0) for b in batches)
        assert total.tolist() == [int(size.sum()) for size in (split.n_bytes, split.n_chars, split.n_words)]
        assert all(b.inputs.shape[0] == batch_size and b.inputs.shape[1] <= seq_len for b in batches)
        assert len({b.inputs.shape[1] for b in batches}) <= buckets


def test_rows_of_documents_never_mix_documents():
    split = Text(3, 9, 1, 6)
    document = np.repeat(np.arange(4), [3, 9, 1, 6])
    batching = documents(split)
    for step in range(batching.steps_per_epoch):
        batch = batching.batch(step)
        for i in range(3):
            assert len(set(document[counted(batch.rows(i, i + 1)).numpy() - 1])) <= 1


def test_long_documents_are_cut_into_rows_of_nearly_equal_length():
    batching = documents(Text(2, 9))
    # 9 tokens need three rows of at most 4: 3, 3 and 3 rather than 4, 4 and 1.
    assert batching.row_starts.tolist() == [0, 2, 5, 8]
    assert batching.row_lengths.tolist() == [2, 3, 3, 3]
    assert batching.row_begins.tolist() == [True, True, False, False]


def test_padding_is_masked_and_an_empty_row_has_no_target():
    batching = documents(Text(1, 2), batch_size=4)
    batch = batching.batch(0)
    assert sorted(batch.mask.sum(1).tolist()) == [0, 0, 1, 2]
    assert batch.targets[~batch.mask].eq(START).all()
    assert batch.inputs[~batch.mask].eq(START).all()
    assert batch.n_targets == 3


def test_documents_of_like_length_share_a_batch():
    lengths = [1, 2] * 30 + [7, 8] * 30
    batching = documents(Text(*lengths), batch_size=6, seq_len=8, buckets=4)
    batches = [batching.batch(step) for step in range(batching.steps_per_epoch)]
    assert sorted({b.inputs.shape[1] for b in batches}) == [2, 8]
    padding = 1 - sum(b.n_targets for b in batches) / sum(b.targets.numel() for b in batches)
    # Without buckets it would be 1 - 4.5 / 8 = 44 %.
    assert padding == pytest.approx(0.1)


def test_documents_take_some_buckets():
    with pytest.raises(ValueError, match=r"batching\.buckets=0 must be at least 1"):
        documents(Text(9), buckets=0)


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**32, 2**70])
def test_random_streams_are_numpys_own(seed):
    rows = windows(Text(64), seed=seed)
    ours, numpys = rows._random(2, 5), np.random.default_rng([seed, 2, 5])
    assert ours.bit_generator.state == numpys.bit_generator.state


@pytest.mark.parametrize("width", [1, 5, 64])
def test_whole_rows_are_those_that_padding_leaves_whole(width):
    split = Text(64)
    starts = np.array([0, 64 - width, (64 - width) // 2])
    whole = cut(split, starts, width, 99)
    padded = cut(split, starts, width, 99, lengths=np.full(3, width))
    assert bool(padded.mask.all())
    for name in ("inputs", "targets", "counts"):
        assert torch.equal(getattr(whole, name), getattr(padded, name)), name
