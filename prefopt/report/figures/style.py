"""How figures look: one palette, one size of text, one way to save. Global settings are not touched.

Colours are Okabe and Ito's without yellow, which is lost on white; markers and line styles repeat the distinction,
so that a figure survives a grey printer and a colour-blind reader.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
PALEST = 0.6  # of the way to white: still seen on it
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
GREY = "#6b7280"
FAINT = "#d4d7dd"
INK = "#1f2937"

_RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.edgecolor": "#9ca3af",
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": "#9ca3af",
    "ytick.color": "#9ca3af",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "text.color": INK,
    "text.parse_math": False,
    "grid.color": "#e8eaee",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "prefopt",
    "svg.fonttype": "path",
    "axes.formatter.useoffset": False,
    "axes.unicode_minus": True,
}


@dataclass(frozen=True)
class Look:
    """One variant's colour, marker and line style, the same in every figure."""

    colour: str
    marker: str
    dash: Any


def looks(variants: Sequence[str], losses: Sequence[str] | None = None) -> dict[str, Look]:
    """A look for each variant by its place: those of one loss share a hue, from its full colour to a pale one.

    Args:
        variants: Names.
        losses: The loss of each; None where every one is a family of its own.
    """
    families: dict[str, list[str]] = {}
    for name, loss in zip(variants, losses or variants, strict=True):
        families.setdefault(loss, []).append(name)
    place = {name: i for i, name in enumerate(variants)}
    return {
        name: Look(
            _paler(COLOURS[i % len(COLOURS)], PALEST * k / max(len(members) - 1, 1)),
            MARKERS[place[name] % len(MARKERS)],
            DASHES[(i // len(COLOURS) + place[name]) % len(DASHES)],
        )
        for i, members in enumerate(families.values())
        for k, name in enumerate(members)
    }


def variant_looks(results: Mapping[str, Any]) -> dict[str, Look]:
    """The look of every variant of a comparison, the same in every figure."""
    return looks(names(results), [entry["loss"] for entry in results["variants"]])


def _paler(colour: str, share: float) -> str:
    """A colour mixed with white."""
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(part + share * (255 - part)):02X}" for part in parts)


def names(results: Mapping[str, Any]) -> list[str]:
    """Every variant, in the order of the configuration."""
    return [entry["variant"] for entry in results["variants"]]


def styled() -> Any:
    """The context in which figures are made and saved."""
    return mpl.rc_context(_RC)


def figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches, whose parts make room for each other."""
    fig = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(fig)
    return fig


def panels(count: int, columns: int, size: tuple[float, float], *, legend: bool = False) -> tuple[Figure, Any]:
    """A figure with ``count`` panels of ``size`` inches on common axes, and the panels; ``legend`` leaves room for one.

    Placed by hand: working out the room of forty panels takes longer than drawing them.
    """
    rows = -(-count // columns)
    left, right, bottom, top, gap_x, gap_y = 0.72, 0.12, 0.62, 0.55 if legend else 0.3, 0.14, 0.34
    width = max(3.6, left + right + columns * size[0] + (columns - 1) * gap_x)
    height = bottom + top + rows * size[1] + (rows - 1) * gap_y
    fig = Figure(figsize=(width, height))
    FigureCanvasAgg(fig)
    grid_of = fig.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    fig.subplots_adjust(
        left / width, bottom / height, 1 - right / width, 1 - top / height, gap_x / size[0], gap_y / size[1]
    )
    flat = grid_of.ravel()
    flat[0].xaxis.set_major_locator(MaxNLocator(3 if size[0] < 1.6 else 4))
    flat[0].yaxis.set_major_locator(MaxNLocator(4))
    for i, axes in enumerate(flat):
        axes.set_visible(i < count)
        if i + columns >= count and i < count:
            axes.tick_params(labelbottom=True)  # the last of a column, though there be an empty place below
    return fig, flat


def panel_labels(fig: Figure, x: str, y: str) -> None:
    """One label for all horizontal axes of ``panels`` and one for all vertical ones."""
    fig.supxlabel(x, fontsize=9, y=0.1 / fig.get_figheight(), va="bottom")
    fig.supylabel(y, fontsize=9, x=0.1 / fig.get_figwidth(), ha="left")


def grid(axes: Axes, axis: str = "both") -> None:
    """Light grid lines behind the data."""
    axes.grid(True, axis=axis)  # type: ignore[arg-type]


def save(fig: Figure) -> tuple[bytes, bytes]:
    """The figure as SVG and PNG; the same bytes whenever the figure is the same."""
    with styled():
        engine = fig.get_layout_engine()
        if engine is not None:
            engine.execute(fig)
            fig.set_layout_engine("none")  # the layout is settled: neither file needs to work it out again
        svg, png = io.BytesIO(), io.BytesIO()
        fig.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        fig.savefig(png, format="png", dpi=144, metadata={"Software": None})
    return smaller(svg.getvalue().decode()).encode(), png.getvalue()


_COORDINATES = re.compile(r'(?<= d=")[^"]+|(?<=translate\()[^)]+|(?<= x=")[^"]+|(?<= y=")[^"]+')
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_UNUSED = re.compile(r' id="[A-Za-z0-9]+_\d+"|<!--.*?-->|(?<=>)\s+(?=<)', re.DOTALL)


def smaller(svg: str) -> str:
    """The same picture in about half the bytes: coordinates to a hundredth of a point, and no unused names."""

    def rounded(numbers: re.Match[str]) -> str:
        return " ".join(_NUMBER.sub(lambda number: f"{float(number[0]):.2f}", numbers[0]).split())

    return _UNUSED.sub("", _COORDINATES.sub(rounded, svg))


def short(name: str, limit: int = 34) -> str:
    """``name`` with its middle left out where it is too long for an axis."""
    return name if len(name) <= limit else f"{name[: limit - 12]}…{name[-11:]}"
