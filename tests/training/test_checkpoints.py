"""Checkpoints: whole or not at all, plain data only, and a line that says what to do about a damaged one."""

import errno
import os
import pickle
import zipfile

import pytest
import torch

from lmlab.errors import TrainingFailed
from lmlab.training import checkpoints
from lmlab.training.checkpoints import read, write

STATE = {"state_dict": {"model.weight": torch.arange(50_000.0)}, "step": 3}


class FullDisk:
    """A file on a disk with room for `room` bytes."""

    def __init__(self, file, room: int):
        self.file, self.room = file, room

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


def fill_the_disk(monkeypatch, room: int) -> None:
    monkeypatch.setattr(checkpoints, "_open", lambda path: FullDisk(path.open("wb"), room))


def test_a_checkpoint_comes_back_as_it_was_written(tmp_path):
    write(STATE, tmp_path / "new/last.ckpt")
    back = read(tmp_path / "new/last.ckpt")
    assert torch.equal(back["state_dict"]["model.weight"], STATE["state_dict"]["model.weight"])


@pytest.mark.parametrize("room", [0, 100, 100_000])
def test_a_full_disk_leaves_the_checkpoint_before_and_nothing_half_written(room, tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    write(STATE, path)
    fill_the_disk(monkeypatch, room)
    with pytest.raises(OSError, match="No space left") as refusal:
        write(STATE | {"step": 4}, path)
    assert refusal.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == ["last.ckpt"]
    assert read(path)["step"] == 3


def test_a_checkpoint_is_on_the_disk_before_it_takes_the_old_ones_name(tmp_path, monkeypatch):
    """Renamed first, a cut of power could leave the name with nothing behind it."""
    path, replace = tmp_path / "last.ckpt", os.replace
    done: list[tuple] = []

    def fsync(file: int) -> None:
        told = os.fstat(file)
        done.append(("on disk", told.st_ino, told.st_size))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", lambda *names: done.append(("renamed",)) or replace(*names))
    write(STATE, path)
    assert done == [("on disk", path.stat().st_ino, path.stat().st_size), ("renamed",)]


def test_a_disk_that_turns_out_full_at_the_end_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    """Space may be promised when written to and found missing when it is put on the disk (NFS, quotas)."""
    path = tmp_path / "last.ckpt"
    write(STATE, path)

    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as refusal:
        write(STATE | {"step": 4}, path)
    assert (refusal.value.errno, refusal.value.filename) == (errno.ENOSPC, str(path))
    assert os.listdir(tmp_path) == ["last.ckpt"]
    assert read(path)["step"] == 3


def test_training_on_a_full_disk_fails_with_the_last_whole_checkpoint(train, tmp_path, monkeypatch):
    overrides = ["model=lstm", "model.d_model=8", "model.n_layers=1", "batching=lanes", "batching.batch_size=2"]
    overrides += ["evaluation.lanes=2", "trainer.max_steps=12", "trainer.val_check_interval=4"]
    with monkeypatch.context() as patch:
        whole = checkpoints.write

        def fills(checkpoint, path):
            if path.name == "last.ckpt" and checkpoint["lmlab"]["step"] == 8:
                fill_the_disk(patch, 1000)
            whole(checkpoint, path)

        patch.setattr(checkpoints, "write", fills)
        with pytest.raises(TrainingFailed, match=r"disk is full .*last.ckpt.* after step 8"):
            train("run", *overrides)
    assert read(tmp_path / "run/checkpoints/last.ckpt")["lmlab"]["step"] == 4
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert train("run", *overrides)["training"]["steps"] == 12


@pytest.mark.parametrize("damage", ["empty", "truncated", "a byte", "text"])
def test_a_damaged_checkpoint_is_named_with_what_to_do(damage, tmp_path):
    path = tmp_path / "last.ckpt"
    write(STATE, path)
    whole = path.read_bytes()
    middle = len(whole) // 2
    damaged = {
        "empty": b"",
        "truncated": whole[:middle],
        "a byte": whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :],
        "text": b"no checkpoint at all\n",
    }[damage]
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"last.ckpt .*damaged.* delete it"):
        read(path)


def test_a_checkpoint_with_an_object_in_it_executes_nothing(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'executed'}",)

    path = tmp_path / "last.ckpt"
    torch.save(STATE | {"lmlab_format": 1, "more": Payload()}, path)
    with pytest.raises(ValueError, match="something other than tensors and plain data"):
        read(path)
    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match="not a zip file"):
        read(path)
    assert not (tmp_path / "executed").exists()


def test_another_format_is_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="format None, this version reads 1"):
        read(tmp_path / "last.ckpt")
    torch.save([1, 2], tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="format None"):
        read(tmp_path / "last.ckpt")


def test_a_compressed_checkpoint_is_refused(tmp_path):
    """Kilobytes that unfold to 40 MB here, and could to any size."""
    write({"state_dict": {"model.x": torch.zeros(10_000_000)}}, tmp_path / "whole.ckpt")
    with zipfile.ZipFile(tmp_path / "whole.ckpt") as whole, zipfile.ZipFile(tmp_path / "best.ckpt", "w", 8) as small:
        for entry in whole.infolist():
            small.writestr(entry.filename, whole.read(entry))
    assert (tmp_path / "best.ckpt").stat().st_size < 100_000
    with pytest.raises(ValueError, match="compressed, as torch writes none"):
        read(tmp_path / "best.ckpt")
