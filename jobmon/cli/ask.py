"""The verbs that ask and are answered at once: status, pid, list-jobs."""

from __future__ import annotations

import time

from jobmon.cli import FAILED, OK, say
from jobmon.cli.text import escape, status_line, table
from jobmon.client import CommandPipe
from jobmon.fastjson import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from jobmon.cli.verbs import Arguments, Verb
    from jobmon.protocol import JobStatus


def run(verb: Verb, arguments: Arguments) -> int:
    """Ask, and print the answer."""
    as_json, with_tree = "--json" in arguments.options, "--tree" in arguments.options
    with CommandPipe() as daemon:
        if verb.name == "list-jobs":
            return _list(daemon.list_jobs(), as_json)
        jobs = daemon.status(*arguments.given, tree=with_tree)
    if verb.name == "pid":
        return _pid(jobs[0])
    if with_tree and not as_json:
        _show_trees(jobs)
    elif not arguments.given:
        return _all(jobs, as_json)
    else:
        say(dumps(jobs[0].body()) if as_json else status_line(jobs[0], time.time()))
    return OK if jobs[0].alive or not arguments.given else FAILED


def _show_trees(jobs: list[JobStatus]) -> None:
    from jobmon.cli.tree import branches, drawing, room

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


def _all(jobs: list[JobStatus], as_json: bool) -> int:
    if as_json:
        say(dumps([job.body() for job in jobs]))
        return OK
    for line in table(jobs, time.time()):
        say(line)
    return OK
