"""Abilities before and after training, measured by the Language Model Evaluation Harness where it is installed.

The harness is asked through its public function ``lm_eval.simple_evaluate`` with ``lm_eval.models.huggingface.HFLM``
(https://github.com/EleutherAI/lm-evaluation-harness, docs/interface.md): the base model once, then the base with each
adapter. What it found is kept as ``lm_eval.json`` in the results folder and as a table for papers.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefopt.errors import IncompleteError, MachineError, UsageError, did_you_mean
from prefopt.report.cards import ADAPTER_CONFIG, base_of
from prefopt.report.tables.table import Column, Table, to_frame, to_markdown
from prefopt.runtime.progress import Progress
from prefopt.storage import formats
from prefopt.storage.hashing import seal
from prefopt.storage.results import ResultsFolder
from prefopt.storage.schema import REFERENCE

FILE = "lm_eval.json"
INSTALL = 'pip install "lm-eval[hf]"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be measured.

    Attributes:
        tasks: Names of the harness's tasks.
        variants: Which variants; None for all that finished.
        seeds: Which seeds; None for the first.
        limit: Examples of each task at most.
        num_fewshot: Examples in the prompt; None for the task's default.
        batch_size: A number or ``auto``.
        device: auto, cpu or cuda.
    """

    tasks: tuple[str, ...]
    variants: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: str = "1"
    device: str = "auto"


def measure(root: Path, request: Request, progress: Progress) -> dict[str, Any]:
    """Run the tasks over the reference and the adapters, and write what came out beside the report.

    Returns:
        ``rows``: model (``reference`` or a variant), seed, task, metric, value and stderr; and the settings.

    Raises:
        PrefoptError: If the harness is not installed or refuses, or there is no such run or adapter.
    """
    harness = _harness()
    if not request.tasks:
        raise UsageError("--tasks is empty; write names such as hellaswag,arc_easy")
    adapters = _adapters(ResultsFolder(root), request)
    base = base_of(next(iter(adapters.values())))
    runs = [(REFERENCE, None, None), *((variant, seed, path) for (variant, seed), path in adapters.items())]
    rows: list[dict[str, Any]] = []
    for number, (name, seed, adapter) in enumerate(runs):
        progress.stage(f"lm-eval of {name}" + ("" if seed is None else f", seed {seed}"), number, len(runs))
        rows += [{"model": name, "seed": seed, **row} for row in _evaluated(harness, base, adapter, request)]
    settings = {"tasks": list(request.tasks), "limit": request.limit, "num_fewshot": request.num_fewshot}
    results = {"lm_eval": getattr(harness, "__version__", "?"), **settings, "rows": rows}
    _write(root, results)
    return results


def _harness() -> Any:
    """The installed harness.

    Raises:
        MachineError: If it is not installed, or cannot be imported.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise MachineError(f"prefopt lm-eval needs the Language Model Evaluation Harness: {INSTALL}")
    try:
        importlib.import_module("lm_eval.models.huggingface")
        return importlib.import_module("lm_eval")
    except ImportError as problem:
        raise MachineError(f"lm_eval is installed but cannot be imported: {problem}; {INSTALL}") from None


def _adapters(folder: ResultsFolder, request: Request) -> dict[tuple[str, int], Path]:
    """The adapters that are to be measured, by variant and seed."""
    manifest, runs = folder.manifest(), folder.runs()
    names = list(dict.fromkeys(name for name, _ in runs if name != REFERENCE))
    for name in request.variants or ():
        if name not in names:
            raise UsageError(f"{folder.root}: has no variant {name!r}{did_you_mean(name, names)}")
    seeds = manifest.seeds[:1] if request.seeds is None else request.seeds
    adapters = {}
    for name in request.variants or names:
        for seed in seeds:
            run = runs.get((name, seed))
            path = folder.run(name, seed) / "adapter"
            if run is not None and run.is_complete and (path / ADAPTER_CONFIG).is_file():
                adapters[name, seed] = path
            elif request.variants or request.seeds:
                raise IncompleteError(f"{folder.root}: {name}, seed {seed}, did not finish or has no adapter here")
    if not adapters:
        raise IncompleteError(f"{folder.root}: no finished run with seed {', '.join(map(str, seeds))} has an adapter")
    return adapters


def _evaluated(harness: Any, base: tuple[str, str], adapter: Path | None, request: Request) -> Iterator[dict[str, Any]]:
    """A row for each task and metric of one model."""
    from prefopt.runtime.device import pick_device

    name, revision = base
    options = {"revision": revision} if revision else {}
    device = str(pick_device(request.device))
    try:
        model = harness.models.huggingface.HFLM(
            pretrained=name,
            peft=None if adapter is None else str(adapter),
            device=device,
            batch_size=request.batch_size,
            trust_remote_code=False,
            **options,
        )
        answer = harness.simple_evaluate(
            model=model,
            tasks=list(request.tasks),
            num_fewshot=request.num_fewshot,
            limit=request.limit,
            bootstrap_iters=1000,
            log_samples=False,
        )
    except Exception as problem:  # an unknown task, no network, no memory: the harness has errors of many kinds
        first = str(problem).strip().partition("\n")[0] or type(problem).__name__
        raise MachineError(f"lm-eval: {first}") from None
    if answer is None:
        raise MachineError("lm-eval: gave no result; it gives one to the first process of several only")
    yield from _rows(answer["results"])


def _rows(results: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Metrics are keyed ``name,filter``, their errors ``name_stderr,filter``; other entries describe the task."""
    for task, metrics in results.items():
        for key, value in metrics.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = metrics.get(f"{metric}_stderr,{kind}")
            stderr = float(error) if isinstance(error, int | float) and math.isfinite(error) else None
            shown = metric if kind == "none" else f"{metric} ({kind})"
            yield {"task": task, "metric": shown, "value": float(value), "stderr": stderr}


def table(results: Mapping[str, Any]) -> Table:
    """A row for each model and seed, a column for each task and metric."""
    keys = list(dict.fromkeys((row["task"], row["metric"]) for row in results["rows"]))
    models = list(dict.fromkeys((row["model"], row["seed"]) for row in results["rows"]))
    by = {(row["model"], row["seed"], row["task"], row["metric"]): row for row in results["rows"]}
    columns = [Column("model", "model", "text"), Column("seed", "seed", "text")]
    columns += [Column(f"m{i}", f"{task}, {metric}", "number", 4) for i, (task, metric) in enumerate(keys)]
    rows = []
    for model, seed in models:
        row: dict[str, Any] = {"model": model, "seed": None if seed is None else str(seed)}
        for i, (task, metric) in enumerate(keys):
            row[f"m{i}"] = _interval(by.get((model, seed, task, metric)))
        rows.append(row)
    note = "By the Language Model Evaluation Harness; in brackets 95 % over the examples of a task."
    return Table("lm_eval", "Benchmarks before and after training", tuple(columns), rows, note)


def _interval(row: Mapping[str, Any] | None) -> dict[str, float | None] | None:
    if row is None:
        return None
    half = None if row["stderr"] is None else 1.96 * row["stderr"]
    ends = (None, None) if half is None else (row["value"] - half, row["value"] + half)
    return {"value": row["value"], "low": ends[0], "high": ends[1]}


def as_table(results: Mapping[str, Any]) -> str:
    """The table for the screen."""
    return to_markdown(table(results))


def _write(root: Path, results: Mapping[str, Any]) -> None:
    formats.write_json(root / FILE, seal(results))
    formats.write_frame(root / "tables" / "lm_eval.csv", to_frame(table(results)))
    formats.write_text(root / "tables" / "lm_eval.md", as_table(results))
