"""Where a step's time goes: shares and MFU worked by hand, and what a run says of itself."""

import csv

import pytest
from lightning import LightningModule, Trainer

from lmlab.hardware import Energy
from lmlab.training import performance, rehearsal
from lmlab.training.performance import Performance

TINY = ["model=lstm", "model.d_model=8", "model.n_layers=1", "batching.batch_size=4", "batching.seq_len=16"]
TINY += ["evaluation.lanes=2", "trainer.max_steps=12", "trainer.val_check_interval=6"]


@pytest.fixture
def meter() -> Performance:
    return Performance(flops_per_token=1000, peak=1e6, precision="fp32", device="cpu", devices=2)


def step(meter: Performance) -> None:
    """Two micro-batches."""
    with_whom = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False), LightningModule()
    meter.on_train_batch_start(*with_whom)
    for _ in range(2):
        meter.on_before_backward(*with_whom, loss=None)
        meter.on_after_backward(*with_whom)
    meter._mark("optimizer")


def test_shares_and_mfu_by_hand(meter, monkeypatch):
    times = iter([10.0, 13.0, 15.0, 16.0, 18.0, 22.0])
    monkeypatch.setattr(meter, "_now", lambda: next(times))
    step(meter)
    told = meter.take(tokens=6400, spent=16.0, waited=2.0)
    assert told["perf/forward_share"] == (3 + 1) / 16
    assert told["perf/backward_share"] == (2 + 2) / 16
    assert told["perf/optimizer_share"] == 4 / 16
    assert told["perf/data_share"] == 2 / 16
    # 400 tokens a second at 1,000 operations each, of 10^6 on each of two devices.
    assert told["perf/mfu"] == pytest.approx(0.2)
    assert told["perf/memory_gb"] > 0.01
    assert meter.take(tokens=100, spent=1.0, waited=0.0)["perf/forward_share"] == 0.0, "each second counts once"
    # 6,500 tokens in 17 s.
    assert meter.summary()["mfu"] == pytest.approx(6500 * 1000 / 17 / 2e6, abs=1e-4)
    assert meter.summary()["shares"]["optimizer"] == pytest.approx(4 / 17, abs=1e-4)


def test_without_a_measured_peak_there_is_no_mfu(monkeypatch):
    meter = Performance(flops_per_token=1000, peak=None, precision="bf16", device="cpu", devices=1)
    assert "perf/mfu" not in meter.take(tokens=100, spent=1.0, waited=0.0)
    assert meter.summary()["mfu"] is None


def test_energy_is_told_where_the_machine_counts_it(meter, tmp_path):
    def used(microjoules: int) -> dict[str, float]:
        (tmp_path / "intel-rapl:0/energy_uj").write_text(str(microjoules))
        return meter.take(tokens=100, spent=1.0, waited=0.0)

    meter.energy = Energy("cpu", tmp_path / "nothing")
    (tmp_path / "intel-rapl:0").mkdir()
    assert "perf/energy_j" not in used(0)
    (tmp_path / "intel-rapl:0/max_energy_range_uj").write_text("10000000")
    meter.energy = Energy("cpu", tmp_path)
    # 1 J, 3 J and 8 J of the counter: 7 J since it was first read.
    assert [used(joules * 1_000_000)["perf/energy_j"] for joules in (1, 3, 8)] == [0.0, 2.0, 7.0]
    assert meter.summary()["energy_joules"] == {"processor": 7.0}


class Event:
    """As torch.cuda.Event; `reached` is how far the GPU has come."""

    reached = 0.0

    def __init__(self, at: float):
        self.at = at

    def query(self) -> bool:
        return self.at <= Event.reached

    def elapsed_time(self, end: "Event") -> float:
        return 1000 * (end.at - self.at)


def test_a_gpus_events_are_read_when_it_has_reached_them(monkeypatch):
    meter = Performance(flops_per_token=1000, peak=1e6, precision="fp32", device="cuda", devices=1)
    monkeypatch.setattr(performance, "peak_memory", lambda device: 10**9)
    times = iter([10.0, 13.0, 15.0, 16.0, 18.0, 22.0])
    monkeypatch.setattr(meter, "_now", lambda: Event(next(times)))
    step(meter)
    Event.reached = 17.0
    assert meter.take(tokens=1, spent=10.0, waited=0.0)["perf/backward_share"] == 2 / 10, "the second is under way"
    Event.reached = 30.0
    later = meter.take(tokens=1, spent=10.0, waited=0.0)
    assert later["perf/backward_share"] == 2 / 10
    assert later["perf/optimizer_share"] == 4 / 10
    assert later["perf/forward_share"] == 0.0


@pytest.mark.parametrize("more", [[], ["training.micro_batch_size=3"]], ids=["whole", "micro-batches"])
def test_a_run_tells_its_shares(more, train, tmp_path):
    told = train("run", *TINY, *more, "logger=csv")["training"]["performance"]
    assert 0 < told["mfu"] < 1
    assert told["peak_precision"] == "fp32"
    assert told["peak_flops"] > 1e6
    assert told["flops_per_token"] > 0
    assert told["peak_memory_gb"] > 0.01
    shares = told["shares"]
    assert all(shares[name] > 0 for name in ("data", "forward", "backward", "optimizer"))
    assert sum(shares.values()) < 1
    with (tmp_path / "run/metrics.csv").open() as file:
        last = [row for row in csv.DictReader(file) if row["train/loss"]][-1]
    for name in ("mfu", "data_share", "forward_share", "backward_share", "optimizer_share", "memory_gb"):
        assert float(last[f"perf/{name}"]) > 0, name


def test_the_peak_of_a_run_and_of_a_rehearsal_begins_with_it(train, monkeypatch):
    forgotten = []
    monkeypatch.setattr(performance, "forget_peak", forgotten.append)
    monkeypatch.setattr(rehearsal, "forget_peak", forgotten.append)
    train("rehearsed", *TINY, "dry_run=true")
    assert forgotten == ["cpu"]
    train("run", *TINY)
    assert forgotten == ["cpu"] * 2


def test_a_long_run_measures_the_peak_thoroughly(text, monkeypatch):
    from lmlab.config import compose
    from lmlab.experiment import plan
    from lmlab.hardware import Machine

    asked = []
    monkeypatch.setattr(
        Machine, "products", lambda self, thorough=False: asked.append(thorough) or {"fp32": 1e6, "bf16": 1e6}
    )
    overrides = [*TINY, "corpus=files", f"corpus.path={text}", "tokenizer=byte", "trainer=cpu", "precision=32"]
    planned = plan(compose([*overrides, "compile=false", "logger=none"]))
    performance.build(planned)
    # 12 steps of 64 tokens at some 20,000 operations each are a minute at 30 % of a million a second.
    assert asked == [False]
    planned.total_steps *= 100
    performance.build(planned)
    assert asked == [False, False, True]
