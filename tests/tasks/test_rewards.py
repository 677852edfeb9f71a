"""Rewards and tasks of somebody else's: what they are given, what they must give, and what becomes of the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command import SHORT, run, without_report

from prefopt.errors import UsageError
from prefopt.storage.results import ResultsFolder
from prefopt.tasks.rewards import CheckedReward, FunctionReward, identity, parse_reward

GOOD = "def vowels(prompts, responses):\n    return [sum(c in 'aeiou' for c in r) / (1 + len(r)) for r in responses]\n"
BAD = {
    "raises": ("raise KeyError('no')", "raised KeyError: 'no'"),
    "exits": ("raise SystemExit(3)", "raised SystemExit: 3"),
    "ends": ("import os; os._exit(3)", "it ends the process"),
    "count": ("return [1.0]", "3 numbers are wanted, one a response; got shape (1,)"),
    "column": ("import numpy as np; return np.zeros((len(responses), 1))", "got shape (3, 1)"),
    "nan": ("return [float('nan')] * len(responses)", "all finite; 3 are not, the first nan"),
    "strings": ("return responses", "got str such as"),
    "nothing": ("return None", "got NoneType"),
    "hangs": ("import time; time.sleep(30)", "took more than 0.2 s"),
}


def function(tmp_path: Path, body: str, name: str = "f") -> CheckedReward:
    path = tmp_path / "mine.py"
    path.write_text(f"def {name}(prompts, responses):\n    {body}\n", encoding="utf-8")
    return CheckedReward(FunctionReward(parse_reward(f"{path}:{name}")), seconds=0.2)


@pytest.mark.parametrize("case", BAD)
def test_a_bad_answer_is_one_line_before_anything_is_trained(case: str, tmp_path: Path) -> None:
    body, said = BAD[case]
    with pytest.raises(UsageError, match="Nothing was trained") as problem:
        function(tmp_path, body).probe()
    assert said in str(problem.value)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize("value", ["[1, 2, 3]", "(1.0, 2.0, 3.0)", "np.array([1, 2, 3])", "torch.tensor([1., 2., 3.])"])
def test_any_three_numbers_will_do(value: str, tmp_path: Path) -> None:
    reward = function(tmp_path, f"import numpy as np, torch; return {value}")
    assert reward.score(["a", "b", "c"], ["", " x", " y"]).tolist() == [1, 2, 3]


def test_long_questions_are_asked_in_batches(tmp_path: Path) -> None:
    reward = function(tmp_path, "return [len(responses)] * len(responses)")
    assert reward.score(["p"] * 130, ["r"] * 130).tolist() == [64.0] * 128 + [2.0] * 2
    assert reward.calls == 130


def test_what_it_changes_of_the_process_is_put_back(tmp_path: Path) -> None:
    np.random.seed(0)
    before = np.random.random()
    np.random.seed(0)
    function(tmp_path, "import numpy as np, os; np.random.seed(9); os.chdir('/'); print('x'); return [0.0] * 3").probe()
    assert np.random.random() == before
    assert Path.cwd() != Path("/")


def test_what_is_no_reward_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("f = 3\nraise_ = 1 / 1\n", encoding="utf-8")
    (tmp_path / "broken.py").write_text("1 / 0\n", encoding="utf-8")
    for text, said in (
        ("rm:", "write imdb, rm:MODEL"), (f"{tmp_path}/mine.py", "name the function"), ("no.py:f", "there is no file"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            parse_reward(text)
    for text, said in (
        (f"{tmp_path}/mine.py:f", "f is int"), (f"{tmp_path}/mine.py:g", "defines no g"),
        (f"{tmp_path}/broken.py:f", "ZeroDivisionError"), ("nobody", "prefopt.rewards"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            identity(text)


def test_a_change_in_what_a_reward_imports_is_another_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    keys = []
    for number in (1, 2):
        folder = tmp_path / f"v{number}"
        folder.mkdir()
        (tmp_path / f"weights{number}.py").write_text(f"W = {number}\n", encoding="utf-8")
        (folder / "mine.py").write_text(f"from weights{number} import W\n{GOOD}", encoding="utf-8")
        keys.append(identity(f"{folder}/mine.py:vowels"))
    assert keys[0] != keys[1]


def words(tmp_path: Path, model: Path, *more: str) -> list[str]:
    prompts = tmp_path / "prompts.jsonl"
    animals = ("cat", "dog", "rat", "hen", "cow", "owl")
    rows = [{"prompt": f"the {animals[i % 6]} {i} sat"} for i in range(16)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    sizes = ("pairs.prompts=8", "pairs.heldout_prompts=3", "pairs.samples=3", "pairs.max_new_tokens=6")
    settings = [word for setting in (*SHORT, *sizes) for word in ("--set", setting)]
    return [
        "compare", "--prompts", str(prompts), "--model", str(model), "--results", str(tmp_path / "results"), "--name",
        "mine", "--device", "cpu", "--seeds", "0", "--quiet", *settings, *more,
    ]  # fmt: skip


def test_prompts_and_a_reward_give_the_whole_experiment(
    tmp_path: Path,
    tiny_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reward = tmp_path / "mine.py"
    reward.write_text(
        GOOD + "def length(prompts, responses):\n    return [len(r) for r in responses]\n", encoding="utf-8"
    )
    asked = words(tmp_path, tiny_folder("llama"), "--losses", "dpo,noop", "--reward", f"{reward}:vowels")
    asked += ["--set", "evaluation.best_of=5"]
    assert run(monkeypatch, [*asked, "--label-reward", f"{reward}:length"]) == 0, capsys.readouterr().err
    folder = ResultsFolder(tmp_path / "results" / "mine")
    manifest = folder.manifest()
    assert manifest.task["name"] == "prompts"
    assert manifest.task["reward"] == "mine.py:vowels"
    assert 0 < manifest.task["label_accuracy"] < 1  # labels are the proxy's, and gold is another
    scores, samples = (pd.read_parquet(folder.run("dpo", 0) / f"{name}.parquet") for name in ("scores", "samples"))
    vowels = [sum(c in "aeiou" for c in r) / (1 + len(r)) for r in samples["response"]]
    assert scores["reward"].tolist() == pytest.approx(vowels)
    assert scores["proxy"].tolist() == [len(response) for response in samples["response"]]
    assert (folder.root / "figures" / "proxy_gold.svg").is_file()
    pairs = pd.read_parquet(folder.run("dpo", 0) / "pairs.parquet")
    assert pairs["gold_chosen"].abs().max() < 1
    best = json.loads((folder.root / "results.json").read_text(encoding="utf-8"))["frontier"]["best_of_n"]
    many = pd.read_parquet(folder.run("reference", 0) / "best_of.parquet")
    assert [row["n"] for row in best] == [1, 2, 3, 4, 5]
    assert best[0]["reward"] == pytest.approx(many["reward"].mean())
    assert best[4]["reward"] == pytest.approx(many.groupby("prompt_id")["reward"].max().mean())
    judged = folder.judgements()
    assert set(judged["judge"]) == {"oracle"}

    reward.write_text(reward.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    monkeypatch.setattr("prefopt.tasks.rewards._LOADED", {})
    monkeypatch.setattr("prefopt.contract.plugin_files._LOADED", {})
    from prefopt.contract import plugin_files

    plugin_files.code_of_module.cache_clear()
    assert run(monkeypatch, [*asked, "--label-reward", f"{reward}:length"]) == 2
    assert "rewards" in capsys.readouterr().err


def test_a_reward_that_fails_later_ends_its_run_alone(
    tmp_path: Path,
    tiny_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It raises at the third question about evaluation samples: those of the second variant."""
    without_report(monkeypatch)
    reward = tmp_path / "mine.py"
    reward.write_text(
        "seen = []\ndef f(prompts, responses):\n    seen.append(len(responses))\n"
        "    if seen.count(6) == 2:\n        seen.append(6)\n        raise ValueError('tired')\n"
        "    return [len(r) for r in responses]\n",
        encoding="utf-8",
    )
    asked = words(tmp_path, tiny_folder("llama"), "--losses", "dpo,ipo", "--reward", f"{reward}:f")
    assert run(monkeypatch, asked) == 4
    shown = capsys.readouterr().err
    assert "ipo seed 0 failed: RewardError: reward mine.py:f: raised ValueError: tired" in shown
    runs = ResultsFolder(tmp_path / "results" / "mine").runs()
    assert {key: run.is_complete for key, run in runs.items()} == {
        ("dpo", 0): True, ("ipo", 0): False, ("reference", 0): True,
    }  # fmt: skip


def test_chats_and_too_few_prompts(
    tmp_path: Path,
    tiny_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reward = tmp_path / "mine.py"
    reward.write_text(
        "def f(prompts, responses):\n    assert all(p[-1]['role'] == 'user' for p in prompts)\n"
        "    return [len(r) + len(p[-1]['content']) for p, r in zip(prompts, responses)]\n",
        encoding="utf-8",
    )
    without_report(monkeypatch)
    asked = words(tmp_path, tiny_folder("llama"), "--losses", "noop", "--reward", f"{reward}:f")
    rows = [{"prompt": [{"role": "user", "content": f"the cat {i}"}]} for i in range(13)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert run(monkeypatch, asked) == 2
    assert "there are 13 that differ" in capsys.readouterr().err
    assert run(monkeypatch, [*asked, "--set", "pairs.prompts=7"]) == 0, capsys.readouterr().err
    frame = pd.read_parquet(ResultsFolder(tmp_path / "results" / "mine").root / "prompts.parquet")
    assert frame["prompt"].str.startswith("the cat").all(), "people read what was said, not the template"


PLUGIN = """
import numpy as np
from prefopt import register_task
from prefopt.tasks.base import DataTask, TaskPrompts

@register_task("numbers")
class Numbers(DataTask):
    has_reward = True
    fingerprint = "numbers 1"

    def prompts(self, tokenizer, *, train, heldout, evaluation, seed):
        texts = [f"count {i}" for i in range(train + heldout + evaluation)]
        return TaskPrompts(tuple(texts[:train]), tuple(texts[train:train + heldout]), tuple(texts[train + heldout:]))

    def reward(self, prompts, responses):
        return np.array([float(len(r)) for r in responses])
"""


def test_a_task_is_a_plug_in_too(
    tmp_path: Path,
    tiny_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    without_report(monkeypatch)
    monkeypatch.setattr("prefopt.contract.tasks._TASKS", {})
    (tmp_path / "numbers.py").write_text(PLUGIN, encoding="utf-8")
    asked = words(tmp_path, tiny_folder("llama"), "--losses", "noop", "--set", "task.name=numbers")
    at = asked.index("--prompts")
    del asked[at : at + 2]
    assert run(monkeypatch, asked) == 2
    assert "unknown task 'numbers'" in capsys.readouterr().err
    assert run(monkeypatch, [*asked, "--plugin", str(tmp_path / "numbers.py")]) == 0, capsys.readouterr().err
    assert ResultsFolder(tmp_path / "results" / "mine").manifest().task["reward"] == "that of the task numbers"
