"""A split in the memory of the device that trains: batches are gathered there, and what crosses is where they start."""

import numpy as np
import torch
from torch import Tensor

from lmlab.data.store import Split
from lmlab.types import Batch, send

# Tokens that are sent at once: the text is never copied whole in main memory.
PIECE = 2**24


def resident_bytes(split: Split) -> int:
    """What `ResidentText` takes of the device's memory."""
    columns = _sizes(split)
    return len(split) * (split.ids.dtype.itemsize + len(columns) * _size_type(columns).itemsize)


class ResidentText:
    """Token ids and what each covers of the source, on `device`; cuts the batches of `batching.cut`, bit for bit."""

    def __init__(self, split: Split, device: torch.device):
        self.device = torch.device(device)
        # A place more, before the text: what comes before its first token is looked up like all others.
        n, itemsize = len(split) + 1, split.ids.dtype.itemsize
        # The bits of unsigned numbers in signed types: torch has few operations for its unsigned ones.
        self._ids = torch.zeros(n, dtype={2: torch.int16, 4: torch.int32}[itemsize], device=device)
        self._bits = (1 << 8 * itemsize) - 1
        _put(split.ids, self._ids[1:], split.ids.dtype, f"i{itemsize}")
        columns = _sizes(split)
        kind = _size_type(columns)
        self._sizes = torch.zeros(n, len(columns), dtype=getattr(torch, kind.name), device=device)
        for i, column in enumerate(columns):
            _put(column, self._sizes[1:, i], kind, kind)

    def cut(
        self,
        starts: np.ndarray,
        width: int,
        start_id: int,
        lengths: np.ndarray | None = None,
        begins: np.ndarray | None = None,
    ) -> Batch:
        """As `batching.cut`, on the device; lengths and starts of padded rows stay on the CPU there as here."""
        begins = starts == 0 if begins is None else begins
        ends = np.full_like(starts, width) if lengths is None else lengths
        # All that a batch needs from here, in one piece.
        told = send(torch.from_numpy(np.stack((starts, ends, begins)).astype(np.int64)), self.device)
        start, end, begun = told[0, :, None], told[1, :, None], told[2].bool()
        columns = torch.arange(width + 1, device=self.device)
        at = start + columns
        mask = None
        if lengths is not None:
            # Padding may lie past the end of the text.
            at, mask = at.clamp_(max=len(self._ids) - 1), columns[:-1] < end
        tokens = self._ids[at].long().bitwise_and_(self._bits)
        inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        inputs[:, 0].masked_fill_(begun, start_id)
        sizes = self._sizes[at[:, 1:]]
        if mask is None:
            return Batch(inputs, targets, counts=sizes.sum(1, dtype=torch.int64))
        padding = ~mask
        return Batch(
            inputs.masked_fill_(padding, start_id),
            targets.masked_fill_(padding, start_id),
            mask=mask,
            counts=sizes.masked_fill_(padding[:, :, None], 0).sum(1, dtype=torch.int64),
            starts=torch.from_numpy(np.asarray(starts)),
            lengths=torch.from_numpy(np.asarray(lengths)),
        )


def _sizes(split: Split) -> tuple[np.ndarray, ...]:
    """Columns in the order of `Batch.counts`."""
    return split.n_bytes, split.n_chars, split.n_words


def _size_type(columns: tuple[np.ndarray, ...]) -> np.dtype:
    # No token covers two billion bytes.
    return np.dtype(np.uint8 if all(column.dtype == np.uint8 for column in columns) else np.int32)


def _put(column: np.ndarray, into: Tensor, kind: np.dtype, seen_as: np.dtype | str) -> None:
    for start in range(0, len(column), PIECE):
        part = np.array(column[start : start + PIECE], dtype=kind)
        into[start : start + len(part)].copy_(torch.from_numpy(part.view(seen_as)))
