"""A run keeps its curve: every point once, however often it was killed."""

from typing import Any

import pytest

from lmlab.run_directory import RunDirectory
from lmlab.seal import unseal_lines
from lmlab.training.curves import Curves
from lmlab.training.module import LMModule

TINY = ["model=lstm", "model.d_model=8", "model.n_layers=1", "batching.batch_size=4", "batching.seq_len=16"]
TINY += ["evaluation.lanes=2", "optimizer=adam", "trainer.max_steps=20", "trainer.val_check_interval=5"]
TINY += ["training.log_every=2"]


class Killed(BaseException):
    """Ends training at once."""


def ends_at(step: int, monkeypatch: pytest.MonkeyPatch, kill: bool) -> None:
    """A kill, or a request to stop that lets training validate and save."""
    original = LMModule.training_step

    def ends(self: LMModule, *args: Any) -> Any:
        if self.step == step and kill:
            raise Killed
        if self.step == step:
            self.trainer.should_stop = True
        return original(self, *args)

    monkeypatch.setattr(LMModule, "training_step", ends)


def points(path: Any) -> list[dict[str, str]]:
    """Without what depends on the clock."""
    return [
        {k: v for k, v in point.items() if k != "seconds" and not k.startswith("perf/")}
        for point in RunDirectory(path).points()
    ]


@pytest.mark.parametrize(("at", "kill"), [(13, True), (5, True), (12, False)])
def test_a_run_that_was_ended_and_resumed_has_the_curve_of_one_that_was_not(at, kill, train, tmp_path, monkeypatch):
    train("whole", *TINY)
    with monkeypatch.context() as patch:
        ends_at(at, patch, kill)
        if kill:
            with pytest.raises(Killed):
                train("ended", *TINY)
        else:
            train("ended", *TINY)
            (tmp_path / "ended/results.json").unlink()
    assert 0 < len(points(tmp_path / "ended")) < len(points(tmp_path / "whole"))
    train("ended", *TINY)
    assert points(tmp_path / "ended") == points(tmp_path / "whole")
    steps = [(int(p["step"]), bool(p["val/loss"])) for p in points(tmp_path / "whole")]
    assert [step for step, validation in steps if validation] == [5, 10, 15, 20]
    assert [step for step, validation in steps if not validation] == [1, *range(2, 21, 2)]


def test_seconds_go_on_from_the_checkpoint(train, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        ends_at(13, patch, True)
        with pytest.raises(Killed):
            train("run", *TINY)
    train("run", *TINY)
    seconds = [float(p["seconds"]) for p in RunDirectory(tmp_path / "run").points()]
    assert seconds == sorted(seconds)
    assert seconds[-1] > 0


def test_a_line_that_was_being_written_is_no_point(tmp_path):
    directory = RunDirectory(tmp_path)
    first = Curves(directory, None)
    first.append(1, 10, 0.5, {"train/loss": 3.0})
    first.append(2, 20, 1.0, {"train/loss": 2.0, "val/loss": 2.5})
    first.close()
    with directory.curves.open("a") as file:
        file.write("3,30,1.5,2")
    assert [p["step"] for p in directory.points()] == ["1", "2"]
    second = Curves(directory, 2)
    second.append(3, 30, 1.5, {"train/loss": float("nan")})
    second.close()
    assert unseal_lines(directory.curves.read_text()) == (
        "step,tokens,seconds,train/loss,val/loss\n1,10,0.500,3,\n2,20,1.000,2,2.5\n3,30,1.500,nan,\n"
    )


def written(directory: RunDirectory) -> list[str]:
    """Five points; the file's lines."""
    curves = Curves(directory, None)
    for step in range(1, 6):
        curves.append(step, 10 * step, 0.5 * step, {"train/loss": 3.0 / step})
    curves.close()
    return directory.curves.read_text().splitlines(keepends=True)


@pytest.mark.parametrize("other", [b"7", b"\n", b",", b'"', b"\xff"])
def test_a_changed_byte_costs_a_run_that_goes_on_that_line_alone(other, tmp_path, caplog):
    directory = RunDirectory(tmp_path)
    lines = written(directory)
    whole = directory.curves.read_bytes()
    # The first digit of the third point's loss.
    at = len("".join(lines[:3])) + lines[3].index("1.500,1") + len("1.500,")
    damaged = whole[:at] + other + whole[at + 1 :]
    directory.curves.write_bytes(damaged)
    curves = Curves(directory, 4)
    curves.append(5, 50, 2.5, {"train/loss": 0.5})
    curves.close()
    assert [(p["step"], p["train/loss"]) for p in directory.points()] == [
        ("1", "3"), ("2", "1.5"), ("4", "0.75"), ("5", "0.5")
    ]  # fmt: skip
    assert "is damaged (the checksum of line 4 differs" in caplog.text or other == b"\xff"
    assert "4 of its " in caplog.text
    assert (tmp_path / "curves.csv.damaged").read_bytes() == damaged


@pytest.mark.parametrize("damage", ["", "step\nx\n", "nothing,of,ours\n1,2,3\n", "step,tokens\n1\n,,,\n", "header"])
def test_a_curve_that_cannot_be_read_is_kept_beside_that_of_a_run_that_goes_on(damage, tmp_path, caplog):
    directory = RunDirectory(tmp_path)
    if damage == "header":
        damage = "".join(written(directory)).replace("tokens", "tokans", 1)
    directory.curves.write_text(damage)
    curves = Curves(directory, 5)
    curves.append(6, 60, 1.0, {"train/loss": 1.0})
    curves.close()
    assert [p["step"] for p in directory.points()] == ["6"]
    if damage:
        assert "0 of its " in caplog.text
        assert (tmp_path / "curves.csv.damaged").read_text() == damage
