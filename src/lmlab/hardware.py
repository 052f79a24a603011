"""What this machine can do, measured once and remembered: products a second, memory bandwidth, a layer in bf16."""

import json
import logging
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import xxhash

from lmlab.data.cache import whole_file
from lmlab.models import kernels
from lmlab.models.layers import Linear, RMSNorm, gelu
from lmlab.models.products import attend

log = logging.getLogger("lmlab")

# Seconds for each number format: enough to choose by, and for a peak that others are measured against.
QUICK, THOROUGH = 0.03, 0.4
# A layer wider than this gains at least as much from bf16 as one of this width, and takes longer to measure.
WIDEST = {"cpu": 256, "cuda": 1024}
ROWS = {"cpu": (4, 96), "cuda": (32, 256)}
# What Linux tells of this process.
PROCESS = Path("/proc/self")
FORMATS = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@cache
def multiplies_bf16(device: str) -> bool:
    """Whether there are units for it, by the machine's flags: emulated, bf16 is up to 100 times slower than fp32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu":
        return False
    if platform.machine().lower() in ("x86_64", "amd64"):
        # oneDNN calls bf16 supported on every AVX-512, where it may still be fp32 in disguise.
        flags = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, flag, lambda: False)() for flag in flags)
    return platform.system() == "Linux" and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@contextmanager
def threads(wanted: int | None) -> Iterator[None]:
    """Within, torch computes on so many threads; None leaves their number as it is."""
    before = torch.get_num_threads()
    if wanted is not None:
        torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Machine:
    """One device with its number of threads. Each number is measured when it is first asked for, and kept in `cache`.

    Any number of processes may share the cache: files appear whole, and who measures at the same time writes the same.
    """

    def __init__(self, device: str, cache: Path):
        self.device, self.threads = device, torch.get_num_threads() if device == "cpu" else 0
        self.key = {"device": _name(device), "torch": torch.__version__, "threads": self.threads}
        self.key["kernels"] = kernels.described(device)
        self.file = cache / "hardware" / f"{xxhash.xxh3_64_hexdigest(json.dumps(self.key).encode())}.json"
        self.known = self._read()

    def products(self, thorough: bool = False) -> dict[str, float]:
        """FLOP/s of large matrix products, for each format that is not emulated. thorough: two seconds, not a tenth."""
        if "products" not in self.known or (thorough and not self.known["thorough"]):
            seconds = THOROUGH if thorough else QUICK
            rates = {name: self._rate(name, seconds) for name in self._formats()}
            self._keep(products=rates, thorough=thorough)
        return self.known["products"]

    def measure_again(self) -> None:
        """Forget what was measured, perhaps while others used the machine."""
        self.known = {}
        with suppress(OSError):  # a cache that is not ours to write
            self.file.unlink(missing_ok=True)

    def bandwidth(self) -> float:
        """Bytes read and written a second by copying what no processor's cache holds."""
        if "bandwidth" not in self.known:
            source = torch.randn(1 << 24, device=self.device)
            into = torch.empty_like(source)
            seconds = min(self._times(lambda: into.copy_(source), 0.2))
            self._keep(bandwidth=2 * source.nbytes / seconds)
        return self.known["bandwidth"]

    def bf16_gain(self, width: int, autocast: bool) -> float | None:
        """How many times as fast a layer of this width trains in bf16 as in fp32; None where bf16 is emulated.

        A layer, not a product: at small widths casts, norms and attention cost more than the products save.
        autocast: with weights in fp32 that are cast in each product, else with weights in bf16.
        """
        if not multiplies_bf16(self.device):
            return None
        width = min(max(width, 8), WIDEST[self.device])
        name = f"{width}{' autocast' if autocast else ''}"
        gains = self.known.get("bf16_gain", {})
        if name not in gains:
            fp32 = self._layer(width, torch.float32, False)
            bf16 = self._layer(width, torch.float32 if autocast else torch.bfloat16, autocast)
            for work in (fp32, bf16):
                work()
            # Taken in turns, and the best of each: what else runs on the machine meets both.
            times: list[tuple[float, float]] = []
            while len(times) < 3 or sum(map(sum, times)) < QUICK:
                times.append((self._time(fp32), self._time(bf16)))
            slow, fast = map(min, zip(*times, strict=True))
            gains = {**gains, name: slow / fast}
            self._keep(bf16_gain=gains)
        return gains[name]

    def _formats(self) -> list[str]:
        if self.device == "cuda":
            return ["fp32", "tf32", "fp16", *(["bf16"] if multiplies_bf16("cuda") else [])]
        return ["fp32", *(["bf16"] if multiplies_bf16(self.device) else [])]

    def _rate(self, name: str, seconds: float) -> float:
        """The best of square products, each twice as wide as the last, while the time lasts."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        best, n, began = 0.0, 256, time.perf_counter()
        try:
            while True:
                a, b = (torch.randn(n, n, device=self.device).to(FORMATS[name]) for _ in range(2))
                # Small ones take long where others are at work: the best of many.
                took = min(self._times(lambda a=a, b=b: a @ b, seconds / (4 if n <= 512 else 16)))
                best = max(best, 2 * n**3 / took)
                n *= 2
                # The next takes eight times as long, at least thrice. A GPU is not full before it is large.
                if n > 512 and (time.perf_counter() - began + 24 * took > seconds or n > 16384):
                    return best
        finally:
            torch.set_float32_matmul_precision(before)

    def _layer(self, d: int, dtype: torch.dtype, autocast: bool) -> Callable[[], None]:
        """Forward and backward of attention and MLP, as a Transformer has them, by the same paths."""
        place = {"device": self.device, "dtype": dtype}
        x, norm = torch.randn(*ROWS[self.device], d, device=self.device).to(dtype), RMSNorm(d, eps=1e-5, **place)
        qkv, out, up, down = (
            Linear(i, o, bias=False, **place) for i, o in ((d, 3 * d), (d, d), (d, 4 * d), (4 * d, d))
        )
        heads = next(n for n in range(max(1, d // 64), 0, -1) if d % n == 0)
        products = kernels.may_be_ours(x.device)

        def run() -> None:
            with torch.autocast(self.device, torch.bfloat16, enabled=autocast):
                q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in qkv(norm(x)).chunk(3, -1))
                attended = (
                    attend(q, k, v, None) if products else F.scaled_dot_product_attention(q, k, v, is_causal=True)
                )
                y = x + out(attended.transpose(1, 2).flatten(2))
                y = y + down(gelu(up(norm(y))))
            y.float().sum().backward()

        return run

    def _times(self, work: Callable[[], Any], seconds: float) -> list[float]:
        """At least two, after one that warms up."""
        work()
        times: list[float] = []
        while len(times) < 2 or sum(times) < seconds:
            times.append(self._time(work))
        return times

    def _time(self, work: Callable[[], Any]) -> float:
        self._wait()
        began = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.device != "cpu":
            torch.get_device_module(self.device).synchronize()

    def _read(self) -> dict[str, Any]:
        try:
            known = json.loads(self.file.read_text(encoding="utf-8"))
            return known if known["machine"] == self.key else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _keep(self, **found: Any) -> None:
        # Others may have added to it.
        self.known = {"machine": self.key} | self._read() | found
        try:
            with whole_file(self.file) as beside:
                beside.write_text(json.dumps(self.known, indent=1), encoding="utf-8")
        except OSError:
            log.debug("could not write %s: it will be measured again", self.file)


def _name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{device} {model or platform.processor() or platform.machine()}"


def free_memory(device: str) -> int | None:
    """Bytes of a GPU's memory that nobody uses; None of a device that shares the machine's."""
    return torch.cuda.mem_get_info()[0] if device == "cuda" else None


def peak_memory(device: str) -> int:
    """The most bytes that this process has held since `forget_peak`: of the GPU's memory, else of the machine's."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    with suppress(OSError, StopIteration):
        lines = (PROCESS / "status").read_text(encoding="utf-8").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    # Since the process began: kilobytes, and bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak(device: str) -> None:
    """From now on a new peak is measured, where the system can: a process may train many runs, one after the other."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):
        # proc_pid_clear_refs(5): 5 sets the peak to what is held now.
        (PROCESS / "clear_refs").write_text("5", encoding="utf-8")


class Energy:
    """Joules since the first reading, by source, of everything that runs on it; empty where none may be read.

    Processor packages count in /sys/class/powercap (RAPL, often root's alone), NVIDIA's GPUs through pynvml, which is
    used where it is installed. RAPL's counters start again after some minutes: read more often than that.
    """

    def __init__(self, device: str, powercap: Path = Path("/sys/class/powercap")):
        self._packages = [p for p in powercap.glob("intel-rapl:*") if p.name.count(":") == 1]
        self._gpu = _nvml_energy() if device == "cuda" else None
        self._last: dict[str, float] = {}
        self._joules: dict[str, float] = {}

    @property
    def joules(self) -> dict[str, float] | None:
        return {name: round(value, 1) for name, value in self._joules.items()} or None

    def read(self) -> None:
        try:
            for package in self._packages:
                used = int((package / "energy_uj").read_text()) / 1e6
                self._add("processor", package.name, used, int((package / "max_energy_range_uj").read_text()) / 1e6)
        except (OSError, ValueError):
            self._packages = []
        if self._gpu is not None:
            self._add("gpu", "gpu", self._gpu() / 1e3, 0.0)

    def _add(self, source: str, counter: str, now: float, wraps_at: float) -> None:
        before = self._last.get(counter, now)
        self._last[counter] = now
        self._joules[source] = self._joules.get(source, 0.0) + (
            now - before if now >= before else now - before + wraps_at
        )


def _nvml_energy() -> Callable[[], int] | None:
    """Millijoules that the current GPU has used since its driver was loaded."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties().uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # not installed, another kind of GPU, or one that does not count
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
