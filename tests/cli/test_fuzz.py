"""Arbitrary input to everything that reads what others wrote: a result or a ``PrefoptError``, nothing else."""

from __future__ import annotations

import html
import json
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jinja2 import Environment

from prefopt.config.load import load, parse_seeds, parse_value
from prefopt.contract.labels import split_labels
from prefopt.contract.registry import make_loss
from prefopt.data import load_pairs
from prefopt.errors import PrefoptError
from prefopt.judges import EndpointJudge
from prefopt.judges.address import check_url
from prefopt.judges.chat import retry_after
from prefopt.judges.replies import parse_reply
from prefopt.report.html import visible
from prefopt.report.tables.table import markdown_safe, spreadsheet_safe
from prefopt.storage.redact import portable
from prefopt.storage.results import check_name

QUICK = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXT = st.text(st.characters(exclude_categories=()), max_size=20)
NAMES = st.sampled_from(["prompt", "chosen", "rejected", "chosen_score", "role", "content", "x", ""])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.sampled_from(["user", "assistant", "system"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)
ROW = st.fixed_dictionaries({"prompt": VALUES, "chosen": VALUES, "rejected": VALUES})
SETTINGS = st.sampled_from(
    ["name", "seeds", "seeds.0", "train", "train.steps", "train.learning_rate", "variants", "variants.0.loss", "model",
     "model.name", "lora.targets", "data.column_map", "data.column_map.prompt", "pairs.labels", "x", "train.x", "a..b"]
)  # fmt: skip


@QUICK
@given(rows=st.lists(ROW, min_size=1, max_size=4), suffix=st.sampled_from([".jsonl", ".json"]), drop=st.booleans())
def test_rows_of_any_shape(rows: list[Any], suffix: str, drop: bool, tmp_path: Path) -> None:
    path = tmp_path / f"p{suffix}"
    path.write_text(json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows)), encoding="utf-8")
    with suppress(PrefoptError):
        assert load_pairs(str(path), on_bad_rows="drop" if drop else "refuse").pairs


GOOD = b'{"prompt": "p", "chosen": "a", "rejected": "b"}\n'


@QUICK
@given(
    content=st.binary(max_size=80) | st.binary(max_size=9).map(lambda some: GOOD[:20] + some + GOOD[20:] + GOOD),
    suffix=st.sampled_from([".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet"]),
)
def test_files_of_any_bytes(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"p{suffix}"
    path.write_bytes(content)
    with suppress(PrefoptError):
        assert load_pairs(str(path)).pairs


@QUICK
@given(overrides=st.dictionaries(SETTINGS, VALUES, min_size=1, max_size=3))
def test_settings_of_any_shape(overrides: dict[str, Any]) -> None:
    with suppress(PrefoptError):
        assert load(None, overrides).variants


TOML = 'name = "x"\nseeds = [0, 1]\n[train]\nlearning_rate = 1e-3\n[[variants]]\nloss = "dpo[beta=0.1]"\n'


@QUICK
@given(place=st.integers(0, len(TOML)), removed=st.integers(0, 9), added=st.binary(max_size=9))
def test_files_of_settings_with_any_change(place: int, removed: int, added: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(TOML[:place].encode() + added + TOML[place + removed :].encode())
    with suppress(PrefoptError):
        assert load(path, {}).variants


@QUICK
@given(text=TEXT | st.from_regex(r"[a-z]{2,5}\[[a-z_]{1,6}=.{0,9}\]"))
def test_words_of_the_command_line(text: str) -> None:
    parse_value(text)
    for read in (parse_seeds, split_labels, make_loss, check_url, lambda word: check_name(word, "name")):
        with suppress(PrefoptError):
            read(text)
    assert isinstance(portable(text), str)


REPLY = st.fixed_dictionaries({"choices": VALUES | st.lists(st.fixed_dictionaries({"message": VALUES}), max_size=2)})


@pytest.fixture(scope="module")
def judge() -> EndpointJudge:
    return EndpointJudge("m", base_url="https://localhost:1/v1", key="sk-canary")


BODIES = st.binary(max_size=60) | (VALUES | REPLY).map(lambda value: json.dumps(value).encode())


@QUICK
@given(body=BODIES)
def test_replies_of_a_judge(body: bytes, judge: EndpointJudge) -> None:
    verdict = judge.verdict_of(body)
    assert verdict.first in (None, 0.0, 0.5, 1.0)
    assert (verdict.first is None) == bool(verdict.error)
    retry_after(body.decode("latin-1"))


@QUICK
@given(text=TEXT | st.sampled_from(["A", " [[B]] ", "tie", "A and B", '{"verdict": "A"}', "**A**"]))
def test_verdicts_in_text(text: str) -> None:
    first = parse_reply(text)
    assert first in (None, 0.0, 0.5, 1.0)
    letters = [letter for letter in text if letter in "AB"]
    assert first is None or first == 0.5 or set(letters) == ({"A"} if first else {"B"})


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)


PAGE = Environment(autoescape=True, finalize=visible).from_string('<p title="{{ x }}">{{ x }}</p>')
PIECES = [
    "<", ">", "&", '"', "'", "script", "img src=x", "!--", "{{", "|", "`", "=", "+", "](", "\n", "@", "\r", "\t",
    "\u202e", "\x1b[31m", "\x00", "http://",
]  # fmt: skip
MARKUP = st.lists(st.sampled_from(PIECES) | TEXT)


@QUICK
@given(parts=MARKUP)
def test_text_in_reports_stays_text(parts: list[str]) -> None:
    text = "".join(parts).encode("utf-8", "replace").decode()
    page = PAGE.render(x=text)
    parser = Tags()
    parser.feed(page)
    parser.close()
    assert parser.found == ["p"]
    assert html.unescape(page) == f'<p title="{visible(text)}">{visible(text)}</p>'
    assert not set(page) & set("\u202e\x1b\x00\r")
    shown = markdown_safe(text)
    assert "\n" not in shown
    assert "http:" not in shown
    assert not any(f" {mark}" in f" {shown}" for mark in ("<", "@", "![", "|"))
    assert spreadsheet_safe(text)[:1] not in ("=", "+", "-", "@", "\t", "\r", "\n", "\x00")
