"""JSON with places: what is right reads as json reads it, what is wrong is said at its very character."""

from __future__ import annotations

import json
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobmon.config.jsontext import MAX_DEPTH, MAX_PROBLEMS, Document, Node, Scanner, quote
from jobmon.lean import fastjson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# The job file of JobMon 0.7's documentation, with both of its mistakes.
SAMPLE = """{
  "true-job": {
    "command": "/bin/true",
    "stdin": "$DEVNULL",
    "stdout": "$DEVNULL",
    "stderr": "$DEVNULL",
    "env": {
      "HOME": "/home/bob",
    },
    "working-dir": "/home/bob",
    "signal": "SIGSTOP",
    "autostart": false,
    "restart: true
  }
}
"""
SAMPLE_IN_ONE_LINE = " ".join(SAMPLE.split())


def faults(text: str | bytes) -> list[str]:
    """All that is wrong with a text, as LINE:COLUMN: MESSAGE."""
    document = Document(text if isinstance(text, bytes) else text.encode())
    return ["{}:{}: ".format(*document.line_column(f.offset)) + f.message for f in document.problems]


def test_sample_of_the_documentation_is_wrong_in_one_place() -> None:
    """The comma after its last element is taken, and the quote that is missing is found where it is."""
    assert faults(SAMPLE) == ['13:5: the string that begins here has no closing quote: write "restart"']


def test_sample_in_one_line_too() -> None:
    """The same in one line, where the open string runs to the end of the text."""
    string = SAMPLE_IN_ONE_LINE.index('"restart') + 1

    assert faults(SAMPLE_IN_ONE_LINE) == [
        f'1:{string}: the string that begins here has no closing quote: write "restart"'
    ]


EMPTY = "1:1: the file is empty: the least that it can hold is {}"
AFTER = "more text after the end of the file's one value: remove it, or what ends it too early"
HASH = "a comment begins with //, not #"
ESCAPE = "stands for no character: a backslash itself is written \\\\"
NO_QUOTE = "the string that begins here has no closing quote"

FAULTS: list[tuple[str, list[str]]] = [
    ("", [EMPTY]),
    (" \n ", [EMPTY]),
    ("{,}", ["1:2: a comma too many: remove it"]),
    ("[1,,2]", ["1:4: a comma too many: remove it"]),
    ("[1,,]", ["1:4: a comma too many: remove it"]),
    ("[,]", ["1:2: a comma too many: remove it"]),
    ('{"a": 1\n "b": 2}', ["1:8: a comma is missing here"]),
    ('["a" "b"]', ["1:5: a comma is missing here"]),
    ('{"a" 1}', ['1:5: a colon is missing after "a"']),
    ('{"a"}', ['1:5: a colon and a value are missing after "a"']),
    ('{"a":}', ['1:6: the value of "a" is missing']),
    ('{"a": , "b": 1}', ['1:7: the value of "a" is missing']),
    ('{"a"', ['1:5: the text ends here: a colon and a value are missing after "a"']),
    ('{"a": ', ['1:7: the text ends here: the value of "a" is missing']),
    ('{"a": [1, 2', ["1:12: the text ends here, but the [ of 1:7 is not closed: add its ]"]),
    ('{\n "a": {"b": 1}\n', ["2:15: the text ends here, but the { of 1:1 is not closed: add its }"]),
    ('{"a": [1}', ["1:9: a } where the [ of 1:7 wants its ]"]),
    ('{"a": 1]', ["1:8: a ] where the { of 1:1 wants its }"]),
    ('{"a": 1}}', [f"1:9: {AFTER}"]),
    ("{},", [f"1:3: {AFTER}"]),
    ("{} {}", [f"1:4: {AFTER}"]),
    ('{"a": "b\n}', [f'1:7: {NO_QUOTE}: write "b"']),
    ('{"a": "/bin/true,\n "b": 1}', [f'1:7: {NO_QUOTE}: write "/bin/true"']),
    ('{"a": "b, "c": 1}', [f'1:7: {NO_QUOTE}: write "b"']),
    ('{"a: 1, "b": 2}', [f'1:2: {NO_QUOTE}: write "a"']),
    ('"', [f"1:1: {NO_QUOTE}"]),
    ('{a": 1}', ['1:2: the opening quote is missing: write "a"']),
    ('{"a": b"}', ['1:7: the opening quote is missing: write "b"']),
    ('{"a": "say "hi""}', ['1:12: a " within a string is written \\", or a comma is missing after it']),
    ("{'a': 1}", ['1:2: a string needs double quotes: write "a"']),
    ("['a", ['1:2: a string needs double quotes: "']),
    ("{a: 1}", ['1:2: a key needs double quotes: write "a"']),
    ('{"a": SIGTERM}', ['1:7: a string needs double quotes: write "SIGTERM"']),
    ("{1: 1}", ['1:2: a key needs double quotes: write "1"']),
    ("{@: 1}", ["1:2: a key in double quotes belongs here, not @"]),
    ("[@]", ["1:2: a value belongs here, not @"]),
    ("[True, no, NaN]", [
        "1:2: True is no word of JSON: write true",
        '1:8: a string needs double quotes: write "no"',
        '1:12: a string needs double quotes: write "NaN"',
    ]),
    ("{\u201ca\u201d: 1}", ["1:2: a key in double quotes belongs here, not \u201c"]),
    ("# one\n{ # two\n}", [f"1:1: {HASH}", f"2:3: {HASH}"]),
    ("[1, /* one\n]", ["1:5: the comment that begins here has no end: add */"]),
    ("[x, /*/ ]", ['1:2: a string needs double quotes: write "x"',
                   "1:5: the comment that begins here has no end: add */"]),
    ("/* one", ["1:1: the comment that begins here has no end: add */"]),
    ("// one", [EMPTY]),
    ('["a"/*,*/ "b"]', ["1:5: a comma is missing here"]),
    ('{"a": [1} // ]', ["1:9: a } where the [ of 1:7 wants its ]"]),
    ("[@ /* , */, x]", ["1:2: a value belongs here, not @",
                        '1:13: a string needs double quotes: write "x"']),
    ("[/]", ["1:2: a value belongs here, not /"]),
    ("[-Infinity]", ["1:2: -Infinity is not a valid number"]),
    ("[1e999]", ["1:2: 1e999 is not a valid number"]),
    ("[" + "9" * 5000 + "]", ["1:2: " + "9" * 40 + " is not a valid number"]),
    ("[10s]", ["1:2: 10s is not a valid number"]),
    ("[007]", ["1:2: 007 is not a valid number"]),
    ("[+1, .5, 5.]", [f"1:{at} is not a valid number" for at in ("2: +1", "6: .5", "10: 5.")]),
    ("[1_000]", ["1:2: 1_000 is not a valid number"]),
    ("[-]", ["1:2: - is not a valid number"]),
    ('["\\q\\n\\x"]', [f"1:3: \\q {ESCAPE}", f"1:7: \\x {ESCAPE}"]),
    ('["\\u00g0"]', [f"1:3: \\u00g0 {ESCAPE}"]),
    ('["a\\ud800"]', [f"1:4: \\ud800 {ESCAPE}"]),
    ('{"\\uDC00": 1}', [f"1:3: \\uDC00 {ESCAPE}"]),
    ('["a\tb\0"]', [
        "1:4: a raw control character in a string: write \\t",
        "1:6: a raw control character in a string: write \\u0000",
    ]),
    ("\ufeff{}", ["1:1: an invisible character (U+FEFF): remove it"]),
    ("{\u00a0}", ["1:2: an invisible character (U+00A0): remove it"]),
    ("\0", ["1:1: an invisible character (U+0000): remove it", EMPTY]),
    ("\0[", [
        "1:1: an invisible character (U+0000): remove it",
        "1:3: the text ends here, but the [ of 1:2 is not closed: add its ]",
    ]),
    ("[" * 101, ["1:101: nested too deeply: 100 levels are the limit"]),
    ("[" * 100_000, ["1:101: nested too deeply: 100 levels are the limit"]),
    ('{"a":' * 100_000, ["1:501: nested too deeply: 100 levels are the limit"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), FAULTS, ids=[quote(text, 30) for text, _ in FAULTS])
def test_fault(text: str, expected: list[str]) -> None:
    """A mistake is said in words that tell what to do, at its line and column."""
    assert faults(text) == expected


BRACKET = "a {} where the {} of {} wants its {}".format
WORD = "a string needs double quotes: write "
ASTRAY = 'a " within a string is written \\", or a comma is missing after it'

SEVERAL: list[tuple[str, list[str]]] = [
    ('{"a": [1}, "b": x}', ["1:9: " + BRACKET("}", "[", "1:7", "]"), f'1:17: {WORD}"x"']),
    ('{"a": {"b": 1], "c": x}', ["1:14: " + BRACKET("]", "{", "1:7", "}"), f'1:22: {WORD}"x"']),
    ('{"a": {"b": [1}, "c": x}', ["1:15: " + BRACKET("}", "[", "1:13", "]"), f'1:23: {WORD}"x"']),
    ('{"a": [{"b": 1], "c": x}', ["1:15: " + BRACKET("]", "{", "1:8", "}"), f'1:23: {WORD}"x"']),
    ('{"a": 1}, "b": x}', [f"1:9: {AFTER}", f'1:16: {WORD}"x"']),
    ('{"a": {}}},\n"b": {"c": x}}', [f"1:10: {AFTER}", f'2:12: {WORD}"x"']),
    ('{"a": "say "hi" there", "b": x}', [f"1:12: {ASTRAY}", f'1:30: {WORD}"x"']),
    ('{"a": "x"y "z" w,\n "b": x}', [f"1:9: {ASTRAY}", f'2:7: {WORD}"x"']),
    ("{@: 1, 'b': x}", [
        "1:2: a key in double quotes belongs here, not @",
        '1:8: a string needs double quotes: write "b"',
        f'1:13: {WORD}"x"',
    ]),
    ('{[1, {"x": 2}]: 3, "b": x}', [
        "1:2: a key in double quotes belongs here, not [",
        f'1:25: {WORD}"x"',
    ]),
    ("[@, 1, &, [%, x]]", [
        "1:2: a value belongs here, not @",
        "1:8: a value belongs here, not &",
        "1:12: a value belongs here, not %",
        f'1:15: {WORD}"x"',
    ]),
    ("['a, 1, x]", ['1:2: a string needs double quotes: "', f'1:9: {WORD}"x"']),
    ('{"a": @ "b,\n "c": x}', ["1:7: a value belongs here, not @", f'2:7: {WORD}"x"']),
    ("[" * 100 + "[]" + ", x" + "]" * 100, [
        "1:101: nested too deeply: 100 levels are the limit",
        f'1:105: {WORD}"x"',
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), SEVERAL, ids=[quote(text, 30) for text, _ in SEVERAL])
def test_one_mistake_hides_no_other(text: str, expected: list[str]) -> None:
    """Behind a bracket, a quote or a character that makes no sense the next element is read again."""
    assert faults(text) == expected


def test_bytes_that_are_no_utf8() -> None:
    """A byte that is not UTF-8 is named, with its place in characters; it hides no other mistake."""
    assert faults(b'{"\xc3\xa9":\n "\xff"}') == ["2:3: the byte 0xff is not UTF-8: save the file as UTF-8"]
    assert faults(b'{"\xff": "\xfe", \xfd,\n "a": x}') == [
        "1:3: the byte 0xff is not UTF-8: save the file as UTF-8",
        '2:7: a string needs double quotes: write "x"',
    ]
    assert faults(b'{\n"\xff\0@') == ["2:2: the byte 0xff is not UTF-8: save the file as UTF-8"]
    assert faults("{}".encode("utf-16")) == ["1:1: the byte 0xff is not UTF-8: save the file as UTF-8"]


def test_recovers_what_was_meant() -> None:
    """A mistake that has one meaning leaves the values sound; a guess does not."""
    forgiven = Document(b"{'a': True, b: [1 2,], # c\n}")
    guessed = Document(b'{"a": 10s}')

    assert forgiven.sound
    assert forgiven.value == {"a": True, "b": [1, 2]}
    assert not guessed.sound


RELAXED: list[tuple[str, Any]] = [
    ('{"a": 1,}', {"a": 1}),
    ('["a" , ]', ["a"]),
    ('[[1,],[2,{"a":{},},],]', [[1], [2, {"a": {}}]]),
    ("{ // one\n}", {}),
    ("{} // one", {}),
    ("[1 /* one\n */, /**/ 2]//", [1, 2]),
    ('/* " */ ["//", "/*", "a" // "\n, "*/" /*]*/,/* */]', ["//", "/*", "a", "*/"]),
    ('["a,"/**/, "b:"//\n]', ["a,", "b:"]),
    ('{"a:"/**/ : /***/ -1.5e2/*/*/,}', {"a:": -150}),
    ('["\\"//", "\\\\"// "\n]', ['"//', "\\"]),
    ('["\\u00e9\\ud83d\\ude00\\n", /* */]', ["\xe9\U0001f600\n"]),
    ('["http://\xe9", // \xe9\n]', ["http://\xe9"]),
]


@pytest.mark.parametrize(("text", "value"), RELAXED, ids=[quote(text, 30) for text, _ in RELAXED])
def test_comments_and_a_last_comma_are_taken(text: str, value: object) -> None:
    """Both comments, and a comma after the last element, are no mistake, and no guess either."""
    document = Document(text.encode())

    assert faults(text) == []
    assert document.value == value
    assert document.sound


def test_places_between_comments() -> None:
    """They shift no line and no column."""
    document = Document(b'// one\n{/* two\n*/ "a": /**/ [1, // three\n 2,], "a": 3}')

    assert document.place(("a",), key=True) == (4, 7)
    assert document.place((0,), start=document.duplicates[0].replaced) == (3, 15)
    assert document.place((1,), start=document.duplicates[0].replaced) == (4, 2)


def test_what_stands_before_the_end_is_kept() -> None:
    """Of a text that breaks off, the members that are whole can be read."""
    document = Document(b'{"supervisor": {"include-dirs": ["x"]}, "jobs": {"a": ')

    assert document.value == {"supervisor": {"include-dirs": ["x"]}}
    assert not document.sound


def test_places() -> None:
    """Every key and value knows its line and column, in characters, from 1."""
    document = Document('{"\xe9\U0001f600": {"b": [1,\n  "c"]}}'.encode())

    assert document.place(()) == (1, 1)
    assert document.place(("\xe9\U0001f600",)) == (1, 8)
    assert document.place(("\xe9\U0001f600",), key=True) == (1, 2)
    assert document.place(("\xe9\U0001f600", "b", 1)) == (2, 3)
    assert document.place(("\xe9\U0001f600", "b", 7)) == (1, 14)
    assert document.place(("\xe9\U0001f600", "nowhere"), key=True) == (1, 2)


def test_duplicates_are_seen_and_the_last_counts() -> None:
    """A key that stands twice in one object is found at any depth, with both places."""
    document = Document(b'{"a": {"x": 1, "y": 2, "x": 3}, "b": [{"c": 1, "c": 2}]}')

    found = [(each.path, each.first, each.second) for each in document.duplicates]

    assert found == [(("a", "x"), 7, 23), (("b", 0, "c"), 39, 47)]
    assert document.value == {"a": {"x": 3, "y": 2}, "b": [{"c": 2}]}
    assert document.sound


def test_a_text_without_fault_is_not_read_twice() -> None:
    """The slow scanner stays out of the way of what is right."""
    document = Document(b'{"a": [1, 2.5, true, null]}')

    assert document.value == {"a": [1, 2.5, True, None]}
    assert document._root is None


def test_quote_escapes_and_shortens() -> None:
    """What a message quotes cannot break or forge a line."""
    assert quote('a"\\\n\x1b\u2028\U000e0001\xe9') == '"a\\"\\\\\\n\\u001b\\u2028\\U000e0001\xe9"'
    assert quote("x" * 80, 20) == '"' + "x" * 17 + '..."'


def test_the_c_functions_are_used_here() -> None:
    """On each supported CPython: `json` in its place would cost a client a third of its life, unnoticed."""
    assert fastjson.FAST
    assert fastjson._scanner is fastjson._c_scanner


@pytest.mark.parametrize("scanner", [fastjson._c_scanner, fastjson._plain_scanner])
@pytest.mark.parametrize(
    "text", ["", "[1", "[1] 2", "[NaN]", "[1e999]", '["\\ud800"]', '["\0"]', "[" * 100_000, '{"a" 1}']
)
def test_loads_refuses(scanner: Callable[[Any], Any], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the C functions and by json alike, what is no strict JSON is a ValueError."""
    monkeypatch.setattr(fastjson, "_scanner", scanner)
    with pytest.raises(ValueError):
        fastjson.make_loads()(text)


@pytest.mark.parametrize("encoder", [fastjson._c_encoder, fastjson._plain_encoder])
def test_dumps_refuses(encoder: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What JSON cannot say is a ValueError or a TypeError, never something else on the wire."""
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    monkeypatch.setattr(fastjson, "_ascii", encoder(True))
    monkeypatch.setattr(fastjson, "_spaced", encoder(True, " "))
    for spaced in (False, True):
        for value in (float("nan"), float("inf"), deep):
            with pytest.raises(ValueError):
                fastjson.dumps(value, spaced=spaced)
        with pytest.raises(TypeError):
            fastjson.dumps(object(), spaced=spaced)


@pytest.mark.parametrize("encoder", [fastjson._c_encoder, fastjson._plain_encoder])
def test_dumps_with_spaces(encoder: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Spaced is as json.dumps has it by default, and the other way without any."""
    monkeypatch.setattr(fastjson, "_spaced", encoder(True, " "))
    value = {"a": [1, {"b": None}], "\u00e9": "x, y: z", "c": {}}

    assert fastjson.dumps(value, spaced=True) == json.dumps(value)
    assert fastjson.dumps(value) == json.dumps(value, separators=(",", ":"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(VALUES, st.booleans(), st.sampled_from([None, 1]))
def test_agrees_with_json(value: object, ascii_only: bool, indent: int | None) -> None:
    """What json writes is read as json reads it, by the fast way and by the slow one."""
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    scanner = Scanner(text, quick=False)

    assert Document(text.encode()).value == value
    assert scanner.run().value == value
    assert (scanner.problems, scanner.duplicates, scanner.sound) == ([], [], True)
    assert fastjson.loads(fastjson.dumps(value)) == value
    assert fastjson.dumps(value) == json.dumps(value, separators=(",", ":"))


TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[^\s"{}\[\],:]+|[{}\[\],:]')
BETWEEN = st.sampled_from(["", " ", "\n", '// x, ] } " /*\n', '/* " { , // */', "/**/", "/***/ //\n"])


@given(VALUES, st.data())
def test_comments_and_last_commas_change_nothing(value: object, data: st.DataObject) -> None:
    """Wherever they stand between the parts of a text, it reads as it does without them."""
    parts, before = [data.draw(BETWEEN)], ""
    for part in TOKEN.findall(json.dumps(value)):
        if part in "]}" and before not in "[{" and data.draw(st.booleans()):
            parts += [",", data.draw(BETWEEN)]
        parts += [part, data.draw(BETWEEN)]
        before = part
    text = "".join(parts)

    document = Document(text.encode())

    assert (document.problems, document.sound) == ((), True)
    assert document.value == value
    check_shortcuts(text)


FRAGMENTS = st.sampled_from(
    [
        *('"', "{", "}", "[", "]", ",", ":", "\\", "/", "#", "'", "\n", " ", "1", "-", "e", "."),
        *("true", "nu", "\\u", "d8", "\ufeff", "\0", "\xe9", '"a"', '"a":', "//", "/*", "*/"),
        *("\u201c", "NaN", "[1", ",]", "// x\n", "/**/"),
    ]
)


SKIPPED = re.compile(r'("(?:[^"\\\n]|\\.)*")|//[^\n]*|/\*.*?\*/', re.DOTALL)
COMMA = re.compile(r'("(?:[^"\\]|\\.)*")|(?P<comma>,)(?=[ \t\n\r]*[}\]])', re.DOTALL)


def strict(text: str) -> str:
    """The text without its comments and commas after last elements."""
    text = SKIPPED.sub(lambda match: match.group(1) or " ", text)
    return COMMA.sub(lambda match: " " if match.group("comma") and is_last(match) else match.group(), text)


def is_last(comma: re.Match[str]) -> bool:
    """Whether there is an element before it."""
    return comma.string[: comma.start()].rstrip(" \t\n\r")[-1:] not in ("", "[", "{", ",")


def check_any(data: bytes) -> None:
    """Either a value and no fault, as json has it, or faults that lie within the text."""
    document = Document(data)
    meant = json_or_none(data)
    if document.problems:
        assert meant is None
        lines = data.decode(errors="replace").split("\n")
        for fault in document.problems:
            line, column = document.line_column(fault.offset)
            assert 1 <= line <= len(lines)
            assert 1 <= column <= len(lines[line - 1]) + 1
            assert fault.message.isprintable()
    else:
        assert meant is not None
        assert document.value == meant[0]
        assert document.sound


def json_or_none(data: bytes) -> list[object] | None:
    """What json makes of it, in a list, or None where it is no JSON but for what we take."""
    try:
        value = json.loads(strict(data.decode()), parse_constant=finite, parse_float=finite)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return [value]


def finite(digits: str) -> float:
    """A float that is one."""
    number = float(digits)
    if number - number != 0:
        raise ValueError(digits)
    return number


@settings(max_examples=500)
@given(st.lists(FRAGMENTS, max_size=12).map("".join))
def test_any_text_is_a_value_or_faults(text: str) -> None:
    """Whatever is in the file: a value that json agrees with, or faults with places; nothing else."""
    check_any(text.encode())
    check_shortcuts(text)


def check_shortcuts(text: str) -> None:
    """What is left to the C scanner changes nothing of what is found, nor where."""
    slow, quick = Scanner(text, quick=False), Scanner(text)
    known = [slow.run(), quick.run()]
    assert (slow.problems, slow.duplicates, slow.sound) == (quick.problems, quick.duplicates, quick.sound)
    assert laid_out(slow, known[0]) == laid_out(quick, known[1])


def laid_out(scanner: Scanner, node: Node) -> object:
    """All values and their places."""
    kids = scanner.kids_of(node)
    if isinstance(kids, dict):
        return node.offset, {key: (at, laid_out(scanner, kid)) for key, (at, kid) in kids.items()}
    return node.offset, [laid_out(scanner, kid) for kid in kids] if kids is not None else node.value


@given(st.binary(max_size=40))
def test_any_bytes_are_a_value_or_faults(data: bytes) -> None:
    """The same for bytes that need not be text."""
    check_any(data)


@settings(max_examples=300)
@given(st.data())
def test_any_one_change_is_survived(data: st.DataObject) -> None:
    """A good file with one character changed, lost or added is still read to a value or to faults."""
    good = SAMPLE.replace('bob",\n    }', 'bob"\n    }').replace('"restart:', '"restart":')
    at = data.draw(st.integers(0, len(good) - 1))
    changed = good[:at] + data.draw(st.sampled_from(["", '"', "{", "}", ",", ":", "x", "\n", "\\", "'"]))
    text = changed + good[at + data.draw(st.integers(0, 1)) :]
    check_any(text.encode())
    check_shortcuts(text)


def test_depth_limit_is_the_one_that_is_said() -> None:
    """At the limit it is read, one deeper it is not, once the slow scanner has to look."""
    deep = "[" * MAX_DEPTH + "]" * MAX_DEPTH

    assert Scanner(deep).run().value == json.loads(deep)
    assert faults(deep.replace("[]", "[,]")) == [f"1:{MAX_DEPTH + 1}: a comma too many: remove it"]


SIZE = 1_000_000
# Each with what it took before: a search to the end of the text, or a copy of it, for every string in it.
LARGE = {
    "strings": ("[" + '"a",' * (SIZE // 4) + '"a"]', []),
    "a fault behind them": ("[" + '"a",' * (SIZE // 4) + ",]", ["a comma too many"]),
    "objects": ('{"x":{"a":1}' + ',"a:b":{"c":1}' * (SIZE // 14) + "}", []),
    "keys with colons": (
        '{"a:":1' + "".join(f',"{n}:":1' for n in range(SIZE // 11)) + ",,}",
        ["a comma too many"],
    ),
    "backslashes": ('{"' + "\\\\" * (SIZE // 2) + '":1,,}', ["a comma too many"]),
    "comments": ("[" + '"a"/*,*/,' * (SIZE // 9) + "]", []),
    "one comment": ("[1, /*" + "*" * SIZE + "*/ x]", ["a string needs double quotes"]),
    "comments without end": ("[" + "/* " * (SIZE // 3), ["the comment that begins here"]),
    "slashes": ("[1, " + "/ " * (SIZE // 2) + "]", ["a value belongs here"]),
    "nobody ends it": ('["a' + "\\\\" * (SIZE // 2), ["closing quote", "the text ends here"]),
    "brackets": (
        '[{"x":[' + '{"a":[},' * (SIZE // 8) + "]}]",
        ["a } where the ["] * MAX_PROBLEMS + ["more than 1000 errors"],
    ),
    "no values": (
        '{"x":{"a":1},"b":[' + '[@ "a":{}],' * (SIZE // 11) + "1]}",
        ["a value belongs here"] * MAX_PROBLEMS + ["more than 1000 errors"],
    ),
    "a quote astray": (
        '["a"b ' + '"a" [] ' * (SIZE // 7) + ", x]",
        ['a " within a string', "a string needs double quotes"],
    ),
    "behind the end": (
        '{"x":{"a":1}}' + ',"a":1}' * (SIZE // 7),
        ["more text after the end"],
    ),
    "faults": (
        "[" + '"a" ' * (SIZE // 4) + "]",
        ["a comma is missing"] * MAX_PROBLEMS + ["more than 1000 errors"],
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_time_is_in_proportion_to_the_text(name: str) -> None:
    """A megabyte in one line takes some tenths of a second, not minutes, however wrong it is."""
    text, expected = LARGE[name]
    start = time.process_time()
    document = Document(text.encode())
    document.place((50_000,) if text.startswith("[") else ("x", "a"))
    places = [document.line_column(fault.offset) for fault in document.problems]
    took = time.process_time() - start

    assert [words in fault.message for fault, words in zip(document.problems, expected, strict=True)].count(
        False
    ) == 0
    assert all(line == 1 for line, _ in places)
    assert took < 1
