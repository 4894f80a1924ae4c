"""The C functions of `signal` under its name, without its enums: those cost 600 KiB.

`from jobmon.linux.csignal import signal`. Numbers and handlers are plain ints here.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
else:
    import _signal as signal

__all__ = ("signal",)
