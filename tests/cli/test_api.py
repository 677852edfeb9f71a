"""The command line as functions: same options, checks and records, values and frames in place of text."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import command
import judged
import pandas as pd
import pytest
import typer

import prefopt
from prefopt.cli.app import app
from prefopt.cli.words import command_line, to_words
from prefopt.config.schema import Config
from prefopt.contract import registry
from prefopt.errors import PrefoptError, UsageError

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
SECTIONS: dict[str, dict[str, Any]] = {}
for setting in command.SHORT:
    dotted, _, text = setting.partition("=")
    section, _, key = dotted.partition(".")
    SECTIONS.setdefault(section, {})[key] = text if key == "dtype" else json.loads(text)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[[str], Path]) -> prefopt.Results:
    """A comparison from Python alone: settings as sections, seeds as a range, a loss as an object."""
    root = tmp_path_factory.mktemp("api")
    pairs = command.write_pairs(root / "pairs.jsonl")
    sections = {**SECTIONS, "model": {**SECTIONS["model"], "name": tiny_folder("llama")}}
    results = prefopt.compare(
        ["dpo", prefopt.make_loss("simpo[beta=2.5]")], pairs, seeds=range(2), name="mine", results=root / "results",
        device="cpu", quiet=True, in_process=True, **sections,
    )  # fmt: skip
    assert isinstance(results, prefopt.Results)
    return results


def test_frames_are_tidy(compared: prefopt.Results) -> None:
    for name in ("history", "pairs", "scores", "samples"):
        frame = getattr(compared, name)
        assert list(frame.columns[:2]) == ["variant", "seed"], name
        assert len(frame)
    runs = compared.runs
    assert list(zip(runs["variant"], runs["seed"], strict=True)) == [
        (name, seed) for name in ("dpo", "simpo[beta=2.5]") for seed in (0, 1)
    ]
    assert set(runs["status"]) == {"complete"}
    assert (runs["train_s"] > 0).all()
    assert set(compared.leaderboard["variant"]) == {"dpo", "simpo[beta=2.5]"}
    assert list(compared.judgements.columns)[:3] == ["judge", "variant", "opponent"]


def test_a_frame_is_the_readers_own(compared: prefopt.Results) -> None:
    frame = compared.pairs
    frame["logps_chosen"] = 0.0
    assert (compared.pairs["logps_chosen"] != 0).any()


def test_figures_and_report(compared: prefopt.Results, tmp_path: Path) -> None:
    figure = compared.figure("learning_curves")
    assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    figure.savefig(tmp_path / "curves.svg")
    with pytest.raises(UsageError, match="no figure 'winrate_forrest'; did you mean winrate_forest"):
        compared.figure("winrate_forrest")
    with pytest.raises(UsageError, match="nothing for the figure 'winrate_forest'"):  # nobody has judged it
        compared.figure("winrate_forest")
    with pytest.raises(UsageError, match="no table 'leaderbord'; did you mean leaderboard"):
        compared.table("leaderbord")
    assert compared.report().name == "report.html"


def test_what_a_notebook_shows(compared: prefopt.Results) -> None:
    page = compared._repr_html_()
    assert "simpo[beta=2.5]" in page
    assert "<table>" in page
    assert compared.answers[0][:30] in page
    assert "2 of" not in page
    assert "4 of 4 runs" in repr(compared)


def test_the_manifest_has_the_command_that_repeats_it(compared: prefopt.Results) -> None:
    recorded = json.loads((compared.root / "manifest.json").read_text())["command"]
    assert recorded[:4] == ["prefopt", "compare", "--losses", "dpo,simpo[beta=2.5]"]
    context = COMMANDS["compare"].make_context("compare", recorded[2:])  # it can be typed
    assert context.params["seeds"] == "0,1"
    assert "train.steps=3" in context.params["settings"]


def test_a_plan_is_a_value(compared: prefopt.Results, tmp_path: Path) -> None:
    recorded = json.loads((compared.root / "manifest.json").read_text())["config"]
    plan = prefopt.compare(
        "dpo", recorded["data"]["source"], recorded["model"]["name"], seeds=[0], name="other", dry_run=True, quiet=True,
        results=tmp_path, device="cpu", **{"train.steps": 3},
    )  # fmt: skip
    assert isinstance(plan, dict)
    assert plan["runs"] == 1


def test_judge_gives_what_is_known_of_the_judge(tmp_path: Path) -> None:
    folder = judged.write(tmp_path / "mine", {"good": 3}).root
    assert prefopt.judge(folder, "file:verdicts.jsonl", questions=tmp_path / "blank.jsonl")["comparisons"] == 12
    rows = [json.loads(line) for line in (tmp_path / "blank.jsonl").read_text().splitlines()]
    for row in rows:
        row["verdict"] = "a" if row["a"].count("good") > row["b"].count("good") else "b"
    (tmp_path / "verdicts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = prefopt.judge(folder, f"file:{tmp_path / 'verdicts.jsonl'}", quiet=True)
    assert record["kind"] == "pairwise"
    assert record["problems"] == []


def test_other_commands_give_values() -> None:
    assert prefopt.run("info")["prefopt"] == prefopt.__version__
    assert prefopt.run("power", seeds=5, prompts=64)
    assert prefopt.run("losses", name="dpo").startswith("dpo")
    assert any(row["name"] == "dpo" for row in prefopt.run("losses"))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_every_command_can_be_given(name: str) -> None:
    for parameter in COMMANDS[name].params:
        option = parameter.param_type_name == "option"
        value = True if option and parameter.is_flag else "1"
        words = to_words(name, COMMANDS[name], Config.model_fields, {parameter.name: value})
        assert words[1:] == [*([parameter.opts[0]] if option else []), *(["1"] if value == "1" else [])]


def test_values_become_words() -> None:
    def words(**options: Any) -> list[str]:
        return to_words("compare", COMMANDS["compare"], Config.model_fields, options)[1:]

    assert words(seeds=range(3), dry_run=False, model=None) == ["--seeds", "0,1,2"]
    assert words(track=["wandb", "mlflow"]) == ["--track", "wandb,mlflow"]
    assert words(column_map={"prompt": "question", "chosen": "best"}) == ["--column-map", "prompt=question,chosen=best"]
    assert words(plugin=["a.py", "b.py"]) == ["--plugin", "a.py", "--plugin", "b.py"]
    assert words(claims="dpo > ipo") == words(**{"assert": "dpo > ipo"}) == ["--assert", "dpo > ipo"]
    assert words(data={"source": "x.jsonl", "max_length": 9}) == ["--data", "x.jsonl", "--set", "data.max_length=9"]
    assert words(train={"learning_rate": 1e-5, "schedule": "cosine"}) == [
        "--set", "train.learning_rate=1e-05", "--set", 'train.schedule="cosine"',
    ]  # fmt: skip
    assert words(variants=[{"loss": "dpo", "label": "x"}]) == ["--set", 'variants=[{"loss" = "dpo", "label" = "x"}]']
    assert words(config="-odd.toml") == ["--", "-odd.toml"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loses": "dpo"}, "has no option loses; did you mean losses"),
        ({"data": pd.DataFrame({"prompt": ["x"]})}, "data: rows must lie in a file"),
        ({"data": [{"prompt": "x"}]}, "data: rows must lie in a file"),
        ({"model": ["a", "b"]}, "model: takes one value; got 2"),
        ({"dry_run": "yes"}, "dry_run: write True or False; got 'yes'"),
        ({"train": {"optimizer": object()}}, "train.optimizer: a value of type object is no setting"),
        ({"device": object()}, "device: a value of type object cannot be given"),
        ({"losses": "dpo", "train": {"steps": "many"}}, "train.steps"),
        ({"losses": "nosuch"}, "unknown loss 'nosuch'"),
        ({"hang_after": "soon"}, "hang"),
    ],
)
def test_bad_calls_say_what_the_command_line_says(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PrefoptError, match=message):
        prefopt.compare(**{"dry_run": True, "quiet": True, **options})


def test_unknown_command() -> None:
    with pytest.raises(UsageError, match="no command 'comapre'; did you mean compare"):
        prefopt.run("comapre")


def test_a_loss_without_a_file_is_refused_and_told_where_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine:
        name = "mine"

    Mine.__module__ = "__main__"
    monkeypatch.setitem(registry.REGISTRY, "mine", Mine)  # type: ignore[arg-type]
    for losses in ("dpo,mine[beta=1]", ["dpo", "mine"], [Mine()]):
        with pytest.raises(UsageError, match=r'defined in this notebook or script.*give plugin="my_loss.py"'):
            prefopt.compare(losses, quiet=True)


def test_words_are_those_typed_where_nobody_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/prefopt", "compare", "--losses", "dpo"])
    assert command_line() == ["prefopt", "compare", "--losses", "dpo"]


def test_import_is_light() -> None:
    script = (
        "import sys, prefopt; heavy = {'torch', 'typer', 'matplotlib', 'pandas', 'transformers'} & set(sys.modules); "
        "assert not heavy, heavy; prefopt.load; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
