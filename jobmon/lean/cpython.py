"""The only door to CPython's private C modules, under the names that the standard library gives them.

The public modules around them cost memory in every daemon: `signal` 800 KiB (its enums), `collections`
280 KiB (`keyword`, `operator`, `reprlib`). Numbers and handlers of `signal` are plain ints here.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections import deque
else:
    import _signal as signal
    from _collections import deque

__all__ = ("deque", "signal")
