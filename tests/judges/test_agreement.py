"""A judge held against labels: agreement, position and length, worked out by hand and tried as typed."""

from __future__ import annotations

import json
from pathlib import Path

import chat_server
import numpy as np
import pytest
from bad_inputs import Command

from prefopt.data.plain import conversation_text
from prefopt.data.types import Message
from prefopt.errors import DataError
from prefopt.judges import agreement
from prefopt.judges.agreement import Labelled
from prefopt.judges.contract import Shown

NAN = np.nan


def labelled(*labels: float) -> list[Labelled]:
    return [Labelled(Shown("p", "long " * (2 - i % 2), "short"), label) for i, label in enumerate(labels)]


def test_shares_by_hand() -> None:
    """Four judged labels: agreed in both orders, won by position alone, disagreed, unusable; and a tie."""
    pairs = labelled(1.0, 0.0, 1.0, 1.0, 0.5)
    as_first = np.array([1.0, 1.0, 0.0, NAN, 1.0])
    as_second = np.array([1.0, 0.0, 0.0, 1.0, 1.0])
    record = agreement.agreement(pairs, as_first, as_second)
    assert record["compared"] == 3
    assert record["agreement"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert record["ties among the labels"] == 1
    assert record["unusable"] == 1
    assert record["position_consistency"] == 3 / 4
    assert record["first_position"] == pytest.approx((0.5 + 1.0 + 0.5 + 0.5) / 4)
    assert record["agreement_low"] < record["agreement"] < record["agreement_high"]


def test_length_is_named_where_it_explains_as_much() -> None:
    pairs = [Labelled(Shown(f"p{i}", "a long one", "short"), 1.0) for i in range(40)]
    ones = np.ones(40)
    record = agreement.agreement(pairs, ones, ones)
    assert record["agreement"] == record["agreement of the longer one"] == record["takes the longer one"] == 1.0
    assert agreement.problems(record) == ["always taking the longer response agrees with the labels as often"]
    coin = agreement.agreement(pairs, ones, 1 - ones)
    assert coin["agreement"] == 0.5
    assert "which chance may explain" in agreement.problems(coin)[0]


def test_a_conversation_is_text_with_who_speaks() -> None:
    turns = (
        Message("system", "Be brief."),
        Message("user", "2 + 2?"),
        Message("assistant", "4"),
        Message("user", "No."),
    )
    assert conversation_text(turns) == "system: Be brief.\n\nuser: 2 + 2?\n\nassistant: 4\n\nuser: No."
    assert conversation_text((Message("user", "2 + 2?"),)) == conversation_text("2 + 2?") == "2 + 2?"


def test_labels_are_read_from_pairs_and_from_filled_questions(tmp_path: Path) -> None:
    chat = {"prompt": [{"role": "user", "content": "2 + 2?"}], "chosen": [{"role": "assistant", "content": "4"}],
            "rejected": [{"role": "assistant", "content": "5"}]}  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text(json.dumps(chat) + "\n")
    assert agreement.read_labelled(tmp_path / "pairs.jsonl") == [Labelled(Shown("2 + 2?", "4", "5"), 1.0)]
    rows = [{"prompt": "p", "a": "x", "b": "y", "verdict": "b"}, {"prompt": "q", "a": "x", "b": "y", "verdict": None}]
    (tmp_path / "people.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert agreement.read_labelled(tmp_path / "people.jsonl") == [Labelled(Shown("p", "x", "y"), 0.0)]
    (tmp_path / "blank.jsonl").write_text(json.dumps({**rows[1]}) + "\n")
    with pytest.raises(DataError, match=r"blank.jsonl: holds no two different responses with a label"):
        agreement.read_labelled(tmp_path / "blank.jsonl")


def test_as_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))
    rows = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(12)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = Command(tmp_path, monkeypatch, capsys)
    words = ["judge", "--check", "pairs.jsonl", "--judge", "openai:tiny", "--json", "--quiet"]
    with chat_server.serve() as server:  # it answers A, whatever it is shown
        outcome = command(*words, "--base-url", server.url, "--prompts", "10")
        asked = len(server.requests)
        assert command(*words, "--base-url", server.url, "--prompts", "10").status == 4
        assert len(server.requests) == asked == 20, "what was answered is not asked again"
    assert outcome.status == 4
    assert "agrees with 50 % of 10 labels, which chance may explain" in outcome.err
    record = json.loads(outcome.out)
    assert record["first_position"] == 1.0
    assert record["position_consistency"] == 0.0
    assert not (tmp_path / "results").exists()
    command.refused(words[:3] + words[5:] + ["--judge", "oracle", "results/x"], status=2, said=("and not both",))
    command.refused(["judge", "--judge", "openai:tiny"], status=2, said=("give the folder of a comparison",))
