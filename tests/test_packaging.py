"""What a person gets who installs JobMon: from the tree, from a wheel, from the source distribution.

Everything is built from a copy of the project, so nothing is left in the tree, and without a network:
the tools that build are those of the interpreter that runs the tests.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser

import pytest

import jobmon

TYPE_CHECKING = False
if TYPE_CHECKING:
    from email.message import Message
    from pathlib import Path

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROJECT = (".ci", "bench", "contrib", "docs", "jobmon", "tests")
BUILDERS = ("setuptools", "_distutils_hack", "pkg_resources", "wheel", "packaging")
LITTER = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")

pytestmark = [pytest.mark.slow, pytest.mark.packaging]


def run(*words: str | Path, cwd: Path, path: Path | str = "", status: int = 0) -> str:
    """Run a program where nothing of this environment leaks in; what it printed, on both streams."""
    environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(cwd), "PYTHONPATH": str(path)}
    done = subprocess.run(
        words,
        cwd=cwd,
        env=environment | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )

    assert done.returncode == status, done.stdout
    return done.stdout


def copy_project(to: Path) -> Path:
    """The project as a clone has it."""
    to.mkdir()
    for name in os.listdir(TOP):
        source = os.path.join(TOP, name)
        if name in PROJECT:
            shutil.copytree(source, to / name, ignore=LITTER)
        elif os.path.isfile(source):
            shutil.copy(source, to / name)
    return to


@pytest.fixture(scope="module")
def builders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with setuptools and nothing else, to build with."""
    return links_to(tmp_path_factory.mktemp("builders"), *BUILDERS)


def links_to(place: Path, *names: str) -> Path:
    """Links to installed packages and their metadata."""
    import setuptools

    installed = os.path.dirname(os.path.dirname(setuptools.__file__))
    for entry in os.listdir(installed):
        base = entry.split("-")[0].split(".")[0]
        if base in names:
            os.symlink(os.path.join(installed, entry), place / entry)
    return place


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, builders: Path) -> Path:
    """The source distribution."""
    project = copy_project(tmp_path_factory.mktemp("sdist") / "project")
    run(sys.executable, "setup.py", "-q", "sdist", cwd=project, path=builders)
    (archive,) = (project / "dist").glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, builders: Path) -> Path:
    """The wheel that pip builds of the tree."""
    project = copy_project(tmp_path_factory.mktemp("wheel") / "project")
    return build_wheel(project, builders)


def build_wheel(project: Path, builders: Path) -> Path:
    """Build a wheel as pip does."""
    built = project.parent / "built"
    pip = (sys.executable, "-m", "pip", "wheel", "-q", "--no-index", "--no-deps", "--no-build-isolation")
    run(*pip, "-w", built, ".", cwd=project, path=builders)
    (archive,) = built.glob("*.whl")
    return archive


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A virtual environment with nothing in it, not even pip."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare", cwd=tmp_path)
    return tmp_path / "bare"


def install(into: Path, builders: Path, cwd: Path, *what: str | Path) -> None:
    """`pip install` into another environment, offline and without dependencies."""
    pip = (sys.executable, "-m", "pip", "--python", into, "install", "-q", "--no-index", "--no-deps")
    run(*pip, "--no-build-isolation", *what, cwd=cwd, path=builders)


def modules() -> set[str]:
    """All files that belong into an installed JobMon, relative to site-packages."""
    found = {"jobmon/py.typed"}
    for here, _, names in os.walk(os.path.join(TOP, "jobmon")):
        found |= {os.path.relpath(os.path.join(here, name), TOP) for name in names if name.endswith(".py")}
    return found


def metadata(wheel: Path) -> Message:
    """What a wheel says of itself."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def contents(wheel: Path) -> set[str]:
    """The files of a wheel that are installed, its metadata aside."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_has_all_of_the_package_and_nothing_else(wheel: Path) -> None:
    """Every module and py.typed are in the wheel; tests and examples are not."""
    assert contents(wheel) == modules()


def test_the_wheel_carries_the_licence_and_the_command(wheel: Path) -> None:
    """Whoever has only the wheel has the licence, and `jobmon` on the PATH."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (points,) = (name for name in names if name.endswith("entry_points.txt"))

        assert any(name.endswith("LICENSE") for name in names)
        assert "jobmon = jobmon.cli.main:program" in archive.read(points).decode()


def test_the_metadata_say_what_it_is_and_needs(wheel: Path) -> None:
    """Name, version, licence, the least Python, python-prctl and the extra for tests."""
    said = metadata(wheel)
    needs = said.get_all("Requires-Dist", [])

    assert said["Name"] == "jobmon"
    assert said["Version"] == jobmon.__version__
    assert "BSD-2-Clause" in (said["License"] or said["License-Expression"])
    assert said["Requires-Python"] == ">=3.11"
    assert [need for need in needs if "extra" not in need] == ["python-prctl"]
    assert {"pytest", "hypothesis", "ruff", "mypy"} <= {need.split(">=")[0] for need in needs}


def test_the_source_distribution_is_the_project(source: Path) -> None:
    """Who unpacks the source distribution can test, measure and read all that a clone has."""
    with tarfile.open(source) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"Makefile", "setup.py", "pyproject.toml", "README.md", "LICENSE", "CONTRIBUTING.md", ".ci/run"}
    for directory in PROJECT:
        for here, below, names in os.walk(os.path.join(TOP, directory)):
            below[:] = [name for name in below if name != "__pycache__" and not name.startswith(".")]
            wanted |= {os.path.relpath(os.path.join(here, name), TOP) for name in names if name[0] != "."}

    assert wanted - packed == set()
    assert not any("__pycache__" in name or "/." in name for name in packed)


def test_a_wheel_of_the_source_distribution_is_the_same(
    source: Path, wheel: Path, builders: Path, tmp_path: Path
) -> None:
    """Nothing that the package needs is lost on the way through the source distribution."""
    run("tar", "-xzf", source, cwd=tmp_path)
    (project,) = tmp_path.glob("jobmon-*")

    assert contents(build_wheel(project, builders)) == contents(wheel)


def test_a_client_needs_no_prctl(bare: Path, builders: Path, wheel: Path, tmp_path: Path) -> None:
    """Installed without its dependency, JobMon talks to a daemon that another Python runs."""
    install(bare, builders, tmp_path, wheel)
    config = tmp_path / "master.json"
    ports = {"control-port": f"{tmp_path}/control", "event-port": f"{tmp_path}/events"}
    jobs = {"sleeper": {"command": ["sleep", "infinity"], "autostart": True}}
    config.write_text(json.dumps({"supervisor": ports, "jobs": jobs}))
    daemon = (sys.executable, "-m", "jobmon", "daemon", config)
    port = run(*daemon, cwd=tmp_path, path=os.path.dirname(os.path.dirname(jobmon.__file__))).strip()
    client = ("env", f"JOBMON_PORT={port}", bare / "bin" / "jobmon")
    try:
        assert run(*client, "list-jobs", cwd=tmp_path) == "RUNNING sleeper\n"
        assert run(*client, "stop", "sleeper", cwd=tmp_path) == ""
    finally:
        run(*client, "terminate", cwd=tmp_path)


def test_a_daemon_without_prctl_says_how_to_get_it(
    bare: Path, builders: Path, wheel: Path, tmp_path: Path
) -> None:
    """The daemon names what is missing, the command that installs it and what that is compiled with."""
    install(bare, builders, tmp_path, wheel)
    (tmp_path / "master.json").write_text("{}")
    said = run(bare / "bin" / "jobmon", "daemon", "master.json", cwd=tmp_path, status=1)

    assert said.startswith("jobmon: ")
    assert "python-prctl" in said
    assert "-m pip install python-prctl" in said
    assert all(package in said for package in ("gcc", "python3-dev", "libcap-dev"))
    assert "Traceback" not in said


def test_the_installed_command_loses_nothing(bare: Path, builders: Path, wheel: Path, tmp_path: Path) -> None:
    """It leaves without taking Python down: all that it printed is written, and its exit codes are right."""
    install(bare, builders, tmp_path, wheel)
    command = bare / "bin" / "jobmon"
    (tmp_path / "bad.json").write_text('{"job": {}}')
    nobody = ("env", f"JOBMON_PORT={tmp_path}/control,{tmp_path}/events", command)

    assert json.loads(run(command, "check", "--schema", cwd=tmp_path))["properties"]
    assert "bad.json:1:2: job: " in run(command, "check", "bad.json", cwd=tmp_path, status=1)
    assert "unknown command" in run(command, "frobnicate", cwd=tmp_path, status=2)
    assert "no daemon answers" in run(*nobody, "list-jobs", cwd=tmp_path, status=69)
    assert "no daemon answers" in run(*nobody, "pid", "web", cwd=tmp_path, status=255)
    assert "cannot write the output" in run(
        "sh", "-c", '"$0" help >/dev/full', command, cwd=tmp_path, status=1
    )
    assert run("sh", "-c", '"$0" frobnicate 2>&-', command, cwd=tmp_path, status=2) == ""


def test_the_installed_daemon_gives_its_exit_code(
    bare: Path, builders: Path, wheel: Path, tmp_path: Path
) -> None:
    """In the foreground it says where it is before it ends with the code of its essential job; what the
    background daemon says reaches the shell that asked."""
    install(bare, builders, tmp_path, wheel)
    place = tmp_path / "there"
    place.mkdir()
    path = links_to(place, "prctl", "_prctl", "python_prctl")
    ports = {"control-port": f"{tmp_path}/control", "event-port": f"{tmp_path}/events"}
    job = {"command": "exit 7", "essential": True, "autostart": True}
    (tmp_path / "seven.json").write_text(json.dumps({"supervisor": ports, "jobs": {"seven": job}}))
    (tmp_path / "empty.json").write_text(json.dumps({"supervisor": ports}))
    script = (
        'set -e; JOBMON_PORT=$("$0" daemon empty.json); export JOBMON_PORT; '
        '"$0" terminate; echo "$JOBMON_PORT"'
    )
    command = bare / "bin" / "jobmon"
    said = f"{tmp_path}/control,{tmp_path}/events\n"

    assert said in run(command, "daemon", "-f", "seven.json", cwd=tmp_path, path=path, status=7)
    assert run("sh", "-c", script, command, cwd=tmp_path, path=path) == said


def test_pip_install_of_the_tree(bare: Path, builders: Path, tmp_path: Path) -> None:
    """`pip install .` gives a command that works."""
    project = copy_project(tmp_path / "project")
    install(bare, builders, project, ".")

    assert run(bare / "bin" / "jobmon", "--version", cwd=tmp_path) == f"jobmon {jobmon.__version__}\n"
    assert "list-jobs" in run(bare / "bin" / "jobmon", "help", cwd=tmp_path)


def test_an_editable_install_costs_no_import_hook(bare: Path, builders: Path, tmp_path: Path) -> None:
    """`pip install -e .` is a line in a .pth file: the tree is used as it is, and starts as quickly."""
    project = copy_project(tmp_path / "project")
    install(bare, builders, project, "-e", ".")
    where = run(bare / "bin" / "python", "-c", "import jobmon; print(jobmon.__file__)", cwd=tmp_path)
    hooks = [path.name for path in bare.glob("lib/*/site-packages/*") if "finder" in path.name]

    assert where.strip() == str(project / "jobmon" / "__init__.py")
    assert hooks == []
    assert run(bare / "bin" / "jobmon", "--version", cwd=tmp_path) == f"jobmon {jobmon.__version__}\n"


def test_setup_py_install(bare: Path, tmp_path: Path) -> None:
    """`python3 setup.py install` does it too, where setuptools and python-prctl are there."""
    place = tmp_path / "there"
    place.mkdir()
    path = links_to(place, *BUILDERS, "prctl", "_prctl", "python_prctl")
    project = copy_project(tmp_path / "project")
    run(bare / "bin" / "python", "setup.py", "-q", "install", cwd=project, path=path)
    (project / "master.json").write_text("{}")
    said = run(bare / "bin" / "jobmon", "check", project / "master.json", cwd=tmp_path, path=path)

    assert ": ok, 0 jobs" in said
    assert jobmon.__version__ in run(bare / "bin" / "jobmon", "--version", cwd=tmp_path, path=path)
