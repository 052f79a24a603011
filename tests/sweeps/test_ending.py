"""The end of a sweep: its winner, and what that is worth beside another's."""

import json
import shutil

from lmlab.cli import main


def test_a_sweep_is_compared_by_its_winner_and_what_has_no_checkpoint_is_passed_over(sweep, here, capsys):
    assert sweep("optimizer.lr=1e-3,1e-1", "replicates=2") == 0
    assert sweep("model.d_model=4", "optimizer.lr=1e-3,1e-1", "sweep_dir=t") == 0
    # A trial that failed before its config was settled.
    (failed,) = here.glob("s/trials/lr=0.001_seed0-*")
    (failed / "config.yaml").unlink()
    (failed / "results.json").unlink()
    capsys.readouterr()
    for ours in ("s", "s/trials"):
        assert main(["compare", ours, "t", "block_bytes=20", "format=json"]) == 0
        shown = capsys.readouterr()
        assert [(side["name"], side["runs"]) for side in json.loads(shown.out)["sides"]] == [(ours, 2), ("t", 1)]
        assert "t: its winner, the best of 2 points: optimizer.lr=0.1" in shown.err
        if ours == "s/trials":
            assert "s/trials: passed over, not finished or without best.ckpt: lr=0.001_seed0-" in shown.err
    loser = next(here.glob("s/trials/lr=0.001_seed1-*"))
    assert main(["compare", str(loser), "t"]) == 2
    assert f"no checkpoint at {loser}/checkpoints/best.ckpt" in capsys.readouterr().err
    for path in here.glob("s/trials/lr=0.1_*"):
        shutil.rmtree(path)
    assert main(["compare", "s/trials", "t"]) == 2
    assert "s/trials has no finished run with its best.ckpt" in capsys.readouterr().err
