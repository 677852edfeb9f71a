"""The measurements, one function a section; each returns the rows of one table."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.speed import ours, trl_side
from benchmarks.speed.ablate import OPTIONS, SAVINGS
from benchmarks.speed.cases import Case, make_pairs, mean_tokens, useful_tflop
from benchmarks.speed.workers import Worker, WorkerFailed
from prefopt.errors import ClaimError

Row = dict[str, Any]
# (loss at each step, nats; 1 - cosine of the first gradient; relative difference of its norm). In bfloat16 two programs
# that round at different places differ by as much as each does from float32, which is reported beside it.
TOLERANCE = {"float32": (1e-4, 1e-6, 1e-4), "bfloat16": (0.1, 2e-2, 6e-2)}


@dataclass(frozen=True)
class Plan:
    """How much of everything is measured.

    Attributes:
        case: The main case.
        blocks: Timed blocks of each side, taken in turns; the figure is their median.
        steps: Steps of a block, by row; ``ours`` for every measurement of prefopt alone.
        warmup: Steps before the first block, likewise.
        parity_steps: Steps of the loss curves.
        variants: Numbers of variants for the table of wall times.
        horizon: Steps of the run that wall times are stated for.
        stacked: Runs of the stacking section.
        big: The large shape's case, and pairs of a TRL forward pass for it.
        sizes, lengths: What the scaling section varies.
        decode: (prompts, samples, tokens).
    """

    case: Case
    blocks: int = 3
    steps: dict[str, int] | None = None
    warmup: dict[str, int] | None = None
    parity_steps: int = 12
    variants: tuple[int, ...] = (1, 2, 4, 8)
    horizon: int = 60
    stacked: int = 12
    big: Case | None = None
    big_trl_micro: int = 4
    sizes: tuple[str, ...] = ("30m", "135m", "360m")
    lengths: tuple[int, ...] = (20, 40, 80, 160)
    decode: tuple[int, int, int] = (16, 4, 32)

    def count(self, kind: str, row: str) -> int:
        """Steps of a block, or of the warm-up, for a row."""
        table = (self.steps if kind == "steps" else self.warmup) or {}
        return table.get(row, table.get("ours", 3))


def gemm(plan: Plan) -> list[Row]:
    """TFLOP/s of a plain square matrix product, the best of several; what shares are taken of."""
    device = plan.case.device
    size = 8192 if device == "cuda" else 2048 if plan.case.shape != "tiny" else 256
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        best = float("inf")
        for _ in range(8):
            _synchronise(device)
            began = time.perf_counter()
            a @ b
            _synchronise(device)
            best = min(best, time.perf_counter() - began)
        rows.append({"dtype": str(dtype).removeprefix("torch."), "size": size, "tflops": 2 * size**3 / best / 1e12})
    return rows


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def parity(plan: Plan) -> list[Row]:
    """Both sides on the same tokens, weights, adapter, batches and optimizer: gradient, then loss at every step.

    Raises:
        ClaimError: If they differ by more than TOLERANCE.
    """
    rows: list[Row] = []
    dtypes = ["float32"] if plan.case.dtype == "float32" else ["float32", "bfloat16"]
    for dtype in dtypes:
        case = plan.case.but(dtype=dtype, pairs=4, prompt=16, response=16, n_pairs=4 * plan.parity_steps)
        common = {"case": case, "b_std": 0.02, "max_grad_norm": 1e9}
        mine = _collect(Worker(ours.work, **common), plan.parity_steps)
        order = ours.order(case, plan.parity_steps)
        theirs = _collect(Worker(trl_side.work, row="parity", order=order, **common), plan.parity_steps)
        g, h = (side[0]["gradient"].astype(np.float64) for side in (mine, theirs))
        cosine = float(g @ h / np.linalg.norm(g) / np.linalg.norm(h))
        norm = float(np.linalg.norm(g) / np.linalg.norm(h) - 1)
        loss_tolerance, cosine_tolerance, norm_tolerance = TOLERANCE[dtype]
        rows += [
            parity_row(dtype, "1 - gradient cosine", 1, 1.0, cosine, 1 - cosine, cosine_tolerance),
            parity_row(dtype, "gradient norm", 1, float(np.linalg.norm(h)), float(np.linalg.norm(g)), norm,
                        norm_tolerance),
        ]  # fmt: skip
        for step, (one, two) in enumerate(zip(mine, theirs, strict=True), start=1):
            difference = one["loss"] - two["loss"]
            rows.append(parity_row(dtype, "loss", step, two["loss"], one["loss"], difference, loss_tolerance))
    exact = {(row["quantity"], row["step"]): row["trl"] for row in rows if row["dtype"] == "float32"}
    for row in rows:
        row["float32"] = exact[row["quantity"], row["step"]]
    return rows


def check_parity(rows: Sequence[Row]) -> None:
    """Refuse to go on where the two sides do not compute the same.

    Raises:
        ClaimError: Naming the first quantity that differs.
    """
    for row in rows:
        if not row["ok"]:
            raise ClaimError(
                f"parity with TRL fails in {row['dtype']}: {row['quantity']} at step {row['step']}: "
                f"TRL {row['trl']:.6g}, prefopt {row['prefopt']:.6g}, tolerance {row['tolerance']:g}"
            )


def parity_row(
    dtype: str, quantity: str, step: int, trl: float, mine: float, difference: float, tolerance: float
) -> Row:
    return {
        "dtype": dtype,
        "quantity": quantity,
        "step": step,
        "trl": trl,
        "prefopt": mine,
        "difference": difference,
        "tolerance": tolerance,
        "ok": bool(abs(difference) <= tolerance),
    }


def _collect(worker: Worker, steps: int) -> list[dict[str, Any]]:
    facts = [worker.block(1) for _ in range(steps)]
    worker.close()
    return facts


def speed(plan: Plan) -> list[Row]:
    """Pairs a second of TRL as it comes, TRL tuned, and prefopt with one variant, in turns."""
    rows = _side_by_side(plan, plan.case, ("trl default", "trl tuned", "prefopt"))
    if _half(plan):
        rows += _side_by_side(plan, plan.case.but(dtype="float32"), ("trl tuned", "prefopt"), blocks=1)
    return rows


def big(plan: Plan) -> list[Row]:
    """The large shape: tuned TRL and prefopt in turns, then TRL as it comes, then prefopt on an NF4 base."""
    assert plan.big is not None
    if plan.blocks > 1:  # steps of a second each
        steps = {"trl default": 3, "trl tuned": 5, "prefopt": 8}
        plan = dataclasses.replace(plan, steps=steps, warmup=steps)
    rows = _side_by_side(plan, plan.big, ("trl tuned", "prefopt"), micro=plan.big_trl_micro)
    rows += _side_by_side(plan, plan.big.but(quantization="nf4"), ("prefopt",))
    rows += _side_by_side(plan, plan.big, ("trl default",), blocks=1)
    return rows


def _start(plan: Plan, case: Case, row: str, micro: int) -> Worker:
    if row == "prefopt":
        return Worker(ours.work, case=case)
    return Worker(trl_side.work, case=case, row=row.removeprefix("trl "), micro=micro)


def _side_by_side(plan: Plan, case: Case, names: Sequence[str], *, micro: int = 0, blocks: int = 0) -> list[Row]:
    """Rows of several sides of one case; blocks in the order A B B A A B ..."""
    workers: dict[str, Worker] = {}
    blocks = blocks or plan.blocks
    failures: dict[str, str] = {}
    times: dict[str, list[float]] = {name: [] for name in names}
    peaks: dict[str, float] = {}
    try:
        for name in names:
            _attempt(failures, name, lambda name=name: workers.__setitem__(name, _start(plan, case, name, micro)))
        for turn in range(-1, blocks):
            for name in names if turn % 2 else reversed(names):
                if name not in workers or name in failures:
                    continue
                steps = plan.count("steps" if turn >= 0 else "warmup", name)

                def block(name: str = name, steps: int = steps, keep: bool = turn >= 0) -> None:
                    facts = workers[name].block(steps)
                    peaks[name] = max(peaks.get(name, 0.0), facts["peak_gib"])
                    if keep:
                        times[name].append(facts["seconds"] / steps)

                _attempt(failures, name, block)
    finally:
        for worker in workers.values():
            worker.close()
    return [_speed_row(case, name, times[name], peaks.get(name), workers.get(name), failures.get(name, ""))
            for name in names]  # fmt: skip


def _attempt(failures: dict[str, str], name: str, action: Callable[[], None]) -> None:
    try:
        action()
    except WorkerFailed as problem:
        failures[name] = str(problem).splitlines()[0][:200]
        print(f"{name}: {problem}", flush=True)


def _speed_row(
    case: Case, name: str, times: Sequence[float], peak: float | None, worker: Worker | None, failure: str
) -> Row:
    step = statistics.median(times) if times else float("nan")
    return {
        **_case_columns(case),
        "row": name,
        "step_s": step,
        "pairs_per_s": case.pairs / step,
        "useful_tflops": useful_tflop(case) * case.pairs / step,
        "fastest_s": min(times, default=float("nan")),
        "slowest_s": max(times, default=float("nan")),
        "blocks": len(times),
        "peak_gib": peak,
        "startup_s": worker.startup_s if worker else None,
        "reference_s": worker.facts.get("prepare_s") if worker and name == "prefopt" else None,
        "failure": failure,
    }


def _case_columns(case: Case) -> Row:
    total, scored = mean_tokens(make_pairs(case))
    return {
        "shape": case.model or case.shape,
        "dtype": case.dtype if case.quantization == "none" else case.quantization,
        "pairs_per_step": case.pairs,
        "prompt": case.prompt,
        "response": case.response,
        "tokens_per_pair": total,
        "scored_per_pair": scored,
    }


def _losses(count: int) -> list[str]:
    return [ours.LOSSES[i % len(ours.LOSSES)] for i in range(count)]


def _steps_job(plan: Plan, count: int, without: str = "", **options: Any) -> Row:
    steps = plan.count("steps", "ours") * plan.blocks
    warmup = plan.count("warmup", "ours")
    return {"kind": "steps", "losses": _losses(count), "warmup": warmup, "steps": steps, "without": without,
            "options": options}  # fmt: skip


def _run_list(case: Case, adapters: int, jobs: Sequence[Row]) -> tuple[Worker, list[Row]]:
    worker = Worker(ours.work_list, case=case, adapters=adapters, jobs=jobs)
    try:
        return worker, [worker.block(1) for _ in jobs]
    finally:
        worker.close()


def variants(plan: Plan) -> list[Row]:
    """K variants in lockstep: seconds a step, and the wall time of a whole run of ``horizon`` steps."""
    counts = plan.variants
    jobs = [_steps_job(plan, k) for k in counts]
    worker, results = _run_list(plan.case, max(counts), jobs)
    one = statistics.median(results[0]["times"])
    return [
        {
            "variants": k,
            "step_s": (step := statistics.median(result["times"])),
            "against_one": step / one,
            "pairs_per_s": k * plan.case.pairs / step,
            "startup_s": worker.startup_s,
            "steps": plan.horizon,
            "wall_s": worker.startup_s + plan.horizon * step,
            "stack": result["stack"],
            "peak_gib": result["peak_gib"],
        }
        for k, result in zip(counts, results, strict=True)
    ]


def ablation(plan: Plan) -> list[Row]:
    """Each saving turned off by itself, four variants in lockstep on CUDA and one on a CPU."""
    cuda = plan.case.device == "cuda"
    count = 4 if cuda else 1
    names = [name for name in SAVINGS if cuda or name not in ("flash attention", "stacking")]
    jobs = [_steps_job(plan, count)]
    jobs += [_steps_job(plan, count if name != "own LoRA pass" else 1, name, **OPTIONS.get(name, {})) for name in names]
    rows = []
    if cuda:
        jobs.append(_steps_job(plan, 1))
    _, results = _run_list(plan.case, count, jobs)
    base = statistics.median(results[0]["times"])
    single = statistics.median(results[-1]["times"]) if cuda else base
    for name, result in zip(["", *names], results[: len(names) + 1], strict=True):
        if "times" not in result:
            rows.append({"without": name, "variants": count, "failure": "out of memory"})
            continue
        alone = name == "own LoRA pass"
        step = statistics.median(result["times"])
        rows.append({"without": name, "variants": 1 if alone else count, "step_s": step,
                     "slowdown": step / (single if alone else base), "peak_gib": result["peak_gib"]})  # fmt: skip
    return rows if cuda else rows + _ablation_cpu(plan, base)


def _ablation_cpu(plan: Plan, base: float) -> list[Row]:
    """What only a CPU is asked: adapters stacked, which CUDA does by default, and a float32 base."""
    plain = {**_steps_job(plan, 1), "case": plan.case.but(dtype="float32")}
    jobs = [_steps_job(plan, 4, stack=4), _steps_job(plan, 4, stack=1), *([plain] if _half(plan) else [])]
    _, results = _run_list(plan.case, 4, jobs)
    times = [statistics.median(result["times"]) for result in results]
    names = (("adapters in turn (stacked)", 4, times[0] / times[1]), ("bfloat16 base", 1, times[-1] / base))
    return [
        {"without": name, "variants": count, "step_s": time, "slowdown": slowdown, "peak_gib": result["peak_gib"]}
        for (name, count, slowdown), time, result in zip(
            names[: len(jobs) - 1], (times[0], times[-1]), (results[0], results[-1]), strict=False
        )
    ]


def _half(plan: Plan) -> bool:
    return plan.case.dtype == "bfloat16"


def scaling(plan: Plan) -> list[Row]:
    """How a step's cost grows with the length of the rows, the size of the model and the number of seeds."""
    cases = [("tokens of prompt and response", n, plan.case.but(prompt=n, response=n)) for n in plan.lengths]
    cases += [("shape", name, plan.case.but(shape=name, model="")) for name in plan.sizes]
    jobs = [{**_steps_job(plan, 1), "case": case} for _, _, case in cases]
    _, results = _run_list(cases[0][2], 1, jobs)
    return [_scaling_row(what, value, case, result) for (what, value, case), result in zip(cases, results, strict=True)]


def _scaling_row(what: str, value: Any, case: Case, result: Row) -> Row:
    start = {"varied": what, "value": value, **_case_columns(case)}
    if "times" not in result:
        return {**start, "failure": "out of memory"}
    step = statistics.median(result["times"])
    return {
        **start,
        "step_s": step,
        "pairs_per_s": case.pairs / step,
        "useful_tflops": useful_tflop(case) * case.pairs / step,
        "peak_gib": result["peak_gib"],
        "reference_s": result["prepare_s"],
    }


def seeds(plan: Plan) -> list[Row]:
    """S seeds of two variants: groups one after the other on one base and one reference."""
    worker, results = _run_list(plan.case, 2, [_steps_job(plan, 2) for _ in range(4)])
    per_seed = [sum(r["times"]) for r in results]
    return [
        {
            "seeds": s,
            "variants": 2,
            "steps_measured": len(results[0]["times"]),
            "startup_s": worker.startup_s,
            "reference_s": worker.facts["prepare_s"],
            "training_s": sum(per_seed[:s]),
            "wall_s": worker.startup_s + sum(per_seed[:s]),
        }
        for s in (1, 2, 4)
    ]


def stacking(plan: Plan) -> list[Row]:
    """Runs stacked in one pass against the same runs one after the other, at several widths."""
    count = plan.stacked
    widths = sorted({w for w in (1, 2, 4, count // 2, count) if w <= count})
    jobs = [_steps_job(plan, count, stack=w) for w in widths]
    worker, results = _run_list(plan.case, count, jobs)
    del worker
    one = next(statistics.median(r["times"]) for w, r in zip(widths, results, strict=True) if w == 1)
    rows = []
    for width, result in zip(widths, results, strict=True):
        if "times" not in result:
            rows.append({"runs": count, "stack": width, "failure": "out of memory"})
            continue
        step = statistics.median(result["times"])
        rows.append({"runs": count, "stack": width, "step_s": step, "pairs_per_s": count * plan.case.pairs / step,
                     "speedup": one / step, "useful_tflops": useful_tflop(plan.case) * count * plan.case.pairs / step,
                     "peak_gib": result["peak_gib"]})  # fmt: skip
    return rows


def decode(plan: Plan) -> list[Row]:
    """Tokens a second of the sampler, one adapter and all of a group in one batch."""
    prompts, samples, tokens = plan.decode
    counts = (1, 4) if plan.case.device == "cpu" else (1, 4, plan.stacked)
    jobs = [{"kind": "sample", "adapters": k, "prompts": prompts, "samples": samples, "tokens": tokens} for k in counts]
    _, results = _run_list(plan.case, max(counts), jobs)
    return [
        {"adapters": k, "rows": r["rows"], "seconds": r["seconds"], "tokens": r["tokens"],
         "tokens_per_s": r["tokens"] / r["seconds"], "step_ms": 1000 * r["seconds"] / tokens,
         "outside_products": 1 - r["products_s"] / r["seconds"]}
        for k, r in zip(counts, results, strict=True)
    ]  # fmt: skip


SECTIONS: dict[str, Callable[[Plan], list[Row]]] = {
    "gemm": gemm,
    "parity": parity,
    "speed": speed,
    "variants": variants,
    "seeds": seeds,
    "ablation": ablation,
    "scaling": scaling,
    "decode": decode,
    "stacking": stacking,
    "big": big,
}
CUDA_ONLY = ("stacking", "big")
