"""Compiling kernels.c for this processor, once; where there is no compiler, nothing is compiled."""

import ctypes
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch
import xxhash

from lmlab.data.cache import cache_root, locked, whole_file

log = logging.getLogger("lmlab")

SOURCES = (
    *("kernels.c", "passes.h", "step.h", "step_blocks.h"),
    *("tiles.h", "tiles_head.h", "tiles_linear.h", "tiles_lstm.h"),
)
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
    try:
        command = shlex.split(os.environ.get("CC", "")) or ["gcc"]
    except ValueError as error:
        return _none(f"CC: {error}")
    if shutil.which(command[0]) is None:
        log.debug("no %s: PyTorch's own operations take the place of compiled kernels", command[0])
        return None
    try:
        file = _own_folder() / f"{_key(command)}.so"
        if (found := _loaded(file)) is not None:
            return found
        with locked(file.with_suffix(".lock"), "another process compiles the kernels: waiting for it"):
            # What could not be loaded once is not compiled again at every start.
            if file.with_suffix(".failed").exists():
                return _none(file.with_suffix(".failed").read_text(encoding="utf-8"))
            return _loaded(file) or _made(command, file)
    except subprocess.CalledProcessError as error:
        lines = [line.strip() for line in error.stderr.splitlines() if line.strip()]
        # The last one is often only that compilation was terminated.
        return _none(next((line for line in lines if "error" in line), lines[-1] if lines else str(error)))
    # A RuntimeError: of a user without a home.
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        return _none(str(error))


def _own_folder() -> Path:
    """Where nobody else can put a library for us to run: a cache may be shared with other people."""
    folder = cache_root() / f"native-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = folder.stat()
    if about.st_uid != os.getuid() or about.st_mode & 0o022:
        raise PermissionError(f"{folder} can be written by others: remove it, or set LMLAB_CACHE")
    return folder


def _none(why: str) -> None:
    log.warning("no compiled kernels, and so less speed: %s", why)


def _loaded(file: Path) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(file))
    except OSError:
        return None


def _made(command: list[str], file: Path) -> ctypes.CDLL | None:
    log.info("compiling kernels for this processor, once: %s", file)
    _compiled(command, file)
    try:
        return ctypes.CDLL(str(file))
    except OSError as error:
        file.with_suffix(".failed").write_text(str(error), encoding="utf-8")
        return _none(str(error))


def _compiled(compiler: list[str], file: Path) -> None:
    """`file`, made whole or not at all."""
    source = Path(__file__).with_name(SOURCES[0])
    flags = FLAGS + (FLAGS_X86 if platform.machine() == "x86_64" else ())
    with whole_file(file) as unfinished, tempfile.TemporaryDirectory() as folder:
        made = f"{folder}/kernels.o"
        _run(*compiler, *flags, "-c", str(source), "-o", made)
        # Linked without OpenMP's library, so that it is the one that PyTorch has loaded: two would each have threads.
        _run(*compiler, "-shared", made, "-o", str(unfinished), "-lm")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, encoding="utf-8", errors="replace", timeout=PATIENCE_S)


def _key(compiler: list[str]) -> str:
    """Of all that the compiled code depends on: a home may be shared by machines of several kinds."""
    info = Path(shutil.which(compiler[0])).stat()
    parts = [Path(__file__).with_name(name).read_text(encoding="utf-8") for name in SOURCES]
    parts += [
        *FLAGS,
        *FLAGS_X86,
        platform.machine(),
        torch.__version__,
        *compiler,
        f"{info.st_size} {info.st_mtime_ns}",
    ]
    return xxhash.xxh3_128_hexdigest("\0".join([*parts, _features()]).encode())


def _features() -> str:
    """What the processor can do, as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
