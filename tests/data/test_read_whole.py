"""A source is read whole or refused: no row, column or number of it is passed over or guessed at without a word."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.data import load_pairs
from prefopt.errors import DataError

ROWS: list[dict[str, Any]] = [{"prompt": f"Name {i}.", "chosen": "Blue.", "rejected": "No."} for i in range(130)]
LIST = json.dumps(ROWS)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def refused(name: str, content: str, *said: str) -> str:
    Path(name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        load_pairs(name)
    message = str(caught.value)
    assert not [word for word in said if word not in message], message
    assert "Fix: " in message
    with pytest.raises(DataError):
        load_pairs(name, on_bad_rows="drop")  # dropping rows mends none of these
    return message


@pytest.mark.parametrize("behind", [LIST, "\n\n" + LIST, "{ garbage", ",", "]", "null", '{"prompt": "p"}', "\x00"])
def test_nothing_stands_behind_a_list(behind: str) -> None:
    line = 1 + len(behind) - len(behind.lstrip("\n"))
    refused("p.json", LIST + behind, "DATA008] p.json:131: more text after the end of the list", f"in line {line}: ")


def test_white_space_behind_a_list_is_nothing() -> None:
    Path("p.json").write_text(LIST + " \r\n\t\n", encoding="utf-8")
    assert len(load_pairs("p.json").pairs) == 130


def test_a_comma_before_the_end_of_a_list_is_refused() -> None:
    refused("p.json", LIST[:-1] + ",]", "DATA008] p.json:130: invalid JSON: a comma after the last row")


@pytest.mark.parametrize("at", [0, 5, 99, 100, 129])
@pytest.mark.parametrize(("key", "code"), [("pro\x00mpt", "DATA012"), ("\ud800", "DATA011"), ("x\x00", "DATA012")])
def test_a_column_name_that_cannot_be_written_is_refused_in_any_row(at: int, key: str, code: str) -> None:
    rows = [{**row, key: 1} if i == at else row for i, row in enumerate(ROWS)]
    refused("p.jsonl", lines(rows), f"{code}] p.jsonl:{at + 1}: character ", "of the column name ", "rename the column")


LOOKALIKES = ["Prompt", " prompt", "prompt ", "pro\u200bmpt", "prompt\ufeff", "PROMPT", "\uff50rompt"]


@pytest.mark.parametrize("name", LOOKALIKES)
def test_a_column_that_only_looks_like_a_standard_one_is_not_passed_over(name: str) -> None:
    # The responses share their first words, which would silently become the prompt.
    content = f"{name},chosen,rejected\n" + "".join(f"p{i},the sky is {i},the sky was {i}\n" for i in range(9))
    said = refused("p.csv", content, 'DATA003] p.csv field "prompt": the column ', "looks like prompt", "rename it")
    assert ("--column-map prompt=" in said) == name.isprintable()
    if name.isprintable():
        assert load_pairs("p.csv", column_map={"prompt": name}).pairs[0].prompt == "p0"


def test_a_lookalike_of_a_score_is_refused_too_and_one_beside_the_real_name_is_listed() -> None:
    refused("p.jsonl", lines([{**row, "Chosen-Score": 1} for row in ROWS]), 'field "chosen_score"', "'Chosen-Score'")
    Path("p.jsonl").write_text(lines([{**row, "Prompt": "x"} for row in ROWS]), encoding="utf-8")
    assert load_pairs("p.jsonl").report.extra_columns == ("Prompt",)


@pytest.mark.parametrize("at", [100, 101, 129])
def test_a_prompt_that_first_appears_after_the_head_is_refused(at: int) -> None:
    whole = [{"chosen": f"The sky {i} is blue", "rejected": f"The sky {i} was red"} for i in range(at)]
    refused("p.jsonl", lines(whole + ROWS[at:]), f'DATA002] p.jsonl:{at + 1} field "prompt": the column is first seen')


@pytest.mark.parametrize("at", [0, 99, 100, 129])
def test_two_names_of_one_column_are_refused_in_any_row(at: int) -> None:
    both = {"chosen_score": 3, "score_chosen": 1, "rejected_score": 1}
    rows = [{**row, **both} if i == at else row for i, row in enumerate(ROWS)]
    said = f"DATA013] p.jsonl:{at + 1} field \"chosen_score\": both 'chosen_score' and 'score_chosen' give it"
    refused("p.jsonl", lines(rows), said, "--column-map chosen_score=...")
    rows = [{**row, **both} for row in ROWS]
    Path("p.jsonl").write_text(lines(rows), encoding="utf-8")
    loaded = load_pairs("p.jsonl", column_map={"chosen_score": "score_chosen"})
    assert loaded.pairs[0].chosen_score == 1
    assert loaded.report.extra_columns == ("chosen_score",)


@pytest.mark.parametrize("digits", [39, 100, 308, 309, 351, 399, 401, 5000])
@pytest.mark.parametrize("sign", ["", "-"])
def test_a_score_beyond_the_numbers_that_losses_compute_with_is_refused(digits: int, sign: str) -> None:
    row = '{"prompt": "p", "chosen": "b", "rejected": "c", "chosen_score": %s}\n' % (sign + "9" * digits)
    Path("p.jsonl").write_text(row + lines(ROWS), encoding="utf-8")
    with pytest.raises(DataError, match=r"DATA005\] p\.jsonl:1"):
        load_pairs("p.jsonl")
    assert load_pairs("p.jsonl", on_bad_rows="drop").report.dropped == {"DATA005 not a finite number": 1}


@pytest.mark.parametrize(
    "text", ["1_000", "\u0661\u0662", "\uff11", "0x1f", "1,5", "1 0", "1e", "--1", "true", "\u20131"]
)
def test_text_that_only_python_or_nothing_reads_as_a_number_is_refused(text: str) -> None:
    for name, content in (
        ("p.csv", f'prompt,chosen,rejected,chosen_score\na,b,c,"{text}"\n'),
        ("p.jsonl", lines([{**ROWS[0], "chosen_score": text}])),
    ):
        refused(name, content, "DATA006", 'field "chosen_score": a number is wanted; this is the text ')


@pytest.mark.parametrize(("text", "value"), [("1.5", 1.5), ("-2", -2.0), (" 3. ", 3.0), ("+.5E-1", 0.05), ("", None)])
def test_numbers_as_other_programs_write_them_are_read(text: str, value: float | None) -> None:
    Path("p.csv").write_text(f"prompt,chosen,rejected,chosen_score\na,b,c,{text}\n", encoding="utf-8")
    assert load_pairs("p.csv").pairs[0].chosen_score == value


@pytest.mark.parametrize("name", ["p.JSONL.GZ", "p.Jsonl.Gz", "p.JSONL", "p.JSON", "p.CSV"])
def test_a_suffix_means_the_same_in_capital_letters(name: str) -> None:
    content = {"json": LIST, "csv": "prompt,chosen,rejected\na,b,c\n"}.get(name.lower()[2:], lines(ROWS)).encode()
    Path(name).write_bytes(gzip.compress(content) if name.lower().endswith(".gz") else content)
    assert load_pairs(name).pairs[0].prompt in ("Name 0.", "a")
