"""JobMon beside supervisord, s6 and runit, in interleaved rounds: medians, ratios, targets.

Ends with 0 when every target that was measured is kept, else with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import peers
import system
from measures import MEASURES, NAMES, Limit, Measure, Run
from system import BenchError

ROOT = Path(__file__).resolve().parent.parent
NOT_SOURCE = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
COLUMNS = (*(peer.name for peer in peers.ALL), "python3 -c pass")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench/run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a first impression")
    everything, everybody = ",".join(NAMES), ",".join(peer.name for peer in peers.ALL)
    usual = ",".join(peer.name for peer in peers.ALL if peer.by_default)
    parser.add_argument("--only", metavar="MEASURE,...", default=everything, help="of " + everything)
    parser.add_argument("--peers", metavar="PEER,...", default=usual, help="of " + everybody)
    parser.add_argument("--json", metavar="FILE", help="write all samples there")
    return parser.parse_args()


def chosen(text: str, possible: list[str], what: str) -> list[str]:
    """The names in `text`, all of which must be possible."""
    names = text.split(",")
    unknown = [name for name in names if name not in possible]
    if unknown:
        raise BenchError(f"no {what} is called {', '.join(unknown)}; there are {', '.join(possible)}")
    return names


def say(text: str) -> None:
    """What happens now, for somebody who waits."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def quietly(command: list[str]) -> None:
    """Run a command; what it says matters only when it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(command)} failed:\n{done.stdout.strip()}")


def install_jobmon(base: Path) -> None:
    """Build a wheel of this tree, apart from it, and install that as a user would."""
    source = base / "source"
    shutil.copytree(ROOT, source, ignore=NOT_SOURCE)
    pip = [str(peers.JobMon.python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    quietly([*pip, "wheel", "--no-deps", "--wheel-dir", str(base / "wheel"), str(source)])
    wheels = [str(path) for path in (base / "wheel").glob("*.whl")]
    quietly([*pip, "install", "--no-deps", "--force-reinstall", *wheels])


def participants(wanted: list[str], base: Path) -> list[peers.Peer]:
    """The peers that can be measured here; the others are named."""
    if any(name.startswith("jobmon") for name in wanted):
        install_jobmon(base)
    found = []
    for peer in peers.ALL:
        if peer.name in wanted:
            missing = peer.missing()
            if missing:
                say(f"without {peer.name}: {missing}")
            else:
                found.append(peer)
    return found


def measured(options: argparse.Namespace, base: Path) -> Run:
    """Do it all."""
    wanted = set(chosen(options.only, list(NAMES), "measure"))
    names = chosen(options.peers, [peer.name for peer in peers.ALL], "peer")
    quietly(["gcc", "-O2", "-static", "-o", str(base / "probe"), str(peers.HERE / "probe.c")])
    quick = options.quick
    run = Run(
        peers=participants(names, base),
        wanted=wanted,
        base=base,
        rounds=3 if quick else 10,
        fleet_rounds=1 if quick else 5,
        fleet_jobs=1000,
        idle_jobs=100,
        idle_s=5 if quick else 20,
        request_s=0.3 if quick else 1,
        say=say,
    )
    run.all()
    return run


def number(value: float | None) -> str:
    """A number for the table."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def verdict(limit: Limit, medians: dict[str, float]) -> tuple[str, bool]:
    """One target in words, and whether nothing speaks against it."""
    value = limit.value(medians)
    if value is None:
        return f"{limit}: not measured", True
    kept = limit.kept(value)
    return f"{limit}: {number(value)} {'ok' if kept else 'MISSED'}", kept


def line(measure: Measure, run: Run) -> tuple[list[str], bool]:
    """One line of the table, and whether its targets are kept."""
    medians = run.medians(measure.name)
    verdicts = [verdict(limit, medians) for limit in measure.limits]
    cells = [f"{measure.name}, {measure.unit}", *(number(medians.get(name)) for name in COLUMNS)]
    return [*cells, "; ".join(text for text, _ in verdicts)], all(kept for _, kept in verdicts)


def table(run: Run) -> bool:
    """Print the results as a table (markdown), and return whether all targets are kept."""
    measured_ones = run.wanted & run.samples.keys()
    lines = [line(measure, run) for measure in MEASURES if measure.name in measured_ones]
    rows = [["median of", *COLUMNS, "target: result"], *(cells for cells, _ in lines)]
    columns = [column for column in zip(*rows, strict=True) if set(column[1:]) != {"-"}]
    rows = [list(row) for row in zip(*columns, strict=True)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    for row in rows:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    return all(kept for _, kept in lines)


def machine() -> dict[str, str]:
    """Where it was measured."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "processors": str(len(os.sched_getaffinity(0))),
        "load": " ".join(f"{load:.1f}" for load in os.getloadavg()),
    }


def main() -> int:
    """Run the benchmark."""
    options = arguments()
    before = machine()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # cleans up
    try:
        system.prepare_harness()
        with tempfile.TemporaryDirectory(prefix="jobmon-bench-") as base:
            run = measured(options, Path(base))
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    after = machine()
    print(", ".join(f"{key} {value}" for key, value in before.items()) + f" (after: {after['load']})")
    kept = table(run)
    if options.json:
        everything = {"before": before, "after": after, "samples": run.samples}
        Path(options.json).write_text(json.dumps(everything, indent=1) + "\n")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
