"""The house of docs/architecture.md, held by reading the sources: who may import whom, and how it is written.

The tables below are the rules. A new module has to be given its place in them.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import kit
import prctl
import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# ---- the rules -----------------------------------------------------------------------------

# Each folder with the folders that it may import from, downmost first: the path of a file says what it may
# touch. Modules directly under jobmon/ and jobmon/linux/ belong to the groups in TOP_LEVEL.
MAY_USE: dict[str, tuple[str, ...]] = {
    "base": ("lean",),
    "lean": (),
    "core": ("lean", "base"),
    "config": ("lean", "base", "core"),
    "protocol": ("lean", "base"),
    "linux": ("lean", "base"),
    "linux.kernel": ("lean", "base", "core", "linux"),
    "linux.processes": ("lean", "base", "core", "linux", "linux.kernel"),
    "linux.monitor": ("lean", "base", "core", "linux", "linux.kernel", "linux.processes"),
    "linux.control": ("lean", "base", "core", "protocol", "linux", "linux.kernel", "linux.processes"),
    "linux.daemon": (
        *("lean", "base", "core", "config", "protocol"),
        *("linux", "linux.kernel", "linux.processes", "linux.monitor", "linux.control"),
    ),
    "client": ("lean", "base", "protocol"),
    "cli": ("lean", "base", "protocol", "client"),
}

# What stands directly under jobmon/, and so has no folder to say it.
TOP_LEVEL = {
    "": "base",  # its version; it loads the API by name, so that it imports nothing
    "errors": "base",
    "limits": "base",
    "suggest": "base",
    "client": "client",
    "link": "client",
    "transport": "client",
    "__main__": "cli",
}

# The face may use the rest of the house only where it is needed, inside a function of these modules:
# nobody who asks for a status pays for an engine.
DAEMON_VERBS = frozenset(("cli.local", "cli.init"))

IMPURE = frozenset("_socket ctypes os random select signal socket subprocess threading time".split())
PURE_FOLDERS = frozenset(("base", "lean", "core", "config", "protocol"))

# Nobody in the package: each costs memory or start-up time that JobMon promises not to spend,
# or does what belongs to the engine alone.
NOWHERE = frozenset(
    "argparse asyncio contextlib dataclasses inspect logging multiprocessing pathlib random "
    "subprocess tempfile threading typing".split()
)

# What the client may not load in addition, also through others.
NOT_IN_THE_CLIENT = NOWHERE | frozenset(
    "collections ctypes enum functools json prctl re signal socket struct".split()
)

# What a daemon at work may not have loaded: each costs private memory. `re` comes with the first job that is
# ready by its log.
NOT_IN_THE_DAEMON = NOWHERE | frozenset(
    "bisect collections enum functools hashlib importlib json keyword locale operator re reprlib "
    "selectors signal socket traceback warnings weakref".split()
)

# The only module that imports CPython's private ones.
DOOR = "lean.cpython"

# Imports that break a rule above, each for a reason.
EXEMPT: dict[tuple[str, str], str] = {
    ("config.readiness", "_socket"): "inet_pton says what an address is, and opens nothing",
    ("lean.fastjson", "json"): "where the C functions of json are missing or differ from what we know",
}

MAX_FUNCTION_LINES = 60


# ---- reading the sources -------------------------------------------------------------------


def sources(*directories: str) -> Iterator[str]:
    """The Python files under some directories of the project, as paths relative to its top."""
    for directory in directories:
        for here, below, names in os.walk(os.path.join(TOP, directory)):
            below[:] = [name for name in below if name != "__pycache__"]
            for name in sorted(names):
                path = os.path.join(here, name)
                if name.endswith(".py") or begins_with_python(path):
                    yield os.path.relpath(path, TOP)


def begins_with_python(path: str) -> bool:
    """Whether a file without a suffix is a Python program."""
    if "." in os.path.basename(path):
        return False
    with open(path, "rb") as file:
        first = file.readline()
    return first.startswith(b"#!") and b"python" in first


def read(path: str) -> str:
    """The text of a file of the project."""
    with open(os.path.join(TOP, path), encoding="utf-8") as file:
        return file.read()


def tree(path: str) -> ast.Module:
    """The syntax tree of a file of the project."""
    return ast.parse(read(path), path)


def module_name(path: str) -> str:
    """jobmon/linux/processes/spawn.py is linux.spawn; the package itself has the empty name."""
    parts = path.removesuffix(".py").split(os.sep)[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sources("jobmon")}


def is_typing_only(node: ast.AST) -> bool:
    """Whether this is `if TYPE_CHECKING:`, which no interpreter ever enters."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(nodes: Iterable[ast.AST], *, lazy: bool = False) -> Iterator[tuple[str, bool]]:
    """The full names that are imported at run time, and whether that happens only in a function."""
    for node in nodes:
        if is_typing_only(node):
            assert isinstance(node, ast.If)
            yield from imports(node.orelse, lazy=lazy)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            assert node.module is not None
            yield from ((full_name(node.module, alias.name), lazy) for alias in node.names)
        else:
            in_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            yield from imports(ast.iter_child_nodes(node), lazy=lazy or in_function)


def full_name(module: str, name: str) -> str:
    """`from jobmon.linux import spawn` means jobmon.linux.processes.spawn; `from os import path` means os."""
    if module.partition(".")[0] != "jobmon":
        return module
    inner = f"{module}.{name}".removeprefix("jobmon.")
    return f"jobmon.{inner}" if inner in MODULES else module


def outside(module: str) -> set[str]:
    """The top-level names of what a module imports from elsewhere, exemptions left out."""
    names = {name.split(".")[0] for name, _ in imports(tree(MODULES[module]).body)} - {"jobmon"}
    return {name for name in names if (module, name) not in EXEMPT}


def inside(module: str) -> Iterator[tuple[str, bool]]:
    """The modules of JobMon that a module imports, and whether lazily."""
    for name, lazy in imports(tree(MODULES[module]).body):
        if name == "jobmon" or name.startswith("jobmon."):
            yield name.removeprefix("jobmon").removeprefix("."), lazy


def folder_of(module: str) -> str:
    """The folder of a module: the row of MAY_USE that holds for it."""
    if module in TOP_LEVEL:
        return TOP_LEVEL[module]
    return module if module in MAY_USE else module.rpartition(".")[0]


def coupled(module: str) -> set[str]:
    """The modules of JobMon that a module imports, for types only, or lazily, too."""
    names = set()
    for node in ast.walk(tree(MODULES[module])):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {full_name(str(node.module), alias.name) for alias in node.names}
    ours = (name for name in names if name.split(".")[0] == "jobmon")
    inner = {name.removeprefix("jobmon").removeprefix(".") for name in ours}
    return inner & set(MODULES) - {module}


def functions(path: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions and methods of a file."""
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


# ---- the layers ----------------------------------------------------------------------------


def test_every_module_is_in_a_known_folder() -> None:
    """Each module stands in a folder whose imports are ruled, and each rule has a folder."""
    assert {folder_of(module) for module in MODULES} == set(MAY_USE)


def test_the_rules_run_downward() -> None:
    """No two folders may import from each other, over whatever others."""
    below: dict[str, set[str]] = {}
    for _ in MAY_USE:
        for folder, others in MAY_USE.items():
            below[folder] = set(others).union(*(below.get(other, set()) for other in others))

    assert [folder for folder in MAY_USE if folder in below[folder]] == []


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downward(module: str) -> None:
    """A module imports from its own folder and from what that folder may use; types count as well."""
    folder = folder_of(module)
    wrong = []
    for name in coupled(module):
        allowed = folder_of(name) in (folder, *MAY_USE[folder])
        if not (allowed or module in DAEMON_VERBS or module == ""):
            wrong.append(name)

    assert wrong == [], f"jobmon.{module} ({folder}) may not import these"


def test_there_is_no_circle() -> None:
    """No module imports itself over others, not even for types or inside a function."""
    below = {module: coupled(module) for module in MODULES}
    below[""] = set()  # it loads by name
    while leaves := [module for module, names in below.items() if not names]:
        for module in leaves:
            del below[module]
        for names in below.values():
            names.difference_update(leaves)

    assert below == {}


@pytest.mark.parametrize("module", [module for module in MODULES if module not in DAEMON_VERBS])
def test_only_what_needs_it_is_lazy_across_folders(module: str) -> None:
    """At run time, too, the rules hold: a lazy import is no way around them."""
    folder = folder_of(module)
    names = {name for name, _ in inside(module) if name in MODULES}

    assert {name for name in names if folder_of(name) not in (folder, *MAY_USE[folder])} == set()


@pytest.mark.parametrize("module", [module for module in MODULES if folder_of(module) in PURE_FOLDERS])
def test_pure_layers_are_given_the_world(module: str) -> None:
    """The pure folders touch no clock, no process and no file: these come as arguments."""
    assert outside(module) & IMPURE == set()


@pytest.mark.parametrize("module", MODULES)
def test_costly_modules_are_imported_nowhere(module: str) -> None:
    """What would cost every user megabytes or milliseconds is imported by no module, not even lazily."""
    assert outside(module) & NOWHERE == set()


@pytest.mark.parametrize("module", [m for m in MODULES if not m.startswith("linux")])
def test_ctypes_stands_in_one_place(module: str) -> None:
    """Only linux.kernel.syscalls speaks to the C library."""
    assert "ctypes" not in outside(module)


def test_ctypes_stands_in_one_module() -> None:
    """Within linux/, too, nobody but syscalls imports ctypes."""
    users = {module for module in MODULES if "ctypes" in outside(module)}

    assert users <= {"linux.kernel.syscalls"}


CLIENT_VERBS = [["help"], ["--version"], ["status", "web"], ["list-jobs"], ["start", "web"], ["listen"]]
CLIENT_VERBS += [["wait", "web"], ["wait", "web", "--", "true"], ["graph"], ["why", "web"]]


@pytest.mark.parametrize("arguments", CLIENT_VERBS, ids=" ".join)
def test_a_client_loads_little(arguments: list[str], tmp_path: object) -> None:
    """A client verb loads neither the engine nor any module that a client must not pay for."""
    program = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "from jobmon.cli.main import main\n"
        "sys.argv[1:] = " + repr(arguments) + "\n"
        "try:\n"
        "    main()\n"
        "except SystemExit:\n"
        "    pass\n"
        "sys.stderr.write('\\nLOADED ' + ' '.join(set(sys.modules) - before))\n"
    )
    nobody = f"{tmp_path}/control,{tmp_path}/events"
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        capture_output=True,
        text=True,
        cwd=TOP,
        env={"PATH": os.defpath, "PYTHONPATH": TOP, "JOBMON_PORT": nobody},
        check=False,
    )
    loaded = set(done.stderr.rpartition("LOADED ")[2].split())

    assert "jobmon.cli" in loaded, done.stderr
    assert loaded & NOT_IN_THE_CLIENT == set()
    heavy = {name for name in loaded if name.startswith("jobmon.")}
    folders = {name: folder_of(name.removeprefix("jobmon.")) for name in heavy}
    assert {name for name, folder in folders.items() if folder.startswith(("core", "linux"))} == set()


def private(top: ast.AST) -> set[str]:
    """The private modules of CPython that are imported somewhere, also for types only."""
    names = set()
    for node in ast.walk(top):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module))
    return {name for name in names if name.startswith("_") and name != "__future__"}


@pytest.mark.parametrize("module", [module for module in MODULES if module != DOOR])
def test_private_modules_have_one_door(module: str) -> None:
    """Only lean.cpython knows what of CPython is private, and so may change with each version."""
    assert private(tree(MODULES[module])) == set()


def test_private_imports_are_seen() -> None:
    """The rule above looks at something: the door's own imports, and those of each form."""
    forms = "import _signal as s\ndef f():\n    from _socket import socket\nif x:\n    import _json"

    assert private(ast.parse(forms)) == {"_signal", "_socket", "_json"}
    assert private(tree(MODULES[DOOR])) == {"_json", "_socket"}


def test_the_door_has_all_that_is_asked_for() -> None:
    """Each name that a module imports from the door is there in this Python, and nothing else is."""
    from jobmon.lean import cpython

    asked = {
        alias.name
        for path in MODULES.values()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom) and node.module == "jobmon.lean.cpython"
        for alias in node.names
    }

    assert {"signal", "socket", "deque"} <= asked
    assert [name for name in asked if not hasattr(cpython, name)] == []
    assert not hasattr(cpython, "nonsense")
    assert not hasattr(cpython, "__path__")


AT_WORK = """
import sys
before = set(sys.modules)
from jobmon.cli.main import main
code = main(["daemon", "-f", sys.argv[-1]])
with open({report!r}, "w") as file:
    file.write(" ".join(set(sys.modules) - before))
sys.exit(code)
"""


@pytest.mark.slow
def test_a_daemon_at_work_has_loaded_little(daemon: Callable[..., kit.Daemon], tmp_path: Path) -> None:
    """A real daemon that has launched, probed, restarted, reloaded and explained jobs has none of the modules
    that cost memory, nor the code that reads configurations."""
    report = str(tmp_path / "modules")
    compiled = os.path.dirname(prctl.__file__)
    probed = {"command": kit.FOR_EVER, "ready": {"tcp": "127.0.0.1:1"}}
    one = daemon(
        {"jobs": {"web": {"command": kit.FOR_EVER, "autostart": True}, "probed": probed}},
        wrapper=[sys.executable, "-S", "-c", AT_WORK.format(report=report)],
        environ={"PYTHONPATH": f"{kit.SOURCES}:{compiled}"},
    )
    for words in ("start probed --no-wait", "restart web", "status --tree", "why web", "graph", "reload"):
        assert one.run_cli(*words.split()).code == 0, words
    assert one.run_cli("terminate").code == 0
    assert one.wait() == 0
    loaded = set((tmp_path / "modules").read_text().split())

    assert "jobmon.linux.daemon.engine" in loaded
    assert loaded & NOT_IN_THE_DAEMON == set()
    assert {name for name in loaded if name.startswith("jobmon.config")} == set()


def test_the_public_names_are_the_api() -> None:
    """`import jobmon` gives exactly the names that it lists, and each of them is there."""
    import jobmon

    parts = {name.split(".")[0] for name in MODULES} | {"annotations", "TYPE_CHECKING"}
    public = {name for name in vars(jobmon) if not name.startswith("_")}

    assert public - parts <= set(jobmon.__all__)
    assert dir(jobmon) == sorted(jobmon.__all__)
    assert all(getattr(jobmon, name) for name in jobmon.__all__)


# ---- how it is written ---------------------------------------------------------------------

OURS = [path for path in sources("jobmon", "tests", "contrib") if os.path.getsize(os.path.join(TOP, path))]


@pytest.mark.parametrize("path", OURS)
def test_functions_are_short(path: str) -> None:
    """No function has more than sixty lines, its docstring aside."""
    too_long = {}
    for function in functions(path):
        body = function.body[1:] if ast.get_docstring(function) is not None else function.body
        lines = (function.end_lineno or 0) - body[0].lineno + 1 if body else 0
        if lines > MAX_FUNCTION_LINES:
            too_long[function.name] = lines

    assert too_long == {}


@pytest.mark.parametrize("path", OURS)
def test_annotations_cost_nothing(path: str) -> None:
    """Every file postpones its annotations, so that types need no import at run time."""
    statements = [ast.unparse(node) for node in tree(path).body[1:]]

    assert statements[:1] in ([], ["from __future__ import annotations"])


@pytest.mark.parametrize("path", OURS)
def test_every_file_says_what_it_is_for(path: str) -> None:
    """Every file begins with a docstring that gives its role."""
    assert ast.get_docstring(tree(path))


TESTS = list(sources("tests"))


@pytest.mark.parametrize("path", TESTS)
def test_every_test_makes_a_claim(path: str) -> None:
    """Every test says in its docstring what it holds to be true."""
    silent = [f.name for f in functions(path) if f.name.startswith("test_") and not ast.get_docstring(f)]

    assert silent == []


@pytest.mark.parametrize("path", TESTS)
def test_no_test_sleeps(path: str) -> None:
    """Tests wait for the thing, never for time: nothing in tests/ calls or imports a sleep."""
    sleeps = [ast.unparse(node) for node in ast.walk(tree(path)) if is_sleep(node)]

    assert sleeps == []


def is_sleep(node: ast.AST) -> bool:
    """Whether this is time.sleep or asyncio.sleep, or brings one of them in by name."""
    if isinstance(node, ast.ImportFrom):
        return any(alias.name == "sleep" for alias in node.names)
    return (
        isinstance(node, ast.Attribute)
        and node.attr == "sleep"
        and isinstance(node.value, ast.Name)
        and node.value.id in ("time", "asyncio")
    )


# ---- documents and everything else ---------------------------------------------------------

DOCUMENTS = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"),
    *("docs/architecture.md", "docs/stopping.md"),
)
MORE_DOCUMENTS = ("docs/configuration.md", "docs/json.md", "docs/protocol.md", "contrib/examples/README.md")


@pytest.mark.parametrize("path", DOCUMENTS + MORE_DOCUMENTS)
def test_documents_exist(path: str) -> None:
    """What a newcomer looks for is there."""
    assert len(read(path)) > 200


LINK = re.compile(r"\]\(([^)#:\s]+)(?:#([^)\s]+))?\)")


def written() -> list[str]:
    """The documents of the project."""
    tops = [name for name in os.listdir(TOP) if name.endswith(".md")]
    docs = [f"docs/{name}" for name in os.listdir(os.path.join(TOP, "docs")) if name.endswith(".md")]
    return sorted([*tops, *docs, "contrib/examples/README.md"])


@pytest.mark.parametrize("path", ["README.md", "CONTRIBUTING.md", "docs", "contrib/examples/README.md"])
def test_links_lead_somewhere(path: str) -> None:
    """Every relative link in a document names a file of the project."""
    documents = [name for name in written() if name.startswith(path)]
    broken = [
        (name, target)
        for name in documents
        for target, _ in LINK.findall(read(name))
        if not os.path.exists(os.path.join(TOP, os.path.dirname(name), target))
    ]

    assert documents
    assert broken == []


def project_files() -> list[str]:
    """Every file that is tracked; the sources and documents where there is no git to ask."""
    tracked = ""
    if shutil.which("git"):
        # It refuses (and says nothing) where there is no repository, or one of somebody else's.
        ask = ["git", "-C", TOP, "ls-files", "-z"]
        tracked = subprocess.run(ask, capture_output=True, text=True, check=False).stdout
    files = [name for name in tracked.split("\0") if os.path.isfile(os.path.join(TOP, name))]
    return files or [*sources("jobmon", "tests", "contrib", "bench"), *written()]


# In pieces, so that this file does not contain what it looks for.
A_MACHINE = re.compile("|".join(("/wo" + "rk/", "/ro" + r"ot/\.", r"\.py" + "env/", "/tmp/v" + r"\d")))


def test_nothing_names_the_machine_it_was_made_on() -> None:
    """No file of the project has a path that exists on one developer's machine only."""
    found = {}
    for name in project_files():
        with open(os.path.join(TOP, name), "rb") as file:
            text = file.read().decode("utf-8", "replace")
        lines = [line for line, content in enumerate(text.splitlines(), 1) if A_MACHINE.search(content)]
        if lines:
            found[name] = lines

    assert found == {}


@pytest.mark.parametrize("target", ["demo", "test", "check", "bench", "docs", "clean"])
def test_make_help_names_every_target(target: str) -> None:
    """`make` alone lists what it can do."""
    said = subprocess.run(["make", "-s"], cwd=TOP, capture_output=True, text=True, check=True).stdout

    assert re.search(rf"^ *{target} +\S", said, re.MULTILINE)


# ---- the tests of the tests ----------------------------------------------------------------


def test_the_reader_of_imports_sees_what_it_should() -> None:
    """Plain and lazy imports are seen, those for type checkers are not: blind rules would always hold."""
    text = (
        "import os.path\n"
        "from jobmon.linux.processes import spawn\n"
        "if TYPE_CHECKING:\n    import typing\nelse:\n    import enum\n"
        "def f():\n    from json import loads\n"
        "try:\n    import ctypes\nexcept ImportError:\n    pass\n"
    )
    seen = set(imports(ast.parse(text).body))

    assert ("os.path", False) in seen
    assert ("enum", False) in seen
    assert ("json", True) in seen
    assert ("ctypes", False) in seen
    assert ("jobmon.linux.processes.spawn", False) in seen
    assert not any(name == "typing" for name, _ in seen)


def test_the_rules_can_be_broken() -> None:
    """The engine does use what pure layers may not, so the test of them looks at something."""
    used = {name for module in MODULES if module.startswith("linux") for name in outside(module)}

    assert {"os", "select"} <= used
