"""Where kernels cannot be compiled nothing fails, and one line says why; where they can it is done once."""

import ctypes
import logging
import os
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.native.test_native import COMPILER
from tests.native.test_native import pytestmark as where_there_is_a_compiler

from lmlab import native
from lmlab.models.layers import gelu
from lmlab.native import build

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="kernels are for Linux, whose compiler is gcc")


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """As in a new process, with a cache of its own."""
    monkeypatch.delenv("LMLAB_NATIVE", raising=False)
    monkeypatch.setenv("LMLAB_CACHE", str(tmp_path / "cache"))
    build.library.cache_clear()
    yield
    build.library.cache_clear()


@pytest.fixture
def warnings(caplog, monkeypatch):
    """What has been warned of so far."""
    monkeypatch.setattr(build.log, "propagate", True)
    caplog.set_level(logging.DEBUG, "lmlab")
    return lambda: [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def compiler(folder: Path, script: str) -> Path:
    path = folder / "some-cc"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def made(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())


def test_zero_in_the_environment_goes_without(monkeypatch, warnings, tmp_path):
    monkeypatch.setenv("LMLAB_NATIVE", "0")
    assert build.library() is None
    assert not native.serves(torch.ones(3))
    assert not warnings()
    assert not made(tmp_path)


def test_another_system_goes_without(monkeypatch, warnings):
    monkeypatch.setattr(build.sys, "platform", "darwin")
    assert build.library() is None
    assert not warnings()


def test_where_there_is_no_compiler_nothing_is_said(monkeypatch, warnings, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.library() is None
    monkeypatch.setenv("CC", "a-compiler-that-nobody-has")
    build.library.cache_clear()
    assert build.library() is None
    assert not warnings()
    torch.testing.assert_close(gelu(torch.zeros(3)), torch.zeros(3))


@on_linux
def test_a_compiler_that_fails_is_told_of_once_and_leaves_nothing(monkeypatch, warnings, tmp_path):
    monkeypatch.setenv("CC", str(compiler(tmp_path, "echo first >&2; echo 'no such luck' >&2; exit 1")))
    assert build.library() is None
    assert build.library() is None
    assert not native.serves(torch.ones(3))
    assert warnings() == ["no compiled kernels, and so less speed: no such luck"]
    assert not made(tmp_path)


@on_linux
def test_a_compilers_first_error_is_what_is_told(monkeypatch, warnings, tmp_path):
    told = "In file included from a.c:\n  a.h:1: error: the first\na.h:2: error: another\ncompilation terminated.\n"
    monkeypatch.setenv("CC", str(compiler(tmp_path, f"printf '{told}' >&2; exit 1")))
    assert build.library() is None
    assert warnings() == ["no compiled kernels, and so less speed: a.h:1: error: the first"]


@on_linux
def test_a_compiler_that_fails_without_a_word_is_told_of_by_its_status(monkeypatch, warnings, tmp_path):
    monkeypatch.setenv("CC", str(compiler(tmp_path, "exit 3")))
    assert build.library() is None
    (line,) = warnings()
    assert "exit status 3" in line


@on_linux
@pytest.mark.parametrize("told", [r"\n \n", r"na\357ve: \377\n"], ids=["blank lines", "bytes that are no UTF-8"])
def test_a_compiler_that_fails_in_strange_words_is_told_of(told, monkeypatch, warnings, tmp_path):
    monkeypatch.setenv("CC", str(compiler(tmp_path, f"printf '{told}' >&2; exit 1")))
    assert build.library() is None
    assert len(warnings()) == 1


@on_linux
def test_a_compiler_that_does_not_end_is_given_up(monkeypatch, warnings, tmp_path):
    monkeypatch.setattr(build, "PATIENCE_S", 0.1)
    monkeypatch.setenv("CC", str(compiler(tmp_path, "echo waiting >&2; exec sleep 20")))
    assert build.library() is None
    assert len(warnings()) == 1
    assert not made(tmp_path)


@on_linux
@pytest.mark.parametrize("content", [b"", b"not a library", b"\x7fELF" + bytes(60)], ids=["empty", "text", "cut off"])
@pytest.mark.parametrize("does", ["fails", "makes no library", "works"])
def test_a_broken_file_in_the_cache_is_made_anew_once(does, content, monkeypatch, warnings, tmp_path):
    if does == "works" and shutil.which("gcc") is None:
        pytest.skip("there is no gcc")
    calls = tmp_path / "calls"
    script = {"fails": "exit 1", "makes no library": 'echo no > "$2"', "works": 'gcc -shared -x c /dev/null -o "$2"'}
    cc = compiler(tmp_path, f'echo "$@" >> {calls}; while [ "$1" != -o ]; do shift; done; {script[does]}')
    monkeypatch.setenv("CC", str(cc))
    file = tmp_path / "cache" / "native" / f"{build._key([str(cc)])}.so"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    assert (build.library() is not None) == (does == "works")
    assert len(calls.read_text().splitlines()) == (1 if does == "fails" else 2)
    assert made(tmp_path) == [file.name]
    assert len(warnings()) == (0 if does == "works" else 1)
    if does == "makes no library":
        assert f"{file} cannot be loaded" in warnings()[0]


@on_linux
def test_a_compiler_may_be_named_with_arguments(monkeypatch, warnings, tmp_path):
    calls = tmp_path / "calls"
    cc = compiler(tmp_path, f'printf "%s|" "$@" >> {calls}; exit 1')
    monkeypatch.setenv("CC", f"{cc} -first 'the second'")
    assert build.library() is None
    assert calls.read_text().startswith("-first|the second|-O3|")
    assert len(warnings()) == 1


@on_linux
def test_a_name_of_a_compiler_that_is_none(monkeypatch, warnings):
    monkeypatch.setenv("CC", "gcc 'that does not end")
    assert build.library() is None
    assert warnings() == ["no compiled kernels, and so less speed: CC: No closing quotation"]
    # As if there were none at all.
    found = []
    monkeypatch.setattr(build.shutil, "which", found.append)
    for name in ("", " "):
        monkeypatch.setenv("CC", name)
        build.library.cache_clear()
        assert build.library() is None
    assert found == ["gcc", "gcc"]


@on_linux
def test_a_cache_that_cannot_be_written_is_told_of(monkeypatch, warnings, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LMLAB_CACHE", str(tmp_path / "file"))
    monkeypatch.setenv("CC", str(compiler(tmp_path, "exit 0")))
    assert build.library() is None
    assert len(warnings()) == 1


@where_there_is_a_compiler
def test_what_was_compiled_serves_other_processes_too(monkeypatch, warnings, tmp_path):
    calls = tmp_path / "calls"
    # The last of several levels counts: without optimization it takes a fifth of the time.
    monkeypatch.setenv("CC", str(compiler(tmp_path, f'echo "$@" >> {calls}; exec {shlex.join(COMPILER)} "$@" -O0')))
    assert isinstance(build.library(), ctypes.CDLL)
    told = calls.read_text().splitlines()
    # Compiled, and linked without an OpenMP library of its own.
    assert [("-c" in line.split(), "-shared" in line.split()) for line in told] == [(True, False), (False, True)]
    assert "-fopenmp" not in told[1]
    (name,) = made(tmp_path)
    assert name.endswith(".so")
    code = "from lmlab import native; import torch; print(native.gelu(torch.ones(1)).item())"
    path = os.pathsep.join(map(str, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, check=True, capture_output=True, text=True
    )
    assert float(done.stdout) == pytest.approx(0.8412, abs=1e-4)
    assert calls.read_text().splitlines() == told
    assert made(tmp_path) == [name]
    assert not warnings()


def test_the_key_is_of_all_that_the_code_depends_on(monkeypatch, tmp_path):
    for name in build.SOURCES:
        shutil.copy(Path(build.__file__).with_name(name), tmp_path)
    cc = compiler(tmp_path, "exit 1")
    keys = [build._key([str(cc)])]
    monkeypatch.setattr(build, "__file__", str(tmp_path / "build.py"))
    assert build._key([str(cc)]) == keys[0]

    for name in build.SOURCES:
        with (tmp_path / name).open("a") as file:
            file.write("/* another */\n")
        keys.append(build._key([str(cc)]))
    for attribute, value in {"FLAGS": ("-O2",), "FLAGS_X86": (), "_features": lambda: "flags: fewer"}.items():
        monkeypatch.setattr(build, attribute, value)
        keys.append(build._key([str(cc)]))
    monkeypatch.setattr(torch, "__version__", "0.1")
    keys.append(build._key([str(cc)]))
    keys.append(build._key([str(cc), "-an-argument"]))
    keys.append(build._key([str(compiler(tmp_path, "exit 10"))]))
    assert len(set(keys)) == len(keys) == 5 + len(build.SOURCES) + 2
