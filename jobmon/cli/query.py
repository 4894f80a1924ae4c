"""The commands that ask and are answered at once: status, pid, list-jobs."""

from __future__ import annotations

import time

from jobmon.cli.formatting import escape, status_line, strays_line, table
from jobmon.cli.output import FAILED, OK, say
from jobmon.client import CommandPipe
from jobmon.lean.fastjson import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from jobmon.cli.commands import Arguments, Verb
    from jobmon.protocol import JobStatus


def run(verb: Verb, arguments: Arguments) -> int:
    """Ask, and print the answer."""
    as_json, with_tree = "--json" in arguments.options, "--tree" in arguments.options
    with CommandPipe() as daemon:
        if verb.name == "list-jobs":
            return _list(daemon.list_jobs(), as_json)
        jobs, strays = daemon.overview(*arguments.given, tree=with_tree)
    if verb.name == "pid":
        return _pid(jobs[0])
    if arguments.given:
        say(dumps(jobs[0].body())) if as_json else _show(jobs, with_tree)
        return OK if jobs[0].alive else FAILED
    _show_all(jobs, strays, as_json, with_tree)
    return OK


def _show(jobs: list[JobStatus], with_tree: bool) -> None:
    if with_tree:
        _show_trees(jobs)
    else:
        say(status_line(jobs[0], time.time()))


def _show_all(jobs: list[JobStatus], strays: list[int], as_json: bool, with_tree: bool) -> None:
    if as_json:
        say(dumps([job.body() for job in jobs]))
        return
    if with_tree:
        _show_trees(jobs)
    else:
        for line in table(jobs, time.time()):
            say(line)
    if strays:
        say(strays_line(strays))


def _show_trees(jobs: list[JobStatus]) -> None:
    from jobmon.cli.processtree import branches, drawing, room

    lines, columns = drawing(), room()
    for job in jobs:
        say(status_line(job, time.time()))
        for line in branches(job, lines, columns):
            say(line)


def _pid(job: JobStatus) -> int:
    if job.pid is None:
        return FAILED
    say(str(job.pid))
    return OK


def _list(jobs: dict[str, bool], as_json: bool) -> int:
    if as_json:
        say(dumps(jobs))
        return OK
    for name, alive in jobs.items():
        say(f"{'RUNNING' if alive else 'STOPPED'} {escape(name)}")
    return OK
