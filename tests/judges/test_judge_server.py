"""Judging by a model behind a server that other people wrote: ``transformers serve``, started as a user would."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import judged
import pandas as pd
import pytest
import tiny
import torch
import transformers

from prefopt.judges.contract import question_text
from prefopt.judges.questions import questions
from prefopt.storage.results import ResultsFolder

LACKING = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(LACKING), reason=f"transformers serve needs {', '.join(LACKING)}: pip install -e .[dev]"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that answers A or B as its random weights see the question, and then ends."""
    folder = tiny.save(tmp_path_factory.mktemp("judge"), "llama")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    letters = [tiny.tokenizer().convert_tokens_to_ids(letter) for letter in "AB"]
    with torch.no_grad():
        taste = loaded.lm_head.weight[letters[0]].clone()
        loaded.lm_head.weight.zero_()
        loaded.lm_head.weight[letters[0]], loaded.lm_head.weight[letters[1]] = taste, -taste
    loaded.generation_config.eos_token_id = letters
    loaded.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def url(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a running server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model)]
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    with log.open("wb") as out:
        server = subprocess.Popen(
            [*command, *options], stdout=out, stderr=out, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            assert server.poll() is None, log.read_text()[-2000:]
            try:
                if httpx2.get(f"{address}/health", trust_env=False).status_code == 200:
                    break
            except httpx2.HTTPError:
                time.sleep(0.2)
        yield f"{address}/v1"
    finally:
        server.kill()
        server.wait()


def judge(root: Path, model: Path, url: str, cache: Path) -> tuple[int, dict, str]:
    """The command as typed: its exit status, its JSON and its messages."""
    words = ["judge", str(root), "--judge", f"openai:{model}", "--base-url", url, "--quiet", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "prefopt", *words],
        capture_output=True, text=True, check=False, env={**os.environ, "PREFOPT_CACHE": str(cache)},
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def test_verdicts_controls_and_cache_with_a_server_of_others(tmp_path: Path, model: Path, url: str) -> None:
    folder = judged.write(tmp_path / "x", {"better": 2, "worse": 0}, seeds=1)
    status, found, said = judge(folder.root, model, url, tmp_path / "cache")
    assert found, said
    assert found["judge"] == f"openai:{model.name}", "folders of this machine are not what a report names"
    assert str(model) not in json.dumps(found)
    assert found["invalid_share"] == 0
    assert found["facts"]["completion_tokens"] == found["facts"]["calls"] > 0
    assert [row["control"] for row in found["controls"]] == ["identical", "constant", "empty", "injection"]
    assert {row["variant"] for row in found["leaderboard"]} == {"better", "worse"}
    assert status == (4 if found["problems"] else 0)
    _compare_with_the_model_here(folder, model, found["judge"])

    before = folder.judgements()
    again_status, again, _ = judge(folder.root, model, url, tmp_path / "cache")
    assert again["facts"]["calls"] == 0, "every verdict is in the cache"
    assert again_status == status
    pd.testing.assert_frame_equal(folder.judgements(), before)


def _compare_with_the_model_here(folder: ResultsFolder, model: Path, name: str) -> None:
    """Each verdict is the letter that the same model finds likelier without a server."""
    plain = transformers.AutoModelForCausalLM.from_pretrained(model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    letters = tokenizer.convert_tokens_to_ids(["A", "B"])
    table = pd.read_parquet(next((folder.root / "judge").glob("*/verdicts.parquet")))
    to_judge = questions(folder)
    given = iter(table.sort_index().itertuples())
    for question in to_judge.shown():
        for shown in (question, question.swapped()):
            row = next(given)
            turns = [{"role": "user", "content": question_text(shown)}]
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                logits = plain(input_ids=ids).logits[0, -1, letters]
            first = float(logits[0] > logits[1])
            assert row.score == (first if row.order == "ab" else 1 - first)
    assert set(folder.judgements()["judge"]) == {name}
    assert table["score"].nunique() > 1, "the model does not answer one letter whatever it is shown"
