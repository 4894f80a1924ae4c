"""JSON by the C functions beneath `json`, without importing `json` and, with it, `re`.

`decode` and `encode` are for messages: bytes, one object each. `loads` and `dumps` are for texts.

Those two cost a client a third of its whole life. The C functions are private to CPython, so
they are tried out when this module is imported; where they are missing or behave otherwise,
`json` itself does the work. Strict in both cases: what is no JSON is a ValueError.
Imports `json` as the fallback only.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Pairs = Callable[[list[tuple[str, Any]]], Any] | None
    Scan = Callable[[str, int], tuple[Any, int]]
    Encode = Callable[[object], str]

SPACE = " \t\n\r"


def _finite(digits: str) -> float:
    number = float(digits)
    if number - number != 0.0:
        raise ValueError(f"{digits[:20]} is too large for a number")
    return number


def _no_constant(word: str) -> object:
    raise ValueError(f"{word} is not JSON")


def _no_default(value: object) -> object:
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


class _Settings:
    """What `_json.make_scanner` reads from the `JSONDecoder` that it is normally given."""

    strict = True
    object_hook = None
    parse_float = staticmethod(_finite)
    parse_int = int
    parse_constant = staticmethod(_no_constant)

    def __init__(self, pairs: Pairs) -> None:
        self.object_pairs_hook = pairs


def _c_scanner(pairs: Pairs) -> Scan:
    from jobmon.lean.cpython import make_scanner

    settings: Any = _Settings(pairs)
    return make_scanner(settings)


def _c_encoder(ascii_only: bool, space: str = "") -> Encode:
    from jobmon.lean.cpython import encode_basestring, encode_basestring_ascii, make_encoder

    text = encode_basestring_ascii if ascii_only else encode_basestring
    chunks = make_encoder(None, _no_default, text, None, f":{space}", f",{space}", False, False, False)
    join = "".join

    def encode(value: object) -> str:
        return join(chunks(value, 0))

    return encode


def _plain_scanner(pairs: Pairs) -> Scan:
    from json import JSONDecoder

    decoder: Any = JSONDecoder(object_pairs_hook=pairs, parse_float=_finite, parse_constant=_no_constant)
    scan: Scan = decoder.scan_once
    return scan


def _plain_encoder(ascii_only: bool, space: str = "") -> Encode:
    from json import JSONEncoder

    separators = f",{space}", f":{space}"
    return JSONEncoder(
        ensure_ascii=ascii_only, check_circular=False, allow_nan=False, separators=separators
    ).encode


def _c_works() -> bool:
    """Do the private functions exist, and do they do what this module needs of them?"""
    sample = '{"a":[1,-2.5,true,null,"\\u00e9\\n"],"b":{}}'
    try:
        value, end = _c_scanner(None)(sample, 0)
        pairs, _ = _c_scanner(tuple)(sample, 0)
        again = _c_encoder(True)(value)
        return (
            end == len(sample)
            and value == {"a": [1, -2.5, True, None, "\xe9\n"], "b": {}}
            and pairs == (("a", value["a"]), ("b", ()))
            and again == sample
        )
    except (ImportError, AttributeError, TypeError, ValueError, StopIteration, SystemError):
        return False


FAST = _c_works()
_scanner = _c_scanner if FAST else _plain_scanner
_encoder = _c_encoder if FAST else _plain_encoder
_ascii = _encoder(True)
_spaced = _encoder(True, " ")
_unicode = _encoder(False)


def dumps(value: object, *, spaced: bool = False) -> str:
    """The JSON of `value`, all ASCII, compact if not `spaced`; keys stay in their order.

    Raises:
        ValueError: NaN, an infinity, or a nesting (or a circle) too deep.
        TypeError: something that JSON cannot hold.
    """
    try:
        return _spaced(value) if spaced else _ascii(value)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse_half_pairs(value: object) -> None:
    try:
        _unicode(value).encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair is not a character") from None


def encode(body: dict[str, Any], *, spaced: bool = False) -> bytes:
    """Return the JSON of an object as a peer may get it: `dumps`, but no half of a surrogate pair, which no
    other language could read.

    Raises:
        ValueError: it holds what cannot be sent.
    """
    text = dumps(body, spaced=spaced)
    if "\\ud" in text:
        _refuse_half_pairs(body)
    return text.encode("ascii")


def decode(payload: bytes) -> dict[str, Any]:
    """Return the JSON object that some bytes are.

    Raises:
        ValueError: they are not UTF-8, not JSON or not an object; the text says which.
    """
    try:
        text = payload.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start + 1}") from None
    value = loads(text)
    if type(value) is not dict:
        raise ValueError("not a JSON object")
    return value


def make_loads(pairs: Pairs = None) -> Callable[[str], Any]:
    """A function that reads one JSON text; `pairs` makes the objects, as in `json`.

    The text must come from a strict UTF-8 decoding. What the function returned raises is a
    ValueError: bad syntax, NaN and infinities, lone surrogates, nesting too deep, trailing text.
    """
    scan = _scanner(pairs)

    def loads(text: str) -> Any:
        try:
            value, end = scan(text, len(text) - len(text.lstrip(SPACE)))
            if "\\ud" in text or "\\uD" in text:
                _refuse_half_pairs(value)
        except StopIteration as stop:
            raise ValueError(f"not JSON at character {stop.value}") from None
        except RecursionError:
            raise ValueError("nested too deeply") from None
        except SystemError:
            # 3.11 looks for JSONDecodeError among the imported modules (raise_errmsg in _json.c)
            # and, not finding it there, returns without any exception.
            raise ValueError("not JSON: a delimiter or a quote is wrong") from None
        if end != len(text) and text[end:].strip(SPACE):
            raise ValueError(f"more text after the JSON, at character {end}")
        return value

    return loads


def make_scan(pairs: Pairs = None) -> Scan:
    """The function beneath `make_loads`: the value that begins at an offset, and its end. Strict but for
    lone surrogates; for what is no JSON it raises whatever `make_loads` makes a ValueError of."""
    return _scanner(pairs)


loads = make_loads()
