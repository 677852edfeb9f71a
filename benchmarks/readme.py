"""Fill README's generated blocks from the files they name, so that no number is typed by hand, and draw its losses.

A block is ``<!-- from FILE [columns: a | b] -->`` ... ``<!-- end -->``, where FILE is a Markdown table of ``results/``,
``FILE#Heading`` for the first table below a heading, or ``prefopt losses`` for the table of the registry.

Command: python -m benchmarks.readme            writes README.md
         python -m benchmarks.readme --check    exits 1 if a block is not what its file says
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- from (?P<file>.+?)(?: columns: (?P<columns>.+?))? -->\n).*?(<!-- end -->)", re.DOTALL)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def table(file: str, columns: str | None) -> str:
    """The table of a block, with some of its columns in the order asked for."""
    if file == "prefopt losses":
        from prefopt.losses.catalogue import markdown_table

        return markdown_table().strip()
    name, _, heading = file.partition("#")
    text = (ROOT / name).read_text(encoding="utf-8")
    if heading:
        text = text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    if columns is None:
        return "\n".join(lines)
    header = cells(lines[0])
    wanted = [header.index(name.strip()) for name in columns.split("|")]
    return "\n".join("| " + " | ".join(cells(line)[i] for i in wanted) + " |" for line in lines)


def fill(text: str) -> str:
    """README with every block made again."""

    def block(found: re.Match[str]) -> str:
        source = found["file"]
        caption = f"\n\n<sub>From `{source}`.</sub>" if source.startswith("results/") else ""
        return f"{found[1]}\n{table(source, found['columns'])}{caption}\n\n{found[4]}"

    return BLOCK.sub(block, text)


def main() -> int:
    path = ROOT / "README.md"
    before = path.read_text(encoding="utf-8")
    after = fill(before)
    if "--check" in sys.argv[1:]:
        if after != before:
            print("README.md is not what its sources say; run: python -m benchmarks.readme", file=sys.stderr)
            return 1
        return 0
    path.write_text(after, encoding="utf-8")
    draw_family(ROOT / "results" / "losses" / "family.png")
    return 0


def draw_family(path: Path) -> None:
    """The picture of the registered losses."""
    from prefopt.losses.catalogue import plot_family

    path.parent.mkdir(parents=True, exist_ok=True)
    plot_family(path)


if __name__ == "__main__":
    sys.exit(main())
