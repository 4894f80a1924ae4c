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
    value = fastjson.loads(text)
    if type(value) is not dict:
        raise ValueError("not a JSON object")
    if "\\ud" in text or "\\uD" in text:
        _refuse_half_pairs(value)
    return value


def dumps(body: dict[str, Any]) -> bytes:
    """`body` as bytes.

    Raises:
        ValueError: it holds what cannot be sent.
    """
    text = fastjson.dumps(body)
    if "\\ud" in text:
        _refuse_half_pairs(body)
    return text.encode("ascii")


def _refuse_half_pairs(value: object) -> None:
    """Look at every string. Loops, so depth does not matter; decoding has bounded it anyway."""
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            try:
                item.encode("utf-8")
            except UnicodeEncodeError:
                raise ValueError("half of a surrogate pair is no character") from None
        elif isinstance(item, dict):
            todo.extend(item)
            todo.extend(item.values())
        elif isinstance(item, (list, tuple)):
            todo.extend(item)
