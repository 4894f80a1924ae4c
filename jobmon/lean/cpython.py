"""The only door to CPython's private C modules: what JobMon uses of them, under the public names.

The public modules around them cost start-up time in every client, and memory in every daemon. Measured with
Python 3.11 -S, on a slow machine, of the public module and of the private one below it: private memory, time
of the import, and number of modules:

    name                      module                      public                private
    signal                    signal, _signal             872 KiB  7.5 ms  13     4 KiB
    deque                     collections, _collections   452 KiB  1.6 ms   8     4 KiB
    bisect_right              bisect, _bisect              44 KiB  0.3 ms   2    32 KiB  0.2 ms
    blake2s                   hashlib, _blake2            644 KiB  2.2 ms   3    32 KiB  0.3 ms
    make_scanner, ...         json, _json                1220 KiB   14 ms  24    32 KiB  0.3 ms
    getencoding               locale, _locale            1320 KiB  7.6 ms  21     8 KiB
    ModuleSpec, PathFinder    importlib.machinery          80 KiB  0.4 ms   5     4 KiB
    socket, AF_UNIX, ...      socket, _socket            1256 KiB   13 ms  26    88 KiB  0.4 ms

Each is loaded when its first name is asked for. `signal` is the whole module: its numbers and handlers are
plain ints here. `socket` is the class. Names that are not listed are those of `_socket`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as signal
    from _json import encode_basestring as encode_basestring
    from _json import encode_basestring_ascii as encode_basestring_ascii
    from _json import make_encoder as make_encoder
    from _json import make_scanner as make_scanner
    from _socket import *
    from bisect import bisect_right as bisect_right
    from collections import deque as deque
    from hashlib import blake2s as blake2s
    from importlib.machinery import ModuleSpec as ModuleSpec
    from importlib.machinery import PathFinder as PathFinder
    from locale import getencoding as getencoding
else:
    _HOMES = {
        "deque": "_collections",
        "bisect_right": "_bisect",
        "blake2s": "_blake2",
        "make_scanner": "_json",
        "make_encoder": "_json",
        "encode_basestring": "_json",
        "encode_basestring_ascii": "_json",
        "getencoding": "_locale",
        "ModuleSpec": "_frozen_importlib",
        "PathFinder": "_frozen_importlib_external",
    }

    def __getattr__(name: str) -> object:
        """Load a name when it is first imported from here (PEP 562).

        Raises:
            AttributeError: this Python has no such name.
            ImportError: it has not even its module.
        """
        if name.startswith("_"):
            raise AttributeError(name)
        module = __import__("_signal" if name == "signal" else _HOMES.get(name, "_socket"))
        globals()[name] = value = module if name == "signal" else getattr(module, name)
        return value
