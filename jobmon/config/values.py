"""The types of values in a configuration: from JSON to what the spec holds.

A `ValueType` turns a value into what the spec holds, or says what is wrong with it; it also knows its
JSON Schema and its words for people. No I/O, and no knowledge of files, places and keys: that is
`loader` and `keys`.
"""
# ruff: noqa: D102, ARG002 - the contract of read() and schema() stands in ValueType, with all their arguments

from __future__ import annotations

from jobmon import limits
from jobmon.config.jsontext import MAX_PROBLEMS, escape, quote
from jobmon.core import spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    Step = str | int
    Schema = dict[str, Any]

NUL = "\0"
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_"
_NAME_CHARS = _LETTERS + "0123456789"
MAX_GUESSED = 40  # letters in a word: a longer one is no slip of a finger
LIKENESS = 0.65  # how much of two names is the same, as difflib counts it: "web" and "wep" are just so alike
# How many pairs of letters are compared for the sake of good advice: so many in any case, so many for each
# letter of all the names, and never more (half a second).
FREE_LETTERS, LETTERS_FOR_EACH, LETTERS = 200_000, 50, 2_000_000
_NO_NUL = "^[^\\u0000]*$"


class ValidationError(Exception):
    """A value cannot be used: each problem is the steps from that value to the place, and a message.

    `rest` are those of its elements that can be used, so that more problems may be found behind them.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.problems: list[tuple[tuple[Step, ...], str]] = [((), message)]
        self.rest: tuple[Any, ...] = ()

    @classmethod
    def inside(
        cls, problems: list[tuple[tuple[Step, ...], str]], rest: tuple[Any, ...] = ()
    ) -> ValidationError:
        """Several problems in the parts of one value."""
        error = cls("")
        error.problems = problems
        error.rest = rest
        return error


def show(value: object) -> str:
    """A value as an error message shows it: short, on one line."""
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 30 else text[:27] + "..."


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate that somebody who wrote `word` most likely meant."""
    return next(iter(_alike(word, candidates, 1)), None)


def _alike(word: str, names: Iterable[str], count: int) -> tuple[str, ...]:
    """Those of some names that are most like a word, the best first."""
    if len(word) > MAX_GUESSED:
        return ()
    from difflib import get_close_matches

    folded = {_fold(name): name for name in names if abs(len(name) - len(word)) <= max(1, len(name) // 3)}
    return tuple(folded[each] for each in get_close_matches(_fold(word), folded, count, LIKENESS))


def _fold(name: str) -> str:
    return name.lower().replace("_", "-")


class Guess:
    """Guesses which of many names was meant by a word that is none of them. Each word is looked for once, and
    the cost of all of them is bounded: beyond that nothing is guessed any more."""

    def __init__(self, names: Iterable[str]) -> None:
        self._by_length: dict[int, list[str]] = {}
        for name in names:
            self._by_length.setdefault(len(name), []).append(name)
        self._known: dict[str, tuple[str, ...]] = {}
        letters = sum(length * len(names) for length, names in self._by_length.items())
        self._left = min(FREE_LETTERS + LETTERS_FOR_EACH * letters, LETTERS)

    def nearest(self, word: str, other: str) -> str | None:
        """The name that is most like `word`, if one is much like it; never `other`."""
        if word not in self._known:
            self._known[word] = self._two(word)
        return next((name for name in self._known[word] if name != other), None)

    def _two(self, word: str) -> tuple[str, ...]:
        """The best two."""
        near = [] if len(word) > MAX_GUESSED else self._of_like_length(word)
        self._left -= len(word) * sum(map(len, near))
        return _alike(word, near, 2) if near and self._left >= 0 else ()

    def _of_like_length(self, word: str) -> list[str]:
        lengths = range(len(word) * 3 // 4, len(word) * 3 // 2 + 2)
        return [name for length in lengths for name in self._by_length.get(length, ())]


def text_problem(text: str) -> str | None:
    """What keeps `text` from leaving for the kernel or the wire, if anything."""
    if NUL in text:
        return "must not hold the character NUL (\\u0000)"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return "holds half a character (a lone surrogate): remove it"
    return None


class Context:
    """What the values of one configuration are read against.

    Attributes:
        base: the absolute directory that relative paths start from.
        warnings: about the value just read; the reader takes them away.
    """

    def __init__(self, environ: Mapping[str, str], tmp: str, base: str) -> None:
        self.base = base
        self.warnings: list[str] = []
        self._environ = environ
        self._defaults = {"TMP": tmp, "DEVNULL": "/dev/null"}
        self._paths: dict[str, str] = {}
        self._pool: dict[str, str] = {}

    def same(self, text: str) -> str:
        """`text`, as one object for the whole configuration: a thousand jobs repeat themselves."""
        return self._pool.setdefault(text, text)

    def move(self, base: str) -> None:
        """Relative paths start from `base` now."""
        self.base = base
        self._paths.clear()

    def path(self, text: str) -> str:
        """`text` expanded and absolute.

        Raises:
            ValidationError: it is empty, holds a NUL, or names a variable that is not set.
        """
        found = self._paths.get(text)
        if found is None:
            found = self._paths[text] = join(self.base, self._expanded(text))
        self._warn_of_tilde(text)
        return found

    def glob(self, text: str, base: str | None = None) -> str:
        """As `path`, for a glob, from another base where one is given: special characters in the name of that
        directory are escaped."""
        pattern = self._expanded(text)
        self._warn_of_tilde(text)
        base = self.base if base is None else base
        return join("".join(f"[{c}]" if c in "*?[" else c for c in base), pattern)

    def _expanded(self, text: str) -> str:
        expanded = self.expand(text)
        if not expanded:
            raise ValidationError(
                f"is empty once {quote(text)} is expanded" if text else "is empty: a path is wanted"
            )
        return expanded

    def _warn_of_tilde(self, text: str) -> None:
        if text.startswith("~"):
            self.warnings.append("a ~ is not expanded: write $HOME")

    def expand(self, text: str) -> str:
        """`text` with $NAME, ${NAME} and $$ replaced; a $ that begins no name stays.

        Raises:
            ValidationError: a NUL, an unset variable, a ${ without its }.
        """
        problem = text_problem(text)
        if problem:
            raise ValidationError(problem)
        head, dollar, rest = text.partition("$")
        parts = [head]
        while dollar:
            if rest.startswith("$"):
                parts.append("$")
                rest = rest[1:]
            else:
                name, rest = _variable(rest)
                parts.append(self._variable(name) if name else "$")
            head, dollar, rest = rest.partition("$")
            parts.append(head)
        return "".join(parts)

    def _variable(self, name: str) -> str:
        value = self._environ.get(name)
        if value is None:
            value = self._defaults.get(name)
        if value is None:
            raise ValidationError(f"the variable ${name} is not set (a $ itself is written $$)")
        if text_problem(value):
            raise ValidationError(f"the value of the variable ${name} is not UTF-8")
        return value


def _variable(rest: str) -> tuple[str, str]:
    """The name that `rest` (what follows a $) begins with, and what follows it."""
    braced = rest.startswith("{")
    start = 1 if braced else 0
    if rest[start : start + 1] not in _LETTERS or len(rest) == start:
        return "", rest
    end = start
    while end < len(rest) and rest[end] in _NAME_CHARS:
        end += 1
    if not braced:
        return rest[:end], rest[end:]
    if rest[end : end + 1] != "}":
        raise ValidationError(f"${{{rest[1:end]} has no closing }} after its name (a $ itself is written $$)")
    return rest[1:end], rest[end + 1 :]


def join(base: str, path: str) -> str:
    """`path`, made absolute against `base`; no look at the disk, so .. and links stay."""
    if path.startswith("/"):
        return path
    while path.startswith("./"):
        path = path[2:].lstrip("/")
    if path in ("", "."):
        return base
    return base.rstrip("/") + "/" + path


class ValueType:
    """A type of value. `expects` ends the sentence "must be ..."; `words` is its name in the docs."""

    expects = ""
    words = ""

    def read(self, value: Any, context: Context) -> Any:
        """The value as the spec holds it. Raises ValidationError."""
        raise NotImplementedError

    def schema(self) -> Schema:
        """Its JSON Schema."""
        raise NotImplementedError

    def not_this(self, value: object) -> ValidationError:
        """The value is of the wrong type or out of range."""
        return ValidationError(f"must be {self.expects}, not {show(value)}")


class Text(ValueType):
    """Any text."""

    expects = 'a string in quotes, as "text"'
    words = "string"

    def read(self, value: Any, context: Context) -> str:
        if not isinstance(value, str):
            raise self.not_this(value)
        problem = text_problem(value)
        if problem:
            raise ValidationError(problem)
        return context.same(value)

    def schema(self) -> Schema:
        return {"type": "string", "pattern": _NO_NUL}


class Command(ValueType):
    """A line for the shell, or a list of arguments."""

    expects = 'a string for /bin/sh, or a list of strings, as ["prog", "argument"]'
    words = "string, or list of strings"

    def read(self, value: Any, context: Context) -> str | tuple[str, ...]:
        if isinstance(value, str):
            if not value.strip():
                raise ValidationError("is empty: a job needs the command that it runs")
            return TEXT.read(value, context)
        if not isinstance(value, list):
            raise self.not_this(value)
        if not value or value[0] == "":
            raise ValidationError("is empty: its first element must be the program to run")
        return _each(value, TEXT, context)

    def schema(self) -> Schema:
        text = TEXT.schema()
        program = {"type": "string", "pattern": "^[^\\u0000]+$"}
        shell = {"type": "string", "pattern": "^[^\\u0000]*[^\\s\\u0000][^\\u0000]*$"}
        return {"oneOf": [shell, {"type": "array", "minItems": 1, "prefixItems": [program], "items": text}]}


def _each(values: list[Any], kind: ValueType, context: Context) -> tuple[Any, ...]:
    """All values by one type, or all their problems."""
    found: list[Any] = []
    problems: list[tuple[tuple[Step, ...], str]] = []
    for index, value in enumerate(values):
        try:
            found.append(kind.read(value, context))
        except ValidationError as error:
            problems += [((index, *steps), message) for steps, message in error.problems]
            if len(problems) > MAX_PROBLEMS:
                break
    if problems:
        raise ValidationError.inside(problems, tuple(found))
    return tuple(found)


class Path(ValueType):
    """A path, expanded, and absolute from the supervisor's working-dir."""

    expects = 'a path in quotes, as "$TMP/file"'
    words = "path"

    def read(self, value: Any, context: Context) -> str:
        if not isinstance(value, str):
            raise self.not_this(value)
        return context.path(value)

    def schema(self) -> Schema:
        return {"type": "string", "pattern": "^[^\\u0000]+$"}


class Stream(Path):
    """A path, or the daemon's own stream."""

    expects = 'a path in quotes, as "$TMP/file", or "inherit"'
    words = 'path, or `"inherit"`'

    def read(self, value: Any, context: Context) -> str:
        return value if value == "inherit" else super().read(value, context)


class Flag(ValueType):
    """true or false."""

    expects = "true or false"
    words = "`true` or `false`"

    def read(self, value: Any, context: Context) -> bool:
        if isinstance(value, bool):
            return value
        if value in ("true", "false"):
            raise ValidationError(f"must be true or false, not {show(value)}: remove the quotes")
        raise self.not_this(value)

    def schema(self) -> Schema:
        return {"type": "boolean"}


class Choice(ValueType):
    """One of a few words; `meanings` maps what may be written to what the spec holds."""

    def __init__(self, meanings: dict[Any, Any], any_case: bool = False) -> None:
        self._meanings = meanings
        self._any_case = any_case
        shown = [show(each) for each in meanings]
        self.expects = ", ".join(shown[:-1]) + " or " + shown[-1]
        self.words = ", ".join(f"`{each}`" for each in shown) + (" (any case)" if any_case else "")

    def read(self, value: Any, context: Context) -> Any:
        if isinstance(value, (str, bool)):
            word = value.upper() if self._any_case and isinstance(value, str) else value
            if word in self._meanings:
                return self._meanings[word]
        message = f"must be {self.expects}, not {show(value)}"
        if isinstance(value, str):
            message += self._advice(value)
        raise ValidationError(message)

    def _advice(self, value: str) -> str:
        if value in ("true", "false") and True in self._meanings:
            return ": remove the quotes"
        meant = nearest(value, [each for each in self._meanings if isinstance(each, str)])
        return f"; did you mean {quote(meant)}?" if meant else ""

    def schema(self) -> Schema:
        if self._any_case:
            return {"type": "string", "pattern": "^(" + "|".join(map(_any_case, self._meanings)) + ")$"}
        return {"enum": list(self._meanings)}


def _any_case(word: str) -> str:
    """A pattern for `word` in any case: patterns of JSON Schema have no flag for it."""
    return "".join(f"[{c}{c.lower()}]" if c.isalpha() else c for c in word)


class Number(ValueType):
    """A number within bounds; `whole` for integers, which bools are not."""

    def __init__(self, low: float, high: float, what: str, whole: bool = False, null: str = "") -> None:
        self._low, self._high, self._whole, self._null = low, high, whole, null
        self.expects = f"{what} from {low} to {int(high)}" + (f", or null ({null})" if null else "")
        self.words = what.removeprefix("a ").removeprefix("number of ") + (
            f", or `null` ({null})" if null else ""
        )

    def read(self, value: Any, context: Context) -> Any:
        if value is None and self._null:
            return None
        if not self._fits(value):
            raise ValidationError(f"must be {self.expects}, not {show(value)}{self._advice(value)}")
        return int(value) if self._whole else float(value)

    def _fits(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self._whole else (int, float)):
            return False
        return self._low <= value <= self._high

    def _advice(self, value: object) -> str:
        digits = value.removesuffix("s").strip() if isinstance(value, str) else ""
        if digits.isascii() and digits.isdigit() and len(digits) < 10 and self._fits(int(digits)):
            return f": write {int(digits)}"
        return ""

    def schema(self) -> Schema:
        kind = "integer" if self._whole else "number"
        high = int(self._high)
        return {"type": [kind, "null"] if self._null else kind, "minimum": self._low, "maximum": high}


class Signal(ValueType):
    """The name of a signal. `stops` warns of those that stop nothing."""

    expects = 'the name of a signal, as "SIGTERM"'
    words = "signal name"

    def __init__(self, stops: bool = False) -> None:
        self._stops = stops

    def read(self, value: Any, context: Context) -> str:
        if not isinstance(value, str):
            raise self.not_this(value)
        name = spec.canonical_signal(value)
        if name is None:
            raise ValidationError(self._no_signal(value))
        if self._stops and name in ("SIGSTOP", "SIGTSTP"):
            context.warnings.append(
                f"{name} stops nothing, it only pauses: the job ends by SIGKILL after kill-timeout"
            )
        return context.same(name)

    def _no_signal(self, value: str) -> str:
        if spec.canonical_signal("SIG" + value):
            return f"the name of a signal begins with SIG: write {quote('SIG' + value.upper())}"
        meant = nearest(value, (*spec.SIGNALS, *spec.SIGNAL_ALIASES))
        advice = f"did you mean {quote(meant)}?" if meant else "`kill -l` lists them"
        return f"{quote(value)} is not the name of a signal; {advice}"

    def schema(self) -> Schema:
        plain = [_any_case(name[3:]) for name in (*spec.SIGNALS, *spec.SIGNAL_ALIASES)]
        steps = "(0?[0-9]|[12][0-9]|30)"
        realtime = _any_case("RTM") + f"({_any_case('IN')}(\\+{steps})?|{_any_case('AX')}(-{steps})?)"
        return {"type": "string", "pattern": "^[Ss][Ii][Gg](" + "|".join([*plain, realtime]) + ")$"}


class Codes(ValueType):
    """A set of exit codes and signal names."""

    expects = 'a list of exit codes (0-255) and signal names, as [0, 3, "SIGTERM"]'
    words = "list of exit codes (0-255) and signal names"

    class _Code(ValueType):
        def read(self, value: Any, context: Context) -> int | str:
            if isinstance(value, str) and not value.isdigit():
                return SIGNAL.read(value, context)
            code: int = EXIT_CODE.read(value, context)
            return code

    def read(self, value: Any, context: Context) -> frozenset[int | str]:
        if not isinstance(value, list):
            raise self.not_this(value)
        return frozenset(_each(value, self._Code(), context))

    def schema(self) -> Schema:
        return {"type": "array", "items": {"oneOf": [EXIT_CODE.schema(), SIGNAL.schema()]}}


class Environment(ValueType):
    """Variables and their values, neither of them expanded."""

    expects = 'an object of strings, as {"NAME": "value"}'
    words = "object of strings"

    def read(self, value: Any, context: Context) -> Mapping[str, str]:
        if not isinstance(value, dict):
            raise self.not_this(value)
        problems: list[tuple[tuple[Step, ...], str]] = []
        found: dict[str, str] = {}
        for name, content in value.items():
            problem = self._problem(name, content)
            if problem:
                problems.append(((name,), problem))
                if len(problems) > MAX_PROBLEMS:
                    break
            else:
                found[context.same(name)] = context.same(content)
        if problems:
            raise ValidationError.inside(problems)
        return found

    def _problem(self, name: str, content: object) -> str | None:
        if not name:
            return "the name of a variable must not be empty"
        if "=" in name:
            return "the name of a variable must not hold ="
        problem = text_problem(name)
        if problem:
            return f"the name of a variable {problem}"
        if isinstance(content, str):
            return text_problem(content)
        plain = isinstance(content, (int, float))
        advice = f": write {quote(show(content))}" if plain else ""
        return f"must be {TEXT.expects}, not {show(content)}{advice}"

    def schema(self) -> Schema:
        names = {"pattern": "^[^=\\u0000]+$"}
        return {"type": "object", "propertyNames": names, "additionalProperties": TEXT.schema()}


class Port(ValueType):
    """A TCP port on 127.0.0.1, or the path of a UNIX socket."""

    expects = 'a TCP port from 1 to 65535, or the path of a UNIX socket, as "$TMP/jobmon.sock"'
    words = "port (1-65535), or path"

    def read(self, value: Any, context: Context) -> int | str:
        if isinstance(value, str):
            return self._socket(value, context)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65535:
            raise self.not_this(value)
        return value

    def _socket(self, value: str, context: Context) -> str:
        if value.isascii() and value.isdigit():
            raise ValidationError(
                f"a TCP port is a number without quotes: write {int(value[:9])}"
                f" (for a socket file of that name, {quote('./' + value)})"
            )
        path = context.path(value)
        if "," in path:
            raise ValidationError(
                f"must not hold a comma, which separates the two in $JOBMON_PORT: {quote(path, 200)}"
            )
        size = len(path.encode("utf-8", "surrogateescape"))
        if size > limits.SOCKET_PATH_BYTES:
            raise ValidationError(
                f"the path of a UNIX socket can have {limits.SOCKET_PATH_BYTES} bytes,"
                f" this one has {size}: {quote(path, 400)}"
            )
        if text_problem(path):
            raise ValidationError(f"the path of a UNIX socket must be UTF-8: {quote(path, 400)}")
        return path

    def schema(self) -> Schema:
        path = {"type": "string", "pattern": "^(?![0-9]+$)[^\\u0000,]+$"}
        return {"oneOf": [{"type": "integer", "minimum": 1, "maximum": 65535}, path]}


class Globs(ValueType):
    """Patterns of files, expanded and absolute."""

    expects = 'a list of globs, as ["jobs/*.json"]'
    words = "list of globs"

    class _Glob(ValueType):
        expects = 'a glob in quotes, as "jobs/*.json"'

        def read(self, value: Any, context: Context) -> str:
            if not isinstance(value, str):
                raise self.not_this(value)
            return context.glob(value)

    def read(self, value: Any, context: Context) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise self.not_this(value)
        return _each(value, self._Glob(), context)

    def schema(self) -> Schema:
        return {"type": "array", "items": PATH.schema()}


class Names(ValueType):
    """Users or groups, by name or number; whoever has the password file at hand resolves them."""

    def __init__(self, what: str, sample: str) -> None:
        self.expects = f'a list of names or numbers of {what}s, as ["{sample}", 1000]'
        self.words = "list of names or numbers"
        self._one = self._Name(what, sample)

    class _Name(ValueType):
        def __init__(self, what: str, sample: str) -> None:
            self.expects = f'the name of a {what} in quotes, as "{sample}", or a number, as 1000'

        def read(self, value: Any, context: Context) -> str | int:
            if isinstance(value, str) and value:
                if value.isascii() and value.isdigit():
                    raise ValidationError(
                        f"a number stands without quotes: write {value[:12].lstrip('0') or '0'}"
                    )
                return TEXT.read(value, context)
            if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= spec.MAX_ID:
                return value
            raise self.not_this(value)

    def read(self, value: Any, context: Context) -> tuple[str | int, ...]:
        if not isinstance(value, list):
            raise self.not_this(value)
        return _each(value, self._one, context)

    def schema(self) -> Schema:
        name = {"type": "string", "pattern": "^(?![0-9]+$)[^\\u0000]+$"}
        number = {"type": "integer", "minimum": 0, "maximum": spec.MAX_ID}
        return {"type": "array", "items": {"oneOf": [name, number]}}


class JobNames(ValueType):
    """Names of other jobs; whether there are such jobs is seen when all files are read."""

    expects = 'a list of names of jobs, as ["db"]'
    words = "list of names of jobs"

    def read(self, value: Any, context: Context) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise self.not_this(value)
        return tuple(dict.fromkeys(_each(value, TEXT, context)))

    def schema(self) -> Schema:
        return {"type": "array", "items": TEXT.schema()}


TEXT = Text()
PATH = Path()
SIGNAL = Signal()
EXIT_CODE = Number(0, 255, "an exit code", whole=True)


def path_text(steps: Iterable[Step]) -> str:
    """A path as people read it: jobs.web.command[0]; odd names in quotes."""
    text = ""
    for step in steps:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += ("." if text else "") + _step(step)
    return text


def _step(name: str) -> str:
    odd = not name or not name.isprintable() or any(char in name for char in '.:"\\[]')
    odd = odd or name != name.strip()
    return f'"{escape(name)}"' if odd else name
