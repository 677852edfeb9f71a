"""The reward model: its loss by two other ways, its rows, its report by hand, and a folder that others load."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from command import SHORT, run, without_report

from prefopt.data.ranked import Ranking, better_pairs
from prefopt.errors import DataError
from prefopt.model.scalar import last_positions, shared_row
from prefopt.train.reward_model import kwise_loss, reward_report


def ranking(*scores: float, golds: tuple[float, ...] | None = None) -> Ranking:
    return Ranking("p", tuple(map(str, range(len(scores)))), better_pairs(scores), golds)


def test_k_wise_is_the_mean_of_pairwise_losses() -> None:
    source = torch.Generator().manual_seed(0)
    rankings = [ranking(3, 1, 2, 0), ranking(0, 1), ranking(1, 1, 0)]
    rewards = torch.randn(9, generator=source, dtype=torch.float64)
    values, start = [], 0
    for each in rankings:
        own = rewards[start : start + len(each.responses)]
        pairwise = [-F.logsigmoid(own[i] - own[j]) for i, j in each.pairs]
        values.append(sum(pairwise) / len(pairwise))
        start += len(each.responses)
    assert [len(each.pairs) for each in rankings] == [6, 1, 2]
    assert kwise_loss(rewards, rankings).item() == pytest.approx(float(sum(values) / 3), abs=1e-9)


def test_of_pairs_it_is_trl_s() -> None:
    trl = pytest.importorskip("trl")
    source = torch.Generator().manual_seed(1)
    rewards = torch.randn(5, 2, generator=source, dtype=torch.float64)
    trainer = object.__new__(trl.RewardTrainer)
    accelerator = SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer.__dict__.update(
        model=SimpleNamespace(training=False), args=SimpleNamespace(center_rewards_coefficient=None),
        accelerator=accelerator, _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    logits = torch.cat([rewards[:, 0], rewards[:, 1]])[:, None]  # TRL stacks all chosen, then all rejected
    theirs = trainer.compute_loss(lambda **inputs: SimpleNamespace(logits=logits), {"attention_mask": torch.ones(1)})
    ours = kwise_loss(rewards.flatten(), [ranking(1, 0)] * 5)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-9)


def test_texts_share_what_they_begin_with() -> None:
    row = shared_row([[1, 5, 6, 7], [1, 5, 6, 8, 9], [1, 5, 6]], pad=2, window=9)
    assert (row.prompt, row.responses) == ([1, 5], ((6, 7), (6, 8, 9), (6,)))
    assert last_positions([row, row]) == [3, 6, 7, 11, 14, 15]
    cut = shared_row([[1, 5, 6, 7, 2], [1, 5, 6, 8, 9, 2]], pad=2, window=3)
    assert (cut.prompt, cut.responses) == ([], ((5, 6, 7), (6, 8, 9)))
    with pytest.raises(DataError, match="fewer than two tokens"):
        shared_row([[1, 2], [1, 3]], pad=2, window=9)


def test_the_report_by_hand() -> None:
    rankings = [ranking(1, 0, golds=(2.0, 1.0)), ranking(2, 1, 0, golds=(0.0, 1.0, 2.0))]
    report = reward_report(rankings, [np.array([0.0, 1.0]), np.array([3.0, 2.0, 2.0])])
    # Gaps -1; 1, 1, 0.
    assert report["accuracy"] == (0 + 1 + 1 + 0.5) / 4
    assert report["log_loss"] == pytest.approx((np.logaddexp(0, 1) + 2 * np.logaddexp(0, -1) + np.log(2)) / 4)
    confidence = 1 / (1 + np.exp(-1))
    assert report["calibration_error"] == pytest.approx((0 + 3 * abs(confidence - 2 / 3)) / 4)
    assert report["gold_agreement"] == 0  # the last two tie, and gold ranks them
    assert reward_report([ranking(1, 0)], [np.array([1.0, 0.0])])["gold_agreement"] is None


def arguments(tmp_path: Path, model: Path, *more: str) -> list[str]:
    settings = ("train.steps=30", "train.pairs_per_step=4", "train.learning_rate=1e-2", "lora.rank=4")
    given = [word for setting in (*settings, "model.dtype=float32") for word in ("--set", setting)]
    return [
        "reward", "--model", str(model), "--device", "cpu", "--quiet", "--out", str(tmp_path / "rm"), *given, *more,
    ]  # fmt: skip


def test_a_trained_reward_model_is_loaded_by_transformers_peft_and_this_package(
    tmp_path: Path,
    tiny_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import transformers
    from peft import PeftModel

    model = tiny_folder("llama")
    rows = [
        {"prompt": f"the cat {i}", "responses": [" on a mat mat", " on a hat mat", " off a hat"], "scores": [2, 1, 0]}
        for i in range(12)
    ]
    (tmp_path / "ranked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = arguments(tmp_path, model, "--data", str(tmp_path / "ranked.jsonl"), "--set", "data.heldout_share=0.3")
    assert run(monkeypatch, words) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    facts = json.loads((tmp_path / "rm" / "reward.json").read_text(encoding="utf-8"))
    assert facts["heldout"]["accuracy"] == 1.0, shown
    assert facts["trained_on"] == {"prompts": 8, "pairs": 24}

    from prefopt.judges.reward import RewardModelJudge

    judge = RewardModelJudge(str(tmp_path / "rm"), device=torch.device("cpu"), trained_here=True)
    prompts, responses = ["the cat 50"] * 3, rows[0]["responses"]
    ours = judge.score(prompts, responses)  # type: ignore[arg-type]
    assert ours[0] > ours[1] > ours[2]

    base = transformers.AutoModelForSequenceClassification.from_pretrained(model, num_labels=1)
    base.config.pad_token_id = 2
    adapted = PeftModel.from_pretrained(base, tmp_path / "rm" / "adapter").eval()
    ids = [torch.tensor([judge._tokens([p], [r])[0]]) for p, r in zip(prompts, responses, strict=True)]
    theirs = [adapted(input_ids=i).logits.item() for i in ids]
    assert theirs == pytest.approx(ours.tolist(), abs=1e-4)

    assert run(monkeypatch, words) == 2
    assert "is there already" in capsys.readouterr().err


def test_sampled_responses_make_a_reward_model_that_labels_pairs(
    tmp_path: Path,
    tiny_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    without_report(monkeypatch)
    reward = tmp_path / "mine.py"
    reward.write_text("def f(prompts, responses):\n    return [r.count('a') for r in responses]\n", encoding="utf-8")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"the cat {i} sat\n" for i in range(16)), encoding="utf-8")
    sizes = ("pairs.prompts=8", "pairs.heldout_prompts=4", "pairs.samples=3", "pairs.max_new_tokens=6")
    given = [word for setting in (*SHORT[4:], *sizes) for word in ("--set", setting)]
    asked = ["--prompts", str(prompts), *given]
    made = arguments(tmp_path, tiny_folder("llama"), "--labels", f"{reward}:f", *asked)
    assert run(monkeypatch, made) == 0, capsys.readouterr().err
    facts = json.loads((tmp_path / "rm" / "reward.json").read_text(encoding="utf-8"))
    assert facts["heldout"]["gold_agreement"] is not None
    words: list[Any] = [
        "compare", "--model", str(tiny_folder("llama")), "--device", "cpu", "--quiet", "--seeds", "0", "--results",
        str(tmp_path / "results"), "--name", "mine", "--losses", "rloo@2rounds", "--reward", f"{reward}:f",
        "--label-reward", f"bt:{tmp_path / 'rm'}", *asked, "--set", "train.steps=2", "--set", "train.pairs_per_step=4",
    ]  # fmt: skip
    assert run(monkeypatch, words) == 0, capsys.readouterr().err


BAD = {
    "one response": ({"prompt": "a", "responses": ["x"]}, "two texts or more"),
    "equal": ({"prompt": "a", "responses": ["x", "x"]}, "are equal"),
    "scores": ({"prompt": "a", "responses": ["x", "y"], "scores": [1]}, "a list of 2 numbers"),
    "ties": ({"prompt": "a", "responses": ["x", "y"], "scores": [1, 1]}, "ranks none above another"),
    "no prompt": ({"responses": ["x", "y"]}, 'field "prompt"'),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rankings_are_named(
    case: str,
    tmp_path: Path,
    tiny_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    row, said = BAD[case]
    rows = [{"prompt": "b", "responses": ["x", "y"]}, row]
    (tmp_path / "ranked.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    assert run(monkeypatch, arguments(tmp_path, tiny_folder("llama"), "--data", str(tmp_path / "ranked.jsonl"))) == 3
    shown = capsys.readouterr().err
    assert said in shown
    assert "ranked.jsonl:2" in shown
    assert not (tmp_path / "rm").exists()
