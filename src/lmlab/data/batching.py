"""How text becomes rows to train on: lanes (carried state), windows, documents. Pure functions of (seed, step)."""

import math
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from lmlab.data.resident import ResidentText
from lmlab.data.store import Split
from lmlab.types import Batch

# Random lengths of rows, Merity et al. 2017 (AWD-LSTM), section 5: the base length is halved with
# probability 0.05; the length is drawn from N(base, 5) and is at least 5 tokens.
HALVED, DEVIATION, SHORTEST = 0.05, 5.0, 5

# Keep the streams of random numbers of the classes apart.
_LANES, _WINDOWS, _DOCUMENTS = 1, 2, 3


@runtime_checkable
class Batching(Protocol):
    """Numbers steps from 0. `batch(step)` is the global batch, the same in any order of calls."""

    batch_size: int
    seq_len: int
    carries_state: bool
    steps_per_epoch: int  # of the first epoch, where epochs differ
    tokens_per_step: int  # counted targets of a typical step

    def batch(self, step: int) -> Batch: ...

    def epoch_of(self, step: int) -> int: ...

    def epoch_start(self, epoch: int) -> int:
        """The first step of an epoch: the steps that `epoch` whole epochs take."""
        ...

    def progress(self, step: int) -> float:
        """Epochs done before `step`."""
        ...

    def describe(self) -> str: ...


def cut(
    split: Split,
    starts: np.ndarray,
    width: int,
    start_id: int,
    lengths: np.ndarray | None = None,
    skip: np.ndarray | None = None,
    begins: np.ndarray | None = None,
) -> Batch:
    """Rows of targets split.ids[start : start + length], each input being its target's predecessor.

    starts: (B,). width: T. lengths: (B,), what is past them is padding; None: all are `width`.
    skip: (B,), this many targets at the head of a row are context only and do not count.
    begins: (B,), True where the first input is `start_id`; None: only where a row starts the text.
    """
    if lengths is None:
        # Only training has whole rows, which counts every token and is never charged for <unk>.
        assert skip is None
        assert split.charges is None
        return _whole(split, starts, width, start_id, begins)
    columns = np.arange(width)
    mask = columns < lengths[:, None]
    positions = np.where(mask, starts[:, None] + columns, starts[:, None])
    # Plain arrays: each slice of a np.memmap is a costly object.
    targets = np.asarray(split.ids)[positions].astype(np.int64)
    inputs = _inputs(split, starts, targets, start_id, begins)
    targets[~mask] = start_id
    inputs[~mask] = start_id
    mask = mask if skip is None else mask & (columns >= skip[:, None])
    sizes = (split.n_bytes, split.n_chars, split.n_words)
    counts = [np.asarray(size)[positions].sum(1, dtype=np.int64, where=mask) for size in sizes]
    charges = None if split.charges is None else torch.from_numpy(split.charges[positions])
    return Batch(
        inputs=torch.from_numpy(inputs),
        targets=torch.from_numpy(targets),
        mask=torch.from_numpy(mask),
        counts=torch.from_numpy(np.stack(counts, 1)),
        starts=torch.from_numpy(np.asarray(starts)),
        charges=charges,
        lengths=torch.from_numpy(np.asarray(lengths)) if skip is None else None,
    )


def _whole(split: Split, starts: np.ndarray, width: int, start_id: int, begins: np.ndarray | None) -> Batch:
    """Rows without padding: whole stretches are copied, two to three times as fast as token by token."""
    targets = _stretches(split.ids, starts, width).astype(np.int64)
    counts = np.empty((len(starts), 3), dtype=np.int64)
    for i, size in enumerate((split.n_bytes, split.n_chars, split.n_words)):
        counts[:, i] = np.add.reduce(_stretches(size, starts, width), 1, np.int64)
    return Batch(
        inputs=torch.from_numpy(_inputs(split, starts, targets, start_id, begins)),
        targets=torch.from_numpy(targets),
        counts=torch.from_numpy(counts),
    )


def _stretches(column: np.ndarray, starts: np.ndarray, width: int) -> np.ndarray:
    """(B, width): column[start : start + width] for each start, a copy."""
    step = column.itemsize
    every = np.ndarray((len(column) - width + 1, width), column.dtype, np.asarray(column), 0, (step, step))
    return every[starts]


def _inputs(
    split: Split, starts: np.ndarray, targets: np.ndarray, start_id: int, begins: np.ndarray | None
) -> np.ndarray:
    """Each target's predecessor, or `start_id` where a row begins a text."""
    inputs = np.empty_like(targets)
    inputs[:, 1:] = targets[:, :-1]
    before = np.asarray(split.ids)[np.maximum(starts - 1, 0)]
    inputs[:, 0] = np.where(starts == 0 if begins is None else begins, start_id, before)
    return inputs


class _Rows:
    """What the three have in common: checked sizes, and epochs of equal length."""

    carries_state = False
    # Whether the batches of all steps have one shape.
    fixed_shape = True
    name: str
    _text: ResidentText | None = None

    def __init__(self, split: Split, start_id: int, seed: int, batch_size: int, seq_len: int):
        for key, value in (("batch_size", batch_size), ("seq_len", seq_len)):
            if value < 1:
                raise ValueError(f"batching.{key}={value} must be at least 1")
        if seed < 0:
            raise ValueError(f"seed={seed} must not be negative")
        if not len(split):
            raise ValueError("the train split has no tokens; give corpus.train some text")
        self.split, self.start_id, self.seed = split, start_id, seed
        self.batch_size, self.seq_len = batch_size, seq_len

    def to(self, device: torch.device) -> None:
        """From now on batches are cut on `device`, and come from there."""
        if self._text is None or self._text.device != torch.device(device):
            self._text = ResidentText(self.split, device)

    def _cut(self, starts: np.ndarray, width: int, **rows: np.ndarray) -> Batch:
        if self._text is not None:
            return self._text.cut(starts, width, self.start_id, **rows)
        return cut(self.split, starts, width, self.start_id, **rows)

    def _random(self, *key: int) -> np.random.Generator:
        words = [self.seed, *key]
        if max(words) < 1 << 32:
            # The same stream as default_rng(words), made in half the time.
            return np.random.Generator(np.random.PCG64(np.random.SeedSequence(np.array(words, dtype=np.uint32))))
        return np.random.default_rng(words)

    def _need(self, tokens: int) -> None:
        if len(self.split) < tokens:
            raise ValueError(
                f"the train split has {len(self.split):,} tokens and batching={self.name} needs {tokens:,} for "
                f"batching.batch_size={self.batch_size} and batching.seq_len={self.seq_len}; "
                "make these smaller or give more text"
            )

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.seq_len

    def epoch_of(self, step: int) -> int:
        return step // self.steps_per_epoch

    def epoch_start(self, epoch: int) -> int:
        return epoch * self.steps_per_epoch

    def progress(self, step: int) -> float:
        return step / self.steps_per_epoch


class Lanes(_Rows):
    """`batch_size` contiguous parts of the text side by side, read `seq_len` tokens at a time with carried state.

    Truncated back-propagation through time. The lanes join: lane b ends where lane b + 1 begins. At the end of the
    text `dropped` tokens are left out, so that lanes are equally long and, at fixed length, whole rows.
    random_lengths: each step draws its length (AWD-LSTM) and scales the learning rate by length / seq_len; epochs
    then differ in steps.
    """

    carries_state = True
    name = "lanes"

    def __init__(self, split: Split, start_id: int, seed: int, batch_size: int, seq_len: int, random_lengths: bool):
        super().__init__(split, start_id, seed, batch_size, seq_len)
        self._need(batch_size * seq_len)
        if random_lengths and seq_len < SHORTEST:
            raise ValueError(f"batching.seq_len={seq_len} must be at least {SHORTEST} with random_lengths=true")
        self.random_lengths, self.fixed_shape = random_lengths, not random_lengths
        self.lane_len = len(split) // batch_size
        if not random_lengths:
            self.lane_len -= self.lane_len % seq_len
        self.dropped = len(split) - batch_size * self.lane_len
        self._lanes = np.arange(batch_size) * self.lane_len
        # First steps of the epochs that have been asked for so far, and each epoch's cuts.
        self._starts = [0]
        self._cuts = lru_cache(maxsize=2)(self._draw)

    def _draw(self, epoch: int) -> np.ndarray:
        """Where this epoch's rows begin within a lane, and the end of the lane: (steps + 1,)."""
        if not self.random_lengths:
            return np.arange(0, self.lane_len + 1, self.seq_len)
        random = self._random(_LANES, epoch)
        # Enough even if every length were the shortest.
        n = self.lane_len // SHORTEST + 1
        base = np.where(random.random(n) < HALVED, self.seq_len / 2, self.seq_len)
        lengths = np.maximum(SHORTEST, random.normal(base, DEVIATION).astype(np.int64))
        ends = np.cumsum(lengths)
        # A remainder too short for a row of its own lengthens the last one.
        ends = ends[ends <= self.lane_len - SHORTEST]
        return np.concatenate([[0], ends, [self.lane_len]])

    def batch(self, step: int) -> Batch:
        epoch = self.epoch_of(step)
        cuts, i = self._cuts(epoch if self.random_lengths else 0), step - self.epoch_start(epoch)
        length = int(cuts[i + 1] - cuts[i])
        batch = self._cut(self._lanes + cuts[i], length)
        reset = torch.full((self.batch_size,), i == 0)
        scale = length / self.seq_len if self.random_lengths else 1.0
        return Batch(batch.inputs, batch.targets, reset=reset, counts=batch.counts, lr_scale=scale)

    @property
    def steps_per_epoch(self) -> int:
        return self.epoch_start(1)

    def epoch_start(self, epoch: int) -> int:
        if not self.random_lengths:
            return epoch * (self.lane_len // self.seq_len)
        while len(self._starts) <= epoch:
            self._starts.append(self._starts[-1] + len(self._cuts(len(self._starts) - 1)) - 1)
        return self._starts[epoch]

    def epoch_of(self, step: int) -> int:
        if not self.random_lengths:
            return step // (self.lane_len // self.seq_len)
        while self._starts[-1] <= step:
            self.epoch_start(len(self._starts))
        return int(np.searchsorted(self._starts, step, side="right")) - 1

    def progress(self, step: int) -> float:
        if not self.random_lengths:
            return step / self.steps_per_epoch
        epoch = self.epoch_of(step)
        return epoch + float(self._cuts(epoch)[step - self.epoch_start(epoch)]) / self.lane_len

    @property
    def tokens_per_step(self) -> int:
        return round(self.batch_size * self.lane_len / self.steps_per_epoch)

    def describe(self) -> str:
        lengths = f"about {self.seq_len} (random)" if self.random_lengths else f"{self.seq_len}"
        return (
            f"{self.batch_size} lanes of {self.lane_len:,} tokens, read {lengths} at a time with carried state; "
            f"{self.dropped:,} tokens at the end are left out"
        )


class Windows(_Rows):
    """Rows of `seq_len` tokens cut from anywhere in the text, none of which knows of another.

    order=random: offsets are drawn uniformly with replacement; an epoch is as many tokens as the text has.
    order=strided: a window begins every `stride` tokens (null: seq_len), and each is seen at most once an epoch, in a
    permutation of (seed, epoch); the windows that fill no last batch differ from epoch to epoch.
    """

    name = "windows"

    def __init__(
        self, split: Split, start_id: int, seed: int, batch_size: int, seq_len: int, order: str, stride: int | None
    ):
        super().__init__(split, start_id, seed, batch_size, seq_len)
        self._need(seq_len)
        if order not in ("random", "strided"):
            raise ValueError(f"batching.order={order!r} must be random or strided")
        if stride is not None and order == "random":
            raise ValueError(f"batching.stride={stride} means nothing with order=random; set order=strided")
        if stride is not None and stride < 1:
            raise ValueError(f"batching.stride={stride} must be at least 1, or null for seq_len={seq_len}")
        self.order, self.stride = order, stride or seq_len
        self.n_windows = (len(split) - seq_len) // self.stride + 1
        if order == "strided":
            if self.n_windows < batch_size:
                raise ValueError(
                    f"the text has {self.n_windows} windows of {seq_len} tokens at batching.stride={self.stride}; "
                    f"batching.batch_size={batch_size} must not be larger"
                )
            self.steps_per_epoch = self.n_windows // batch_size
        else:
            self.steps_per_epoch = max(1, len(split) // (batch_size * seq_len))
        self._permutation = lru_cache(maxsize=2)(self._permute)

    def _permute(self, epoch: int) -> np.ndarray:
        return self._random(_WINDOWS, epoch).permutation(self.n_windows)

    def batch(self, step: int) -> Batch:
        if self.order == "random":
            starts = self._random(_WINDOWS, step).integers(0, len(self.split) - self.seq_len + 1, self.batch_size)
        else:
            epoch, i = divmod(step, self.steps_per_epoch)
            starts = self._permutation(epoch)[i * self.batch_size : (i + 1) * self.batch_size] * self.stride
        return self._cut(starts, self.seq_len)

    def describe(self) -> str:
        if self.order == "random":
            return f"{self.batch_size} windows of {self.seq_len} tokens a step, drawn anywhere"
        return (
            f"{self.batch_size} of {self.n_windows:,} windows of {self.seq_len} tokens a step, one every {self.stride}"
        )


class Documents(_Rows):
    """Each document on its own, from `start_id` to its <eos>, padded; every token is a target once an epoch.

    A document longer than `seq_len` is cut into the fewest rows of nearly equal length; each starts from the token
    before it and knows nothing earlier. Rows are padded to one of `buckets` widths, and a batch holds neighbours in
    width, so there are few shapes (a compiler's friend) and little padding. The order of rows and of batches is a
    permutation of (seed, epoch). An epoch's last rows are filled up with empty ones, all padding.
    """

    fixed_shape = False
    name = "documents"

    def __init__(self, split: Split, start_id: int, seed: int, batch_size: int, seq_len: int, buckets: int):
        super().__init__(split, start_id, seed, batch_size, seq_len)
        if buckets < 1:
            raise ValueError(f"batching.buckets={buckets} must be at least 1")
        self.row_starts, self.row_lengths, self.row_begins = document_rows(split, seq_len)
        step = math.ceil(seq_len / buckets)
        self.row_widths = np.minimum(-(-self.row_lengths // step) * step, seq_len)
        self.steps_per_epoch = math.ceil(len(self.row_starts) / batch_size)
        self._order = lru_cache(maxsize=2)(self._arrange)

    def _arrange(self, epoch: int) -> np.ndarray:
        """Rows of each step of an epoch, (steps, B); -1 is an empty row."""
        random = self._random(_DOCUMENTS, epoch)
        rows = random.permutation(len(self.row_starts))
        rows = rows[np.argsort(self.row_widths[rows], kind="stable")]
        empty = self.steps_per_epoch * self.batch_size - len(rows)
        rows = np.concatenate([np.full(empty, -1), rows]).reshape(self.steps_per_epoch, self.batch_size)
        return rows[random.permutation(self.steps_per_epoch)]

    def batch(self, step: int) -> Batch:
        epoch, i = divmod(step, self.steps_per_epoch)
        rows = self._order(epoch)[i]
        lengths = np.where(rows < 0, 0, self.row_lengths[rows])
        width = int(self.row_widths[rows[rows >= 0]].max())
        return self._cut(self.row_starts[rows], width, lengths=lengths, begins=self.row_begins[rows])

    @property
    def tokens_per_step(self) -> int:
        return math.ceil(len(self.split) / self.steps_per_epoch)

    def describe(self) -> str:
        return f"{len(self.split.doc_starts):,} documents in {len(self.row_starts):,} rows of at most {self.seq_len}"


def document_rows(split: Split, seq_len: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut every document into the fewest rows of nearly equal length, in the order of the text.

    Returns starts, lengths, and whether a row begins its document; (rows,) each.
    """
    starts, lengths = document_spans(split, len(split))
    n_rows = -(-lengths // seq_len)
    document = np.repeat(np.arange(len(starts)), n_rows)
    nth = np.arange(len(document)) - np.repeat(np.cumsum(n_rows) - n_rows, n_rows)
    length, pieces = lengths[document], n_rows[document]
    begin, end = length * nth // pieces, length * (nth + 1) // pieces
    return starts[document] + begin, end - begin, nth == 0


def document_spans(split: Split, n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and lengths of the documents that have tokens among the first `n_tokens`."""
    starts = np.minimum(np.asarray(split.doc_starts, dtype=np.int64), n_tokens)
    lengths = np.diff(starts, append=n_tokens)
    return starts[lengths > 0], lengths[lengths > 0]
