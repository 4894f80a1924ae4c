"""What is known of the run of a job, asked in one place."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from jobmon.core.spec import JobSpec
    from jobmon.linux.monitor.runmonitor import Attendants
    from jobmon.linux.processes.children import Children
    from jobmon.linux.processes.stderrtail import LastWords


class RunFacts:
    """The present run of one job, or the last one. `ran` is the spec that it was started with, None where
    there is no such job. Everything is looked up when it is asked: some of it costs a look at /proc."""

    __slots__ = ("_attendants", "_children", "_job", "_last_words", "_ran")

    def __init__(
        self, job: str, ran: JobSpec | None, children: Children, attendants: Attendants, last_words: LastWords
    ) -> None:
        self._job = job
        self._ran = ran
        self._children = children
        self._attendants = attendants
        self._last_words = last_words

    def pids(self) -> list[int]:
        """All living processes of the run, as far as they can be known."""
        return self._children.pids(self._job)

    def left(self) -> str:
        """The same in words, with the reason why one is not killed: "pid 12 (nfsd, hangs in the kernel)"."""
        return self._children.left(self._job)

    def says(self) -> str:
        """What the run said of itself last."""
        return self._attendants.text(self._job)

    def why_not_ready(self) -> str:
        """Why the run is not known to be ready, or was not in time; empty where nobody can say."""
        return self._attendants.why_not(self._job)

    def stderr_tail(self) -> list[str]:
        """The last lines of its standard error, none where that is no file."""
        return self._last_words.of(self._ran) if self._ran is not None else []
