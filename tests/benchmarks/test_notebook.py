"""The notebook on the user's own data: valid, without outputs, and every cell runs, on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import command
import pytest

from benchmarks import readme

PATH = Path(readme.__file__).with_name("your_data.ipynb")
NOTEBOOK = json.loads(PATH.read_text(encoding="utf-8"))
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def test_it_is_valid_and_holds_no_output() -> None:
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    for cell in CELLS:
        assert set(cell) == {"cell_type", "execution_count", "id", "metadata", "outputs", "source"}
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
    tagged = [cell for cell in CELLS if "parameters" in cell["metadata"].get("tags", [])]
    assert tagged == CELLS[:1], "its first cell holds all that a reader sets"


def test_every_cell_runs(
    tmp_path: Path,
    tiny_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source(CELLS[0]), "cell-01", "exec"), names)
    settings = [line.partition("=") for line in command.SHORT]
    short = {key: value if key == "model.dtype" else json.loads(value) for key, _, value in settings}
    names |= {"MODEL": str(tiny_folder("llama")), "DEVICE": "cpu"}
    names["SETTINGS"] = {**short, "in_process": True, "quiet": True}
    for cell in CELLS[1:]:
        last = source(cell).splitlines()[-1]
        exec(compile(source(cell), cell["id"], "exec"), names)
        if last.isidentifier():
            names[last]._repr_html_()
    assert "library_name: transformers" in capsys.readouterr().out
    assert (tmp_path / "results" / "notebook" / "report.html").is_file()
    assert names["mine"].runs["variant"].tolist() == ["dpo", "squared_hinge"]
    assert set(names["results"].judgements["variant"]) == {"dpo", "simpo", "noop"}
