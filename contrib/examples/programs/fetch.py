"""Fetch a page: fetch.py URL. A server that has only just been started is given ten seconds to listen."""

from __future__ import annotations

import sys
import time
import urllib.error
import urllib.request

PATIENCE = 10.0
PAUSE = 0.02


def fetch(url: str) -> str:
    """The page at `url`. A refused connection is tried again while patience lasts."""
    # No proxy: the server is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            with opener.open(url, timeout=PATIENCE) as page:
                return str(page.read().decode())
        except (urllib.error.URLError, ConnectionError) as problem:
            if isinstance(problem, urllib.error.HTTPError) or time.monotonic() > give_up:
                raise SystemExit(f"fetch: {url}: {problem}") from None
        time.sleep(PAUSE)


if __name__ == "__main__":
    sys.stdout.write(fetch(sys.argv[1]))
