"""Own pairs with one command: what is not set is chosen by situation, then trained, judged and reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chat_server
import pytest
from bad_inputs import ROWS, Command, jsonl

import prefopt
from prefopt.config.load import name_of
from prefopt.judges import imported
from prefopt.storage.results import ResultsFolder

Tiny = Callable[[str], Path]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", chat_server.KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "my pairs (1).jsonl").write_bytes(jsonl(ROWS))
    return Command(tmp_path / "work", monkeypatch, capsys)


def words(model: Path, *more: str, data: str = "my pairs (1).jsonl") -> list[str]:
    return [
        "compare", "--data", data, "--model", str(model), "--losses", "dpo", "--seeds", "0", "--device", "cpu",
        "--in-process", "--set", "lora.rank=2", "--set", "model.dtype=float32", "--set", "evaluation.samples=1", *more,
    ]  # fmt: skip


def said(text: str) -> str:
    return " ".join(text.split())


def test_one_command_trains_judges_and_reports(command: Command, tiny_folder: Tiny) -> None:
    (command.root / "ask.jsonl").write_bytes(jsonl({"question": f"what of the cat {i}", "id": i} for i in range(4)))
    with chat_server.serve() as server:
        more = ("--judge", "openai:tiny", "--base-url", server.url, "--eval-prompts", "ask.jsonl")
        outcome = command(*words(tiny_folder("llama"), *more))
    assert outcome.status in (0, 4), outcome.err  # the server always says A, which is a problem of this judge
    folder = ResultsFolder(command.root / "results" / "my-pairs-1")
    manifest = folder.manifest()
    prompts = folder.frames("samples.parquet", ["prompt"])["prompt"].unique()
    assert [prompt.removeprefix("<s>") for prompt in sorted(prompts)] == [f"what of the cat {i}" for i in range(4)]
    (record,) = folder.root.glob("judge/*/judge.json")
    assert folder.read_json(record)["judge"] == "openai:tiny"
    assert "openai:tiny" in (folder.root / "report.md").read_text(encoding="utf-8")
    # 24 pairs of as many prompts, a quarter of them held out: 18 pairs, of which a step takes eight.
    assert manifest.data["train_pairs"] == 18
    assert manifest.config["train"]["steps"] == 3
    assert set(manifest.by_situation) >= {"train.steps", "train.learning_rate", "evaluation.max_new_tokens"}
    for line in ("train.steps = 3 (1 epoch of 18 pairs", "train.learning_rate = 0.001 (LoRA on ", "eval_prompts"):
        assert line in said(outcome.err), line
    assert "the model has a chat template and the pairs are text" in said(outcome.err)

    # The same data from elsewhere, under another name, are the same: nothing is trained again.
    (command.root / "sub").mkdir()
    (command.root / "sub" / "copy.jsonl").write_bytes(jsonl(ROWS))
    (command.root / "sub" / "ask.jsonl").write_bytes((command.root / "ask.jsonl").read_bytes())
    again = ("--name", "my-pairs-1", "--eval-prompts", "sub/ask.jsonl")
    outcome = command(*words(tiny_folder("llama"), *again, data="sub/copy.jsonl"))
    assert outcome.status == 0, outcome.err
    assert "nothing to train" in outcome.err
    # A setting that was open and is now given is another experiment, and is named.
    outcome = command(*words(tiny_folder("llama"), *again, "--set", "train.steps=3", data="sub/copy.jsonl"))
    assert outcome.status == 2
    assert "train.steps = 'by situation', and now it is 3" in outcome.err


def test_the_plan_says_where_each_default_is_from_and_how_long_it_takes(command: Command, tiny_folder: Tiny) -> None:
    outcome = command(*words(tiny_folder("llama"), "--judge", "rm:" + str(tiny_folder("llama")), "--dry-run", "--json"))
    assert outcome.status == 0, outcome.err
    plan = json.loads(outcome.out)
    assert plan["training pairs"] + plan["held-out pairs"] == 24
    assert plan["train.learning_rate"].startswith("0.001 (LoRA on ")
    assert plan["evaluation.max_new_tokens"].endswith("(95 % of chosen responses are no longer)")
    assert plan["time in all"].startswith("about ")
    assert plan["judgements"].startswith("6 by rm:")
    assert not (command.root / "results").exists()


def test_the_reference_is_tuned_on_chosen_responses_when_asked(command: Command, tiny_folder: Tiny) -> None:
    model = tiny_folder("llama")
    tuned = ("--set", "sft.on=chosen", "--set", "sft.learning_rate=1e-2", "--quiet")
    assert command(*words(model, *tuned, "--name", "tuned")).status == 0
    assert command(*words(model, "--quiet", "--name", "plain")).status == 0
    manifests = {name: ResultsFolder(command.root / "results" / name).manifest() for name in ("tuned", "plain")}
    assert manifests["tuned"].reference["sft_steps"] == 2  # 18 pairs, twelve a step
    assert manifests["plain"].reference["sft_steps"] == 0
    assert manifests["tuned"].reference["hash"] != manifests["plain"].reference["hash"]


# id: (more words, what must be said)
REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "no address": (("--judge", "openai:tiny"), "needs --base-url or $OPENAI_BASE_URL"),
    "no kind": (("--judge", "opanai:tiny"), "did you mean openai"),
    "no file": (("--judge", "file:none.jsonl"), "there is no such file"),
    "no judge": (("--max-calls", "3"), "--max-calls has no effect without --judge"),
    "address alone": (("--base-url", "http://x/v1"), "--base-url has no effect without --judge"),
    "noise": (("--label-noise", "0.1"), "pairs.label_noise has no effect with your own pairs"),
    "watch": (("--hang-after", "3"), "--hang-after has no effect without a process to watch"),
    "capitals": (("--losses", "DPO"), "unknown loss 'DPO'; did you mean dpo?"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused_before_training(case: str, command: Command, tiny_folder: Tiny) -> None:
    more, problem = REFUSED[case]
    outcome = command(*words(tiny_folder("llama"), "--quiet", *more))
    assert outcome.status == 2
    assert problem in outcome.err
    assert not (command.root / "results").exists()


@pytest.mark.parametrize("option", [("--on-bad-rows", "drop"), ("--dedup",), ("--column-map", "prompt=q"),
                                    ("--eval-prompts", "my pairs (1).jsonl")])  # fmt: skip
def test_options_of_data_without_data_are_refused(option: tuple[str, ...], command: Command) -> None:
    outcome = command("compare", "--quiet", *option)
    assert outcome.status == 2
    assert "has no effect without pairs of your own; give --data FILE" in outcome.err


def test_prompts_that_are_trained_on_or_of_another_form_are_refused(command: Command, tiny_folder: Tiny) -> None:
    (command.root / "leak.jsonl").write_bytes(jsonl({"prompt": row["prompt"]} for row in ROWS))
    outcome = command(*words(tiny_folder("llama"), "--quiet", "--eval-prompts", "leak.jsonl"))
    assert outcome.status == 3
    assert "also in the training data" in outcome.err
    (command.root / "chat.jsonl").write_bytes(jsonl([{"prompt": [{"role": "user", "content": "x"}]}] * 2))
    outcome = command(*words(tiny_folder("llama"), "--quiet", "--eval-prompts", "chat.jsonl"))
    assert outcome.status == 3
    assert "the prompts are messages, and the pairs are text" in outcome.err


def test_rows_left_out_and_cut_are_said(command: Command, tiny_folder: Tiny) -> None:
    rows: list[dict[str, Any]] = [{**row, "chosen": row["chosen"] + " and on" * 9} for row in ROWS]
    rows.append({"prompt": "x", "chosen": "a", "rejected": "a"})
    (command.root / "p.jsonl").write_bytes(jsonl(rows))
    more = ("--on-bad-rows", "drop", "--dry-run", "--set", "data.max_length=24")
    outcome = command(*words(tiny_folder("llama"), *more, data="p.jsonl"))
    assert outcome.status == 0, outcome.err
    assert "p.jsonl: 1 of 25 rows left out (DATA014 equal responses: 1)" in said(outcome.err)
    assert "training pairs are cut at data.max_length = 24 tokens" in said(outcome.err)


def test_losses_of_scores_are_refused_where_no_score_agrees(command: Command, tiny_folder: Tiny) -> None:
    scores = {"chosen-rating": 5.0, "rejected-rating": 5.0}
    (command.root / "p.jsonl").write_bytes(jsonl({**row, **scores} for row in ROWS))
    outcome = command(*words(tiny_folder("llama"), "--losses", "odpo", "--quiet", data="p.jsonl"))
    assert outcome.status == 3
    assert "in none of 18 training rows chosen has the higher one" in outcome.err
    assert not (command.root / "results").exists()


def test_a_cache_that_cannot_be_written_names_its_variable(
    command: Command, tiny_folder: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    (command.root / "file").write_text("not a folder")
    monkeypatch.setenv("PREFOPT_CACHE", str(command.root / "file" / "cache"))
    outcome = command(*words(tiny_folder("llama"), "--quiet"))
    assert outcome.status == 6
    assert "set PREFOPT_CACHE to a folder that can" in outcome.err


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("my pairs (1).jsonl", "my-pairs-1"), ("a/b/all.jsonl.gz", "all"), ("org/name:split", "name-split"),
        ("org/name@main:train", "name-main-train"), ("shards/", "shards"), ("données.csv", "donne-es"),
        ("....jsonl", "pairs"), ("con.csv", "pairs"), ("x" * 300 + ".csv", "x" * 120), ("p.tar", "p.tar"),
    ],
)  # fmt: skip
def test_names_are_made_from_sources(source: str, name: str) -> None:
    assert name_of(source) == name


def test_version_settings_and_cache_are_commands(command: Command) -> None:
    assert command("--version").out.strip() == f"prefopt {prefopt.__version__}"
    assert "# Optimizer steps" in command("config").out
    assert command("config", "--out", "x.toml", "--set", "train.steps=7").status == 0
    assert "\nsteps = 7\n" in (command.root / "x.toml").read_text()
    again = command("config", "--out", "x.toml")
    assert again.status == 2
    assert "is there already" in again.err
    cache = command.root.parent / "cache"
    (cache / "models").mkdir(parents=True)
    (cache / "models" / "x").write_bytes(b"1" * 2_000_000)
    assert "models" in command("cache").out
    assert command("cache", "--clear", "modles").status == 2
    assert "removed" in command("cache", "--clear", "models").out
    assert not (cache / "models").exists()


def test_verdicts_with_odd_line_breaks_are_read_and_a_file_that_matches_nothing_is_refused(
    command: Command, tmp_path: Path
) -> None:
    import judged

    folder = judged.write(tmp_path / "x", {"better": 1, "worse": 0}, seeds=1).root
    path = tmp_path / "q.jsonl"
    assert command("judge", str(folder), "--judge", "file:q", "--questions", str(path), "--sample", "5").status == 0
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 5
    assert command("judge", str(folder), "--judge", "file:q", "--sample", "5").status == 2
    odd = [{"prompt": "a\u2028b\x85c", "a": "x", "b": "y\u2029", "verdict": "a"}]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in odd), encoding="utf-8")
    assert imported.FileJudge(path).facts() == {"comparisons in the file": 1}
    outcome = command("judge", str(folder), "--judge", f"file:{path}")
    assert outcome.status == 3
    assert "none of its 1 comparisons is one of this folder's" in outcome.err
