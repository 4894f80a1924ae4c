"""JSON with positions: every key and value knows its line and column, duplicate keys are seen.

Comments (// to the end of the line, and from /* to */) and a comma after the last element are taken too.
Strict JSON is read by the C scanner, and nothing is kept but its values. Only when something is to
be said about a text, or it has comments or such commas, does the scanner of this module run: it knows the
places, and it carries on after a problem, so that one reading finds all of them. It takes
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
MAX_PROBLEMS = 1000  # nobody reads more, and a daemon that reads this stands still meanwhile
_SPACES = frozenset(SPACE)  # the end of the text, an empty string, is none
_QUICK_DEPTH = 8  # deeper than any configuration: below it each level would cost one more reading
_TOKENS = frozenset('{}[]:,"')  # of them no space and no comment is made
_ENDS = frozenset(("", ",", "}", "]"))  # what follows a value
_COMMENTS = {"//": "\n", "/*": "*/"}  # how they begin and end
_REPLACED = "\ufffd"  # the decoder puts it in the place of a byte that is not UTF-8

_ESCAPES = (2, 6, 12)  # how long they are: \n, \u00e9, and two halves of a character
_NAMED = {"\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\"}
_WORDS = {"true": True, "false": False, "null": None}


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


class TextProblem(Record):
    """Something that is wrong `offset` characters into the text."""

    offset: int
    message: str


class Node:
    """A value and its place. `kids`: key -> (offset of the key, node), or the nodes of a list; None also
    where nobody has asked for them yet (`Scanner.kids_of`)."""

    __slots__ = ("kids", "offset", "value")

    def __init__(self, offset: int, value: Any = None) -> None:
        self.offset = offset
        self.value = value
        self.kids: dict[str, tuple[int, Node]] | list[Node] | None = None


class Duplicate(Record):
    """A key that stands twice in one object: `path` leads to it, `first` and `second` are the offsets of its
    places, `replaced` is the value at the first of them, which does not count."""

    path: tuple[str | int, ...]
    first: int
    second: int
    replaced: Node


class Document:
    """One JSON text, read.

    Attributes:
        value: what it says; after problems, what could be made of it. The last of duplicates counts.
        problems: what is wrong with it, in order.
        duplicates: the keys that stand twice in one object.
        sound: False when a problem left `value` to guesswork.
    """

    def __init__(self, data: bytes) -> None:
        self.value: Any = None
        self.problems: tuple[TextProblem, ...] = ()
        self.duplicates: tuple[Duplicate, ...] = ()
        self.sound = True
        self._root: Node | None = None
        self._scanner: Scanner | None = None
        self._text = ""
        if self._decode(data):
            self._read()
        self._lines = _Lines(self._text)

    def _decode(self, data: bytes) -> bool:
        try:
            self._text = data.decode()
            return True
        except UnicodeDecodeError as error:
            byte = f"the byte 0x{data[error.start]:02x} is not UTF-8: save the file as UTF-8"
            bad = TextProblem(len(data[: error.start].decode()), byte)
        self._text = data.decode(errors="replace")
        self.sound = False
        if b"\0" not in data:  # else it is UTF-16, or no text at all
            self._scan()
        self.sound = False
        others = (each for each in self.problems if not self._text.startswith(_REPLACED, each.offset))
        self.problems = tuple(sorted((bad, *others), key=lambda problem: problem.offset))
        return False

    def _read(self) -> None:
        pairs = _Pairs()
        try:
            self.value = make_loads(pairs)(self._text)
        except ValueError:
            self.sound = False
        if not self.sound or pairs.repeated:
            self._scan()
            if not self.sound and not self.problems:
                self.problems = (TextProblem(0, "this cannot be read as JSON"),)

    def _scan(self) -> None:
        """The slow reading: places, problems, duplicates."""
        scanner = self._scanner = Scanner(self._text)
        self._root = scanner.run()
        if not self.sound:
            self.value = self._root.value
            self.problems = tuple(sorted(scanner.problems, key=lambda problem: problem.offset))
            self.sound = scanner.sound and (scanner.relaxed or bool(self.problems))
        self.duplicates = tuple(scanner.duplicates)

    def place(
        self, path: tuple[str | int, ...], key: bool = False, start: Node | None = None
    ) -> tuple[int, int]:
        """Line and column (both from 1, in characters) of the value at `path`, or of its key.

        Where the path leads nowhere, the place of the last thing on it that is there. The path begins at the
        root, or at `start`.
        """
        if self._root is None:  # nothing was wrong until now, and what is where has nobody asked
            self._root = Node(len(self._text) - len(self._text.lstrip(SPACE)), self.value)
            self._scanner = Scanner(self._text)
        assert self._scanner is not None
        node = start or self._root
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
        return self._lines.place(offset)


class _Pairs:
    """Makes the objects for the C scanner; `repeated` when a key has stood twice in one of them."""

    def __init__(self) -> None:
        self.repeated = False

    def __call__(self, items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            self.repeated = True
        return found


class _Lines:
    """Where the lines of a text begin, once somebody asks."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._starts: list[int] = []

    def place(self, offset: int) -> tuple[int, int]:
        """Line and column, both from 1, of what stands `offset` characters into the text."""
        from jobmon.lean.cpython import bisect_right

        if not self._starts:
            at = -1
            while at >= 0 or not self._starts:
                self._starts.append(at + 1)
                at = self._text.find("\n", at + 1)
        line = bisect_right(self._starts, offset)
        return line, offset - self._starts[line - 1] + 1


class _Stop(Exception):
    """The end of the text, or of all that is looked at."""


class _Lost(Exception):
    """An element cannot be read; the next one can be looked for."""


class Scanner:
    """Reads JSON slowly, remembers places, forgives what can be forgiven.

    `sound` tells whether the values are still certainly those meant, `relaxed` that
    there is a comment, or a comma after a last element. Without `quick` it reads every character by itself,
    else only where it has to: what it finds is the same.
    """

    def __init__(self, text: str, quick: bool = True) -> None:
        self.text = text
        self.at = 0
        self.problems: list[TextProblem] = []
        self.duplicates: list[Duplicate] = []
        self.sound = True
        self.relaxed = False
        self._path: list[str | int] = []
        self._closings: list[str] = []  # of the objects and lists that are open
        self._root = Node(0)
        self._rest: Node | None = None  # for the text behind the end of the root
        self._lines = _Lines(text)
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
            self._collection(node, type(value)())
            node.value = value
        return node.kids

    def _problem(self, offset: int, message: str, guess: bool = False) -> None:
        if len(self.problems) == MAX_PROBLEMS:
            self.problems.append(
                TextProblem(offset, f"more than {MAX_PROBLEMS} errors: the rest is not looked at")
            )
            raise _Stop
        self.problems.append(TextProblem(offset, message))
        if guess:
            self.sound = False

    def _stop(self, offset: int, message: str) -> _Stop:
        self._problem(offset, message)
        return _Stop()

    def _lost(self, offset: int, message: str) -> _Lost:
        self._problem(offset, message, guess=True)
        return _Lost()

    def _document(self) -> None:
        self._space()
        if self.at == len(self.text):
            raise self._stop(0, "the file is empty: the least that it can hold is {}")
        self._value(self._root)
        self._space()
        if self.at < len(self.text):
            message = "more text after the end of the file's one value: remove it, or what ends it too early"
            self._problem(self.at, message, guess=True)
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

    # ---- between the values ----

    def _space(self) -> None:
        """Go to what is neither space nor comment; characters that nobody sees do not hide it."""
        while self.text[self.at : self.at + 1] not in _TOKENS:
            at = self.at = self._after_space(self.at)
            char = self.text[at : at + 1]
            if char == "#":
                self._problem(at, "a comment begins with //, not #")
                self.at = self._line_end(at)
            elif self.text.startswith("/*", at):
                raise self._stop(at, "the comment that begins here has no end: add */")
            elif char and not char.isprintable():
                self._problem(at, f"an invisible character (U+{ord(char):04X}): remove it")
                self.at += 1
            else:
                return

    def _after_space(self, at: int) -> int:
        text = self.text
        while text[at : at + 1] not in _TOKENS:
            while text[at : at + 1] in _SPACES:
                at += 1
            end = self._comment_end(at) if text[at : at + 1] == "/" else at
            if end == at:
                return at
            at = end
        return at

    def _comment_end(self, at: int) -> int:
        """The end of the comment that begins here; here, if none does or it has none."""
        closing = _COMMENTS.get(self.text[at : at + 2])
        if closing is None:
            return at
        end = self._line_end(at) if closing == "\n" else self.text.find(closing, at + 2) + 2
        if end < 2:
            return at
        self.relaxed = True
        return end

    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]

    # ---- values ----

    def _value(self, node: Node) -> None:
        node.offset = self.at
        char = self._peek()
        if self._quick and self._taken(node):
            return
        if char == '"':
            node.value = self._string(is_key=False)
        elif char in ("{", "["):
            self._collection(node, {} if char == "{" else [])
        elif char == "'":
            node.value = self._wrong_quotes()
        else:
            self._bare(node)

    def _taken(self, node: Node) -> bool:
        """Take the value from the C scanner, if that reads it and it ends as a value does."""
        if len(self._path) >= _QUICK_DEPTH:
            return False
        try:
            value, end = self._scan(self.text, self.at)
        except (ValueError, StopIteration, RecursionError, SystemError):  # see fastjson.make_loads
            return False
        repeated, self._pairs.repeated = self._pairs.repeated, False
        if repeated or (self._has_surrogates and "\\ud" in self.text[self.at : end].lower()):
            return False
        behind = self._after_space(end)
        if self.text[behind : behind + 1] not in _ENDS:
            return False
        node.value, self.at = value, end
        return True

    def _collection(self, node: Node, kids: Any) -> None:
        """An object or a list, as its empty `kids` are."""
        if len(self._path) >= MAX_DEPTH:
            raise self._lost(self.at, f"nested too deeply: {MAX_DEPTH} levels are the limit")
        is_object = isinstance(kids, dict)
        closing = "}" if is_object else "]"
        self._closings.append(closing)
        node.kids = kids
        node.value = type(kids)()
        self.at += 1
        self._elements(node, closing, self._member if is_object else self._item)

    def _elements(self, node: Node, closing: str, read: Callable[[Node, Any], None]) -> None:
        """Everything up to the closing bracket. An element that cannot be read is left out."""
        depth, due, kids = len(self._path), False, node.kids
        while True:
            try:
                if not self._more(node, closing, due or bool(kids)):
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
        if key in kids:
            if len(self.duplicates) > MAX_PROBLEMS:
                raise _Stop
            first, replaced = kids[key]
            self.duplicates.append(Duplicate(tuple(self._path), first, start, replaced))
        kid = Node(self.at)
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
            comment = self._comment_end(self.at) if char == "/" else self.at
            if comment > self.at:
                self.at = comment
                continue
            depth += (char in "{[") - (char in "}]")
            end = self._closing_quote(self.at + 1) if char == '"' else self.at
            if end < 0:
                end = self._line_end(self.at)
                if text[self.at : end].rstrip(SPACE).endswith(","):
                    self.at = text.rindex(",", self.at, end)
                    return
            self.at = end + 1
        raise _Stop

    def _more(self, node: Node, closing: str, comma_due: bool) -> bool:
        """Goes to the next element; False behind the closing bracket."""
        behind = self.at
        self._space()
        comma = -1
        while self._peek() == ",":
            if comma >= 0 or not comma_due:
                self._problem(self.at, "a comma too many: remove it")
            comma = self.at
            self.at += 1
            self._space()
        char = self._peek()
        if char == closing:
            self.relaxed = self.relaxed or comma >= 0
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
        self._problem(self.at, f"a {char} where {where} wants its {closing}", guess=True)
        around = self._closings[:-1]
        ends = self._after_space(self.at + 1) == len(self.text)
        if char not in (around if ends else around[1:]):
            self.at += 1

    def _place(self, offset: int) -> str:
        line, column = self._lines.place(offset)
        return f"{line}:{column}"

    def _no_comma(self, behind: int) -> None:
        """Two elements without a comma: between them, or is a quote astray?"""
        char = self.text[behind]
        astray = char.isalnum() or char in "\\/$-_."
        if self.text[behind - 1] == '"' and astray and self._after_space(behind) == behind:
            raise self._lost(behind - 1, 'a " within a string is written \\", or a comma is missing after it')
        self._problem(behind, "a comma is missing here")

    # ---- keys ----

    def _key(self) -> str:
        char = self._peek()
        start = self.at
        if char == '"':
            return self._string(is_key=True)
        if char == "'":
            return self._wrong_quotes()
        word = self._word()
        if not word:
            raise self._lost(start, f"a key in double quotes belongs here, not {escape(char)}")
        self.at += len(word)
        return self._unquoted(word, start, "a key", guess=False)

    def _member_value(self, kid: Node, key: str) -> None:
        """Read the colon and the value; the place of a value that is missing is that of what stands there."""
        behind = self.at
        self._space()
        has_colon = self._peek() == ":"
        if has_colon:
            self.at += 1
            self._space()
            behind = self.at
        kid.offset = self.at
        char = self._peek()
        if char and char not in ",}]":
            if not has_colon:
                self._problem(behind, f"a colon is missing after {quote(key)}")
            self._value(kid)
            return
        what = "the value of {} is missing" if has_colon else "a colon and a value are missing after {}"
        if not char:
            raise self._stop(behind, "the text ends here: " + what.format(quote(key)))
        self._problem(behind, what.format(quote(key)), guess=True)

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
        astray = char.isalnum() or char in ("_", "/", "$")
        return last in (",", ":") and astray and self._after_space(end + 1) == end + 1

    def _unclosed(self, start: int, is_key: bool) -> str:
        """A string without its closing quote: says where it begins, guesses where it was to end."""
        end = self._line_end(start)
        for stop in '":' if is_key else '"':
            found = self.text.find(stop, start + 1, end)
            end = end if found < 0 else found
        meant = self.text[start + 1 : end].rstrip(",}] \t\r")
        advice = f": write {quote(meant)}" if meant and len(meant) <= 50 else ""
        self._problem(start, f"the string that begins here has no closing quote{advice}", guess=True)
        self.at = start + 1 + len(meant)
        return meant

    def _unescape(self, raw: str, offset: int) -> str:
        """What stands for `raw`, a string without its quotes; if something in it is wrong, just that."""
        if _is_string(raw):
            return str(loads(f'"{raw}"'))
        at = 0
        while at < len(raw):
            width = 1
            if raw[at] == "\\":
                width = next((width for width in _ESCAPES if _is_string(raw[at : at + width])), 0)
            elif raw[at] < " ":
                self._problem(offset + at, f"a raw control character in a string: write {_escaped(raw[at])}")
            if not width:
                shown = escape(raw[at + 1 : at + 6] if raw[at + 1] == "u" else raw[at + 1])
                message = f"\\{shown} stands for no character: a backslash itself is written \\\\"
                self._problem(offset + at, message, guess=True)
            at += width or 2
        return raw

    def _wrong_quotes(self) -> str:
        start = self.at
        end = self.text.find("'", start + 1, self._line_end(start))
        if end < 0:
            raise self._lost(start, 'a string needs double quotes: "')
        self.at = end + 1
        meant = self.text[start + 1 : end]
        self._problem(start, f"a string needs double quotes: write {quote(meant)}")
        return meant

    # ---- numbers and words ----

    def _word(self) -> str:
        text, at = self.text, self.at
        while at < len(text) and (text[at].isalnum() or text[at] in "+-._$"):
            at += 1
        return text[self.at : at]

    def _bare(self, node: Node) -> None:
        """A number, or true, false or null; else something is wrong with it."""
        start, word = self.at, self._word()
        if not word:
            raise self._lost(start, f"a value belongs here, not {escape(self._peek())}")
        self.at += len(word)
        try:
            node.value = loads(word)
        except ValueError:
            node.value = self._no_value(word, start)

    def _no_value(self, word: str, start: int) -> Any:
        meant = word.lower()
        if meant in _WORDS:
            self._problem(start, f"{word} is no word of JSON: write {meant}")
            return _WORDS[meant]
        if word[0].isdigit() or word[0] in "+-.":
            self._problem(start, f"{escape(word[:40])} is not a valid number", guess=True)
            return 0
        return self._unquoted(word, start, "a string", guess=True)

    def _unquoted(self, word: str, start: int, what: str, guess: bool) -> str:
        """A word without both quotes, or without the opening one."""
        if self._peek() == '"':
            self._problem(start, f"the opening quote is missing: write {quote(word)}", guess=True)
            self.at += 1
        else:
            self._problem(start, f"{what} needs double quotes: write {quote(word)}", guess)
        return word


def _is_string(raw: str) -> bool:
    """Whether this, in quotes, is a string of JSON."""
    try:
        loads(f'"{raw}"')
    except ValueError:
        return False
    return True
