"""Bad rows and bad sources: each gives its code, its line and field, and leaves the folder as it was."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from prefopt.data import Message, check_unchanged, load_pairs, pairs_to_rows, write_jsonl
from prefopt.data import load as load_module
from prefopt.errors import DataError, MachineError, UsageError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
GOOD: dict[str, Any] = {"prompt": "Name a colour.", "chosen": "Blue.", "rejected": "No."}
USER = {"role": "user", "content": "Hi"}
YES, NO = {"role": "assistant", "content": "Yes."}, {"role": "assistant", "content": "No."}
CHAT: dict[str, Any] = {"prompt": [USER], "chosen": [YES], "rejected": [NO]}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def row(**changes: Any) -> bytes:
    columns = {name: value for name, value in {**GOOD, **changes}.items() if value is not ...}
    return json.dumps(columns).encode() + b"\n"


def chat(**changes: Any) -> bytes:
    return json.dumps({**CHAT, **changes}).encode() + b"\n"


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


GOOD_ROW = row()

# name: (rows that come after a good one, what the message must hold)
TEXT_CASES: dict[str, tuple[bytes, str]] = {
    "missing column in one row": (row(rejected=...), 'error[DATA002] p.jsonl:2 field "rejected": the field is missing'),
    "null": (row(prompt=None), 'error[DATA004] p.jsonl:2 field "prompt": the value is null'),
    "NaN": (
        b'{"prompt": "a", "chosen": "b", "rejected": "c", "x": NaN}\n',
        "error[DATA005] p.jsonl:2: NaN is not JSON",
    ),
    "Infinity": (
        b'{"prompt": "a", "chosen": "b", "rejected": -Infinity}\n',
        "DATA005] p.jsonl:2: -Infinity is not JSON",
    ),
    "1e999": (b'{"prompt": "a", "chosen": "b", "chosen_score": 1e999}\n', "DATA005] p.jsonl:2: the number '1e999'"),
    "huge integer": (b'{"x": ' + b"9" * 5000 + b"}\n", "DATA005] p.jsonl:2: an integer of 5000 digits"),
    "number": (
        row(chosen=5),
        'DATA006] p.jsonl:2 field "chosen": text or a list of messages is wanted; this is a number',
    ),
    "bool": (row(chosen=True), "this is true/false"),
    "list of text": (row(chosen=["a"]), 'DATA006] p.jsonl:2 field "chosen": message 1 is text'),
    "object": (row(chosen={"a": 1}), "this is an object"),
    "row is a list": (b"[1, 2]\n", "DATA006] p.jsonl:2: a row is a JSON object with named fields; this is a list"),
    "score is text": (row(chosen_score="good"), 'DATA006] p.jsonl:2 field "chosen_score": a number is wanted'),
    "score is bool": (row(chosen_score=True), 'field "chosen_score": a number is wanted; this is true/false'),
    "mixed": (
        chat(),
        "DATA007] p.jsonl:2: rows of text and rows of messages in one source: text first in row 1, messages",
    ),
    "mixed in a row": (row(chosen=[YES]), "DATA007] p.jsonl:2"),
    "invalid JSON": (b"{'prompt': 1}\n" + GOOD_ROW, "DATA008] p.jsonl:2: invalid JSON"),
    "two objects": (GOOD_ROW.strip() + GOOD_ROW, "DATA008] p.jsonl:2: invalid JSON: more text after the object"),
    "truncated": (GOOD_ROW[:40], "DATA009] p.jsonl:2: the last line is incomplete"),
    "UTF-8": (b'{"prompt": "caf\xe9"}\n', "DATA010] p.jsonl:2: invalid UTF-8 at byte 16 of the line (0xe9)"),
    "surrogate": (row(chosen="ab\ud800"), 'DATA011] p.jsonl:2 field "chosen": character 3 is half of a surrogate pair'),
    "NUL": (row(chosen="ab\x00"), 'DATA012] p.jsonl:2 field "chosen": character 3 is NUL'),
    "duplicate key": (b'{"prompt": "a", "prompt": "b"}\n', "DATA013] p.jsonl:2: the key 'prompt' occurs twice"),
    "equal": (
        row(rejected="Blue."),
        'DATA014] p.jsonl:2 field "rejected": equal to "chosen". Fix: drop the row, or pass ',
    ),
    "equal but for space": (row(rejected=" Blue.\n"), 'equal to "chosen" but for white space or Unicode form'),
    "equal but for NFC": (row(chosen="caf\u00e9", rejected="cafe\u0301"), "but for white space or Unicode form"),
    "empty": (row(prompt=""), 'DATA015] p.jsonl:2 field "prompt": empty or only white space'),
    "blank": (row(chosen=" \n\t"), 'DATA015] p.jsonl:2 field "chosen"'),
    "zero width": (row(rejected="\u200b"), 'DATA015] p.jsonl:2 field "rejected"'),
    "no messages": (row(chosen=[]), 'DATA015] p.jsonl:2 field "chosen": the list of messages is empty'),
    "nested": (b"[" * 100_000 + b"\n", "DATA016] p.jsonl:2: JSON is nested too deeply"),
    "100 MB": (
        b'{"prompt": "' + b"a" * 5_000_000 + b'"}\n',
        "DATA018] p.jsonl:2: the row is larger than 1000000 bytes",
    ),
}

CHAT_CASES: dict[str, tuple[bytes, str]] = {
    "role": (
        chat(prompt=[{"role": "wizard", "content": "x"}]),
        'DATA023] p.jsonl:2 field "prompt": message 1 has role ',
    ),
    "no role": (chat(prompt=[{"content": "x"}]), "message 1 has no role; it is one of system, user, assistant, tool"),
    "no content": (chat(prompt=[{"role": "user"}]), 'DATA023] p.jsonl:2 field "prompt": message 1 has no content'),
    "content null": (chat(prompt=user(None)), "message 1 has no content"),
    "content list": (chat(prompt=user(["x"])), "message 1 has content that is a list"),
    "tool calls": (chat(chosen=[{**YES, "tool_calls": [{}]}]), "message 1 has tool_calls"),
    "empty message": (chat(prompt=[USER, YES, *user(" ")]), 'DATA015] p.jsonl:2 field "prompt": message 3 is empty'),
    "assistant first": (
        chat(prompt=[YES, USER]),
        'DATA024] p.jsonl:2 field "prompt": message 1: assistant at the start',
    ),
    "two assistants": (
        chat(prompt=[USER, YES, YES]),
        'DATA024] p.jsonl:2 field "prompt": message 3: assistant after a',
    ),
    "no user": (
        chat(prompt=[{"role": "system", "content": "x"}]),
        'DATA024] p.jsonl:2 field "prompt": the prompt ends ',
    ),
    "user answers": (
        chat(chosen=[USER]),
        'DATA024] p.jsonl:2 field "chosen": a response is one assistant message; this',
    ),
    "other prompt": (
        chat(chosen=[*user("Ho"), YES]),
        'DATA025] p.jsonl:2 field "chosen": message 1 of the conversation',
    ),
    "surrogate": (chat(chosen=[{**YES, "content": "\udfff"}]), 'field "chosen": message 1, character 1 is half of a'),
}
CASES = [
    *(pytest.param(GOOD_ROW, *case, id=f"text: {name}") for name, case in TEXT_CASES.items()),
    *(pytest.param(chat(), *case, id=f"chat: {name}") for name, case in CHAT_CASES.items()),
]


@pytest.mark.parametrize(("good", "bad", "expected"), CASES)
def test_bad_row_is_refused_by_line_and_field(folder, good, bad, expected):
    Path("p.jsonl").write_bytes(good + bad)
    with pytest.raises(DataError) as caught:
        load_pairs("p.jsonl")
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert expected in message
    assert " Fix: " in message
    assert message.endswith("Nothing was written.")
    assert message.isprintable()
    assert len(message) < 500
    assert [path.name for path in folder.iterdir()] == ["p.jsonl"]


NOT_MENDED_BY_DROPPING = {"mixed", "truncated"}


@pytest.mark.parametrize("name", [name for name in TEXT_CASES if name not in NOT_MENDED_BY_DROPPING])
def test_bad_row_is_dropped_and_counted_when_asked(name):
    Path("p.jsonl").write_bytes(GOOD_ROW + TEXT_CASES[name][0] + row(prompt="Another one."))
    loaded = load_pairs("p.jsonl", on_bad_rows="drop")
    assert loaded.pairs[0].row == 1
    assert loaded.pairs[-1].prompt == "Another one."
    assert sum(loaded.report.dropped.values()) == 1
    assert loaded.report.rows == len(loaded.pairs) + 1


@pytest.mark.parametrize("name", sorted(NOT_MENDED_BY_DROPPING))
def test_what_dropping_cannot_mend_is_refused_all_the_same(name):
    Path("p.jsonl").write_bytes(GOOD_ROW + TEXT_CASES[name][0])
    with pytest.raises(DataError):
        load_pairs("p.jsonl", on_bad_rows="drop")


def test_three_kinds_of_equal_rows_are_counted_apart():
    Path("p.jsonl").write_bytes(GOOD_ROW + row(rejected="Blue.") * 2 + row(rejected="Blue. "))
    assert load_pairs("p.jsonl", on_bad_rows="drop").report.dropped == {
        "DATA014 equal responses": 2,
        "DATA014 equal responses but for white space or Unicode form": 1,
    }


def test_first_twenty_problems_and_counts_of_all():
    Path("p.jsonl").write_bytes(row(chosen="") * 30 + row(rejected="Blue.") * 7)
    with pytest.raises(DataError) as caught:
        load_pairs("p.jsonl")
    lines = str(caught.value).split("\n")
    assert len(lines) == 21
    assert lines[0].startswith("error[DATA015] p.jsonl:1 ")
    assert lines[-1] == (
        "p.jsonl: 37 problems (DATA014 equal responses: 7, DATA015 empty text: 30); the first 20 are shown. "
        "Nothing was written."
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.jsonl", b""),
        ("p.jsonl", b"\n \n"),
        ("p.json", b"[]"),
        ("p.csv", b"prompt,chosen,rejected\n"),
        ("p.csv", b""),
    ],
)
def test_no_rows(name, content):
    Path(name).write_bytes(content)
    with pytest.raises(DataError, match=r"error\[DATA001\] p\.\w+: there are no rows\. Fix: .* Nothing was written\."):
        load_pairs(name)


def test_all_rows_dropped():
    Path("p.jsonl").write_bytes(row(chosen=""))
    with pytest.raises(DataError, match=r"DATA001\] p\.jsonl: every row was dropped \(DATA015 empty text: 1\)"):
        load_pairs("p.jsonl", on_bad_rows="drop")


def test_wrong_column_names_are_listed_with_a_suggestion():
    Path("p.jsonl").write_bytes(b'{"question": "a", "response_j": "b", "response_k": "c", "date": 3}\n')
    with pytest.raises(DataError) as caught:
        load_pairs("p.jsonl")
    assert "error[DATA003] p.jsonl: no column chosen or rejected: found 'question', 'response_j'" in str(caught.value)
    assert "--column-map prompt=question,chosen=response_j,rejected=response_k" in str(caught.value)
    mapped = load_pairs("p.jsonl", column_map={"prompt": "question", "chosen": "response_j", "rejected": "response_k"})
    assert mapped.pairs[0].prompt == "a"
    assert mapped.report.extra_columns == ("date",)


def test_column_map_is_checked():
    Path("p.jsonl").write_bytes(GOOD_ROW)
    with pytest.raises(UsageError, match="--column-map: 'winner' is no standard column"):
        load_pairs("p.jsonl", column_map={"winner": "chosen"})
    with pytest.raises(DataError, match=r"DATA003\] p\.jsonl: no column prompt"):
        load_pairs("p.jsonl", column_map={"prompt": "question"})


def test_hostile_column_name_is_inert_in_messages():
    Path("p.jsonl").write_bytes(json.dumps({"\x1b[31m\u202e": 1}).encode())
    with pytest.raises(DataError) as caught:
        load_pairs("p.jsonl")
    assert "\x1b" not in str(caught.value)
    assert "\u202e" not in str(caught.value)


def test_mark_crlf_bidi_and_zero_width_are_kept_apart_from_errors():
    text = "a\u202eb\u200b"
    Path("p.jsonl").write_bytes(b"\xef\xbb\xbf" + row(chosen=text).replace(b"\n", b"\r\n") + b"\r\n" + GOOD_ROW)
    loaded = load_pairs("p.jsonl")
    assert [pair.row for pair in loaded.pairs] == [1, 3]
    assert loaded.pairs[0].chosen == text


def test_duplicates_are_counted_and_dropped_on_request():
    Path("p.jsonl").write_bytes(GOOD_ROW + row(prompt=" Name  a colour. ") + row(prompt="Other"))
    loaded = load_pairs("p.jsonl")
    assert loaded.report.duplicates == 1
    assert [pair.prompt_id for pair in loaded.pairs] == [0, 0, 1]
    assert "lines 1 and 2" in loaded.report.warnings[0]
    assert [pair.row for pair in load_pairs("p.jsonl", dedup=True).pairs] == [1, 3]


@pytest.mark.parametrize(("others", "refused"), [(39, False), (37, True)])
def test_contradictions_warn_up_to_five_percent(others, refused):
    rows = [GOOD_ROW, row(chosen="No.", rejected="Blue."), *(row(prompt=f"Number {i}") for i in range(others))]
    Path("p.jsonl").write_bytes(b"".join(rows))
    if refused:
        with pytest.raises(DataError, match=r"DATA017\] p\.jsonl: 1 rows contradict .*: lines 1 and 2\. Fix"):
            load_pairs("p.jsonl")
    else:
        report = load_pairs("p.jsonl").report
        assert report.contradictions == ((1, 2),)
        assert "lines 1 and 2" in report.warnings[0]


@pytest.mark.parametrize(
    "source",
    [
        "https://example.org/p.jsonl",
        "hf://datasets/a/b",
        "p.zip",
        "p.pkl",
        "script.py",
        "a/b/c",
        "../a",
        "a/b@",
        "p.tar.gz",
    ],
)
def test_other_kinds_of_sources_are_a_usage_error(folder, source):
    with pytest.raises(UsageError, match=r"give a local \.jsonl") as caught:
        load_pairs(source)
    assert caught.value.exit_code == 2
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("source", ["none.jsonl", "folder.csv"])
def test_missing_file_and_folder(folder, source):
    (folder / "folder.csv").mkdir()
    with pytest.raises(UsageError, match=r"does not exist|is not a file"):
        load_pairs(source)


def test_change_of_the_file_is_noticed(monkeypatch):
    path = Path("p.jsonl")
    path.write_bytes(GOOD_ROW)
    loaded = load_pairs("p.jsonl")
    check_unchanged(loaded)
    path.write_bytes(GOOD_ROW * 2)
    with pytest.raises(DataError, match=r"DATA028\] p\.jsonl: the file changed while it was in use"):
        check_unchanged(loaded)
    path.unlink()
    with pytest.raises(DataError, match=r"DATA029\] p\.jsonl: cannot be read"):
        check_unchanged(loaded)

    class Growing(load_module.Collector):
        def add(self, pair):
            path.write_bytes(GOOD_ROW * 3)
            super().add(pair)

    path.write_bytes(GOOD_ROW)
    monkeypatch.setattr(load_module, "Collector", Growing)
    with pytest.raises(DataError, match="DATA028"):
        load_pairs("p.jsonl")


def rows_of(kind: str) -> list[dict[str, Any]]:
    if kind == "text":
        return [{**GOOD, "chosen_score": 1.5, "rejected_score": -2.0}, {**GOOD, "prompt": 'One,\n"two" é'}]
    return [{**CHAT, "chosen_score": 1.5, "rejected_score": -2.0}, {**CHAT, "prompt": [USER, YES, *user("é")]}]


SUFFIXES = [".jsonl", ".jsonl.gz", ".json", ".parquet", ".csv"]


# CSV has no lists, so no messages.
@pytest.mark.parametrize(
    ("kind", "suffix"), [*(("text", suffix) for suffix in SUFFIXES), *(("chat", suffix) for suffix in SUFFIXES[:-1])]
)
def test_every_format_gives_the_same_pairs(kind, suffix):
    rows = rows_of(kind)
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in rows).encode()
    path = Path("p" + suffix)
    match suffix:
        case ".jsonl":
            path.write_bytes(lines)
        case ".jsonl.gz":
            path.write_bytes(gzip.compress(lines))
        case ".json":
            path.write_text(json.dumps(rows, indent=2), encoding="utf-8")
        case ".csv":
            pd.DataFrame(rows).to_csv(path, index=False)
        case _:
            pd.DataFrame(rows).to_parquet(path)
    loaded = load_pairs(str(path))
    assert pairs_to_rows(loaded.pairs) == rows
    assert loaded.pairs[1].chosen_score is None
    assert len(loaded.sha256) == 64


def test_memory_is_that_of_the_text_that_is_kept():
    with Path("p.jsonl").open("wb") as file:
        for i in range(1500):
            file.write(row(prompt=f"Number {i}", notes="x" * 20_000))
    tracemalloc.start()
    loaded = load_pairs("p.jsonl")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(loaded.pairs) == 1500
    assert Path("p.jsonl").stat().st_size > 30_000_000
    assert peak_bytes < 8_000_000


def test_writing_and_reading_give_the_same_pairs():
    rows = [*rows_of("text"), {"prompt": "\u2028 line", "chosen": "a\u202e", "rejected": "\u200db"}]
    write_jsonl(Path("sub/p.jsonl"), rows)
    assert pairs_to_rows(load_pairs("sub/p.jsonl").pairs) == rows
    with pytest.raises(ValueError, match="JSON"):
        write_jsonl(Path("p.jsonl"), [{"chosen_score": float("nan")}])
    assert not Path("p.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("p.csv", b"prompt,chosen,chosen\n", r"DATA013\] p\.csv:1: the column 'chosen' occurs twice"),
        ("p.csv", b"prompt,chosen,rejected\na,b,c\na,b\n", r"DATA022\] p\.csv:3: 2 values, and the header names 3"),
        ("p.csv", b'prompt,chosen,rejected\n"a\nb",c,d\na,"b,c\n', r"DATA009\] p\.csv:4: unexpected end of data"),
        ("p.csv", b"prompt,chosen,rejected\na,b,\xff\n", r"DATA010\] p\.csv:2: invalid UTF-8 at byte 5"),
        ("p.csv", b"prompt,chosen,rejected\na,,c\n", r'DATA015\] p\.csv:2 field "chosen"'),
        ("p.csv", b"prompt,chosen,rejected,chosen_score\na,b,c,nan\n", r'DATA005\] p\.csv:2 field "chosen_score"'),
        ("p.json", b'{"a": 1}', r"DATA003\] p\.json: no column chosen or rejected: found 'a'"),
        ("p.json", b"3", r"DATA008\] p\.json: the file is not a JSON list"),
        ("p.json", b'[{"chosen": "a", "rejected": "a"', r"DATA008\] p\.json:1: invalid JSON"),
        ("p.json", b'[{"prompt": "p", "chosen": "a", "rejected": "b"}', r"DATA009\] p\.json:1: the list is not closed"),
        ("p.json", b'[{"prompt": "\xff"}]', r"DATA010\] p\.json: invalid UTF-8 at byte 14 of the file"),
        ("p.json", b'[{"a": 1, "a": 2}]', r"DATA013\] p\.json:1: the key 'a' occurs twice"),
        ("p.parquet", b"PAR1 nothing", r"DATA029\] p\.parquet: not a readable Parquet file"),
        (
            "p.jsonl.gz",
            gzip.compress(GOOD_ROW * 50, mtime=0)[:60],
            r"DATA009\] p\.jsonl\.gz:\d+: the compressed file is damaged",
        ),
        ("p.jsonl.gz", b"no gzip", r"DATA009\] p\.jsonl\.gz:1: the compressed file is damaged"),
    ],
)
def test_damaged_files(name, content, expected):
    Path(name).write_bytes(content)
    with pytest.raises(DataError, match=expected):
        load_pairs(name)


def test_parquet_not_a_number_is_refused_and_missing_scores_are_none():
    frame = pd.DataFrame([{**GOOD, "score_chosen": 1.0, "score_rejected": None}])
    frame.to_parquet("p.parquet")
    pair = load_pairs("p.parquet").pairs[0]
    assert (pair.chosen_score, pair.rejected_score) == (1.0, None)
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({**{k: [v] for k, v in GOOD.items()}, "chosen_score": [float("nan")]}), "q.parquet")
    with pytest.raises(DataError, match=r'DATA005\] q\.parquet:1 field "chosen_score"'):
        load_pairs("q.parquet")


def only(columns: dict[str, Any]) -> Any:
    Path("p.jsonl").write_text(json.dumps(columns), encoding="utf-8")
    return load_pairs("p.jsonl").pairs[0]


def test_implicit_prompt_of_messages_is_what_they_share():
    pair = only({"chosen": [USER, YES], "rejected": [USER, NO]})
    assert pair.prompt == (Message("user", "Hi"),)
    assert pair.chosen == (Message("assistant", "Yes."),)
    assert pair.rejected == (Message("assistant", "No."),)


def test_text_prompt_beside_conversations_repeats_what_they_share():
    assert only({"prompt": "Hi", "chosen": [USER, YES], "rejected": [USER, NO]}) == only(CHAT)
    assert only({"prompt": "Hi", "chosen": [YES], "rejected": [NO]}) == only(CHAT)
    assert only({"prompt": [USER], "chosen": "Yes.", "rejected": "No."}) == only(CHAT)
    assert only({"prompt": [USER], "chosen": [USER, YES], "rejected": [NO]}) == only(CHAT)


def test_implicit_prompt_agrees_with_trl_on_messages():
    data_utils = pytest.importorskip("trl.data_utils")
    both = {"chosen": [USER, YES, *user("Go on"), YES], "rejected": [USER, YES, *user("Go on"), NO]}
    theirs = data_utils.maybe_extract_prompt(both)
    ours = pairs_to_rows([only(both)])[0]
    assert ours == theirs


def test_implicit_prompt_of_text_ends_with_a_word():
    pair = only({"chosen": "The sky is blue.", "rejected": "The sky is black."})
    assert (pair.prompt, pair.chosen, pair.rejected) == ("The sky is", " blue.", " black.")
    hh = "\n\nHuman: Hi\n\nAssistant:"
    pair = only({"chosen": hh + " I can.", "rejected": hh + " I cannot."})
    assert (pair.prompt, pair.chosen, pair.rejected) == (hh, " I can.", " I cannot.")


@pytest.mark.parametrize("responses", [("Blue", "Black"), ("a b", "c b"), ([YES], [NO])])
def test_no_shared_prompt(responses):
    with pytest.raises(DataError, match=r"DATA025\] p\.jsonl:1 field \"rejected\": no prompt"):
        only({"chosen": responses[0], "rejected": responses[1]})


class FakeBuilder:
    pass


def test_hub_rows_and_pinned_revisions(monkeypatch):
    datasets = pytest.importorskip("datasets")
    requested = {}

    def load_dataset(name: str, **options: Any) -> list[dict[str, Any]]:
        requested.update(name=name, **options)
        return [GOOD, {**GOOD, "prompt": "Another one."}]

    FakeBuilder.__module__ = "datasets.packaged_modules.parquet.parquet"
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *args, **options: FakeBuilder())
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    loaded = load_pairs("org/set@main:test")
    assert requested == {"name": "org/set", "revision": "main", "split": "test"}
    assert [pair.row for pair in loaded.pairs] == [1, 2]
    assert "not pinned" in loaded.report.warnings[0]
    check_unchanged(loaded)
    pinned = load_pairs("org/set@" + "0a" * 20)
    assert requested["split"] == "train"
    assert pinned.report.warnings == ()
    assert pinned.sha256 == loaded.sha256


@pytest.mark.parametrize("kind", ["webdataset", "pandas", "evil_script"])
def test_hub_datasets_that_could_run_code_are_refused(monkeypatch, kind):
    datasets = pytest.importorskip("datasets")
    FakeBuilder.__module__ = f"datasets_modules.{kind}"
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *args, **options: FakeBuilder())
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: pytest.fail("loaded"))
    with pytest.raises(UsageError, match="org/set is read by "):
        load_pairs("org/set")


def test_hub_out_of_reach(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def fail(*args: Any, **options: Any) -> None:
        raise ConnectionError("no network\nhere")

    monkeypatch.setattr(datasets, "load_dataset_builder", fail)
    with pytest.raises(MachineError, match="dataset org/set cannot be had from the hub: 'no network'") as caught:
        load_pairs("org/set")
    assert caught.value.exit_code == 6


REAL = [
    ("politeness/all", None, 1100, 6),
    ("dpo_en_demo/all", {"prompt": "messages"}, 300, 0),
    ("hh_harmless/train", None, 1804, 0),
    ("ae017_prefs/train", None, 3000, 3),
]


@pytest.mark.parametrize(("name", "column_map", "rows", "equal"), REAL, ids=[name for name, *_ in REAL])
def test_real_data_sets(name, column_map, rows, equal):
    path = SHARED / f"{name}.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"no data at {path}")
    if equal:
        with pytest.raises(DataError, match="DATA014"):
            load_pairs(str(path), column_map=column_map)
    loaded = load_pairs(str(path), column_map=column_map, on_bad_rows="drop")
    assert loaded.report.rows == rows
    assert len(loaded.pairs) == rows - equal == rows - sum(loaded.report.dropped.values())
    assert max(pair.prompt_id for pair in loaded.pairs) < rows
