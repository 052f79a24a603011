"""The quick end of a command loses nothing that the slow one keeps."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

LEAVE = "import sys\nfrom lmlab.cli.ending import leave\n"


def ends(code: str, **options: Any) -> subprocess.CompletedProcess:
    code = LEAVE + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize("status", [0, 2, 3, 130])
def test_the_exit_status_is_kept(status: int):
    assert ends(f"leave({status})").returncode == status


def test_what_was_printed_arrives_whole():
    done = ends("print('x' * 100_000, end=''); sys.stderr.write('told'); leave(0)")
    assert (len(done.stdout), done.stderr) == (100_000, "told")


def test_open_files_are_flushed(tmp_path: Path):
    """Held by a global, in a cycle, and from before garbage was frozen."""
    code = f"""
        import gc
        early = open({str(tmp_path / "early")!r}, "w")
        early.write("early")
        gc.freeze()
        class Holder: pass
        a = Holder()
        a.self, a.file = a, open({str(tmp_path / "cycle")!r}, "wb")
        a.file.write(b"cycle")
        del a
        leave(0)
    """
    assert ends(code).returncode == 0
    assert [(tmp_path / name).read_text() for name in ("early", "cycle")] == ["early", "cycle"]


def test_exit_functions_run_and_threads_are_waited_for(tmp_path: Path):
    code = f"""
        import atexit, threading, time
        from concurrent.futures import ThreadPoolExecutor
        from pathlib import Path
        def late(name):
            time.sleep(0.3)
            Path({str(tmp_path)!r}, name).touch()
        threading.Thread(target=late, args=("thread",)).start()
        threading.Thread(target=lambda: time.sleep(60), daemon=True).start()
        ThreadPoolExecutor().submit(late, "pool")
        atexit.register(Path({str(tmp_path)!r}, "atexit").touch)
        leave(0)
    """
    assert ends(code, timeout=30).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["atexit", "pool", "thread"]


def test_output_that_nobody_takes_is_told_as_python_tells_it():
    """A full disk under standard output."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    # Unbuffered, printing itself would fail.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    code = LEAVE + "print('told')\n"
    with full.open("w") as out:
        plain, ours = (
            subprocess.run(
                [sys.executable, "-c", code + end], stdout=out, stderr=subprocess.DEVNULL, env=environment, check=False
            ).returncode
            for end in ("", "leave(0)")
        )
    assert ours == plain == 120


def test_a_whole_training_from_the_console_script(small: dict[str, list[str]], tmp_path: Path):
    """Its files are whole, its status is right, and it has imported nothing that it did not need."""
    script = f"""
        import atexit, sys
        from lmlab.cli import run
        heavy = ["transformers", "scipy", "matplotlib", "PIL", "pandas", "sympy", "torch._inductor"]
        atexit.register(lambda: print("imported", [name for name in heavy if name in sys.modules]))
        sys.argv = ["lmlab", "train", {f"run_dir={tmp_path / 'run'}"!r}, *{small["transformer"]}, "logger=tensorboard"]
        run()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported []"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = EventAccumulator(str(tmp_path / "run"))
    curves.Reload()
    assert [event.step for event in curves.Scalars("train/loss")] == [1, 3]
    assert "validation at step 3" in (tmp_path / "run" / "train.log").read_text()
    assert (tmp_path / "run" / "results.json").read_text().endswith("}\n")
