"""Ask for one job's status, one request after the other over one connection, as a user's Python program does:
with the client library of that supervisor. Prints the requests per second.

Runs in the virtual environment of the supervisor it asks. Usage: ask.py jobmon|supervisord SOCKET JOB SECONDS
"""

from __future__ import annotations

import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def jobmon_question(path: str, job: str) -> Callable[[], bool]:
    """JobMon's CommandPipe."""
    from jobmon import CommandPipe

    pipe = CommandPipe(path)
    return lambda: pipe.is_running(job)


def supervisord_question(path: str, job: str) -> Callable[[], bool]:
    """The XML-RPC proxy of Python, over supervisor's own transport, which keeps the connection."""
    from xmlrpc.client import ServerProxy

    from supervisor.xmlrpc import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
        SupervisorTransport,
    )

    proxy = ServerProxy("http://127.0.0.1", transport=SupervisorTransport(serverurl="unix://" + path))
    question: Any = proxy.supervisor.getProcessInfo
    return lambda: bool(question("job:" + job)["statename"] == "RUNNING")


def main(who: str, path: str, job: str, seconds: str) -> None:
    """Ask for so long."""
    ask = {"jobmon": jobmon_question, "supervisord": supervisord_question}[who](path, job)
    began = now = time.monotonic()
    count = 0
    while now < began + float(seconds):
        if not ask():
            sys.exit(f"{job} does not run")
        count += 1
        now = time.monotonic()
    print(count / (now - began))


if __name__ == "__main__":
    main(*sys.argv[1:])
