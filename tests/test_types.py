"""State and Batch: what moves to a device and what stays."""

import torch

from lmlab.types import Batch, reset, send


def test_a_batch_moves_but_for_what_the_processor_decides_by():
    tokens = torch.zeros(2, 3, dtype=torch.long)
    batch = Batch(tokens, tokens, tokens == 0, torch.tensor([True, False]), torch.zeros(2, 3, dtype=torch.long))
    moved = batch.to("meta")
    assert {getattr(moved, name).device.type for name in ("inputs", "targets", "mask", "counts")} == {"meta"}
    assert moved.reset.device.type == "cpu"
    assert moved.reset.tolist() == [True, False]


def test_what_is_sent_to_a_gpu_is_pinned(monkeypatch):
    """A copy from other memory would be waited for."""
    tokens = torch.zeros(2, 3, dtype=torch.long)
    told = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: told.append("pinned") or t)
    monkeypatch.setattr(
        torch.Tensor, "to", lambda t, device, non_blocking: told.append((device.type, non_blocking)) or t
    )
    for kind in ("cuda", "mps"):
        send(tokens, torch.device(kind))
    assert told == ["pinned", ("cuda", True), ("mps", True)]


def test_all_targets_count_where_there_is_no_mask():
    tokens = torch.zeros(2, 3, dtype=torch.long)
    assert Batch(tokens, tokens).counted.all()
    mask = torch.tensor([[True, True, False], [False, False, False]])
    for batch in (Batch(tokens, tokens), Batch(tokens, tokens, mask)):
        assert int(batch.counted.sum()) == batch.n_targets
    assert Batch(tokens, tokens, mask).counted is mask


def test_rows_are_reset_on_whichever_device_their_state_is():
    (there,) = reset((torch.ones(2, 3, device="meta"),), torch.tensor([True, False]))
    assert (there.device.type, there.shape) == ("meta", (2, 3))
    (here,) = reset((torch.ones(2, 3),), torch.tensor([True, False]))
    assert here.tolist() == [[0, 0, 0], [1, 1, 1]]
    assert reset((torch.ones(2, 3),), torch.tensor([True, True])) is None
