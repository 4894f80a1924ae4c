"""Messages as bytes: strict UTF-8 JSON, one object each. No I/O, no meaning.

Output is compact and ASCII, non-ASCII characters escaped, as JobMon 0.7 sends it. Refused in both
directions: NaN, Infinity, and halves of surrogate pairs, which no other language could read.
"""

from __future__ import annotations

from jobmon import fastjson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def loads(payload: bytes) -> dict[str, Any]:
    """The object that `payload` is.

    Raises:
        ValueError: it is not UTF-8, not JSON or not an object; the text says which.
    """
    try:
        text = payload.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start + 1}") from None
    try:
        value = fastjson.loads(text)
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair is no character") from None
    if type(value) is not dict:
        raise ValueError("not a JSON object")
    return value


def dumps(body: dict[str, Any]) -> bytes:
    """`body` as bytes.

    Raises:
        ValueError: it holds what cannot be sent.
    """
    payload = fastjson.dumps(body).encode("ascii")
    if b"\\ud" in payload:
        loads(payload)
    return payload
