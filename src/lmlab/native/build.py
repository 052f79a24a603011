"""Compiling kernels.c for this processor, once: a compiler of one's own is needed, and where there is none nothing is."""

import ctypes
import logging
import os
import platform
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import torch
import xxhash

from lmlab.data.cache import cache_root, whole_file

log = logging.getLogger("lmlab")

SOURCES = ("kernels.c", "passes.h")
# Not -ffast-math: it drops NaN, and a library linked with it changes how the whole process treats tiny numbers.
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fopenmp", "-fPIC")
# Compilers narrow vectors by themselves for fear of a lower clock, which processors with AVX-512 of today do not need.
FLAGS_X86 = ("-mprefer-vector-width=512",)
PATIENCE_S = 120


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, from the cache or made now; None where that cannot be, which is logged once.

    Only on Linux and with gcc, whose threads are PyTorch's own; LMLAB_NATIVE=0 goes without, CC names a compiler.
    """
    if sys.platform != "linux" or os.environ.get("LMLAB_NATIVE") == "0":
        return None
    compiler = shutil.which(os.environ.get("CC") or "gcc")
    if compiler is None:
        log.debug("no gcc: PyTorch's own operations take the place of compiled kernels")
        return None
    try:
        file = cache_root() / "native" / f"{_key(compiler)}.so"
        if not file.is_file():
            with whole_file(file) as unfinished:
                _compile(compiler, unfinished)
        return ctypes.CDLL(str(file))
    except (OSError, subprocess.SubprocessError) as error:
        told = getattr(error, "stderr", None) or str(error)
        log.warning("no compiled kernels, and so less speed: %s", told.strip().splitlines()[-1] if told else error)
        return None


def _compile(compiler: str, into: Path) -> None:
    source, made = Path(__file__).with_name(SOURCES[0]), into.with_suffix(".o")
    flags = FLAGS + (FLAGS_X86 if platform.machine() == "x86_64" else ())
    try:
        _run(compiler, *flags, "-c", str(source), "-o", str(made))
        # Linked without OpenMP's library, so that it is the one that PyTorch has loaded: two would each have threads.
        _run(compiler, "-shared", str(made), "-o", str(into), "-lm")
    finally:
        made.unlink(missing_ok=True)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE_S)


def _key(compiler: str) -> str:
    """Of all that the compiled code depends on: a home may be shared by machines of several kinds."""
    info = Path(compiler).stat()
    parts = [Path(__file__).with_name(name).read_text(encoding="utf-8") for name in SOURCES]
    parts += [*FLAGS, *FLAGS_X86, platform.machine(), torch.__version__, compiler, f"{info.st_size} {info.st_mtime_ns}"]
    return xxhash.xxh3_128_hexdigest("\0".join([*parts, _features()]).encode())


def _features() -> str:
    """What the processor can do, as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
