"""Files and rows as people have them: read where that is unambiguous, else one line with the format's conversion."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from prefopt.data import Message, Pair, load_pairs
from prefopt.data.sources import local_files
from prefopt.errors import DataError, UsageError

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
N = 12
TEXT = [{"prompt": f"Name {i}?", "chosen": f"Blue {i}.", "rejected": f"No {i}."} for i in range(N)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def each(make: Callable[[int], dict[str, Any]]) -> bytes:
    return jsonl([make(i) for i in range(N)])


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def gave(who: str, value: str) -> dict[str, str]:
    return {"from": who, "value": value}


def chat(*turns: tuple[str, str]) -> tuple[Message, ...]:
    return tuple(Message(*turn) for turn in turns)


QUESTION, BLUE, NO = chat(("user", "Name 0?")), chat(("assistant", "Blue 0.")), chat(("assistant", "No 0."))
CSV = "prompt,chosen,rejected\n" + "".join(f"Name {i}?,Blue {i}.,No {i}.\n" for i in range(N))
BY_COLUMN = {name: {str(i): row[name] for i, row in enumerate(TEXT)} for name in TEXT[0]}

# name: content of a file whose rows are those of TEXT
FILES: dict[str, bytes] = {
    "lines.json": jsonl(TEXT),
    "list.jsonl": json.dumps(TEXT).encode(),
    "rows.ndjson": jsonl(TEXT),
    "list.json.gz": gzip.compress(json.dumps(TEXT).encode(), mtime=0),
    "zipped.jsonl": gzip.compress(jsonl(TEXT), mtime=0),  # with the name it had before
    "wrapped.json": json.dumps({"version": "1", "data": TEXT}).encode(),
    "pandas.json": json.dumps(BY_COLUMN).encode(),
    "split.json": pd.DataFrame(TEXT).to_json(orient="split").encode(),
    "index.json": pd.DataFrame(TEXT).to_json(orient="index").encode(),
    "table.json": pd.DataFrame(TEXT).to_json(orient="table").encode(),
    "pretty.json": "".join(json.dumps(row, indent=1) + "\n" for row in TEXT).encode(),
    "columns.json": json.dumps({name: [row[name] for row in TEXT] for name in TEXT[0]}).encode(),
    "x.csv.gz": gzip.compress(CSV.encode(), mtime=0),
    "semicolon.csv": CSV.replace(",", ";").encode("utf-8-sig"),
    "excel.csv": b"sep=;\r\n" + CSV.replace(",", ";").replace("\n", "\r\n").encode(),
    "tabs.tsv": CSV.replace(",", "\t").encode(),
    "tabs.csv": CSV.replace(",", "\t").encode(),
    "mac.csv": CSV.replace("\n", "\r").encode(),
    "wide.jsonl": jsonl(TEXT).decode().encode("utf-16"),
    "wide.csv": CSV.encode("utf-16"),
    "wider.json": json.dumps(TEXT).encode("utf-32"),
}


@pytest.mark.parametrize("name", FILES)
def test_the_same_rows_are_read_from_every_kind_of_file(name: str) -> None:
    Path(name).write_bytes(FILES[name])
    pairs = load_pairs(name).pairs
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs] == [tuple(row.values()) for row in TEXT]


def test_parquet_with_bytes_and_dictionaries_and_arrow_are_read() -> None:
    frame = pd.DataFrame(TEXT)
    frame["prompt"], frame["rejected"] = (
        frame["prompt"].astype("category"),
        [text.encode() for text in frame["rejected"]],
    )
    frame.to_parquet("p.parquet")
    frame.to_feather("p.arrow", compression="uncompressed")
    for name in ("p.parquet", "p.arrow"):
        assert load_pairs(name).pairs[0].rejected == "No 0."


def test_a_folder_of_shards_and_a_saved_dataset_are_read_in_order(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(TEXT).save_to_disk("saved")
    datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(TEXT), "test": datasets.Dataset.from_list(TEXT[:2])}
    ).save_to_disk("both")
    (folder / "hub" / "data").mkdir(parents=True)
    for i in range(2):
        pd.DataFrame(TEXT[6 * i : 6 * i + 6]).to_parquet(f"hub/data/train-0000{i}-of-00002.parquet")
    pd.DataFrame(TEXT[:3]).to_parquet("hub/data/test-00000-of-00001.parquet")
    (folder / "hub" / "README.md").write_text("a card")
    for source in ("saved", "both", "hub", "hub/"):
        loaded = load_pairs(source)
        assert [pair.prompt for pair in loaded.pairs] == [row["prompt"] for row in TEXT], source
        assert [pair.row for pair in loaded.pairs] == list(range(1, N + 1))
        assert len(loaded.sha256) == 64
    assert load_pairs("hub").report.warnings == ("hub: the split train is read, and not test",)
    assert [path.name for path in local_files("hub")] == [
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]


def test_a_problem_in_a_shard_is_named_by_its_own_row(folder: Path) -> None:
    (folder / "p").mkdir()
    (folder / "p" / "a.jsonl").write_bytes(jsonl(TEXT[:6]))
    (folder / "p" / "b.jsonl").write_bytes(jsonl([*TEXT[6:8], {**TEXT[8], "chosen": ""}]))
    with pytest.raises(DataError, match=r'DATA015\] p/b\.jsonl:3 field "chosen"'):
        load_pairs("p")


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({}, "holds none that is read"),
        ({"a.jsonl": b"", "b.csv": b""}, "holds files of 2 kinds"),
        ({"test.jsonl": b"", "validation.jsonl": b""}, "holds the splits test, validation; give one"),
        ({"dataset_dict.json": b'{"splits": ["a", "b"]}'}, "holds the splits a, b; give the folder of one"),
        ({"state.json": b"nonsense"}, "state.json cannot be read"),
    ],
)  # fmt: skip
def test_a_folder_that_could_be_read_in_two_ways_is_refused(folder: Path, files: dict[str, bytes], what: str) -> None:
    (folder / "p").mkdir()
    for name, content in files.items():
        (folder / "p" / name).write_bytes(content)
    with pytest.raises(UsageError, match=what):
        load_pairs("p")


def test_several_lists_in_one_object_are_refused() -> None:
    Path("p.json").write_text(json.dumps({"train": TEXT, "test": TEXT}))
    with pytest.raises(DataError, match=r"DATA008\] p\.json: the file holds several lists: 'train', 'test'. Fix: save"):
        load_pairs("p.json")


def test_a_single_row_is_no_set_of_columns() -> None:
    row = {"prompt": [said("user", "Hi")], "chosen": [said("assistant", "a")], "rejected": [said("assistant", "b")]}
    Path("p.json").write_text(json.dumps(row))
    assert load_pairs("p.json").pairs[0].prompt == chat(("user", "Hi"))


def parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text[:2]}, {"type": "text", "text": text[2:]}]


# name: (rows, prompt, chosen and rejected of the first pair)
READ: dict[str, tuple[bytes, tuple[Any, Any, Any]]] = {
    "Alpaca": (
        each(lambda i: {"instruction": "Name it.", "input": f"sky {i}", "chosen": f"Blue {i}.", "rejected": "No."}),
        ("Name it.\nsky 0", "Blue 0.", "No."),
    ),
    "Alpaca without input": (
        each(lambda i: {"instruction": f"Name {i}?", "input": "", "chosen": f"Blue {i}.", "rejected": f"No {i}."}),
        ("Name 0?", "Blue 0.", "No 0."),
    ),
    "LLaMA-Factory": (
        each(lambda i: {"conversations": [gave("human", f"Name {i}?")], "chosen": gave("gpt", f"Blue {i}."),
                        "rejected": gave("gpt", f"No {i}.")}),
        (QUESTION, BLUE, NO),
    ),
    "ShareGPT lists": (
        each(lambda i: {"prompt": [gave("system", "s"), gave("human", f"Name {i}?")],
                        "chosen": [gave("gpt", f"Blue {i}.")], "rejected": [gave("chatgpt", f"No {i}.")]}),
        (chat(("system", "s")) + QUESTION, BLUE, NO),
    ),
    "messages": (
        each(lambda i: {"messages": [said("user", f"Name {i}?")], "chosen": f"Blue {i}.", "rejected": f"No {i}."}),
        (QUESTION, BLUE, NO),
    ),
    "one message": (
        each(lambda i: {"prompt": f"Name {i}?", "chosen": said("assistant", f"Blue {i}."),
                        "rejected": said("assistant", f"No {i}.")}),
        (QUESTION, BLUE, NO),
    ),
    "JSON in a text": (
        each(lambda i: {name: json.dumps([said("user", f"Name {i}?"), said("assistant", text)])
                        for name, text in (("chosen", f"Blue {i}."), ("rejected", f"No {i}."))}),
        (QUESTION, BLUE, NO),
    ),
    "parts of content": (
        each(lambda i: {"prompt": [said("user", parts(f"Name {i}?"))],
                        "chosen": [said("assistant", parts(f"Blue {i}."))],
                        "rejected": [said("assistant", parts(f"No {i}."))]}),
        (QUESTION, BLUE, NO),
    ),
    "system column": (
        each(lambda i: {**TEXT[i], "system": "" if i else "Be brief."}),
        (chat(("system", "Be brief.")) + QUESTION, BLUE, NO),
    ),
    "system column beside messages": (
        each(lambda i: {"system": "Be brief.", "prompt": [said("user", f"Name {i}?")], "chosen": f"Blue {i}.",
                        "rejected": f"No {i}."}),
        (chat(("system", "Be brief.")) + QUESTION, BLUE, NO),
    ),
    "empty system column": (each(lambda i: {**TEXT[i], "system": ""}), ("Name 0?", "Blue 0.", "No 0.")),
    "text that begins like JSON": (
        each(lambda i: {"prompt": f"[{i}]", "chosen": '{"colour": "blue"}', "rejected": "[{1: 2}]"}),
        ("[0]", '{"colour": "blue"}', "[{1: 2}]"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_known_formats_are_read(name: str) -> None:
    rows, wanted = READ[name]
    Path("p.jsonl").write_bytes(rows)
    loaded = load_pairs("p.jsonl")
    assert (loaded.pairs[0].prompt, loaded.pairs[0].chosen, loaded.pairs[0].rejected) == wanted
    assert len(loaded.pairs) == N
    assert not loaded.report.extra_columns or set(loaded.report.extra_columns) <= {"system", "input"}


# name: (rows, words of the one line that is said)
REFUSED: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "question": (
        each(lambda i: {"question": f"Name {i}?", "chosen": f"It is {i}", "rejected": f"It is not {i}"}),
        ("the column 'question' may be the prompt", "--column-map prompt=question, or prompt=-"),
    ),
    "other name": (
        each(lambda i: {"user_prompt": f"Name {i}?", "chosen": f"It is {i}", "rejected": f"It is not {i}"}),
        ("the column 'user_prompt' may be the prompt", "--column-map prompt=user_prompt"),
    ),
    "list of outputs": (each(lambda i: {"instruction": "p", "output": ["a", "b"]}), ("row['output'][0]",)),
    "numpy's messages": (
        each(lambda i: {**TEXT[i], "chosen": "array([{'role': 'assistant', 'content': 'x'}], dtype=object)"}),
        ("each of the 12 rows: the messages are written as Python shows a list",),
    ),
    "two names": (
        each(lambda i: {"query": f"Name {i}?", "context": "c", "chosen": f"It is {i}", "rejected": f"It is not {i}"}),
        ("the column 'query' or 'context' may be the prompt",),
    ),
    "messages of whole chats": (
        each(lambda i: {name: [said("user", f"Name {i}?"), said("assistant", text)]
                        for name, text in (("messages", "a"), ("chosen", "a"), ("rejected", "b"))}),
        ("the column 'messages' may be the prompt", "prompt=-"),
    ),
    "Python's messages": (
        each(lambda i: {**TEXT[i], "chosen": str([said("assistant", f"Blue {i}.")])}),
        ("each of the 12 rows: the messages are written as Python shows a list", "json.dumps(row['chosen'])"),
    ),
    "several rejected": (
        each(lambda i: {**TEXT[i], "rejected": ["a", "b"]}), ("each of the 12 rows", "frame.explode('rejected')"),
    ),
    "struct": (each(lambda i: {**TEXT[i], "prompt": {"text": "a"}}), ("prompt = row['prompt']['text']",)),
    "unpaired": (each(lambda i: {"prompt": "p", "completion": "c", "label": True}), ("KTO's format", "convert it")),
    "numbered": (
        each(lambda i: {"prompt": "p", "response_0": "a", "response_1": "b", "preferred": 1}),
        ("two numbered responses", "response_{1 - n}"),
    ),
    "arena": (each(lambda i: {"conversation_a": [], "conversation_b": [], "winner": "model_a"}), ("an arena's two",)),
    "fine-tuning": (each(lambda i: {"instruction": "p", "output": "o"}), ("a fine-tuning set", "a second, worse")),
    "image": (
        each(lambda i: {**TEXT[i], "prompt": [said("user", [{"type": "image"}, {"type": "text", "text": "What?"}])]}),
        ("each of the 12 rows: message 1 has a part of type 'image'",),
    ),
    "images": (each(lambda i: {**TEXT[i], "images": ["a.png"]}), ("'images' belongs to what is asked", "images=-")),
    "history": (each(lambda i: {**TEXT[i], "history": [["a", "b"]]}), ("'history' belongs to what is asked",)),
    "input": (
        each(lambda i: {**TEXT[i], "input": "more"}),
        ("'input' belongs to what is asked", "--column-map input=-", "input=input"),
    ),
    "other speaker": (
        each(lambda i: {"prompt": [gave("narrator", "x")], "chosen": "a", "rejected": "b"}), ("is from 'narrator'",),
    ),
    "system twice": (
        each(lambda i: {"system": "a", "prompt": [said("system", "b"), said("user", "x")], "chosen": "c",
                        "rejected": "d"}),
        ("differs from the system message of the prompt",),
    ),
    "prompt that is no message": (
        each(lambda i: {"prompt": "Rules.", **{side: [said("user", "x"), said("assistant", side)]
                                               for side in ("chosen", "rejected")}}),
        ("each of the 12 rows: the text is no message of the conversation",),
    ),
    "conversations that part early": (
        each(lambda i: {side: f"\n\nHuman: hi\n\nAssistant: {side}\n\nHuman: on {i}\n\nAssistant: {side}"
                        for side in ("chosen", "rejected")}),
        ("each of the 12 rows: the two conversations part before their last answer",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_every_row_has_is_told_once_with_what_to_do(name: str) -> None:
    rows, words = REFUSED[name]
    Path("p.jsonl").write_bytes(rows)
    with pytest.raises(DataError) as caught:
        load_pairs("p.jsonl")
    message = str(caught.value)
    assert not [word for word in words if word not in message], message
    assert "\n" not in message
    assert "drop" not in message
    assert " Fix: " in message


def test_a_column_map_says_what_is_not_guessed() -> None:
    Path("p.jsonl").write_bytes(
        each(lambda i: {"question": f"Q {i}", "chosen": f"It is {i}", "rejected": f"It is not {i}"})
    )
    assert load_pairs("p.jsonl", column_map={"prompt": "question"}).pairs[0].prompt == "Q 0"
    shared = load_pairs("p.jsonl", column_map={"prompt": "-"})
    assert (shared.pairs[0].prompt, shared.report.implicit_prompts) == ("It is", N)
    Path("p.jsonl").write_bytes(each(lambda i: {**TEXT[i], "input": "more", "tools": [1]}))
    used = load_pairs("p.jsonl", column_map={"input": "input", "tools": "-"})
    assert used.pairs[0].prompt == "Name 0?\nmore"
    assert load_pairs("p.jsonl", column_map={"input": "-", "tools": "-"}).pairs[0].prompt == "Name 0?"
    Path("p.jsonl").write_bytes(each(lambda i: {**TEXT[i], "role": "Be brief."}))
    assert load_pairs("p.jsonl", column_map={"system": "role"}).pairs[0].prompt[0] == Message("system", "Be brief.")


def test_names_that_only_speak_of_prompts_are_none() -> None:
    more = {"prompt_id": "x", "question_type": "what", "chat_context": "the same in every row"}
    Path("p.jsonl").write_bytes(each(lambda i: {"chosen": f"It {i} is", "rejected": f"It {i} was", **more}))
    report = load_pairs("p.jsonl").report
    assert (report.implicit_prompts, report.extra_columns) == (N, tuple(sorted(more)))


def test_ties_and_contradictions_of_ratings_are_counted() -> None:
    Path("p.jsonl").write_bytes(
        each(lambda i: {**TEXT[i], "chosen-rating": 5.0, "rejected-rating": (4.0, 5.0, 6.0, None)[i % 4]})
    )
    report = load_pairs("p.jsonl").report
    assert (report.scored, report.score_ties, report.score_contradictions) == (9, 3, 3)
    assert "scores: of 9 rows that have both, 3 tie and 3 contradict the label" in report.warnings[0]


# case: whether it is read, with the prompt and the chosen response of its first row, or else what is said
SHARED: dict[str, Any] = {
    "alpaca-input/alpaca.jsonl": ("Translate into French.\nword0", "Oui word0"),
    "json-strings/json_strings.jsonl": (chat(("user", "Where is island 0?")), chat(("assistant", "Far 0."))),
    "json-strings/pandas.csv": "not as JSON",
    "prompt-column-other-name/all_share.jsonl": "--column-map prompt=question",
    "prompt-column-other-name/orca.jsonl": "--column-map prompt=question",
    "scores/argilla.jsonl": ("Where is island 0?", "Far 0."),
    "sharegpt/lf.jsonl": (chat(("user", "Where is island 0?")), chat(("assistant", "Far 0."))),
    "sharegpt/list.jsonl": (chat(("user", "Where is island 0?")), chat(("assistant", "Far 0."))),
    "single-dict/openai.jsonl": (chat(("user", "Where is island 0?")), chat(("assistant", "Far 0."))),
    "system-column/system.jsonl": (
        chat(("system", "Answer like a pirate, version 0."), ("user", "Where is island 0?")),
        chat(("assistant", "Arr, island 0 be far away.")),
    ),
    **{
        f"formats/{name}": ("Where is island 0?", first)
        for name, first in {
            "bom_crlf.jsonl": "Far 0.", "excel.csv": "Far 0.", "lines.json": "Far 0.", "list.json": "Far 0.",
            "list.json.gz": "Far 0.", "pandas_columns.json": "Far 0.", "semicolon.csv": "Far 0.", "tabs.tsv": "Far 0.",
            "utf16.jsonl": "Far 0.", "wrapped.json": "Far 0.", "x.csv.gz": "Far 0.",
        }.items()
    },
    "formats/binary.parquet": ("Where 0?", "F0"),
    "formats/oldmac.csv": ("Where 0?", "Far 0"),
    "formats/parts.jsonl": (chat(("user", "Where 0?")), chat(("assistant", "Far 0"))),
    "formats/saved": (chat(("user", "Where 0?")), chat(("assistant", "Far 0"))),
    "formats/shards": (chat(("user", "Where 0?")), chat(("assistant", "Far 0"))),
    "formats/kto.jsonl": "KTO's format",
    "formats/latin1.csv": "save the file as UTF-8",
    "formats/multi.jsonl": "frame.explode",
    "formats/pref2.jsonl": "two numbered responses",
    "formats/struct.parquet": "row['prompt']['text']",
    "formats/hh_diverge.jsonl": "part before their last answer",
}  # fmt: skip


@pytest.mark.parametrize("case", SHARED)
def test_cases_from_the_field(case: str) -> None:
    path = CASES / case
    if not path.exists():
        pytest.skip(f"no case at {path}")
    right = SHARED[case]
    if isinstance(right, str):
        with pytest.raises(DataError) as caught:
            load_pairs(str(path))
        assert right in str(caught.value)
        assert "\n" not in str(caught.value)
        return
    first: Pair = load_pairs(str(path)).pairs[0]
    assert (first.prompt, first.chosen) == right
