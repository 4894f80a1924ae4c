"""What the daemon says of its jobs, in the words of the wire. Looks things up, changes nothing."""

from __future__ import annotations

from jobmon import protocol
from jobmon.core import causes, conditions
from jobmon.core.explain import why as explain
from jobmon.linux.kernel import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from jobmon.core.events import JobResult, Reply
    from jobmon.core.machine import Job
    from jobmon.core.plan import Plan
    from jobmon.core.supervisor import Supervisor
    from jobmon.linux.control.port import ReloadOutcome
    from jobmon.protocol import Message

    Tree = tuple[tuple[int, int, str], ...]

_REASONS_07 = {
    "no-such-job": protocol.ERR_NO_SUCH_JOB,
    "already-started": protocol.ERR_JOB_STARTED,
    "already-stopped": protocol.ERR_JOB_STOPPED,
    "terminating": protocol.ERR_TERMINATING,
}


def status07(name: str, job: Job | None) -> Message:
    """The answer to a 0.7 client who asks for the status of `name`."""
    if job is None:
        return protocol.Failure(name, protocol.ERR_NO_SUCH_JOB)
    return protocol.Status(name, job.pid is not None, job.leader)


def answer07(job: str, reply: Reply) -> Message:
    """The supervisor's answer for a 0.7 client."""
    if reply.ok:
        return protocol.Success(job)
    return protocol.Failure(job, _REASONS_07.get(reply.code, protocol.ERR_NOT_STARTED))


def reload(request_id: int, outcome: ReloadOutcome) -> protocol.ReplyMessage:
    """The answer to a reload, whatever it came to."""
    if outcome.code:
        problems = outcome.problems
        message = problems[0] if len(problems) == 1 else f"{len(problems)} problems, the first: {problems[0]}"
        error = {"code": outcome.code, "message": message}
        return protocol.ReplyMessage(request_id, False, {"error": error, "problems": list(problems)})
    if outcome.reply is None:
        return protocol.ReplyMessage(request_id, True, outcome.body)
    told = answer(request_id, outcome.reply)
    return told.replace(rest={**told.rest, **outcome.body})


def plan(plan: Plan) -> dict[str, Any]:
    """What a reload changes."""
    return {
        "added": [spec.name for spec in plan.added],
        "removed": list(plan.removed),
        "changed": [
            {"job": one.spec.name, "hot": list(one.hot), "restart": list(one.restart)} for one in plan.changed
        ],
        "supervisor": {"hot": list(plan.daemon.hot), "restart": list(plan.daemon.restart)},
    }


def until(request: protocol.Request) -> tuple[str, conditions.Condition] | None:
    """The condition that a request names, if it names one."""
    name = request.condition
    return (name, conditions.condition(name, request.duration)) if name else None


def answer(request_id: int, reply: Reply) -> protocol.ReplyMessage:
    """The supervisor's answer to a request."""
    if reply.ok:
        results = [protocol.result(r.job, exit_status=_exit(r)) for r in reply.results]
        return protocol.ReplyMessage(request_id, True, {"results": results, "token": reply.token})
    return protocol.failed(
        request_id,
        reply.code,
        reply.message,
        job=_whose(reply.results, reply.code),
        results=tuple((result.job, result.code, result.message) for result in reply.results),
    )


def _exit(result: JobResult) -> int | str | None:
    if not result.ended:
        return None
    return "unknown" if result.status is None else result.status


def _whose(results: Sequence[JobResult], code: str) -> str | None:
    return next((result.job for result in results if result.code == code), None)


def tree(pids: list[int], leader: int | None, shown: int) -> tuple[Tree, int]:
    """What some of a job's processes run, the leader first; and how many have ended by now."""
    chosen = sorted(pids, key=lambda pid: (pid != leader, pid))[:shown]
    facts = [fact for fact in map(procfs.stat, chosen) if fact is not None]
    found = tuple((fact.pid, fact.ppid, procfs.command(fact)) for fact in facts)
    return found, len(chosen) - len(found)


def status(
    job: Job, wall: float, processes: int, says: str, processes_tree: Tree | None = None
) -> protocol.JobStatus:
    """How a job is; `wall` is what makes unix time of its times."""
    return protocol.JobStatus(
        job=job.spec.name,
        state=job.state.value,
        alive=job.pid is not None,
        pid=job.leader,
        run=0 if job.cause is None else job.run,  # before the first one it is that of who had its name before
        since=job.since + wall,
        restarts=job.restarts,
        result="" if job.result is None else str(job.result),
        next=None if job.next is None else job.next.value,
        until=None if job.armed is None else job.armed + wall,
        processes=processes,
        description=job.spec.description,
        tree=processes_tree,
        says=says,
        stale=job.stale,
    )


def place(job: Job, jobs: Mapping[str, Job]) -> dict[str, Any]:
    """A job's place in the graph: its state and the jobs that it comes after, as far as there are such."""
    return {
        "state": job.state.value,
        "ready": job.ready,
        "requires": [other for other in job.spec.requires if other in jobs],
        "after": [other for other in job.spec.after if other in jobs],
    }


def why(supervisor: Supervisor, name: str, now: float, trouble: Callable[[str], str]) -> dict[str, Any]:
    """Why a job is as it is, and what has happened to it."""
    chain = explain(supervisor, name, now, trouble)
    return {
        "job": name,
        "state": supervisor.jobs[name].state.value,
        "description": supervisor.jobs[name].spec.description,
        "causes": [{"job": one.job, "text": one.text, "since": one.since} for one in chain],
        "events": [
            {
                "seq": seq or None,
                "time": when,
                "event": kind,
                "state": state.value,
                "run": run,
                "pid": pid,
                "cause": str(cause),
                "why": causes.body(cause),
            }
            for seq, when, _, kind, state, run, pid, cause in supervisor.log.of(name)
        ],
    }
