"""JSON with positions: every key and value knows its line and column, duplicate keys are seen.

A text without a fault is read by the C scanner, and nothing is kept but its values. Only when
something is to be said about it does the scanner of this module run: it knows the places, and it
carries on after a mistake, so that one reading finds all of them. It takes
time in proportion to the text, whatever is in that: a daemon stands still meanwhile.
Knows nothing of what a configuration means; reads no files.
"""

from __future__ import annotations

from jobmon.lean.fastjson import SPACE, loads, make_loads, make_scan
from jobmon.lean.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MAX_DEPTH = 100
MAX_FAULTS = 1000  # in one text: whoever has made more has another kind of file
_SPACES = frozenset(SPACE)  # the end of the text, an empty string, is none
_QUICK_DEPTH = 8  # deeper than any configuration: below it each level would cost one more reading
BOM = "\ufeff"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")  # how it begins
_REPLACED = "\ufffd"  # the decoder puts it in the place of a byte that is not UTF-8

_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_NAMED = {"\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\"}
_CLOSING_QUOTE = {
    "'": "'",
    "`": "`",
    "\u2018": "\u2019",
    "\u201c": "\u201d",
    "\u201d": "\u201d",
    "\u201e": "\u201c",
}
_WORDS = {"true": True, "false": False, "null": None}
_OTHER_WORDS = {
    "none": "null",
    "nil": "null",
    "undefined": "null",
    "yes": "true",
    "on": "true",
    "no": "false",
    "off": "false",
}
_NO_NUMBERS = ("NaN", "Infinity", "+Infinity", "-Infinity", "-NaN", "inf", "-inf", "nan")


def escape(text: str) -> str:
    """`text` as one printable line: what could break it or forge another is escaped."""
    if text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return "".join(map(_escaped, text))


def _escaped(char: str) -> str:
    if char in _NAMED:
        return _NAMED[char]
    if char.isprintable():
        return char
    code = ord(char)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def quote(text: str, width: int = 60) -> str:
    """`text` in double quotes, shortened in its end when it is long."""
    if len(text) > width:
        text = text[: width - 3] + "..."
    return f'"{escape(text)}"'


class Fault(Record):
    """A mistake in the text: `offset` characters into it."""

    offset: int
    message: str


class Duplicate(Record):
    """A key that stands twice in one object; `path` leads to it."""

    path: tuple[str | int, ...]
    first: int
    second: int


class Node:
    """A value and its place. `kids`: key -> (offset of the key, node), or the nodes of a list; None also
    where nobody has asked for them yet (`Scanner.kids_of`)."""

    __slots__ = ("kids", "offset", "value")

    def __init__(self, offset: int, value: Any = None) -> None:
        self.offset = offset
        self.value = value
        self.kids: dict[str, tuple[int, Node]] | list[Node] | None = None


class Document:
    """One JSON text, read.

    Attributes:
        value: what it says; after faults, what could be made of it. The last of duplicates counts.
        faults: the mistakes in it, in order.
        duplicates: the keys that stand twice in one object.
        sound: False when a fault left `value` to guesswork.
    """

    def __init__(self, data: bytes) -> None:
        self.value: Any = None
        self.faults: tuple[Fault, ...] = ()
        self.duplicates: tuple[Duplicate, ...] = ()
        self.sound = True
        self._root: Node | None = None
        self._scanner: Scanner | None = None
        self._lines: list[int] = []  # where each begins, once somebody asks
        self._text = ""
        if self._decode(data):
            self._read()

    def _decode(self, data: bytes) -> bool:
        try:
            self._text = data.decode()
            return True
        except UnicodeDecodeError as error:
            bad = Fault(len(data[: error.start].decode()), _bad_bytes(data, error.start))
        if not data.startswith(_UTF16):
            self._text = data.decode(errors="replace")
            self.sound = False
            self._scan()
        self.sound = False
        others = (fault for fault in self.faults if self._text[fault.offset : fault.offset + 1] != _REPLACED)
        self.faults = tuple(sorted((bad, *others), key=lambda fault: fault.offset))
        return False

    def _read(self) -> None:
        pairs = _Pairs()
        try:
            self.value = make_loads(pairs)(self._text)
        except ValueError:
            self.sound = False
        if not self.sound or pairs.repeated:
            self._scan()
            if not self.sound and not self.faults:
                self.faults = (Fault(0, "this cannot be read as JSON"),)

    def _scan(self) -> None:
        """The slow reading: places, faults, duplicates."""
        scanner = self._scanner = Scanner(self._text)
        self._root = scanner.run()
        if not self.sound:
            self.value = self._root.value
            self.faults = tuple(sorted(scanner.faults, key=lambda fault: fault.offset))
            self.sound = scanner.sound and bool(self.faults)
        self.duplicates = tuple(scanner.duplicates)

    def place(self, path: tuple[str | int, ...], key: bool = False) -> tuple[int, int]:
        """Line and column (both from 1, in characters) of the value at `path`, or of its key.

        Where the path leads nowhere, the place of the last thing on it that is there.
        """
        if self._root is None:  # nothing was wrong until now, and what is where has nobody asked
            self._root = Node(len(self._text) - len(self._text.lstrip(SPACE)), self.value)
            self._scanner = Scanner(self._text)
        assert self._scanner is not None
        node = self._root
        offset = node.offset
        for step in path:
            kids = self._scanner.kids_of(node)
            if isinstance(kids, dict) and step in kids:
                at_key, node = kids[str(step)]
                offset = at_key if key else node.offset
            elif isinstance(kids, list) and isinstance(step, int) and step < len(kids):
                node = kids[step]
                offset = node.offset
            else:
                break
        return self.line_column(offset)

    def line_column(self, offset: int) -> tuple[int, int]:
        """Line and column, both from 1, of what stands `offset` characters into the text."""
        if not self._lines:
            self._lines = _line_starts(self._text)
        return _line_column(self._lines, offset)


class _Pairs:
    """Makes the objects for the C scanner; `repeated` when a key has stood twice in one of them."""

    def __init__(self) -> None:
        self.repeated = False

    def __call__(self, items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            self.repeated = True
        return found


def _line_starts(text: str) -> list[int]:
    starts, at = [0], text.find("\n")
    while at >= 0:
        starts.append(at + 1)
        at = text.find("\n", at + 1)
    return starts


def _line_column(starts: list[int], offset: int) -> tuple[int, int]:
    from jobmon.lean.cpython import bisect_right

    line = bisect_right(starts, offset)
    return line, offset - starts[line - 1] + 1


def _bad_bytes(data: bytes, start: int) -> str:
    if data.startswith(_UTF16):
        return "this is UTF-16: save the file as UTF-8"
    return f"the byte 0x{data[start]:02x} is not UTF-8: save the file as UTF-8"


class _Stop(Exception):
    """The end of the text, or of all that is looked at."""


class _Lost(Exception):
    """An element cannot be read; the next one can be looked for."""


class Scanner:
    """Reads JSON slowly, remembers places, forgives what can be forgiven.

    Every mistake is a fault; `sound` tells whether the values are still certainly those meant. Without
    `quick` it reads every character by itself, else only where it has to: what it finds is the same.
    """

    def __init__(self, text: str, quick: bool = True) -> None:
        self.text = text
        self.at = 0
        self.faults: list[Fault] = []
        self.duplicates: list[Duplicate] = []
        self.sound = True
        self._path: list[str | int] = []
        self._closings: list[str] = []  # of the objects and lists that are open
        self._root = Node(0)
        self._rest: Node | None = None  # for the text behind the end of the root
        self._starts: list[int] = []  # of the lines, once a message needs them
        self._quick = quick
        self._pairs = _Pairs()
        self._scan = make_scan(self._pairs)
        self._has_surrogates = "\\ud" in text or "\\uD" in text
        self._line = (0, -1)  # from somewhere in a line to its end

    def run(self) -> Node:
        """Reads everything. Returns the root, as much of it as there is."""
        try:
            self._document()
        except (_Stop, _Lost):
            self.sound = False
        return self._root

    def kids_of(self, node: Node) -> dict[str, tuple[int, Node]] | list[Node] | None:
        """What is in a node: looked for when it is first asked for."""
        if node.kids is None and isinstance(node.value, (dict, list)):
            self.at, self._path, self._closings, value = node.offset, [], [], node.value
            (self._object if isinstance(value, dict) else self._list)(node)
            node.value = value
        return node.kids

    def _fault(self, offset: int, message: str, guess: bool = False) -> None:
        if len(self.faults) == MAX_FAULTS:
            self.faults.append(Fault(offset, f"more than {MAX_FAULTS} mistakes: the rest is not looked at"))
            raise _Stop
        self.faults.append(Fault(offset, message))
        if guess:
            self.sound = False

    def _stop(self, offset: int, message: str) -> _Stop:
        self._fault(offset, message)
        return _Stop()

    def _lost(self, offset: int, message: str) -> _Lost:
        self._fault(offset, message, guess=True)
        return _Lost()

    def _document(self) -> None:
        if self.text.startswith(BOM):
            self._fault(0, "a byte order mark (U+FEFF): save the file as UTF-8 without one")
            self.at = 1
        self._space()
        if self.at == len(self.text):
            raise self._stop(0, "the file is empty: the least that it can hold is {}")
        self._value(self._root)
        self._space()
        if self.at < len(self.text):
            self._fault(self.at, self._after_the_end(), guess=True)
            self._look_behind_the_end()

    def _look_behind_the_end(self) -> None:
        """Read the text there as more of the root, if that is an object: some bracket is too early."""
        while self.at < len(self.text):
            if self._peek() in ",}]":
                self.at += 1
                self._space()
            elif self._peek() == '"' and isinstance(self._root.value, dict):
                self._rest = Node(self.at, {})
                self._rest.kids = {}
                self._closings = ["}"]
                self._elements(self._rest, "}", self._member)
                self._space()
            else:
                return

    def _after_the_end(self) -> str:
        char = self.text[self.at]
        if char in "}]":
            return f"a {char} too many: remove it, or find where another one is too early"
        if char == ",":
            return "a comma after the end of the file's one value: remove it"
        return "more text after the end of the file's one value: remove it, or find the } that is too early"

    # ---- between the values ----

    def _space(self) -> None:
        text, end = self.text, len(self.text)
        while True:
            at = self.at
            while at < end and text[at] in SPACE:
                at += 1
            self.at = at
            if at == end or (text[at] not in "#/" and text[at].isprintable()) or not self._no_space():
                return

    def _no_space(self) -> bool:
        """At a comment or an invisible character: says so, goes behind it. False at anything else."""
        char = self.text[self.at]
        start = self.at
        if char in "#/":
            if char == "/" and self.text[start + 1 : start + 2] not in ("/", "*"):
                return False
            self._fault(start, "a comment: JSON has none, remove it")
            self.at = self._comment_end(start)
        else:
            self._fault(start, f"an invisible character (U+{ord(char):04X}): remove it")
            self.at = start + 1
        return True

    def _comment_end(self, start: int) -> int:
        ends = "*/" if self.text.startswith("/*", start) else "\n"
        found = self.text.find(ends, start + 1)
        return len(self.text) if found < 0 else found + len(ends)

    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]

    # ---- values ----

    def _value(self, node: Node) -> None:
        node.offset = self.at
        char = self._peek()
        if char == '"':
            node.value = self._string(is_key=False)
        elif char == "{":
            self._object(node)
        elif char == "[":
            self._list(node)
        elif char in _CLOSING_QUOTE:
            node.value = self._wrong_quotes()
        else:
            self._bare(node)

    def _nested(self, node: Node, kids: Any) -> None:
        if len(self._path) >= MAX_DEPTH:
            raise self._lost(self.at, f"nested too deeply: {MAX_DEPTH} levels are the limit")
        self._closings.append("}" if isinstance(kids, dict) else "]")
        node.kids = kids
        node.value = type(kids)()
        self.at += 1

    def _object(self, node: Node) -> None:
        self._nested(node, {})
        self._elements(node, "}", self._member)

    def _list(self, node: Node) -> None:
        self._nested(node, [])
        self._elements(node, "]", self._item)

    def _elements(self, node: Node, closing: str, read: Callable[[Node, Any], None]) -> None:
        """Everything up to the closing bracket. An element that cannot be read is left out."""
        depth, due, kids = len(self._path), False, node.kids
        while True:
            try:
                if not (self._good(node, closing, due) and self._more(node, closing, due or bool(kids))):
                    break
                due = True
                read(node, kids)
            except _Lost:
                due = True
                del self._path[depth:]
                self._skip()
        self._closings.pop()

    def _member(self, node: Node, kids: dict[str, tuple[int, Node]]) -> None:
        start = self.at
        key = self._key()
        self._path.append(key)
        if len(self.duplicates) > MAX_FAULTS:
            raise _Stop
        if key in kids:
            self.duplicates.append(Duplicate(tuple(self._path), kids[key][0], start))
        colon = self._colon(key)
        kid = Node(self.at)
        if colon:
            self._member_value(kid, key)
        kids[key] = (start, kid)
        node.value[key] = kid.value
        self._path.pop()

    def _item(self, node: Node, kids: list[Node]) -> None:
        kid = Node(self.at)
        self._path.append(len(kids))
        self._value(kid)
        kids.append(kid)
        node.value.append(kid.value)
        self._path.pop()

    def _skip(self) -> None:
        """Goes to the end of an element that cannot be read: a comma or a closing bracket, or the end of a
        line in which a quote is astray."""
        text, depth = self.text, 0
        while self.at < len(text):
            char = text[self.at]
            if not depth and char in ",}]":
                return
            depth += (char in "{[") - (char in "}]")
            end = self._closing_quote(self.at + 1) if char == '"' else self.at
            if end < 0:
                end = self._line_end(self.at)
                if text[self.at : end].rstrip(SPACE).endswith(","):
                    self.at = text.rindex(",", self.at, end)
                    return
            self.at = end + 1
        raise _Stop

    def _good(self, node: Node, closing: str, comma_due: bool) -> bool:
        """Goes behind all the next elements that the C scanner takes and a comma or the closing bracket
        follows: there is nothing to be said about them. Always true."""
        if not self._quick or len(self._path) >= _QUICK_DEPTH:
            return True
        kids: Any = node.kids
        values: Any = node.value
        text, is_object, key = self.text, closing == "}", ""
        behind = self._after_space(self.at)
        if comma_due and text[behind : behind + 1] != ",":
            return True
        while True:
            start = at = self._after_space(behind + 1 if comma_due else behind)
            if is_object:
                key, at = self._good_key(at)
                if at < 0 or key in kids:
                    return True
            value, end = self._good_value(at)
            behind = self._after_space(end)
            char = text[behind : behind + 1]
            if end < 0 or char not in (",", closing):
                return True
            kid = Node(at, value)
            if is_object:
                kids[key], values[key] = (start, kid), value
            else:
                kids.append(kid)
                values.append(value)
            self.at = end
            if char == closing:
                return True
            comma_due = True

    def _after_space(self, at: int) -> int:
        text = self.text
        while text[at : at + 1] in _SPACES:
            at += 1
        return at

    def _good_key(self, at: int) -> tuple[str, int]:
        """The key that stands there and where its value begins, or -1."""
        if self.text[at : at + 1] != '"':
            return "", -1
        key, end = self._good_value(at)
        colon = self._after_space(end)
        is_key = end >= 0 and self.text[colon : colon + 1] == ":"
        return (key, self._after_space(colon + 1)) if is_key else ("", -1)

    def _good_value(self, at: int) -> tuple[Any, int]:
        """The value that stands there and its end, or -1."""
        try:
            value, end = self._scan(self.text, at)
        except (ValueError, StopIteration, RecursionError, SystemError):  # see fastjson.make_loads
            return None, -1
        if self._pairs.repeated or (self._has_surrogates and "\\ud" in self.text[at:end].lower()):
            self._pairs.repeated = False
            return None, -1
        return value, end

    def _more(self, node: Node, closing: str, comma_due: bool) -> bool:
        """Goes to the next element; False behind the closing bracket."""
        behind = self.at
        self._space()
        comma = -1
        while self._peek() == ",":
            if comma >= 0 or not comma_due:
                self._fault(self.at, "a comma too many: remove it")
            comma = self.at
            self.at += 1
            self._space()
        char = self._peek()
        if char == closing:
            if comma >= 0 and comma_due:
                self._fault(comma, f"a comma before {closing}: remove it")
            self.at += 1
            return False
        if not char:
            raise self._not_closed(node, closing)
        if char in "}]":
            self._wrong_bracket(node, closing, char)
            return False
        if comma_due and comma < 0:
            self._no_comma(behind)
        return True

    def _not_closed(self, node: Node, closing: str) -> _Stop:
        if node is self._rest:
            return _Stop()
        end = len(self.text.rstrip(SPACE))
        where = f"the {'{' if closing == '}' else '['} of {self._place(node.offset)} is not closed"
        return self._stop(end, f"the text ends here, but {where}: add its {closing}")

    def _wrong_bracket(self, node: Node, closing: str, char: str) -> None:
        """It closes this one in the place of the right one, unless something around it waits for such a
        bracket: then the right one is missing. But the root does not end before the text does."""
        where = f"the {'{' if closing == '}' else '['} of {self._place(node.offset)}"
        self._fault(self.at, f"a {char} where {where} wants its {closing}", guess=True)
        around = self._closings[:-1]
        ends = self._after_space(self.at + 1) == len(self.text)
        if char not in (around if ends else around[1:]):
            self.at += 1

    def _place(self, offset: int) -> str:
        if not self._starts:
            self._starts = _line_starts(self.text)
        line, column = _line_column(self._starts, offset)
        return f"{line}:{column}"

    def _no_comma(self, behind: int) -> None:
        """Two elements without a comma: between them, or is a quote astray?"""
        char = self.text[behind]
        if self.text[behind - 1] == '"' and (char.isalnum() or char in "\\/$-_."):
            raise self._lost(behind - 1, 'a " within a string is written \\", or a comma is missing after it')
        self._fault(behind, "a comma is missing here")

    # ---- keys ----

    def _key(self) -> str:
        char = self._peek()
        start = self.at
        if char == '"':
            return self._string(is_key=True)
        if char in _CLOSING_QUOTE:
            return self._wrong_quotes()
        word = self._word()
        if not word:
            raise self._lost(start, f"a key in double quotes belongs here, not {escape(char)}")
        self.at += len(word)
        if self._peek() == '"':
            self._fault(start, f"the opening quote is missing: write {quote(word)}", guess=True)
            self.at += 1
        else:
            self._fault(start, f"a key needs double quotes: write {quote(word)}")
        return word

    def _colon(self, key: str) -> bool:
        """Goes behind the colon. False when no value can follow."""
        behind = self.at
        self._space()
        char = self._peek()
        if char == ":":
            self.at += 1
            self._space()
        elif char == "=":
            self._fault(self.at, "a colon belongs between key and value, not =")
            self.at += 1
            self._space()
        elif char and char not in ",}]":
            self._fault(behind, f"a colon is missing after {quote(key)}")
        elif char:
            self._fault(behind, f"a colon and a value are missing after {quote(key)}", guess=True)
        else:
            raise self._stop(behind, f"the text ends after {quote(key)}: a colon and a value are missing")
        return not char or char not in ",}]"

    def _member_value(self, kid: Node, key: str) -> None:
        char = self._peek()
        if not char:
            raise self._stop(self.at, f"the text ends here: the value of {quote(key)} is missing")
        if char in ",}]":
            kid.offset = self.at
            self._fault(self.at, f"the value of {quote(key)} is missing", guess=True)
        else:
            self._value(kid)

    # ---- strings ----

    def _string(self, is_key: bool) -> str:
        start = self.at
        end = self._closing_quote(start + 1)
        if end < 0 or self._swallowed(start, end, is_key):
            return self._unclosed(start, is_key)
        self.at = end + 1
        raw = self.text[start + 1 : end]
        return raw if raw.isprintable() and "\\" not in raw else self._unescape(raw, start + 1)

    def _line_end(self, at: int) -> int:
        start, end = self._line
        if not start <= at <= end:
            end = self.text.find("\n", at)
            end = len(self.text) if end < 0 else end
            self._line = (at, end)
        return end

    def _closing_quote(self, at: int) -> int:
        """The offset of the quote that ends a string, or -1 when the line ends before."""
        text, stop, end = self.text, self._line_end(at), -1
        while True:
            if end < at:
                end = text.find('"', at, stop)
            slash = text.find("\\", at, end) if end >= 0 else -1
            if slash < 0:
                return end
            at = slash + 2

    def _swallowed(self, start: int, end: int, is_key: bool) -> bool:
        """Is the quote at `end` rather the opening one of another string?"""
        text = self.text
        if is_key:
            behind = self._after_space(end + 1)
            return text.find(":", start + 1, end) >= 0 and text[behind : behind + 1] != ":"
        last = text[start + 1 : end].rstrip(SPACE)[-1:]
        char = text[end + 1 : end + 2]
        return last in (",", ":") and (char.isalnum() or char in ("_", "/", "$"))

    def _unclosed(self, start: int, is_key: bool) -> str:
        """A string without its closing quote: says where it begins, guesses where it was to end."""
        end = self._line_end(start)
        for stop in '":' if is_key else '"':
            found = self.text.find(stop, start + 1, end)
            end = end if found < 0 else found
        meant = self.text[start + 1 : end].rstrip(",}] \t\r")
        advice = f": write {quote(meant)}" if meant and len(meant) <= 50 else ""
        self._fault(start, f"the string that begins here has no closing quote{advice}", guess=True)
        self.at = start + 1 + len(meant)
        return meant

    def _unescape(self, raw: str, offset: int) -> str:
        parts: list[str] = []
        at = 0
        while at < len(raw):
            char = raw[at]
            if char == "\\":
                piece, width = self._escape_sequence(raw, at, offset + at)
            else:
                piece, width = char, 1
                if char < " ":
                    self._fault(offset + at, f"a raw control character in a string: write {_escaped(char)}")
            parts.append(piece)
            at += width
        return "".join(parts)

    def _escape_sequence(self, raw: str, at: int, offset: int) -> tuple[str, int]:
        char = raw[at + 1]
        if char in _ESCAPES:
            return _ESCAPES[char], 2
        if char != "u":
            advice = "a backslash itself is written \\\\"
            self._fault(offset, f"\\{escape(char)} is no escape of JSON: {advice}", guess=True)
            return char, 2
        code = _hex4(raw, at + 2)
        if code < 0:
            self._fault(offset, "\\u wants four hexadecimal digits, as in \\u00e9", guess=True)
            return "u", 2
        low = _hex4(raw, at + 8) if raw.startswith("\\u", at + 6) else -1
        if 0xD800 <= code < 0xDC00 <= low < 0xE000:
            return chr(0x10000 + (code - 0xD800 << 10) + low - 0xDC00), 12
        if 0xD800 <= code < 0xE000:
            lone = raw[at : at + 6]
            self._fault(offset, f"{lone} is half a character (a lone surrogate): remove it", guess=True)
            return "?", 6
        return chr(code), 6

    def _wrong_quotes(self) -> str:
        start = self.at
        closing = _CLOSING_QUOTE[self.text[start]]
        end = self.text.find(closing, start + 1)
        if not start < end < self._line_end(start):
            raise self._lost(start, 'a string needs double quotes: "')
        self.at = end + 1
        meant = self.text[start + 1 : end]
        self._fault(start, f"a string needs double quotes: write {quote(meant)}")
        return meant

    # ---- numbers and words ----

    def _word(self) -> str:
        text, at = self.text, self.at
        while at < len(text) and (text[at].isalnum() or text[at] in "+-._$"):
            at += 1
        return text[self.at : at]

    def _bare(self, node: Node) -> None:
        start = self.at
        word = self._word()
        self.at += len(word)
        if word in _WORDS:
            node.value = _WORDS[word]
        elif word in _NO_NUMBERS:
            self._fault(start, f"{word} is no number in JSON: write one that is finite", guess=True)
        elif word and (word[0].isdigit() or word[0] in "+-."):
            node.value = self._number(word, start)
        elif word:
            node.value = self._plain_word(word, start)
        else:
            char = self._peek()
            if not char:
                raise self._stop(start, "a value belongs here, but the text ends")
            raise self._lost(start, f"a value belongs here, not {escape(char)}")

    def _plain_word(self, word: str, start: int) -> Any:
        lower = word.lower()
        meant = lower if lower in _WORDS else _OTHER_WORDS.get(lower)
        if meant is not None:
            self._fault(start, f"{word} is no word of JSON: write {meant}")
            return _WORDS[meant]
        if self._peek() == '"':
            self._fault(start, f"the opening quote is missing: write {quote(word)}", guess=True)
            self.at += 1
        else:
            self._fault(start, f"a string needs double quotes: write {quote(word)}", guess=True)
        return word

    def _number(self, word: str, start: int) -> int | float:
        if _is_number(word):
            try:
                return loads(word)  # type: ignore[no-any-return]
            except ValueError:
                self._fault(start, f"{word[:20]} is too large for a number", guess=True)
                return 0
        meant = _nearest_number(word)
        advice = f": write {meant}" if meant else ""
        self._fault(start, f"{escape(word[:40])} is no number of JSON{advice}", guess=True)
        return 0


def _hex4(text: str, at: int) -> int:
    digits = text[at : at + 4]
    if len(digits) != 4 or digits.strip("0123456789abcdefABCDEF"):
        return -1
    return int(digits, 16)


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _is_number(word: str) -> bool:
    """Is it -?INT(.DIGITS)?([eE][+-]?DIGITS)? with no zero in front (RFC 8259, section 6)?"""
    mantissa, e, exponent = word.lower().removeprefix("-").partition("e")
    whole, dot, fraction = mantissa.partition(".")
    if e and not _digits(exponent[1:] if exponent[:1] in ("+", "-") else exponent):
        return False
    if dot and not _digits(fraction):
        return False
    return _digits(whole) and (whole == "0" or whole[0] != "0")


def _nearest_number(word: str) -> str:
    """What somebody who wrote `word` most likely meant, or nothing."""
    sign = "-" if word[0] == "-" else ""
    body = word.lstrip("+-").replace("_", "").rstrip("abcdefghijklmnopqrstuvwxyz.") or "?"
    whole, dot, fraction = body.partition(".")
    guess = sign + (whole.lstrip("0") or "0") + dot + fraction
    return guess if _is_number(guess) else ""
