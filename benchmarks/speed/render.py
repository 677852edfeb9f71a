"""Tables and figures from the CSV files of a folder; nothing is measured here."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from prefopt.storage.formats import write_text
from prefopt.storage.results import write_bytes

Frames = dict[str, pd.DataFrame]
COLOURS = {"trl default": "#9a9a9a", "trl tuned": "#d08c1f", "prefopt": "#1f5fa8"}


def render(folder: Path) -> None:
    """Write ``speed.md`` and ``figures/*.svg, *.png`` from what measurements there are."""
    frames = {path.stem: pd.read_csv(path) for path in sorted(folder.glob("*.csv"))}
    manifest = json.loads((folder / "manifest.json").read_text())
    write_text(folder / "speed.md", markdown(frames, manifest))
    draw(frames, folder / "figures")


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table; the first row's keys are the header."""
    if not rows:
        return ""
    keys = list(rows[0])
    lines = ["| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
    lines += ["| " + " | ".join(str(row.get(key, "")) for key in keys) + " |" for row in rows]
    return "\n".join(lines)


def _figures(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, without an exponent; a dash where there is none."""
    if pd.isna(value):
        return "-"
    text = f"{value:.{digits}g}"
    return f"{float(text):,.0f}" if "e" in text or abs(value) >= 1000 else text


def markdown(frames: Frames, manifest: dict[str, Any]) -> str:
    """The page: one heading a section, with what was compared said under it."""
    sections = manifest["sections"]
    devices = sorted({s["device"]["name"] for s in sections.values()})
    threads = sorted({str(s["device"]["threads"]) for s in sections.values()})
    any_section = next(iter(sections.values()))
    versions = ", ".join(f"{k} {any_section['packages'][k]}" for k in ("torch", "transformers", "peft", "trl"))
    parts = [
        f"# Speed on {'; '.join(devices)}",
        f"{', '.join(threads)} threads; {versions}. Model: {any_section['model']}. Tokens are random. "
        "Made by `python -m benchmarks.speed`; the CSV files beside this page hold every number.",
    ]
    if any(s["quick"] for s in sections.values()):
        parts.append("**A quick run: it shows that everything works, and its timings mean little.**")
    for name, writer in WRITERS.items():
        if name in frames:
            parts.append(writer(frames))
    return "\n\n".join(parts) + "\n"


def _parity(frames: Frames) -> str:
    rows = []
    for dtype, part in frames["parity"].groupby("dtype", sort=False):
        for quantity in ("loss", "1 - gradient cosine", "gradient norm"):
            compared = part[part.quantity == quantity]
            rows.append(
                {
                    "type": dtype,
                    "quantity": f"{quantity}, {len(compared)} steps"
                    if len(compared) > 1
                    else f"{quantity}, first step",
                    "largest difference": f"{compared.difference.abs().max():.2g}",
                    "tolerance": f"{compared.tolerance.max():g}",
                    "from float32: TRL": _distance(compared, "trl"),
                    "from float32: prefopt": _distance(compared, "prefopt"),
                    "holds": "yes" if compared.ok.all() else "NO",
                }
            )
    text = (
        "The same tokens, weights, adapter (B drawn, not zero), batches, optimizer and learning rate on both sides. "
        "The norm's difference is relative."
    )
    return f"## Parity with TRL\n\n{text}\n\n{table(rows)}"


def _distance(rows: pd.DataFrame, side: str) -> str:
    """The largest difference of one side from TRL in float32; relative where the quantity is a norm."""
    if (rows["dtype"] == "float32").all() and side == "trl":
        return "-"
    difference = (rows[side] - rows.float32).abs()
    scale = rows.float32.abs() if (rows.quantity == "gradient norm").all() else 1.0
    if (rows.quantity == "1 - gradient cosine").all():
        return "-"
    return f"{(difference / scale).max():.2g}"


def _gemm_rate(frames: Frames, dtype: str) -> float:
    rates = frames.get("gemm")
    if rates is None:
        return float("nan")
    kind = "float32" if dtype == "float32" else "bfloat16"
    return float(rates.loc[rates["dtype"] == kind, "tflops"].iloc[0])


def _speed_rows(frames: Frames, name: str) -> list[dict[str, Any]]:
    rows = []
    frame = frames[name]
    for _, one in frame.iterrows():
        same = frame[(frame["shape"] == one["shape"]) & (frame["dtype"] == one["dtype"])]
        base = frame[frame.row == "trl tuned"] if name == "big" else same[same.row == "trl tuned"]
        tuned = base.pairs_per_s.iloc[0] if len(base) else float("nan")
        rate = _gemm_rate(frames, one["dtype"])
        rows.append(
            {
                "row": one.row,
                "base": one["dtype"],
                "s a step": _figures(one.step_s),
                "pairs/s": _figures(one.pairs_per_s),
                "against TRL tuned": _figures(one.pairs_per_s / tuned) + "x",
                "useful TFLOP/s": _figures(one.useful_tflops),
                "of GEMM": f"{100 * one.useful_tflops / rate:.0f} %" if one.useful_tflops == one.useful_tflops else "-",
                "peak GiB": _figures(one.peak_gib),
                "spread": f"{_figures(one.fastest_s)} - {_figures(one.slowest_s)} s, {one.blocks} blocks",
            }
        )
    return rows


FORMULA = (
    "Useful arithmetic is counted alike for all: 4 N_b for each of the P + 2C tokens of a pair and 4 H for each of its "
    "2C scored ones (N_b linear weights of the backbone, H of the head). The last column but two is its share of a "
    "plain matrix product's rate, measured in the same run."
)


def _speed(frames: Frames) -> str:
    one = frames["speed"].iloc[0]
    text = (
        f"{one.pairs_per_step} pairs a step, about {one.prompt} tokens of prompt and {one.response} of each response "
        f"(a pair: {one.tokens_per_pair:.0f} tokens, {one.scored_per_pair:.0f} scored). Blocks of steps in turns, A B "
        f"B A; medians. {FORMULA} *tuned*: no checkpointing, reference precomputed, weights loaded in the type they "
        "are computed in, batches grouped by length."
    )
    return f"## One run beside TRL\n\n{text}\n\n{table(_speed_rows(frames, 'speed'))}"


def _big(frames: Frames) -> str:
    one = frames["big"].iloc[0]
    text = (
        f"Shape {one['shape']}, random weights; {one.pairs_per_step} pairs a step of {one.prompt} + {one.response} + "
        f"{one.response} tokens. {FORMULA}"
    )
    rows = _speed_rows(frames, "big")
    failed = frames["big"].dropna(subset=["failure"]) if "failure" in frames["big"] else frames["big"].iloc[:0]
    notes = "".join(f"\n\n{row.row}: {row.failure}" for row in failed.itertuples())
    return f"## A large shape\n\n{text}\n\n{table(rows)}{notes}"


def _variants(frames: Frames) -> str:
    rows = []
    trl = frames["speed"].set_index("row") if "speed" in frames else None
    for one in frames["variants"].itertuples():
        row = {
            "variants": one.variants,
            "s a step": _figures(one.step_s),
            "against one": _figures(one.against_one) + "x",
            "pairs/s": _figures(one.pairs_per_s),
            "peak GiB": _figures(one.peak_gib),
            "wall, prefopt": f"{_figures(one.wall_s)} s",
        }
        if trl is not None:
            for name in ("trl tuned", "trl default"):
                side = trl.loc[[name]].iloc[0]
                row[f"wall, {name} x K"] = f"{_figures(one.variants * (side.startup_s + one.steps * side.step_s))} s"
        rows.append(row)
    steps = frames["variants"].steps.iloc[0]
    text = (
        f"All variants step by step on one frozen base. Wall times are those of {steps} steps: the process's start, "
        "the reference and the measured time of a step; TRL's are K times one such run, extrapolated, not run."
    )
    return f"## K variants\n\n{text}\n\n{table(rows)}"


def _seeds(frames: Frames) -> str:
    rows = [
        {"seeds": r.seeds, "variants": r.variants, "start and reference": f"{_figures(r.startup_s)} s",
         "training": f"{_figures(r.training_s)} s", "wall": f"{_figures(r.wall_s)} s"}
        for r in frames["seeds"].itertuples()
    ]  # fmt: skip
    steps = frames["seeds"].steps_measured.iloc[0]
    return f"## S seeds\n\nGroups of {steps} steps one after the other; everything else happens once.\n\n{table(rows)}"


def _ablation(frames: Frames) -> str:
    rows = [
        {"without": r.without if isinstance(r.without, str) else "(nothing: all savings on)", "variants": r.variants,
         "s a step": _figures(r.step_s), "slower by": _figures(r.slowdown) + "x", "peak GiB": _figures(r.peak_gib)}
        for r in frames["ablation"].itertuples()
    ]  # fmt: skip
    return f"## What each saving is worth\n\nEach turned off by itself.\n\n{table(rows)}"


def _scaling(frames: Frames) -> str:
    rows = [
        {"varied": r.varied, "value": r.value, "tokens a pair": _figures(r.tokens_per_pair), "s a step":
         _figures(r.step_s), "pairs/s": _figures(r.pairs_per_s), "useful TFLOP/s": _figures(r.useful_tflops),
         "peak GiB": _figures(r.peak_gib)}
        for r in frames["scaling"].itertuples()
    ]  # fmt: skip
    return f"## How the cost grows\n\n{table(rows)}"


def _stacking(frames: Frames) -> str:
    rows = [
        {"runs": r.runs, "in one pass": r.stack, "s for all": _figures(r.step_s), "pairs/s": _figures(r.pairs_per_s),
         "against one by one": _figures(r.speedup) + "x", "useful TFLOP/s": _figures(r.useful_tflops),
         "peak GiB": _figures(r.peak_gib)}
        for r in frames["stacking"].itertuples()
    ]  # fmt: skip
    return f"## Stacked adapters\n\nOne optimizer step of every run.\n\n{table(rows)}"


def _decode(frames: Frames) -> str:
    rows = [
        {"adapters": r.adapters, "rows": r.rows, "tokens/s": _figures(r.tokens_per_s),
         "ms a token of all rows": _figures(r.step_ms), "of it outside matrix products": f"{r.outside_products:.0%}"}
        for r in frames["decode"].itertuples()
    ]  # fmt: skip
    return f"## Sampling\n\nAll adapters in one batch with a cache.\n\n{table(rows)}"


WRITERS: dict[str, Callable[[Frames], str]] = {
    "parity": _parity, "speed": _speed, "big": _big, "variants": _variants, "seeds": _seeds, "stacking": _stacking,
    "ablation": _ablation, "scaling": _scaling, "decode": _decode,
}  # fmt: skip


def draw(frames: Frames, folder: Path) -> None:
    """The figures, as SVG and PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    style = {"svg.hashsalt": "prefopt", "svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(style):
        for name, plot in PLOTS.items():
            if name not in frames:
                continue
            figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
            plot(frames, axes)
            for kind, metadata in (("svg", {"Date": None}), ("png", None)):
                buffer = io.BytesIO()
                figure.savefig(buffer, format=kind, dpi=144, metadata=metadata)
                write_bytes(folder / f"{name}.{kind}", buffer.getvalue())
            plt.close(figure)


def _bars(axes: Any, labels: list[str], values: list[float], colours: list[str], unit: str) -> None:
    axes.barh(labels, values, color=colours)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    for i, value in enumerate(values):
        axes.annotate(_figures(value), (value, i), xytext=(3, 0), textcoords="offset points", va="center")


def _plot_speed(frames: Frames, axes: Any, name: str = "speed") -> None:
    frame = frames[name].dropna(subset=["pairs_per_s"])
    labels = [f"{r.row}, {r.dtype}" for r in frame.itertuples()]
    _bars(axes, labels, list(frame.pairs_per_s), [COLOURS[row] for row in frame.row], "pairs a second")


def _plot_parity(frames: Frames, axes: Any) -> None:
    loss = frames["parity"].query("quantity == 'loss'")
    for dtype, part in loss.groupby("dtype", sort=False):
        solid = dtype == "float32"
        axes.plot(part.step, part.trl, color=COLOURS["trl tuned"], lw=4, alpha=0.5 if solid else 0.25,
                  label=f"TRL, {dtype}")  # fmt: skip
        axes.plot(part.step, part.prefopt, color=COLOURS["prefopt"], ls="-" if solid else ":", lw=1.2,
                  label=f"prefopt, {dtype}")  # fmt: skip
    axes.set_xlabel("step")
    axes.set_ylabel("DPO loss, nats")
    axes.legend(frameon=False)


def _plot_variants(frames: Frames, axes: Any) -> None:
    frame = frames["variants"]
    axes.plot(frame.variants, frame.wall_s, "o-", color=COLOURS["prefopt"], label="prefopt, in lockstep")
    if "speed" in frames:
        for name in ("trl tuned", "trl default"):
            side = frames["speed"].set_index("row").loc[[name]].iloc[0]
            wall = frame.variants * (side.startup_s + frame.steps * side.step_s)
            axes.plot(frame.variants, wall, "s--", color=COLOURS[name], label=f"{name}, K times (extrapolated)")
    axes.set_xlabel("variants")
    axes.set_ylabel(f"seconds for {frame.steps.iloc[0]} steps")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def _plot_ablation(frames: Frames, axes: Any) -> None:
    frame = frames["ablation"].dropna(subset=["without", "slowdown"])
    _bars(axes, [f"without {w}" for w in frame.without], list(frame.slowdown), [COLOURS["prefopt"]] * len(frame),
          "time of a step, relative to all savings on")  # fmt: skip
    axes.axvline(1, color="#444444", lw=0.8)


def _plot_scaling(frames: Frames, axes: Any) -> None:
    frame = frames["scaling"].query("varied != 'shape'")
    axes.plot(frame.tokens_per_pair, frame.step_s, "o-", color=COLOURS["prefopt"])
    axes.set_xlabel("tokens of a pair")
    axes.set_ylabel("seconds a step")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)


def _plot_stacking(frames: Frames, axes: Any) -> None:
    frame = frames["stacking"].dropna(subset=["pairs_per_s"])
    axes.plot(frame.stack, frame.pairs_per_s, "o-", color=COLOURS["prefopt"])
    axes.set_xlabel(f"adapters of one pass, of {frame.runs.iloc[0]} runs")
    axes.set_ylabel("pairs a second, all runs")
    axes.set_ylim(bottom=0)


PLOTS: dict[str, Callable[[Frames, Any], None]] = {
    "parity": _plot_parity,
    "speed": _plot_speed,
    "big": lambda frames, axes: _plot_speed(frames, axes, "big"),
    "variants": _plot_variants,
    "ablation": _plot_ablation,
    "scaling": _plot_scaling,
    "stacking": _plot_stacking,
}
