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


@pytest.mark.parametrize("damage", ["", "step\nx\n", "nothing,of,ours\n1,2,3\n", "step,tokens\n1\n,,,\n"])
def test_a_damaged_curve_does_not_keep_a_run_from_going_on(damage, tmp_path):
    directory = RunDirectory(tmp_path)
    directory.curves.write_text(damage)
    curves = Curves(directory, 5)
    curves.append(6, 60, 1.0, {"train/loss": 1.0})
    curves.close()
    assert directory.points()[-1]["step"] == "6"
