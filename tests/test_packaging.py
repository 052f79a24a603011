"""An installed copy is whole: options, licence and entry point travel in the wheel, and no repository is needed."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    pytest.importorskip("hatchling", reason="the build backend is in lmlab[dev]")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--wheel-dir", str(folder), "--quiet"]
    offline = ["--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check"]
    built = subprocess.run([*command, *offline], capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The wheel unpacked, far from the repository."""
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def python(site: Path, *arguments: str) -> str:
    """A Python that finds lmlab in `site` first."""
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=site, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_the_wheel_carries_every_option_every_source_and_the_licence(installed):
    options = {p.relative_to(ROOT / "conf") for p in (ROOT / "conf").rglob("*.yaml")}
    assert {p.relative_to(installed / "lmlab/conf") for p in installed.rglob("lmlab/conf/**/*.yaml")} == options
    for kind in ("*.py", "*.[ch]"):
        sources = {p.relative_to(ROOT / "src") for p in (ROOT / "src").rglob(kind)}
        assert {p.relative_to(installed) for p in installed.rglob(kind)} == sources
    (information,) = installed.glob("*.dist-info")
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert (information / "licenses" / "LICENSE").read_text(encoding="utf-8") == licence
    assert "lmlab = lmlab.cli:run" in (information / "entry_points.txt").read_text(encoding="utf-8")
    assert not [p for p in installed.iterdir() if p.name not in ("lmlab", "hydra_plugins", information.name)]


@pytest.mark.slow
def test_an_installed_copy_composes_from_its_own_options(installed):
    code = "import lmlab, lmlab.config as c; print(c.conf_dir()); print(lmlab.compose(['model=lstm']).model._target_)"
    assert python(installed, "-c", code).splitlines() == [str(installed / "lmlab/conf"), "lmlab.models.lstm.LSTMLM"]
    assert python(installed, "-c", "import lmlab.cli as c; c.main(['--version'])") == f"lmlab {PROJECT['version']}"


def test_the_version_is_stated_once_in_effect():
    import lmlab

    assert lmlab.__version__ == PROJECT["version"]


def test_every_direct_dependency_is_pinned_within_its_range():
    from packaging.requirements import Requirement

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {line.partition("==")[0].lower().replace("_", "-"): line.partition("==")[2] for line in lines}
    extras = [r for group in PROJECT["optional-dependencies"].values() for r in group]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *extras]):
        if requirement.name != "lmlab":
            pinned = pins.get(requirement.name.lower().replace("_", "-"))
            assert pinned, f"{requirement.name} is not in constraints.txt"
            assert requirement.specifier.contains(pinned), f"{requirement} excludes {pinned} of constraints.txt"
