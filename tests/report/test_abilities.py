"""Abilities before and after: plain text in every run and in the report, and benchmarks by the harness."""

from __future__ import annotations

import json
import math
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import command
import numpy as np
import pytest
import torch
import transformers

import prefopt
from prefopt.analysis.neutral import neutral_warnings
from prefopt.errors import PrefoptError
from prefopt.evaluate.neutral import MOST_TOKENS, SENTENCES
from prefopt.report import abilities
from prefopt.storage.results import ResultsFolder


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[[str], Path]) -> Path:
    root = tmp_path_factory.mktemp("abilities")
    prefopt.run(
        "compare", data=command.write_pairs(root / "pairs.jsonl"), model=tiny_folder("llama"), losses=["dpo", "noop"],
        seeds=[0, 1], name="mine", results=root, device="cpu", quiet=True, in_process=True,
        settings=list(command.SHORT),
    )  # fmt: skip
    return root / "mine"


def test_sentences_are_plain_different_and_short() -> None:
    assert len(set(SENTENCES)) == len(SENTENCES) == 30
    assert all(sentence.isascii() and len(sentence) < MOST_TOKENS for sentence in SENTENCES)


def test_every_run_has_the_likelihood_that_transformers_gives(compared: Path, tiny_folder) -> None:
    run = ResultsFolder(compared).runs()["dpo", 1]
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder("llama"), dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_folder("llama"))
    for place in (0, 17):
        ids = torch.tensor([tokenizer(SENTENCES[place])["input_ids"]])
        with torch.inference_mode():
            logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        assert run.neutral["tokens"][place] == ids.shape[1] - 1
        summed = float(logps.gather(1, ids[0, 1:, None]).sum())
        assert run.neutral["ref_logps"][place] == pytest.approx(summed, rel=1e-4)
    assert run.neutral["logps"] != run.neutral["ref_logps"]


def test_the_report_has_before_after_and_rise(compared: Path) -> None:
    results = prefopt.load(compared)
    table = results.table("neutral").set_index("variant")
    assert table.loc["noop", "rise"] == 0
    runs = [ResultsFolder(compared).runs()["dpo", seed].neutral for seed in (0, 1)]
    rise = np.mean([(np.sum(r["ref_logps"]) - np.sum(r["logps"])) / np.sum(r["tokens"]) for r in runs])
    assert table.loc["dpo", "rise"] == pytest.approx(rise)
    assert table.loc["dpo", "after"] - table.loc["dpo", "before"] == pytest.approx(rise)
    assert table.loc["dpo", "rise_low"] < rise < table.loc["dpo", "rise_high"]
    assert "Did abilities drop?" in (compared / "report.html").read_text(encoding="utf-8")


def test_a_large_rise_is_a_warning_and_a_small_one_is_not() -> None:
    def row(name: str, low: float | None) -> dict[str, Any]:
        return {"variant": name, "rise": {"value": 0.4, "low": low, "high": 0.9}}

    (warning,) = neutral_warnings([row("dpo", 0.2), row("ipo", 0.05), row("cpo", None)])
    assert warning["title"] == "Plain text became less likely: dpo"
    assert "under dpo by 0.40 nats a token" in warning["text"]
    assert neutral_warnings([row("ipo", 0.05)]) == []


# Names of lm_eval 0.4.9: docs/interface.md, evaluator.simple_evaluate and models.huggingface.HFLM.
EVALUATE = (
    "model", "model_args", "tasks", "num_fewshot", "batch_size", "max_batch_size", "device", "use_cache", "limit",
    "bootstrap_iters", "write_out", "log_samples", "gen_kwargs", "random_seed", "numpy_random_seed",
)  # fmt: skip
HFLM = (
    "pretrained", "backend", "revision", "subfolder", "tokenizer", "max_length", "device", "dtype", "batch_size",
    "max_batch_size", "trust_remote_code", "use_fast_tokenizer", "parallelize", "peft", "delta",
)  # fmt: skip


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A module of the harness's names that answers by whether there is an adapter, and remembers what it was asked."""
    asked: list[dict[str, Any]] = []
    package, models, huggingface = (
        types.ModuleType(name) for name in ("lm_eval", "lm_eval.models", "lm_eval.models.huggingface")
    )

    def model(**options: Any) -> dict[str, Any]:
        assert set(options) <= set(HFLM)
        assert isinstance(options["pretrained"], str)
        assert isinstance(options["batch_size"], str | int)
        return options

    def simple_evaluate(**options: Any) -> dict[str, Any] | None:
        assert set(options) <= set(EVALUATE)
        asked.append(options)
        if "nosuch" in options["tasks"]:
            raise ValueError("Task 'nosuch' not found\nmore")
        right = 0.5 if options["model"]["peft"] is None else 0.25
        metrics = {
            "alias": "arc_easy", "acc,none": right, "acc_stderr,none": 0.01, "exact_match,strict-match": 0.1,
            "exact_match_stderr,strict-match": "N/A",
        }  # fmt: skip
        return {"results": dict.fromkeys(options["tasks"], metrics), "versions": {}}

    package.__version__, package.models = "0.4.9", models  # type: ignore[attr-defined]
    package.simple_evaluate, models.huggingface = simple_evaluate, huggingface  # type: ignore[attr-defined]
    huggingface.HFLM = model  # type: ignore[attr-defined]
    package.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]  # what find_spec asks of a loaded module
    for module in (package, models, huggingface):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return asked


def test_the_harness_runs_over_the_base_and_every_adapter(compared: Path, harness: list[dict[str, Any]]) -> None:
    results = prefopt.run("lm_eval", folder=compared, tasks=["arc_easy"], limit=3, quiet=True, device="cpu")
    assert [call["model"]["peft"] is None for call in harness] == [True, False, False]
    assert harness[1]["model"]["peft"].endswith("runs/dpo/seed-0/adapter")
    assert {call["model"]["pretrained"] for call in harness} == {harness[0]["model"]["pretrained"]}
    assert (harness[0]["tasks"], harness[0]["limit"], harness[0]["num_fewshot"]) == (["arc_easy"], 3, None)
    rows = {(row["model"], row["seed"], row["metric"]): row for row in results["rows"]}
    assert rows["reference", None, "acc"]["value"] == 0.5
    assert rows["dpo", 0, "acc"] == {
        "model": "dpo", "seed": 0, "task": "arc_easy", "metric": "acc", "value": 0.25, "stderr": 0.01,
    }  # fmt: skip
    assert rows["dpo", 0, "exact_match (strict-match)"]["stderr"] is None
    kept = ResultsFolder(compared).read_json(compared / "lm_eval.json")
    assert kept["rows"] == results["rows"]
    text = (compared / "tables" / "lm_eval.md").read_text(encoding="utf-8")
    assert "| dpo | 0 | 0.2500 [0.2304, 0.2696] | 0.1000 |" in text
    assert not any(math.isnan(row["value"]) for row in results["rows"])


def test_variants_and_seeds_are_chosen(compared: Path, harness: list[dict[str, Any]]) -> None:
    prefopt.run("lm_eval", folder=compared, tasks="a,b", variants="noop", seeds="0-1", quiet=True, device="cpu")
    assert [str(call["model"]["peft"]).split("/")[-3:-1] for call in harness[1:]] == [
        ["noop", "seed-0"], ["noop", "seed-1"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": "nosuch"}, "lm-eval: Task 'nosuch' not found$"),
        ({"tasks": " , "}, "--tasks is empty"),
        ({"tasks": "a", "variants": "dop"}, "has no variant 'dop'; did you mean dpo"),
        ({"tasks": "a", "seeds": "7"}, "dpo, seed 7, did not finish or has no adapter"),
    ],
)
def test_what_the_harness_or_the_folder_lacks_is_said(
    compared: Path, harness: list[dict[str, Any]], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(PrefoptError, match=message):
        prefopt.run("lm_eval", folder=compared, quiet=True, device="cpu", **options)


def test_without_the_harness_one_line_says_how_to_install_it(compared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abilities.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PrefoptError, match=r'needs the Language Model Evaluation Harness: pip install "lm-eval\[hf\]"'):
        prefopt.run("lm_eval", folder=compared, tasks="a", quiet=True)
    assert json.loads((compared / "manifest.json").read_text())["name"] == "mine"
