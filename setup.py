"""The metadata of JobMon. Settings of the tools are in pyproject.toml."""

from __future__ import annotations

import ast
import os

from setuptools import setup

HERE = os.path.dirname(os.path.abspath(__file__))


def read(name: str) -> str:
    """The text of a file beside this one."""
    with open(os.path.join(HERE, name), encoding="utf-8") as file:
        return file.read()


def version() -> str:
    """`__version__` of jobmon/__init__.py, read and not imported: a build needs none of its dependencies."""
    for node in ast.parse(read("jobmon/__init__.py")).body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == "__version__" for target in targets):
                return str(ast.literal_eval(node.value))  # type: ignore[arg-type]  # never None here
    raise SystemExit("setup.py: jobmon/__init__.py has no line __version__ = ...")


setup(
    name="jobmon",
    version=version(),
    description="A supervisor for jobs on one Linux machine: starts, watches, restarts and stops commands",
    long_description=read("README.md"),
    long_description_content_type="text/markdown",
    author="The JobMon authors",
    # No license classifier: setuptools 77 and later warn about one that repeats the SPDX expression.
    license="BSD-2-Clause",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[
        "jobmon",
        "jobmon.cli",
        "jobmon.config",
        "jobmon.core",
        "jobmon.lean",
        "jobmon.linux",
        "jobmon.linux.control",
        "jobmon.linux.daemon",
        "jobmon.linux.kernel",
        "jobmon.linux.monitor",
        "jobmon.linux.processes",
        "jobmon.protocol",
    ],
    # Spelled out, so that an editable install is one line in a .pth file and no import hook:
    # the hook would be paid for at every start of Python.
    package_dir={"": "."},
    package_data={"jobmon": ["py.typed"]},
    zip_safe=False,
    install_requires=["python-prctl"],
    extras_require={
        "mutants": ["mutmut>=3.8,<4"],
        "test": [
            "hypothesis>=6.100",
            "jsonschema>=4.18",
            "mypy>=1.10",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "ruff>=0.6",
            "setuptools>=66",
            "wheel>=0.38",
        ],
    },
    # `program` and not `main`: it leaves without taking the interpreter down, which every call would pay for.
    entry_points={"console_scripts": ["jobmon = jobmon.cli.main:program"]},
    platforms=["Linux"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: System Administrators",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: System :: Boot :: Init",
        "Topic :: System :: Monitoring",
        "Topic :: System :: Systems Administration",
        "Typing :: Typed",
    ],
)
