"""Where kernels cannot be compiled nothing fails, and one line says why; where they can it is done once."""

import ctypes
import logging
import os
import shlex
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
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
def warnings(caplog):
    """What has been warned of so far."""
    caplog.set_level(logging.DEBUG, "lmlab")
    return lambda: [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def compiler(folder: Path, script: str) -> Path:
    path = folder / "some-cc"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def made(tmp_path: Path) -> list[str]:
    """But for locks, which stay."""
    return sorted(p.name for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.suffix != ".lock")


def library_of(cc: Path, tmp_path: Path) -> Path:
    return tmp_path / "cache" / f"native-{os.getuid()}" / f"{build._key([str(cc)])}.so"


# Of a compiler's arguments, what comes after -o is made a library.
A_LIBRARY = 'while [ "$1" != -o ]; do shift; done; gcc -shared -x c /dev/null -o "$2"'


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
    text = A_LIBRARY.replace("gcc -shared -x c /dev/null -o", "echo no >")
    script = {"fails": "exit 1", "makes no library": text, "works": A_LIBRARY}
    cc = compiler(tmp_path, f'echo "$@" >> {calls}; {script[does]}')
    monkeypatch.setenv("CC", str(cc))
    file = library_of(cc, tmp_path)
    file.parent.mkdir(mode=0o700, parents=True)
    file.write_bytes(content)
    assert (build.library() is not None) == (does == "works")
    assert len(calls.read_text().splitlines()) == (1 if does == "fails" else 2)
    note = file.with_suffix(".failed")
    assert made(tmp_path) == [*([note.name] if does == "makes no library" else []), file.name]
    assert len(warnings()) == (0 if does == "works" else 1)
    if does == "makes no library":
        assert note.read_text() in warnings()[0]
        assert str(file) in warnings()[0]


@on_linux
def test_what_could_not_be_loaded_is_not_compiled_again(monkeypatch, warnings, tmp_path):
    calls = tmp_path / "calls"
    cc = compiler(tmp_path, f"echo called >> {calls}; exit 1")
    monkeypatch.setenv("CC", str(cc))
    file = library_of(cc, tmp_path)
    file.parent.mkdir(mode=0o700, parents=True)
    file.with_suffix(".failed").write_text("undefined symbol")
    assert build.library() is None
    assert warnings() == ["no compiled kernels, and so less speed: undefined symbol"]
    assert not calls.exists()


@on_linux
def test_two_at_once_compile_once(monkeypatch, tmp_path):
    """Threads, whose locks exclude each other as those of processes do: they are of two open files."""
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc")
    calls = tmp_path / "calls"
    monkeypatch.setenv("CC", str(compiler(tmp_path, f'echo "$@" >> {calls}; sleep 0.2; {A_LIBRARY}')))
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: build.library.__wrapped__(), range(2)))
    assert all(isinstance(library, ctypes.CDLL) for library in found)
    assert len(calls.read_text().splitlines()) == 2


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


@on_linux
@pytest.mark.parametrize("mode", [0o720, 0o702, None], ids=["group", "all", "owner"])
def test_a_folder_that_others_may_write_to_is_refused(mode, monkeypatch, warnings, tmp_path):
    """With a library in it, which nobody may make us run."""
    cc = compiler(tmp_path, "exit 1")
    monkeypatch.setenv("CC", str(cc))
    file = library_of(cc, tmp_path)
    if mode is None:
        user = os.getuid() + 1
        monkeypatch.setattr(build.os, "getuid", lambda: user)
        file = library_of(cc, tmp_path)
    file.parent.mkdir(parents=True)
    file.parent.chmod(mode or 0o700)
    file.touch()
    monkeypatch.setattr(build, "_loaded", lambda file: pytest.fail("it was loaded"))
    assert build.library() is None
    assert build.library() is None
    (line,) = warnings()
    assert f"{file.parent} can be written by others" in line


@on_linux
def test_a_user_without_a_home_goes_without(monkeypatch, warnings, tmp_path):
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("CC", str(compiler(tmp_path, "exit 1")))
    monkeypatch.delenv("LMLAB_CACHE")
    monkeypatch.setattr(Path, "home", nowhere)
    assert build.library() is None
    assert warnings() == ["no compiled kernels, and so less speed: Could not determine home directory."]


@where_there_is_a_compiler
def test_what_was_compiled_serves_other_processes_too(monkeypatch, warnings, caplog, tmp_path):
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
    (folder,) = (tmp_path / "cache").iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    # Said before, for it takes a while.
    (line,) = (r.getMessage() for r in caplog.records if r.levelno == logging.INFO)
    assert f"compiling kernels for this processor, once: {folder / name}" in line
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
