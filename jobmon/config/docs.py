"""The table of keys as a JSON Schema for machines and as docs/configuration.md for people.

Loaded only when somebody asks for one of the two: a daemon has no use for it. No I/O.
"""

from __future__ import annotations

from jobmon import limits
from jobmon.config.keys import JOB, SUPERVISOR, Key
from jobmon.core import spec
from jobmon.lean.fastjson import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> Schema:
    """The schema of a main configuration; "#/$defs/job-file" is that of a job file."""
    jobs: Schema = {
        "type": "object",
        "propertyNames": {"pattern": "^[^\\u0000]*$", "maxLength": spec.JOB_NAME_BYTES},
        "additionalProperties": {"$ref": "#/$defs/job"},
        "maxProperties": spec.MAX_JOBS,
    }
    wrapped = {
        "type": "object",
        "properties": {"jobs": {"$ref": "#/$defs/jobs"}},
        "required": ["jobs"],
        "additionalProperties": False,
    }
    return {
        "$schema": DIALECT,
        "title": "JobMon: main configuration",
        "type": "object",
        "properties": {
            "supervisor": _object(SUPERVISOR, "Settings of the daemon."),
            "jobs": {"$ref": "#/$defs/jobs", "description": "The jobs, by name."},
        },
        "additionalProperties": False,
        "$defs": {
            "job": _object(JOB, "One job."),
            "jobs": jobs,
            "job-file": {"anyOf": [{"$ref": "#/$defs/jobs"}, wrapped]},
        },
    }


def _object(rows: tuple[Key, ...], description: str) -> Schema:
    schema: Schema = {
        "type": "object",
        "description": description,
        "properties": {row.name: _property(row) for row in rows},
        "additionalProperties": False,
    }
    required = [row.name for row in rows if row.required]
    return schema | ({"required": required} if required else {})


def _property(row: Key) -> Schema:
    schema = row.type.schema() | {"description": row.meaning}
    return schema if row.required else schema | {"default": row.default}


def reference() -> str:
    """The whole text of docs/configuration.md."""
    return _TEXT.format(
        supervisor=_table(SUPERVISOR, "new daemon"),
        job=_table(JOB, "next run"),
        socket_bytes=limits.SOCKET_PATH_BYTES,
        max_jobs=f"{spec.MAX_JOBS:,}",
        name_bytes=f"{spec.JOB_NAME_BYTES:,}",
        max_seconds=f"{int(limits.MAX_SECONDS):,}",
    )


def _table(rows: tuple[Key, ...], later: str) -> str:
    lines = ["| key | type | default | a change counts | meaning |", "|---|---|---|---|---|"]
    for row in rows:
        default = "mandatory" if row.required else f"`{dumps(row.default)}`"
        counts = "at once" if row.hot else later
        lines.append(f"| `{row.name}` | {row.type.words} | {default} | {counts} | {row.meaning} |")
    return "\n".join(lines)


_TEXT = """\
<!-- Generated from jobmon/config/keys.py and jobmon/config/docs.py; do not edit. Write it anew with
python3 -c 'from jobmon.config import reference; print(reference(), end="")' > docs/configuration.md -->

# Configuration

JobMon reads JSON with comments: one *main configuration*, which is named on the command line, and any
number of *job files*, which it includes. `jobmon check CONFIG` reads them as the daemon would, reports
every error in them, and starts nothing.

A small main configuration, which is all that many need:

```json
{{
  "supervisor": {{
    "control-port": "$TMP/jobmon-control.sock",
    "event-port": "$TMP/jobmon-event.sock",
    "include-dirs": ["jobs/*.json"],
    "log-file": "$TMP/jobmon.log",
    "log-level": "INFO"
  }},
  "jobs": {{
    "web": {{
      "command": ["python3", "-m", "http.server", "8000"],
      "stderr": "web.log",
      "autostart": true,
      "restart": true
    }}
  }}
}}
```

And `jobs/cleanup.json`, a job file beside it:

```json
{{
  "cleanup": {{
    "command": "find \\"$CACHE\\" -mtime +7 -delete",
    "env": {{"CACHE": "/var/cache/web"}},
    "stdout": "cleanup.log",
    "description": "throws away what is older than a week"
  }}
}}
```

## The files

The main configuration is an object with the two keys `supervisor` and `jobs`; both may be left out.
`jobs` is an object of jobs by name. A job file is such an object itself; it may also have it inside a key
`jobs`, as the main configuration does, if that is its only key.

All files are JSON, with two additions: comments, as `// to the end of the line` or `/* up to here */`, and a
comma after the last element of an object or a list. Strings and keys have double quotes.

```json
{{
  // All of this is valid.
  "backup": {{
    "command": ["./backup", "--full",],  /* the nightly one */
    "type": "oneshot",
  }},
}}
```

Names of jobs may hold any character but NUL, and are unique in all files together (up to
{max_jobs} jobs, and {name_bytes} bytes of UTF-8 a name). They are never used as names of files.

The globs of `include-dirs` are looked at in their order, the files of each sorted by name. A file
that several globs find is read once, and the main configuration never as a job file. `*`, `?` and
`[...]` match within one directory, and no leading dot.

All of it can be read again while the daemon runs, with `jobmon reload` ([reload.md](reload.md)). The
column *a change counts* says what a new value means then.

## The supervisor

{supervisor}

## A job

{job}

A command that puts itself into the background leaves its first process at once, and JobMon takes
that for the job's end. Use the foreground mode that such programs have, or the kill-scope
`"process"`, under which the rest is none of JobMon's business.

## Values

**Paths** that are relative start from the working-dir of the supervisor, those of jobs and of
`include-dirs` too; the supervisor's own working-dir starts from where `jobmon` was called. A `~` is
not expanded.

**Variables** are expanded in working-dir (both), include-dirs, log-file, state-dir, control-port and
event-port, stdin, stdout and stderr: `$NAME` and `${{NAME}}` are replaced by the value in the daemon's
environment.
One that is not set is an error, but `$TMP` (the temporary directory) and `$DEVNULL` (`/dev/null`) exist
even then. `$$` is a `$`, and a `$` that begins no name stays as it is. `command` is not expanded
(the shell does that, where there is one), and neither are the values of `env`.

**Signals** are written with their SIG, in upper or lower case: every name that `kill -l` lists, and
`SIGRTMIN+n` and `SIGRTMAX-n`. SIGSTOP and SIGTSTP as the signal that stops a job are a warning: they
only pause it.

**Seconds** may have a fraction, and are at most {max_seconds}.

**Paths of UNIX sockets** have at most {socket_bytes} bytes once they are expanded and absolute, and
no comma, because `$JOBMON_PORT` separates the two with one.

**Streams**: every stream that is a file of its own is opened anew for each run; stdout and stderr are
appended to and made with mode 0666 less the umask, which is that of the caller of `jobmon daemon`.

**Environment**: a job has the daemon's environment, without what systemd told the daemon about itself, and on
top of it `env`. `$JOBMON_PORT` is the address of the job's own daemon, so that `jobmon` in a job or in its
hooks reaches that one, unless `env` sets it. `$JOBMON_JOB` is the job's name, `$JOBMON_RUN` names its run.

**Encoding**: names of files, arguments and variables have the bytes that they have in the configuration,
which is UTF-8, whatever the locale is.

## Errors

Everything is read and checked before anything happens. All errors are listed at once, a line for
each, sorted by file and place; lines and columns begin at 1, and columns count characters:

```
FILE:LINE:COLUMN: jobs.NAME.KEY: what is wrong, and what would be right
```

An unknown key is an error, and so is a key that stands twice in one object, or a job that stands in two
files: both places are named. A glob that matches no file is a warning, which says where it looked, and
where a relative one would match. A directory of a glob that cannot be looked into is an error.

A comment that does not end is an error at its beginning. A comma, a quote or a bracket that is
missing, single quotes, a key without quotes: the message points at the very character and says what to
write.

## A schema for editors

`jobmon check --schema` prints a JSON Schema (draft 2020-12) of the main configuration; its `$defs`
hold those of a job file and of one job. It knows types, bounds and names, but not what depends on the
environment or on another file: `jobmon check` does.
"""
