"""The configuration on the disk: read at the start, and in the same way whenever it is read again.

The modules that read it are loaded for that alone: half a megabyte that a daemon at work does not need. Their
code is kept, because by the time that it is needed again another JobMon may be installed.
"""

from __future__ import annotations

import errno
import gc
import marshal
import os
import stat
import sys

from jobmon.errors import StartupError
from jobmon.lean.cpython import ModuleSpec, PathFinder
from jobmon.linux.kernel import globs
from jobmon.linux.kernel.syscalls import trim

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from jobmon.config.loader import Check, Config

MAX_CONFIG_BYTES = 16 << 20  # of one file; ten thousand jobs need a few
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_MODULES = "jobmon.config"  # the package, with all that is in it


class Source:
    """A configuration and where it comes from. What it is read against is as it was at the start:
    the environment, the temporary directory, and the directory that `jobmon` was called in.

    `config` is the one that is in force, `warnings` what was doubtful in the first, `path` the master's
    absolute path.

    Raises:
        ConfigError: with everything that is wrong with it.
        StartupError: this process's directory has been removed.
    """

    def __init__(self, name: str) -> None:
        self._here = _here()
        self._tmp = next(filter(None, map(os.environ.get, ("TMPDIR", "TEMP", "TMP"))), "/tmp")
        self.path = os.path.join(self._here, name)
        config = self._load(name, Disk(patient_with=name))
        self.warnings = tuple(map(str, config.warnings))
        self.config = config.replace(warnings=())

    def read(self, check: Check | None = None) -> Config:
        """What stands there now, with relative paths from the working-dir that is in force: another one is
        for the next daemon. Waits for nobody. Raises ConfigError, also with what `check` complains of."""
        base = self.config.supervisor.working_dir
        return self._load(self.path, Disk(), base=base, check=check, old=self.config)

    def _load(self, name: str, disk: Disk, **how: Any) -> Config:
        if _kept not in sys.meta_path:
            sys.meta_path.insert(0, _kept)
        from jobmon.config import load

        return load(name, disk, os.environ, self._here, self._tmp, **how)


class Disk:
    """The files of a configuration, as `config.load` asks for them. They must be regular files, but
    for the one that a person has just named: that may be a pipe."""

    def __init__(self, patient_with: str = "") -> None:
        self._patient_with = patient_with

    def read(self, path: str) -> bytes:
        """The content of a file."""
        with open(path, "rb", opener=None if path == self._patient_with else _open_regular) as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        if len(data) > MAX_CONFIG_BYTES:  # a device, or the wrong file: it could be without end
            raise OSError(errno.EFBIG, f"it has more than {MAX_CONFIG_BYTES >> 20} MiB")
        return data

    def glob(self, pattern: str) -> list[str]:
        """The paths that match a pattern."""
        return globs.find(pattern)

    def device(self, directory: str) -> int:
        """The file system that a directory is on."""
        return os.stat(directory).st_dev

    def lost(self, pattern: str, directory: str, device: int) -> tuple[str, str]:
        """Why a directory has nothing any more that matches a pattern."""
        return globs.lost(pattern, directory, device)


class _Kept:
    """Imports the modules that read configurations, whenever that is, from the code that they had first."""

    def __init__(self) -> None:
        self._code: dict[str, bytes] = {}
        self._folders: dict[str, list[str] | None] = {}  # of packages: where their modules are

    def find_spec(self, name: str, path: Any = None, _target: Any = None) -> ModuleSpec | None:
        """How to import one of them (importlib.abc.MetaPathFinder)."""
        if not name.startswith(_MODULES):
            return None
        if name not in self._code:
            found: Any = PathFinder.find_spec(name, path)
            self._code[name] = marshal.dumps(found.loader.get_code(name))
            self._folders[name] = found.submodule_search_locations
        loader: Any = self
        spec = ModuleSpec(name, loader, origin="kept")
        spec.submodule_search_locations = self._folders[name]
        return spec

    def create_module(self, _spec: ModuleSpec) -> None:
        """Have the usual one made."""

    def exec_module(self, module: Any) -> None:
        """Run its code (importlib.abc.Loader)."""
        exec(marshal.loads(self._code[module.__name__]), module.__dict__)  # noqa: S102, S302


_kept = _Kept()


def forget() -> None:
    """Unload what reads configurations, once nothing of what it made but specs is in use."""
    for name in [name for name in sys.modules if name.startswith(_MODULES)]:
        del sys.modules[name]
        sys.modules["jobmon"].__dict__.pop(name.rpartition(".")[2], None)
    gc.collect()  # modules refer to themselves
    trim()


def _here() -> str:
    """The directory of this process by the name that its caller knows: through a link, where he went through
    one (as `pwd -L`), so that a new target of the link counts.

    Raises:
        StartupError: it has been removed.
    """
    name = os.environ.get("PWD", "")
    try:
        plain = name.startswith("/") and not {".", ".."}.intersection(name.split("/"))
        if plain and os.path.samestat(os.stat(name), os.stat(".")):
            return name
    except (OSError, ValueError):
        pass
    try:
        return os.getcwd()
    except OSError as error:
        raise StartupError(f"the current directory: {error.strerror}: go to one that exists") from None


def _open_regular(path: str, _flags: int) -> int:
    """Open a file that keeps nobody waiting. It is looked at before, because to open a FIFO wakes who
    waits at its other end, and after, because it may be another by then."""
    _need_regular(os.stat(path))
    fd = os.open(path, _FLAGS)
    try:
        _need_regular(os.fstat(fd))
    except OSError:
        os.close(fd)
        raise
    return fd


def _need_regular(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
