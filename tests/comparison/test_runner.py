"""Whole comparisons through the command line, on a tiny model: results, resumption, refusals, exit statuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from command import arguments, files, run, write_pairs

from prefopt.cli import app
from prefopt.config.load import load
from prefopt.storage.results import ResultsFolder


def test_a_whole_comparison_and_its_resumption(
    tmp_path: Path,
    tiny_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = tiny_folder("llama")
    words = arguments(tmp_path, model, "--losses", "dpo,noop", "--seeds", "0-1", "--quiet")
    assert run(monkeypatch, words) == 0, capsys.readouterr().err
    folder = ResultsFolder(tmp_path / "results" / "mine")
    assert set(folder.runs()) == {(v, s) for v in ("dpo", "noop", "reference") for s in (0, 1)}
    for name in ("report.html", "report.md", "results.json", "manifest.json"):
        assert (folder.root / name).stat().st_size > 200, name

    scores = folder.frames("scores.parquet", ["prompt_id", "sample", "kl", "logp", "ref_logp"])
    assert (scores.loc[scores["variant"] == "noop", "kl"] == 0).all()
    assert (scores.loc[scores["variant"] == "dpo", "kl"] > 0).all()
    history = folder.frames("history.csv", ["step", "split", "logratio/margins"])
    start = history[(history["step"] == 0) & (history["split"] == "heldout")]
    assert (start["logratio/margins"] == 0).all()
    samples = folder.frames("samples.parquet", ["prompt_id", "sample", "response"])
    of = {v: samples[samples["variant"] == v]["response"].tolist() for v in ("noop", "reference", "dpo")}
    assert of["noop"] == of["reference"] != of["dpo"]

    conditions = [folder.runs()[v, 0].conditions for v in ("dpo", "noop")]
    assert conditions[0] == conditions[1]
    assert folder.runs()["dpo", 1].conditions.pair_order != conditions[0].pair_order
    assert folder.runs()["dpo", 1].conditions.initial_adapter != conditions[0].initial_adapter

    before = files(folder.root / "runs")
    assert run(monkeypatch, words) == 0
    assert files(folder.root / "runs") == before  # nothing was trained again
    more = arguments(tmp_path, model, "--losses", "dpo,noop,ipo", "--seeds", "0-1", "--quiet")
    assert run(monkeypatch, more) == 0, capsys.readouterr().err
    after = files(folder.root / "runs")
    kept = {name: written for name, written in before.items() if not name.endswith("adapter/README.md")}
    assert {name: after[name] for name in kept} == kept  # only what was added is new, and cards tell of it, too
    assert ("ipo", 1) in folder.runs()

    # A part of it at one seed more: what was there stays planned, finished and described.
    part = arguments(tmp_path, model, "--losses", "noop", "--seeds", "0-2", "--quiet")
    assert run(monkeypatch, part) == 0, capsys.readouterr().err
    manifest = folder.manifest()
    assert {name: manifest.planned_seeds(name) for name in manifest.variant_names} == {
        "dpo": (0, 1), "noop": (0, 1, 2), "ipo": (0, 1),
    }  # fmt: skip
    assert manifest.seeds == (0, 1, 2)
    assert [line.count("dpo,noop,ipo") for line in manifest.earlier_commands] == [1], "it holds all of the first"
    board = json.loads((folder.root / "results.json").read_text(encoding="utf-8"))["leaderboard"]
    assert {row["variant"]: row["seeds"] for row in board} == {"dpo": "2/2", "noop": "3/3", "ipo": "2/2"}
    written = folder.manifest_path.read_bytes()
    assert run(monkeypatch, part) == 0
    assert folder.manifest_path.read_bytes() == written

    # The same variant trained on its own, elsewhere, ends in the same bytes.
    alone = arguments(
        tmp_path, model, "--losses", "ipo", "--seeds", "1", "--quiet", "--results", str(tmp_path / "other")
    )
    assert run(monkeypatch, alone) == 0
    both = [root / "mine" / "runs" / "ipo" / "seed-1" / "adapter" for root in (folder.root.parent, tmp_path / "other")]
    assert len({(path / "adapter_model.safetensors").read_bytes() for path in both}) == 1

    monkeypatch.setattr("prefopt.comparison.provenance.code_hash", lambda: "another")
    before = files(folder.root)
    assert run(monkeypatch, arguments(tmp_path, model, "--losses", "dpo,simpo", "--seeds", "0", "--quiet")) == 2
    assert "hashes.code" in capsys.readouterr().err
    assert files(folder.root) == before


def test_another_setting_under_the_same_name_is_refused(
    tmp_path: Path,
    tiny_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = arguments(tmp_path, tiny_folder("llama"), "--losses", "noop", "--seeds", "0", "--quiet")
    assert run(monkeypatch, words) == 0, capsys.readouterr().err
    before = files(tmp_path / "results")
    assert run(monkeypatch, [*words, "--set", "train.steps=4"]) == 2
    assert "train.steps = 3, and now it is 4" in capsys.readouterr().err
    assert files(tmp_path / "results") == before


BAD = {
    "unknown loss": (["--losses", "dop"], 2, "did you mean dpo?"),
    "unknown hyperparameter": (["--losses", "dpo[bta=1]"], 2, "dpo has no hyperparameter bta; it has beta"),
    "value out of range": (["--losses", "cdpo[label_smoothing=0.5]"], 2, "label_smoothing must lie in"),
    "unknown key": (["--set", "train.lerning_rate=1"], 2, "did you mean learning_rate?"),
    "wrong type": (["--set", "train.steps=many"], 2, "train.steps"),
    "unsafe name": (["--name", "../../x"], 2, "cannot be a folder name"),
    "bad seeds": (["--seeds", "2-1"], 2, "write 0-2 or 0,1,5"),
    "unknown option": (["--losess", "dpo"], 2, "No such option"),
    "absent config": (["nope.toml"], 2, "nope.toml does not exist"),
    "no CUDA": (["--device", "cuda"], 6, "sees no CUDA device"),
    "no model": (["--model", "./nope"], 6, "no such folder"),
    "absent data": (["--data", "nope.jsonl"], 2, "nope.jsonl"),
    "same experiment twice": (["--losses", "dpo,dpo[beta=0.1]"], 2, "given twice"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_writes_nothing(
    case: str,
    tmp_path: Path,
    tiny_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more, status, said = BAD[case]
    if case == "no CUDA" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    assert run(monkeypatch, arguments(tmp_path, tiny_folder("llama"), "--losses", "noop", "--quiet", *more)) == status
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1
    assert "Traceback" not in shown
    assert not (tmp_path / "results").exists()


def test_bad_rows_are_named_and_nothing_is_written(
    tmp_path: Path,
    tiny_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_pairs(tmp_path / "pairs.jsonl")
    lines = path.read_text().splitlines()
    lines[6] = json.dumps({"prompt": "x", "chosen": "same", "rejected": "same"})
    lines[9] = json.dumps({"prompt": "x", "chosen": "", "rejected": "y"})
    path.write_text("\n".join(lines) + "\n")
    words = arguments(tmp_path, tiny_folder("llama"), "--losses", "noop", "--seeds", "0", "--quiet")
    assert run(monkeypatch, words) == 3
    shown = capsys.readouterr().err
    assert 'pairs.jsonl:7 field "rejected"' in shown
    assert 'pairs.jsonl:10 field "chosen"' in shown
    assert not (tmp_path / "results").exists()
    assert run(monkeypatch, [*words, "--on-bad-rows", "drop"]) == 0
    assert ResultsFolder(tmp_path / "results" / "mine").manifest().data["dropped_rows"] == 2


def test_truncated_rows_are_counted(
    tmp_path: Path, tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = arguments(tmp_path, tiny_folder("llama"), "--losses", "noop", "--seeds", "0", "--quiet")
    assert run(monkeypatch, [*words, "--set", "data.max_length=14"]) == 0
    data = ResultsFolder(tmp_path / "results" / "mine").manifest().data
    assert data["truncated_chosen"] + data["truncated_rejected"] > 0


def test_a_plugin_file_adds_a_loss(
    tmp_path: Path,
    tiny_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    readme = Path(app.__file__).parents[2] / "README.md"
    source = readme.read_text(encoding="utf-8").split("```python\n# my_losses.py\n")[1].split("```")[0]
    plugin = tmp_path / "my_losses.py"
    plugin.write_text(source, encoding="utf-8")
    words = arguments(tmp_path, tiny_folder("llama"), "--losses", "cauchy[beta=0.2],dpo", "--seeds", "0", "--quiet")
    assert run(monkeypatch, [*words, "--plugin", str(plugin)]) == 0, capsys.readouterr().err
    assert ("cauchy[beta=0.2]", 0) in ResultsFolder(tmp_path / "results" / "mine").runs()


def test_the_saved_adapter_rebuilds_the_policy(
    tmp_path: Path, tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers
    from peft import PeftModel

    words = arguments(tmp_path, tiny_folder("llama"), "--losses", "dpo", "--seeds", "0", "--quiet")
    assert run(monkeypatch, words) == 0
    folder = ResultsFolder(tmp_path / "results" / "mine").run("dpo", 0)
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder("llama"))
    policy = PeftModel.from_pretrained(model, folder / "adapter").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_folder("llama"))
    scores, samples = (pd.read_parquet(folder / f"{name}.parquet") for name in ("scores", "samples"))
    row = scores[scores["finished"] == False].index[0]  # noqa: E712 - a cut response decodes to what was sampled
    prompt, response = (tokenizer(samples.loc[row, name])["input_ids"] for name in ("prompt", "response"))
    logits = policy(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    got = logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum().item()
    if len(response) == scores.loc[row, "n_tokens"]:
        assert got == pytest.approx(scores.loc[row, "logp"], abs=1e-3)


def test_json_progress_is_one_object_a_line(
    tmp_path: Path,
    tiny_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = arguments(tmp_path, tiny_folder("llama"), "--losses", "dpo", "--seeds", "0", "--json")
    assert run(monkeypatch, words) == 0
    shown = capsys.readouterr()
    board = json.loads(shown.out)
    assert [row["variant"] for row in board["leaderboard"]] == ["dpo"]
    assert Path(board["report"]).is_file()
    assert board["claims"] == []
    events = [json.loads(line) for line in shown.err.splitlines()]
    assert any(event.get("metrics", {}).get("dpo", {}).get("loss") for event in events)


def test_dry_run_plans_and_writes_nothing(
    tmp_path: Path,
    tiny_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = arguments(tmp_path, tiny_folder("llama"), "--losses", "dpo,simpo", "--seeds", "0-2", "--dry-run", "--json")
    status, shown = run(monkeypatch, words), capsys.readouterr()
    assert status == 0, shown.err
    plan = json.loads(shown.out)
    assert plan["runs"] == 6
    assert plan["pairs that a run sees"] == "12 (67 %)"
    assert plan["training pairs"] + plan["held-out pairs"] == 24
    assert (plan["epochs"], plan["rows dropped"], plan["evaluation prompts"]) == (0.67, 0, 3)
    assert plan["peak memory of a group, GiB"] > 0
    assert not (tmp_path / "results").exists()


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefopt", "losses", "simpo"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "gamma_beta_ratio" in done.stdout
    assert "2405.14734" in done.stdout


def test_the_benchmark_files_are_valid() -> None:
    root = Path(app.__file__).parents[2] / "benchmarks"
    for path in root.glob("*.toml"):
        text = path.read_text(encoding="utf-8")
        assert all(f"# {word}" in text for word in ("Question:", "Cost:", "Command:")), path
        assert load(path, {}).name.endswith(path.stem)  # tuned.toml is imdb-tuned
