"""Measure the speed of prefopt beside TRL on this machine.

    python -m benchmarks.speed --device cpu --out results/speed/NAME       everything that a CPU can show
    python -m benchmarks.speed --device cuda --sections big                one section, on CUDA
    python -m benchmarks.speed --render --out results/speed/NAME           tables and figures from CSV files alone

Each section writes its own CSV file, so that a long measurement can be made in parts.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import sys
import time
from pathlib import Path

import pandas as pd
import torch

from benchmarks.speed.cases import Case
from benchmarks.speed.render import render
from benchmarks.speed.sections import CUDA_ONLY, SECTIONS, Plan, check_parity
from prefopt.comparison.provenance import commit, packages
from prefopt.config.schema import EMBEDDED_MODEL
from prefopt.errors import PrefoptError, UsageError
from prefopt.model.source import local_folder
from prefopt.runtime.device import device_facts, pick_device, pick_dtype
from prefopt.storage.formats import write_frame, write_json


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--out", type=Path, help="results folder; results/speed/<device> by default")
    parser.add_argument("--sections", default="", help=f"comma-separated, of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="few steps of everything: about two minutes on a CPU")
    parser.add_argument("--shape", default="135m", help="shape of the main case: tiny, 30m, 135m, 360m, 1b or 8b")
    parser.add_argument(
        "--model", help=f"weights of the main case; {EMBEDDED_MODEL} where it is installed, else random"
    )
    parser.add_argument("--big-shape", default="8b", help="shape of the section big")
    parser.add_argument("--big-trl-micro", type=int, default=4, help="pairs of one TRL forward pass in the section big")
    parser.add_argument("--render", action="store_true", help="only tables and figures, from the CSV files of --out")
    return parser.parse_args()


def default_model(shape: str) -> str:
    """The embedded model where it is that shape and its package is installed, else the empty name: random weights."""
    if shape != "135m":
        return ""
    try:
        local_folder(EMBEDDED_MODEL)
    except PrefoptError:
        return ""
    return EMBEDDED_MODEL


def make_plan(options: argparse.Namespace, device: str, dtype: str) -> Plan:
    """What is measured, and how often, on a kind of device."""
    model = default_model(options.shape) if options.model is None else options.model
    case = Case(shape=options.shape, model=model, device=device, dtype=dtype)
    if options.quick:
        once = {"ours": 1}
        return Plan(case, blocks=1, steps=once, warmup=once, parity_steps=3, variants=(1, 2), horizon=10, stacked=4,
                    big=case.but(shape=options.big_shape, model="", prompt=64, response=64, n_pairs=16),
                    big_trl_micro=options.big_trl_micro, sizes=("tiny",), lengths=(20,), decode=(4, 2, 4))  # fmt: skip
    if device == "cpu":
        return Plan(case, steps={"trl default": 1, "trl tuned": 2, "ours": 3, "prefopt": 4}, parity_steps=8,
                    warmup={"trl default": 1, "trl tuned": 1, "ours": 1, "prefopt": 2})  # fmt: skip
    big = case.but(shape=options.big_shape, model="", prompt=512, response=512, jitter=0.0, n_pairs=32)
    return Plan(case, steps={"trl default": 10, "trl tuned": 10, "ours": 10, "prefopt": 20},
                warmup={"trl default": 20, "trl tuned": 20, "ours": 10, "prefopt": 20}, parity_steps=30,
                horizon=300, big=big, big_trl_micro=options.big_trl_micro, sizes=("30m", "135m", "360m", "1b"),
                lengths=(40, 128, 512, 1024), decode=(64, 4, 64))  # fmt: skip


def slug(name: str) -> str:
    """A device's name as a folder's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60]


def main() -> int:
    """Run the sections asked for; 0, or the status of what went wrong."""
    options = parse()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        return measure(options)
    except PrefoptError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return problem.exit_code


def measure(options: argparse.Namespace) -> int:
    """The body of ``main``."""
    if options.render:
        if options.out is None:
            raise UsageError("--render needs --out: the folder with the CSV files")
        render(options.out)
        return 0
    device = pick_device(options.device)
    facts = device_facts(device)
    out = options.out or Path("results") / "speed" / slug(str(facts["name"]))
    dtype = str(pick_dtype("auto", device)).removeprefix("torch.")
    plan = make_plan(options, device.type, dtype)
    allowed = [name for name in SECTIONS if device.type == "cuda" or name not in CUDA_ONLY]
    wanted = options.sections.split(",") if options.sections else allowed
    for name in wanted:
        if name not in allowed:
            raise UsageError(f"--sections {name}: not a section on {device.type}; known: {', '.join(allowed)}")
    for name in wanted:
        began = time.perf_counter()
        rows = SECTIONS[name](plan)
        write_frame(out / f"{name}.csv", pd.DataFrame(rows))
        note(out, name, plan, facts, time.perf_counter() - began)
        print(f"{name}: {time.perf_counter() - began:.1f} s", flush=True)
        print(pd.DataFrame(rows).to_string(index=False), flush=True)
        if name == "parity":
            check_parity(rows)
    try:
        render(out)
    except ImportError as problem:  # a bare machine; the CSV files are what counts
        print(f"no tables or figures here ({problem}); use --render elsewhere")
    return 0


def note(out: Path, name: str, plan: Plan, facts: dict[str, object], seconds: float) -> None:
    """Add a section to ``manifest.json``: when, on what, with which code and packages."""
    path = out / "manifest.json"
    known = json.loads(path.read_text()) if path.is_file() else {"sections": {}}
    versions = packages()
    for package in ("trl", "datasets", "accelerate"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    known["sections"][name] = {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(seconds, 1),
        "device": facts,
        "commit": commit() or os.environ.get("PREFOPT_COMMIT", ""),
        "packages": versions,
        "platform": platform.platform(),
        "cuda": torch.version.cuda,
        "model": plan.case.model or f"random weights, shape {plan.case.shape}",
        "dtype": plan.case.dtype,
        "pairs_per_step": plan.case.pairs,
        "blocks": plan.blocks,
        "quick": plan.blocks == 1,
    }
    write_json(path, known)
