"""What the machine can do is measured once, remembered, and never by way of emulation."""

import json
import math
import multiprocessing
import os
from pathlib import Path

import pytest
import torch

from lmlab import hardware
from lmlab.hardware import Energy, Machine, forget_peak, multiplies_bf16, peak_memory, threads


def no_measuring(self, *args):
    raise AssertionError("measured again")


def test_products_are_measured_once_and_remembered_by_device_torch_and_threads(tmp_path, monkeypatch):
    first = Machine("cpu", tmp_path).products()
    assert first["fp32"] > 1e6
    monkeypatch.setattr(Machine, "_rate", no_measuring)
    assert Machine("cpu", tmp_path).products() == first
    stored = json.loads(Machine("cpu", tmp_path).file.read_text())
    assert stored["machine"]["torch"] == torch.__version__
    assert stored["machine"]["threads"] == torch.get_num_threads()
    with threads(torch.get_num_threads() + 1), pytest.raises(AssertionError, match="measured again"):
        Machine("cpu", tmp_path).products()


def test_a_thorough_measurement_replaces_a_quick_one_and_not_the_other_way(tmp_path, monkeypatch):
    rates = iter([1.0, 2.0])
    monkeypatch.setattr(Machine, "_formats", lambda self: ["fp32"])
    monkeypatch.setattr(Machine, "_rate", lambda self, name, seconds: next(rates))
    machine = Machine("cpu", tmp_path)
    assert machine.products() == {"fp32": 1.0}
    assert machine.products(thorough=True) == {"fp32": 2.0}
    assert Machine("cpu", tmp_path).products() == {"fp32": 2.0}
    assert Machine("cpu", tmp_path).products(thorough=True) == {"fp32": 2.0}


@pytest.mark.parametrize("seconds", [hardware.QUICK, hardware.THOROUGH])
def test_a_fast_device_is_measured_where_it_is_full(seconds, tmp_path, monkeypatch):
    """A GPU of 800 TFLOP/s that takes 20 microseconds to begin anything: at 2,048 it has half of its rate."""
    now, size = [0.0], []

    def times(self, work, least):
        n = work.__defaults__[0].shape[0]
        size.append(n)
        one = 2e-5 + 2 * n**3 / 8e14
        runs = max(2, math.ceil(least / one))
        now[0] += (runs + 1) * one
        return [one] * runs

    monkeypatch.setattr(Machine, "_times", times)
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(hardware.torch, "randn", lambda *shape, device: torch.empty(*shape, device="meta"))
    assert Machine("cpu", tmp_path)._rate("fp32", seconds) > 0.95 * 8e14
    assert max(size) >= 8192
    assert now[0] < 2 * seconds


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"machine": {"device": "another"}, "products": {"fp32": 1}}'])
def test_a_damaged_or_foreign_file_is_measured_anew(damage, tmp_path):
    machine = Machine("cpu", tmp_path)
    machine.file.parent.mkdir()
    machine.file.write_text(damage)
    assert Machine("cpu", tmp_path).products()["fp32"] > 1e6


def test_emulated_bf16_is_never_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "multiplies_bf16", lambda device: False)
    monkeypatch.setattr(Machine, "_layer", no_measuring)
    machine = Machine("cpu", tmp_path)
    assert machine.bf16_gain(64, autocast=True) is None
    assert list(machine.products()) == ["fp32"]


@pytest.mark.parametrize(("flag", "fast"), [("_is_avx512_bf16_supported", True), ("_is_amx_tile_supported", True)])
def test_units_are_known_by_the_processors_flags(flag, fast, monkeypatch):
    monkeypatch.setattr(hardware.platform, "machine", lambda: "x86_64")
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    multiplies_bf16.cache_clear()
    assert not multiplies_bf16("cpu"), "AVX-512 alone emulates, whatever oneDNN says"
    monkeypatch.setattr(torch.cpu, flag, lambda: True)
    multiplies_bf16.cache_clear()
    assert multiplies_bf16("cpu") is fast
    multiplies_bf16.cache_clear()


def test_a_gain_is_remembered_by_width_and_wide_layers_share_one(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "multiplies_bf16", lambda device: True)
    # Seconds in fp32 and bf16, in turns.
    times = iter([4.0, 2.0, 6.0, 3.0, 4.0, 8.0] * 2)
    monkeypatch.setattr(Machine, "_layer", lambda self, d, dtype, autocast: lambda: None)
    monkeypatch.setattr(Machine, "_time", lambda self, work: next(times))
    machine = Machine("cpu", tmp_path)
    # The best in fp32 is 4, in bf16 2.
    assert machine.bf16_gain(hardware.WIDEST["cpu"], autocast=False) == 2.0
    assert machine.bf16_gain(4096, autocast=False) == 2.0
    assert machine.bf16_gain(4096, autocast=True) == 2.0
    assert next(times, None) is None, "two were measured: with and without autocast"


@pytest.mark.parametrize("width", [8, 48, 100, 129])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_layer_of_any_width_is_run_forward_and_backward(width, autocast, tmp_path):
    dtype = torch.float32 if autocast else torch.bfloat16
    Machine("cpu", tmp_path)._layer(width, dtype, autocast)()


def measure(folder: Path) -> None:
    Machine("cpu", folder).products()


def test_processes_that_measure_at_once_leave_one_whole_file(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=measure, args=(tmp_path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    (file,) = (tmp_path / "hardware").iterdir()
    assert json.loads(file.read_text())["products"]["fp32"] > 0


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path):
    (tmp_path / "hardware").write_text("a file where the folder would be")
    machine = Machine("cpu", tmp_path)
    assert machine.products()["fp32"] > 1e6
    machine.measure_again()
    assert machine.products()["fp32"] > 1e6


def test_threads_are_as_asked_within_and_as_before_after():
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    with threads(None):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="this system keeps one peak for good")
def test_what_a_process_held_before_is_no_part_of_the_next_peak():
    held = torch.ones(50_000_000)
    with_it = peak_memory("cpu")
    del held
    forget_peak("cpu")
    without = peak_memory("cpu")
    assert without < with_it - 150e6
    held = torch.ones(25_000_000)
    assert peak_memory("cpu") > without + 75e6, "a new one is measured"
    del held


def test_where_the_system_does_not_tell_the_peak_is_that_of_the_process(monkeypatch, tmp_path):
    monkeypatch.setattr("lmlab.hardware.PROCESS", tmp_path / "none")
    forget_peak("cpu")
    assert peak_memory("cpu") > 10e6


def counter(package: Path, microjoules: int) -> None:
    package.mkdir(exist_ok=True)
    (package / "energy_uj").write_text(f"{microjoules}\n")
    (package / "max_energy_range_uj").write_text("10000000\n")


def test_energy_is_added_up_over_packages_and_past_the_end_of_their_counters(tmp_path):
    counter(tmp_path / "intel-rapl:0", 9_000_000)
    counter(tmp_path / "intel-rapl:1", 1_000_000)
    # Part of package 0: its energy is in there already.
    counter(tmp_path / "intel-rapl:0:0", 0)
    energy = Energy("cpu", tmp_path)
    energy.read()
    counter(tmp_path / "intel-rapl:0", 2_000_000)
    counter(tmp_path / "intel-rapl:1", 1_500_000)
    energy.read()
    # 9 J to 10 J and on to 2 J, and half a joule.
    assert energy.joules == {"processor": 3.5}


def test_energy_that_nobody_may_read_is_none(tmp_path):
    (tmp_path / "intel-rapl:0").mkdir()
    energy = Energy("cpu", tmp_path)
    energy.read()
    assert energy.joules is None
    assert Energy("cpu", tmp_path / "missing").joules is None
