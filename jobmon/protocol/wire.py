"""Messages as bytes: strict UTF-8 JSON, one object each. No I/O, no meaning.

Output is ASCII, other characters are escaped. It is compact, but for the messages of JobMon 0.7: these
have the spaces that they had there. Refused in both directions: NaN, Infinity, and halves of surrogate
pairs, which no other language could read.
"""

from __future__ import annotations

from jobmon.lean import fastjson

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
        raise ValueError("half of a surrogate pair is not a character") from None
    if type(value) is not dict:
        raise ValueError("not a JSON object")
    return value


def dumps(body: dict[str, Any], *, spaced: bool = False) -> bytes:
    """`body` as bytes; `spaced`: with a space after each comma and colon.

    Raises:
        ValueError: it holds what cannot be sent.
    """
    payload = fastjson.dumps(body, spaced=spaced).encode("ascii")
    if b"\\ud" in payload:
        loads(payload)
    return payload
