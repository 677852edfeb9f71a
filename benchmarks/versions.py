"""Is a step of this checkout as fast as one of another? Both train in turns, in processes of their own.

Command: python -m benchmarks.versions OTHER_CHECKOUT [--device cpu] [--blocks 8] [--steps 3] [--losses dpo,simpo]

Blocks alternate, so that whatever else the machine does falls on both alike; the ratio is that of the medians and of
the fastest blocks. What it said is reported in results/LOG.md.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from multiprocessing.connection import Connection, Listener
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
CHILD = """
import sys
from multiprocessing.connection import Client
sys.path.insert(0, sys.argv[1])
from benchmarks.speed.cases import Case
from benchmarks.speed.command import default_model
from benchmarks.speed.ours import work
from benchmarks.speed.workers import Stopped
case = Case(shape="135m", model=default_model("135m"), device=sys.argv[3], dtype=sys.argv[4])
connection = Client(sys.argv[2])
try:
    work(connection, case=case, losses=sys.argv[5].split(","))
except Stopped:
    pass
"""


def start(checkout: Path, place: Path, options: argparse.Namespace) -> tuple[subprocess.Popen[bytes], Connection]:
    """A process that trains with the code of a checkout, once it is ready."""
    with Listener(str(place)) as listener:
        words = [str(checkout), str(place), options.device, options.dtype, options.losses]
        process = subprocess.Popen([sys.executable, "-P", "-c", CHILD, *words], cwd=checkout)
        connection = listener.accept()
    connection.recv()
    return process, connection


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="a checkout of another version")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="steps of a block")
    parser.add_argument("--losses", default="dpo", help="trained in lockstep")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            "this": start(HERE, Path(folder) / "this", options),
            "other": start(options.other.resolve(), Path(folder) / "other", options),
        }
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for block in range(options.blocks + 1):
            for name in sides if block % 2 else reversed(sides):  # neither is always the first
                connection = sides[name][1]
                connection.send(options.steps)
                taken = connection.recv()["seconds"] / options.steps
                if block:  # the first one warms up
                    seconds[name].append(taken)
        for process, connection in sides.values():
            connection.send(0)
            process.wait()
    for name, times in seconds.items():
        print(f"{name:6} s a step: median {statistics.median(times):.3f}, fastest {min(times):.3f}")
    median, fastest = (f(seconds["this"]) / f(seconds["other"]) for f in (statistics.median, min))
    print(f"this / other: {median:.3f} by medians, {fastest:.3f} by the fastest blocks")


if __name__ == "__main__":
    main()
