import math
from unittest.mock import Mock

import pytest
from lightning import Trainer

from lmlab import runs
from lmlab.experiment import range_test
from lmlab.training.module import LMModule
from lmlab.training.range_test import DECADES, Rising, _Watch, read

# From 1e-6 to 1, by tenths of a decade.
RATES = [10 ** (-6 + i / 10) for i in range(61)]


def curve(best, breaks):
    """Level, then falling from `best` on, then climbing from `breaks` on."""
    fall = [4.0 - 0.8 * max(0.0, math.log10(r / best)) for r in RATES]
    return [loss + 5.0 * max(0.0, math.log10(r / breaks)) for loss, r in zip(fall, RATES, strict=True)]


def test_the_rate_rises_by_the_same_ratio_from_a_thousandth_to_a_thousand_times():
    schedule = Rising(61, 10, 0)
    factors = [schedule.factor(step) for step in range(61)]
    assert factors[0] == pytest.approx(10**-DECADES)
    assert factors[-1] == pytest.approx(10**DECADES)
    assert factors[31] / factors[30] == pytest.approx(10 ** (6 / 60))


def test_the_verdict_compares_the_used_rate_with_where_the_loss_breaks():
    losses = curve(1e-4, 2e-2)
    found = read(RATES, losses, 3e-3)
    # Smoothing sees the break a few steps late: 0.8 forgets half in three.
    assert 2e-2 <= found["breaks_at"] <= 6e-2
    assert found["suggested"] == pytest.approx(found["breaks_at"] / 10, rel=0.2)
    assert found["verdict"].startswith("in the range")
    assert read(RATES, losses, 0.2)["verdict"].startswith("too high")
    assert read(RATES, losses, 1e-5)["verdict"].startswith("too low")


def test_a_loss_that_never_breaks_is_said():
    assert read(RATES, [4 - 0.02 * i for i in range(61)], 1e-3)["verdict"] == "no rate that was tried broke it"


def test_a_loss_far_above_the_first_ends_the_test_and_one_above_the_best_does_not():
    watch, trainer = _Watch(), Mock(spec=Trainer, should_stop=False)
    module = Mock(spec=LMModule, latest={"optim/lr": 1.0})

    def stops(loss: float) -> bool:
        module.latest["train/loss"] = loss
        watch.on_train_batch_end(trainer, module)
        return trainer.should_stop

    # 1.3 times the first is 5.2; 2.9 is 1.45 times the best.
    assert [stops(loss) for loss in (4.0, 2.0, 2.9, 5.1, 5.3)] == [False, False, False, False, True]


def test_a_run_s_recipe_is_tried_and_nothing_is_written(trained):
    before = sorted(p.name for p in trained["transformer"].rglob("*"))
    run = runs.load(trained["transformer"])
    found = range_test(run.config, 12, ())
    assert found["used"] == run.config["optimizer"]["lr"]
    assert found["rates"][0] == pytest.approx(found["used"] / 1000, rel=1e-3)
    assert 2 <= len(found["losses"]) <= 12
    assert sorted(p.name for p in trained["transformer"].rglob("*")) == before


def test_a_stored_run_that_names_something_else_is_refused(trained):
    config = runs.load(trained["lstm"]).config
    config["optimizer"] = {"_target_": "os.system", "lr": 1.0}
    with pytest.raises(PermissionError, match=r"os\.system"):
        range_test(config, 12, ())
