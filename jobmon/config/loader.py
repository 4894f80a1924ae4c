"""From the text of a configuration to specs, or to every error in it, each with its place.

The main configuration and the job files that it includes are read through a `Files`, so no I/O happens here;
the environment, the current and the temporary directory are arguments too. What may be written is
said by the table in `keys`.
"""

from __future__ import annotations

from jobmon.config import keys as config_keys
from jobmon.config.jsontext import MAX_PROBLEMS, Document, Duplicate, escape, quote
from jobmon.config.values import Context, Guess, ValidationError, join, nearest, path_text, show, text_problem
from jobmon.core import spec
from jobmon.core.graph import cycles
from jobmon.errors import ConfigError
from jobmon.lean.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, Protocol

    from jobmon.config.keys import Key

    Path = tuple[str | int, ...]
    KeyProblem = tuple[str, str, str]  # about a key of the supervisor: key, element of its list, message
    Check = Callable[[spec.SupervisorSpec], Iterable[KeyProblem]]

    class Files(Protocol):
        """The disk, as far as a configuration is concerned."""

        def read(self, path: str) -> bytes:
            """The content of a file. Raises OSError."""
            ...

        def glob(self, pattern: str) -> list[str]:
            """The paths that match an absolute pattern, in any order. Raises FileNotFoundError when the
            directory before its first wildcard is not there, OSError when something on the way cannot be
            looked at; `filename` is that."""
            ...

        def device(self, directory: str) -> int:
            """The number of the file system that a directory is on. Raises OSError."""
            ...

        def lost(self, pattern: str, directory: str, device: int) -> tuple[str, str]:
            """Why nothing in a directory matches a pattern any more, if nobody has removed it: words and a
            path, or nothing. `device` is where it was."""
            ...


_MORE = "... and more: the rest is not looked at"

_SUPERVISOR = config_keys.table(config_keys.SUPERVISOR)
_JOB = config_keys.table(config_keys.JOB)


class Problem(Record):
    """An error or a warning, and where it is. `line` is 0 when it is the file as a whole."""

    file: str
    line: int
    column: int
    key: str
    message: str

    def __str__(self) -> str:
        """One line, as compilers and editors have it: FILE:LINE:COLUMN: KEY: MESSAGE."""
        file = self.file if self.file.isprintable() else escape(self.file)
        place = f"{file}:{self.line}:{self.column}" if self.line else file
        return f"{place}: {self.key}: {self.message}" if self.key else f"{place}: {self.message}"


class Config(Record):
    """A configuration that can be used. `path` is where it was read from, as it was given; `included` are the
    globs and directories that brought jobs, with the file system that the directory was on, and the jobs."""

    path: str
    supervisor: spec.SupervisorSpec
    jobs: dict[str, spec.JobSpec]
    warnings: tuple[Problem, ...] = ()
    included: Mapping[tuple[str, str], tuple[int, tuple[str, ...]]] = {}


def load(
    path: str,
    files: Files,
    environ: Mapping[str, str],
    cwd: str,
    tmp: str,
    *,
    base: str | None = None,
    check: Check | None = None,
    old: Config | None = None,
) -> Config:
    """Read the main configuration at `path` and what it includes.

    Args:
        path: the main configuration, as a person named it; messages repeat it.
        files: how files are read and found.
        environ: where $NAME is looked up.
        cwd: the absolute directory that the supervisor's working-dir is relative to.
        tmp: what $TMP is when `environ` has none.
        base: what all other relative paths are relative to; without it that is the working-dir.
        check: what is wrong with the supervisor's settings for other reasons than their form.
        old: the one in force: a glob whose directory is missing may take none of its jobs away.

    Raises:
        ConfigError: something is wrong; its `problems` are all of them, by file and place.
    """
    return _Loader(files, Context(environ, tmp, cwd), base, check, old).load(path)


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a main configuration; `$defs` has those of a job file and a job."""
    from jobmon.config.docs import json_schema as schema

    return schema()


def reference() -> str:
    """The text of docs/configuration.md."""
    from jobmon.config.docs import reference as text

    return text()


class _Source:
    """One file, and what was found in it."""

    def __init__(self, name: str, order: int) -> None:
        self.name = name
        self.order = order
        self.glob = ""  # that found it
        self.document: Document | None = None
        self.unwrapped = False
        self._replaced: Duplicate | None = None

    @property
    def sound(self) -> bool:
        """Whether all that it holds is known."""
        return self.document is not None and self.document.sound

    def before(self, replaced: Duplicate) -> _Source:
        """The same file, as if it held only the first of two values of a key."""
        source = _Source(self.name, self.order)
        source.document, source.unwrapped, source._replaced = self.document, self.unwrapped, replaced
        return source

    def path_of(self, twice: Duplicate) -> Path:
        """Where a key stands twice, where a job is always ("jobs", NAME)."""
        return ("jobs", *twice.path) if self.unwrapped else twice.path

    def place(self, path: Path, key: bool) -> tuple[int, int]:
        """Line and column of what stands at `path`, where a job is always ("jobs", NAME)."""
        if self.document is None:
            return 0, 0
        twice = self._replaced
        if twice is not None:
            steps = path[len(self.path_of(twice)) :]
            if key and not steps:
                return self.document.line_column(twice.first)
            return self.document.place(steps, key, twice.replaced)
        return self.document.place(path[1:] if self.unwrapped else path, key)


class _Enough(Exception):
    """So much is wrong that nothing more is looked at."""


class _Finding(Record):
    """A problem whose place is not yet looked up."""

    source: _Source
    path: Path
    key: bool
    message: str

    def problem(self) -> Problem:
        line, column = self.source.place(self.path, self.key)
        return Problem(self.source.name, line, column, path_text(self.path), self.message)


def _in_order(found: list[tuple[int, Problem]]) -> tuple[Problem, ...]:
    found.sort(key=lambda each: (each[0], each[1].line, each[1].column))
    return tuple(problem for _, problem in found)


def _cut_off(found: list[tuple[int, Problem]], path: str) -> tuple[Problem, ...]:
    more = (Problem(path, 0, 0, "", _MORE),) if len(found) > MAX_PROBLEMS else ()
    return _in_order(found)[:MAX_PROBLEMS] + more


_GROUPS_OVER_TCP = (
    "over a TCP port only the user of a peer can be seen: a member that is listed counts, whatever groups "
    "the process has; over a UNIX socket the groups of the process count"
)


class _Loader:
    """One loading. Collects problems; nothing is raised before everything has been looked at."""

    def __init__(
        self, files: Files, context: Context, base: str | None, check: Check | None, old: Config | None
    ) -> None:
        self._files = files
        self._context = context
        self._sources: list[_Source] = []
        self._findings: list[_Finding] = []
        self._warnings: list[_Finding] = []
        self._found: list[tuple[int, Problem]] = []
        self._jobs: dict[str, spec.JobSpec] = {}
        self._owners: dict[str, _Source] = {}  # of each name, the first file that has it
        self._homes: dict[str, _Source] = {}  # of each of the jobs, the file that it was read from
        self._cwd = context.base
        self._base = base
        self._check = check
        self._old = old
        self._globs: dict[str, tuple[Path, set[str]]] = {}  # where each is written, where it finds anything
        self._mentions: list[tuple[_Source, Path, str]] = []  # of jobs by others: where, and of whom
        self._guess: Guess | None = None
        self._count = 0  # of jobs, also of those that are too many to be read

    def load(self, path: str) -> Config:
        supervisor = spec.SupervisorSpec()
        try:
            supervisor = self._all(path)
        except _Enough:
            pass
        self._raise(path)
        warnings = [(note.source.order, note.problem()) for note in self._warnings]
        return Config(path, supervisor, self._jobs, _cut_off(warnings, path), self._included())

    def _all(self, path: str) -> spec.SupervisorSpec:
        source = self._read(path)
        if source.document is not None and source.document.sound:
            supervisor = self._main(source, source.document.value)
        else:
            supervisor = self._broken_main(source)
        self._include(path, source, supervisor.include_dirs)
        self._keep_what_was_found(source)
        if self._count > spec.MAX_JOBS:
            self._problem(source, (), f"{self._count} jobs: {spec.MAX_JOBS} are the limit")
        else:
            self._check_order()
            self._check_outputs()
        return supervisor

    def _raise(self, path: str) -> None:
        found = self._found + [(note.source.order, note.problem()) for note in self._findings]
        if found:
            raise ConfigError(_cut_off(found, path))

    # ---- problems ----

    def _problem(self, source: _Source, path: Path, message: str, key: bool = False) -> None:
        self._findings.append(_Finding(source, path, key, message))
        self._see_whether_enough()

    def _warn(self, source: _Source, path: Path, message: str) -> None:
        if len(self._warnings) <= MAX_PROBLEMS:
            self._warnings.append(_Finding(source, path, False, message))

    def _problem_at(self, source: _Source, line: int, column: int, message: str, key: str = "") -> None:
        self._found.append((source.order, Problem(source.name, line, column, key, message)))
        self._see_whether_enough()

    def _see_whether_enough(self) -> None:
        if len(self._found) + len(self._findings) > MAX_PROBLEMS:
            raise _Enough

    # ---- files ----

    def _read(self, name: str, glob: str = "") -> _Source:
        """The file `name`, which a glob has found, read as JSON; its problems are noted."""
        source = _Source(name, len(self._sources))
        source.glob = glob
        self._sources.append(source)
        try:
            data = self._files.read(name)
        except IsADirectoryError:
            advice = quote(name.rstrip("/") + "/*.json", 200)
            self._problem_at(source, 0, 0, f"is a directory; the files in it are {advice}")
        except OSError as error:
            self._problem_at(source, 0, 0, f"cannot be read: {error.strerror or error}")
        except ValueError as error:  # a NUL in the path
            self._problem_at(source, 0, 0, f"cannot be read: {error}")
        else:
            source.document = Document(data)
            self._syntax(source, source.document)
        return source

    def _syntax(self, source: _Source, document: Document) -> None:
        for problem in document.problems:
            self._problem_at(source, *document.line_column(problem.offset), problem.message)

    def _duplicates(self, source: _Source) -> None:
        """Keys that stand twice in one object, once it is known what the file is."""
        assert source.document is not None
        for twice in source.document.duplicates:
            path = source.path_of(twice)
            what = "there are two jobs of this name" if _is_job_path(path) else "this key is here twice"
            line, column = source.document.line_column(twice.first)
            message = f"{what}; the first is at {_at(source, line, column)}"
            self._problem_at(source, *source.document.line_column(twice.second), message, path_text(path))

    def _include(self, path: str, main: _Source, usable: tuple[str, ...]) -> None:
        """Reads every job file once; a glob that finds the main configuration too does not mean it."""
        seen = {path, join(self._cwd, path)}
        for index, text, pattern in self._patterns(main) if usable else ():
            place = ("supervisor", "include-dirs", index)
            _, directories = self._globs.setdefault(pattern, (place, set()))
            try:
                found = sorted(self._files.glob(pattern))
            except FileNotFoundError as error:
                missing = f"there is no directory {quote(error.filename, 300)}"
                self._finds_nothing(main, place, text, pattern, missing)
            except OSError as error:
                name = quote(str(error.filename), 300)
                self._problem(main, place, f"cannot look into {name}: {error.strerror or error}")
            else:
                if not found:
                    self._finds_nothing(main, place, text, pattern)
                for name in found:
                    directories.add(name.rpartition("/")[0])
                    if name not in seen:
                        seen.add(name)
                        self._job_file(self._read(name, pattern))

    def _patterns(self, main: _Source) -> Iterable[tuple[int, str, str]]:
        """The globs that can be used: index, text, absolute pattern."""
        assert main.document is not None
        for index, text in enumerate(main.document.value["supervisor"]["include-dirs"]):
            try:
                if isinstance(text, str):
                    yield index, text, self._context.glob(text)
            except ValidationError:
                pass  # that was said before
            self._context.warnings.clear()

    def _finds_nothing(self, main: _Source, place: Path, text: str, pattern: str, missing: str = "") -> None:
        why = f"looked for {quote(pattern, 300)}" + (f", but {missing}" if missing else "")
        self._warn(main, place, f"matches no file; {why}{self._elsewhere(main, text, pattern)}")

    def _elsewhere(self, main: _Source, text: str, pattern: str) -> str:
        """Where else somebody may have meant a relative glob to begin, if it matches there."""
        directory = join(self._cwd, main.name).rpartition("/")[0] or "/"
        places = ((self._cwd, "where jobmon was called"), (directory, "where the configuration is"))
        for place, words in places:
            other = self._context.glob(text, place)
            try:
                found = other != pattern and self._files.glob(other)
            except OSError:
                continue
            if found:
                return f"; {quote(other, 300)} would match, from {words}: write that, or set working-dir"
        return ""

    def _keep_what_was_found(self, main: _Source) -> None:
        """A directory that has gone, or is not mounted, is no order to remove the jobs that it had."""
        lost: dict[tuple[Path, str], list[str]] = {}
        for (pattern, directory), (device, jobs) in (self._old.included if self._old else {}).items():
            place, directories = self._globs.get(pattern, ((), {directory}))
            names = [quote(name) for name in jobs if name not in self._owners]
            if names and directory not in directories:
                words, path = self._files.lost(pattern, directory, device)
                lost.setdefault((place, f"{words} {quote(path, 300)}" if words else ""), []).extend(names)
        for (place, why), names in lost.items():
            if why:
                shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
                advice = "bring it back, or take this glob away if they shall go"
                self._problem(main, place, f"{why}; that would remove {shown}: {advice}")

    def _included(self) -> dict[tuple[str, str], tuple[int, tuple[str, ...]]]:
        """The jobs of each glob and directory."""
        found: dict[tuple[str, str], list[str]] = {}
        for name, source in self._homes.items():
            if source.glob:
                found.setdefault((source.glob, source.name.rpartition("/")[0]), []).append(name)
        return {key: (self._device(key[1]), tuple(names)) for key, names in found.items()}

    def _device(self, directory: str) -> int:
        try:
            return self._files.device(directory or "/")
        except OSError:
            return 0  # it has gone this very moment

    # ---- the main configuration ----

    def _main(self, source: _Source, top: object) -> spec.SupervisorSpec:
        self._duplicates(source)
        if not isinstance(top, dict):
            self._problem(
                source, (), f'must be an object, as {{"supervisor": ..., "jobs": ...}}, not {show(top)}'
            )
            top = {}
        for key, value in top.items():
            if key not in ("supervisor", "jobs"):
                self._problem(source, (key,), _not_in_main(key, value), key=True)
        raw = top.get("supervisor", {})
        supervisor = self._supervisor(source, raw)
        for key, element, message in self._check(supervisor) if self._check is not None else ():
            written = raw.get(key) if isinstance(raw, dict) else None
            index = (written.index(element),) if isinstance(written, list) and element in written else ()
            self._problem(source, ("supervisor", key, *index), message)
        if supervisor.allow_groups and int in map(type, (supervisor.control_port, supervisor.event_port)):
            self._warn(source, ("supervisor", "allow-groups"), _GROUPS_OVER_TCP)
        if "jobs" in top:
            self._jobs_of(source, top["jobs"])
        self._replaced_jobs(source)
        return supervisor

    def _broken_main(self, source: _Source) -> spec.SupervisorSpec:
        """Of a main configuration with syntax errors, what leads to the job files, if that can be read."""
        top = source.document.value if source.document else None
        if source.document:
            self._duplicates(source)
        before = len(self._findings)
        raw = top.get("supervisor", {}) if isinstance(top, dict) else {}
        try:
            return self._supervisor(source, raw)
        except _Enough:
            return spec.SupervisorSpec()
        finally:
            del self._findings[before:]

    def _supervisor(self, source: _Source, raw: object) -> spec.SupervisorSpec:
        path = ("supervisor",)
        if not isinstance(raw, dict):
            self._problem(source, path, f"must be an object of settings, not {show(raw)}")
            raw = {}
        first = {key: raw[key] for key in ("working-dir",) if key in raw}
        fields = self._fields(source, path, first, _SUPERVISOR)
        lost = len(fields) < len(first)
        home = fields.setdefault("working_dir", self._cwd)
        self._context.move(home if self._base is None else self._base)
        rest = {key: value for key, value in raw.items() if key not in first}
        fields |= self._fields(source, path, rest, _SUPERVISOR)
        self._two_ports(source, rest, fields)
        if lost:  # the wrong files would be found, and their problems shown
            fields.pop("include_dirs", None)
        return spec.SupervisorSpec(**fields)

    def _two_ports(self, source: _Source, raw: dict[str, Any], fields: dict[str, Any]) -> None:
        for key in ("control-port", "event-port"):
            if key in raw and _SUPERVISOR[key].field not in fields:
                return
        control = fields.get("control_port", spec.DEFAULT_CONTROL_PORT)
        event = fields.get("event_port", spec.DEFAULT_EVENT_PORT)
        if control == event:
            key, other = (
                ("event-port", "control-port") if "event-port" in raw else ("control-port", "event-port")
            )
            default = "" if other in raw else " by default"
            message = f"must differ from {other}, which is {show(control)}{default} too"
            self._problem(source, ("supervisor", key), message)

    # ---- jobs ----

    def _job_file(self, source: _Source) -> None:
        document = source.document
        if document is None:
            return
        top = document.value
        wrapped = isinstance(top, dict) and _is_wrapper(top)
        source.unwrapped = not wrapped
        self._duplicates(source)
        if not document.sound:
            return
        if not isinstance(top, dict):
            self._problem(
                source, (), f'must be an object of jobs, as {{"NAME": {{"command": ...}}}}, not {show(top)}'
            )
            return
        if wrapped:
            self._no_main(source, ("supervisor",), top)
            self._jobs_of(source, top["jobs"])
        else:
            self._no_main(source, ("jobs", "supervisor"), top)
            self._jobs_of(
                source, {name: value for name, value in top.items() if not _is_section(name, value)}
            )
        self._replaced_jobs(source)

    def _no_main(self, source: _Source, path: Path, top: dict[str, Any]) -> None:
        """A job file that looks like a main configuration."""
        if "supervisor" in top and _is_section("supervisor", top["supervisor"]):
            self._problem(
                source, path, "belongs in the main configuration: a job file holds only jobs", key=True
            )
        if source.unwrapped and "jobs" in top and _is_section("jobs", top["jobs"]):
            message = (
                'must be the only key of the file when the jobs stand in it; as a job it has no "command"'
            )
            self._problem(source, ("jobs", "jobs"), message, key=True)

    def _jobs_of(self, source: _Source, raw: object) -> None:
        if not isinstance(raw, dict):
            self._problem(source, ("jobs",), f"must be an object of jobs, not {show(raw)}")
            return
        self._count += len(raw)
        for name, settings in raw.items() if self._count <= spec.MAX_JOBS else ():
            self._job(source, name, settings)

    def _job(self, source: _Source, name: str, raw: object) -> None:
        path = ("jobs", name)
        self._job_name(source, path, name)
        fields = self._settings(source, path, raw)
        if "command" in fields and name not in self._jobs:
            fields.setdefault("working_dir", self._context.base)
            if fields.get("type") is not spec.JobType.ONESHOT:
                fields.setdefault("start_timeout", spec.START_TIMEOUT)
            self._jobs[name] = spec.JobSpec(name=name, **fields)
            self._homes[name] = source

    def _settings(self, source: _Source, path: Path, raw: object) -> dict[str, Any]:
        """The fields of a job that can be read; what is wrong with one hides nothing of the others."""
        if not isinstance(raw, dict):
            self._problem(
                source, path, f'must be an object of settings, as {{"command": ...}}, not {show(raw)}'
            )
            return {}
        fields = self._fields(source, path, raw, _JOB)
        if "command" not in raw:
            self._problem(source, path, 'has no "command", and every job needs one', key=True)
        if all(_JOB[key].field in fields for key in ("type", "stdout", "stderr") if key in raw):
            self._check_readiness(source, path, fields)
        for key in ("after", "requires"):
            readable = set(fields.get(key, ()))
            for index, other in enumerate(raw[key] if readable else ()):
                if isinstance(other, str) and other in readable:
                    readable.remove(other)
                    self._mentions.append((source, (*path, key, index), other))
        return fields

    def _replaced_jobs(self, source: _Source) -> None:
        """Of jobs that stand twice in one file, those that do not count: they are checked all the same."""
        assert source.document is not None
        for twice in source.document.duplicates:
            path, value = source.path_of(twice), twice.replaced.value
            jobs = value if path == ("jobs",) else {path[1]: value} if _is_job_path(path) else None
            before = source.before(twice)
            for name, raw in jobs.items() if isinstance(jobs, dict) else ():
                if not (source.unwrapped and _is_section(name, raw)):
                    self._owners.setdefault(name, before)
                    self._settings(before, ("jobs", name), raw)

    def _check_readiness(self, source: _Source, path: Path, fields: dict[str, Any]) -> None:
        """Ways to be ready that this job cannot go."""
        how = fields.get("ready")
        if fields.get("type") is spec.JobType.ONESHOT:
            if how is not None:
                message = "a oneshot is ready when it has succeeded, and can have no other way"
                self._problem(source, (*path, "ready"), message)
            if fields.get("watchdog") is not None:
                self._problem(source, (*path, "watchdog"), "is for services; a oneshot has its start-timeout")
        elif isinstance(how, spec.LogReadiness):
            streams = {fields.get(stream, "/dev/null") for stream in ("stdout", "stderr")}
            if streams <= {"/dev/null", "inherit"}:
                message = "needs a stdout or stderr that is a file, to look for the line in"
                self._problem(source, (*path, "ready", "log"), message)

    # ---- order ----

    def _check_order(self) -> None:
        """Names that are no jobs, and jobs that wait for each other."""
        edges: dict[str, dict[str, tuple[_Source, Path]]] = {}
        all_known = all(source.sound for source in self._sources)
        for source, path, other in self._mentions:
            name = str(path[1])
            if other in self._owners:
                edges.setdefault(name, {}).setdefault(other, (source, path))
            elif all_known:  # else it may be in what cannot be read
                self._no_such_job(source, path, name, other)
        for found in cycles({name: tuple(others) for name, others in edges.items()}):
            way = " -> ".join(quote(each) for each in found)
            self._problem(*edges[found[0]][found[1]], f"comes after itself: {way}")

    def _check_outputs(self) -> None:
        """Who waits for a line in a file that another job writes to, too."""
        writers: dict[str, list[str]] = {}
        for name, job in self._jobs.items():
            for path in {job.stdout, job.stderr} - {"inherit", "/dev/null"}:
                writers.setdefault(path, []).append(name)
        for path, names in writers.items():
            for name in names if len(names) > 1 else ():
                if isinstance(self._jobs[name].ready, spec.LogReadiness):
                    other = quote(next(one for one in names if one != name))
                    message = f"a line of job {other} counts too: both write to {quote(path, 200)}"
                    self._warn(self._owners[name], ("jobs", name, "ready"), message)

    def _no_such_job(self, source: _Source, path: Path, name: str, other: str) -> None:
        if self._guess is None:
            self._guess = Guess(self._owners)
        meant = self._guess.nearest(other, name)
        advice = f"; did you mean {quote(meant)}?" if meant else ""
        self._problem(source, path, f"there is no job {quote(other)}{advice}")

    def _job_name(self, source: _Source, path: Path, name: str) -> None:
        owner = self._owners.setdefault(name, source)
        if owner is not source:
            first = _at(owner, *owner.place(path, True))
            self._problem(source, path, f"there are two jobs of this name; the first is at {first}", key=True)
        problem = text_problem(name)
        if problem:
            self._problem(source, path, f"the name of a job {problem}", key=True)
        elif len(name.encode()) > spec.JOB_NAME_BYTES:
            size = f"{len(name.encode())} bytes, {spec.JOB_NAME_BYTES} are the limit"
            self._problem(source, path, f"the name of this job is too long: {size}", key=True)

    # ---- the table at work ----

    def _fields(
        self, source: _Source, path: Path, raw: dict[str, Any], keys: dict[str, Key]
    ) -> dict[str, Any]:
        """The fields of a spec that can be read from `raw`; everything else is noted."""
        fields: dict[str, Any] = {}
        context = self._context
        for name, value in raw.items():
            row = keys.get(name)
            if row is None:
                self._problem(source, (*path, name), _unknown(name, keys), key=True)
                continue
            try:
                fields[row.field] = row.type.read(value, context)
            except ValidationError as error:
                if error.rest:
                    fields[row.field] = error.rest
                for steps, message in error.problems:
                    self._problem(source, (*path, name, *steps), message)
            if context.warnings:
                for warning in context.warnings:
                    self._warn(source, (*path, name), warning)
                context.warnings.clear()
        return fields


def _is_job_path(path: Path) -> bool:
    return len(path) == 2 and path[0] == "jobs"


def _at(source: _Source, line: int, column: int) -> str:
    return f"{escape(source.name)}:{line}:{column}"


def _has_command(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("command"), (str, list))


def _is_section(name: str, value: object) -> bool:
    """In a job file: is this a section of a main configuration rather than a job of that name?"""
    return name in ("supervisor", "jobs") and isinstance(value, dict) and not _has_command(value)


def _is_wrapper(top: dict[str, Any]) -> bool:
    """A job file is wrapped when its only key is "jobs" and that is no job."""
    others = [name for name, value in top.items() if not _is_section(name, value)]
    return "jobs" in top and not _has_command(top["jobs"]) and others in ([], ["jobs"])


def _unknown(name: str, keys: dict[str, Key]) -> str:
    whose = "the supervisor" if keys is _SUPERVISOR else "a job"
    return config_keys.unknown(name, tuple(keys.values()), whose)


def _not_in_main(name: str, value: object) -> str:
    """The message about a key at the top of the main configuration."""
    if name in _SUPERVISOR and not isinstance(value, dict):
        return f'unknown key; {name} belongs inside "supervisor"'
    if _has_command(value):
        return 'unknown key; in the main configuration, a job belongs inside "jobs"'
    meant = nearest(name, ("supervisor", "jobs"))
    if meant:
        return f"unknown key; did you mean {quote(meant)}?"
    return "unknown key; the main configuration can have supervisor, jobs"
