"""Bad data through the whole command: error code, line, field and fix, exit status 3, and an untouched folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_inputs import ROWS, Command, compare, jsonl

from prefopt.prepare import own_pairs
from prefopt.storage.results import ResultsFolder

USER = {"role": "user", "content": "Hi"}
YES, NO = {"role": "assistant", "content": "Yes."}, {"role": "assistant", "content": "No."}
CHATS = [{"prompt": [{"role": "user", "content": f"Hi {i}"}], "chosen": [YES], "rejected": [NO]} for i in range(24)]
DEEP = b'{"prompt": ' + b"[" * 100_000 + b"\n"


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(tmp_path, monkeypatch, capsys)


def text(**changes: Any) -> bytes:
    """Good rows with one of them, on line 3, changed; a field set to ``...`` is left out."""
    row = {name: value for name, value in {**ROWS[2], **changes}.items() if value is not ...}
    return jsonl([*ROWS[:2], row, *ROWS[3:]])


def raw(line: bytes) -> bytes:
    """Good rows with line 3 replaced."""
    return jsonl(ROWS[:2]) + line + jsonl(ROWS[3:])


def chat(**changes: Any) -> bytes:
    return jsonl([*CHATS[:2], {**CHATS[2], **changes}, *CHATS[3:]])


def turns(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": f"text {i}"} for i, role in enumerate(roles)]


# id: (content of pairs.jsonl, what must be said; more words of the command)
CASES: dict[str, tuple[bytes, tuple[str, ...], tuple[str, ...]]] = {
    "D01 empty": (b"", ("error[DATA001] pairs.jsonl: there are no rows", "Fix: give at least one usable row"), ()),
    "D01 blank": (b"\n\n \n", ("error[DATA001] pairs.jsonl",), ()),
    "D01 dropped": (jsonl([{**ROWS[0], "chosen": ""}]), ("DATA001", "DATA015 empty"), ("--on-bad-rows", "drop")),
    "D02": (text(rejected=...), ('error[DATA002] pairs.jsonl:3 field "rejected": the field is missing',), ()),
    "D03": (
        jsonl({"question": "a", "response_j": f"b{i}", "response_k": "c"} for i in range(24)),
        ("error[DATA003]", "found 'question', 'response_j', 'response_k'",
         "--column-map prompt=question,chosen=response_j,rejected=response_k"), (),
    ),
    "D05": (text(chosen=None), ('error[DATA004] pairs.jsonl:3 field "chosen": the value is null',), ()),
    "D06 NaN": (raw(b'{"prompt": "a", "chosen": NaN}\n'), ("error[DATA005] pairs.jsonl:3: NaN is not JSON",), ()),
    "D06 infinity": (raw(b'{"x": -Infinity}\n'), ("error[DATA005] pairs.jsonl:3: -Infinity is not JSON",), ()),
    "D06 overflow": (raw(b'{"x": 1e999}\n'), ("error[DATA005] pairs.jsonl:3: the number '1e999'",), ()),
    "D07 number": (text(chosen=5), ('error[DATA006] pairs.jsonl:3 field "chosen"', "this is a number"), ()),
    "D07 bool": (text(prompt=True), ('error[DATA006] pairs.jsonl:3 field "prompt"', "this is true/false"), ()),
    "D07 list": (text(rejected=["a"]), ('error[DATA006] pairs.jsonl:3 field "rejected": message 1 is text',), ()),
    "D07 object": (text(chosen={"a": 1}), ('error[DATA006] pairs.jsonl:3 field "chosen"', "this is an object"), ()),
    "D08": (
        jsonl([*ROWS[:2], *CHATS[:1]]),
        ("error[DATA007] pairs.jsonl:3", "text first in row 1, messages first in row 3", "Fix: split the file"), (),
    ),
    "D09": (jsonl(ROWS)[:-20], ("error[DATA009] pairs.jsonl:24: the last line is incomplete", "download"), ()),
    "D10": (
        raw(b'{"prompt": "caf\xe9"}\n'),
        ("error[DATA010] pairs.jsonl:3: invalid UTF-8 at byte 16 of the line (0xe9)", "save the file as UTF-8"), (),
    ),
    "D11": (
        text(chosen="ab\ud800"),
        ('error[DATA011] pairs.jsonl:3 field "chosen": character 3 is half of a surrogate pair',), (),
    ),
    "D12 NUL": (text(chosen="ab\x00"), ('error[DATA012] pairs.jsonl:3 field "chosen": character 3 is NUL',), ()),
    "D13": (raw(b'{"prompt": "a", "prompt": "b"}\n'), ("error[DATA013] pairs.jsonl:3: the key 'prompt' occurs",), ()),
    "D14": (raw(DEEP), ("error[DATA016] pairs.jsonl:3: JSON is nested too deeply",), ()),
    "D15 prompt": (text(prompt=" \n"), ('error[DATA015] pairs.jsonl:3 field "prompt": empty or only white',), ()),
    "D15 chosen": (text(chosen=""), ('error[DATA015] pairs.jsonl:3 field "chosen"',), ()),
    "D15 rejected": (text(rejected="\u200b"), ('error[DATA015] pairs.jsonl:3 field "rejected"',), ()),
    "D16 raw": (text(rejected=" on the mat 2"), ('error[DATA014] pairs.jsonl:3 field "rejected": equal to',), ()),
    "D16 NFC": (
        text(chosen=" caf\u00e9", rejected=" cafe\u0301 "),
        ('error[DATA014] pairs.jsonl:3 field "rejected"', "but for white space or Unicode form"), (),
    ),
    "D17": (
        jsonl([*ROWS, {**ROWS[4], "chosen": ROWS[4]["rejected"], "rejected": ROWS[4]["chosen"]}]),
        ("error[DATA017] pairs.jsonl: 1 rows contradict", "lines 5 and 25", "Fix: keep one row"), (),
    ),
    "D20": (
        text(prompt="word " * 300),
        ('error[DATA020] pairs.jsonl:3 field "prompt": the prompt has', "the limit is 63, with max_length = 64"),
        ("--set", "data.max_length=64"),
    ),
    "D21": (
        text(chosen="x" * 90 + "yes", rejected="x" * 90 + "no"),
        ('error[DATA021] pairs.jsonl:3 field "rejected": equal to "chosen" in the', "raise max_length"),
        ("--set", "data.max_length=64"),
    ),
    "D23 role": (
        chat(prompt=turns("wizard")),
        ('error[DATA023] pairs.jsonl:3 field "prompt": message 1 has role ', "system, user, assistant, tool"), (),
    ),
    "D23 content": (chat(prompt=[{"role": "user"}]), ("DATA023] pairs.jsonl:3", "message 1 has no content"), ()),
    "D23 list": (chat(chosen=[{**YES, "content": ["a"]}]), ("DATA023] pairs.jsonl:3", "content that is a list"), ()),
    "D24 first": (chat(prompt=turns("assistant", "user")), ("DATA024] pairs.jsonl:3", "assistant at the start"), ()),
    "D24 twice": (chat(prompt=turns("user", "assistant", "assistant")), ("DATA024] pairs.jsonl:3", "message 3"), ()),
    "D24 none": (chat(prompt=turns("system")), ("DATA024] pairs.jsonl:3", "a user's message is wanted"), ()),
    "D25": (
        chat(chosen=[{**USER, "content": "Ho"}, YES]),
        ('error[DATA025] pairs.jsonl:3 field "chosen": message 1 of the conversation differs',), (),
    ),
    "D28": (
        raw(b'{"prompt": "' + b"a" * 100_000_000 + b'"}\n'),
        ("error[DATA018] pairs.jsonl:3: the row is larger than 1000000 bytes",), (),
    ),
    "D32": (
        jsonl(ROWS[:4]), ("error[DATA032] 3 training pairs, and one step takes 4", "lower train.pairs_per_step"), (),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_data_is_refused(case: str, command: Command, tiny_folder: Callable[[str], Path]) -> None:
    content, said, more = CASES[case]
    (command.root / "pairs.jsonl").write_bytes(content)
    refused = command.refused(compare(tiny_folder("llama"), *more), status=3, said=said)
    assert "Fix: " in refused.err
    assert "Nothing was written." in refused.err


LEAKS = {"plain": "the cow 1 sat", "white space": " the  cow 1\tsat ", "Unicode form": "the cow 1 sat"}


@pytest.mark.parametrize("kind", LEAKS)
def test_d19_a_prompt_on_both_sides_is_a_leak(kind: str, command: Command, tiny_folder) -> None:
    first = "the cow 1 sat" if kind != "Unicode form" else "the cow 1 s\u00e1t"
    second = LEAKS[kind] if kind != "Unicode form" else "the cow 1 sa\u0301t"
    (command.root / "pairs.jsonl").write_bytes(jsonl([*ROWS, {**ROWS[0], "prompt": first}]))
    others = [{**row, "prompt": f"other {row['prompt']}"} for row in ROWS[:6]]
    (command.root / "held.jsonl").write_bytes(jsonl([*others, {**ROWS[1], "prompt": second}]))
    command.refused(
        compare(tiny_folder("llama"), "--set", "data.heldout=held.jsonl"),
        status=3,
        said=('error[DATA019] held.jsonl:7 field "prompt"', "pairs.jsonl:25; 1 held-out rows leak", "Fix: remove"),
    )


@pytest.mark.parametrize("changed", ["pairs.jsonl", "held.jsonl"])
def test_d30_a_file_that_changes_meanwhile(changed: str, command: Command, tiny_folder, monkeypatch) -> None:
    (command.root / "pairs.jsonl").write_bytes(jsonl(ROWS))
    (command.root / "held.jsonl").write_bytes(jsonl({**row, "prompt": f"other {row['prompt']}"} for row in ROWS))
    path, whole = command.root / changed, (command.root / changed).read_bytes()
    real = own_pairs.tokenize_pairs

    def slow(*words: Any, **options: Any) -> Any:
        path.write_bytes(whole[:-1] + b" \n")
        return real(*words, **options)

    monkeypatch.setattr(own_pairs, "tokenize_pairs", slow)
    outcome = command(*compare(tiny_folder("llama"), "--set", "data.heldout=held.jsonl"))
    assert outcome.status == 3
    assert f"error[DATA028] {changed}: the file changed while it was in use" in outcome.err
    assert "Fix: run again" in outcome.err
    assert not (command.root / "results").exists()


SOURCES = {
    "web": "https://example.org/pairs.jsonl", "hub address": "hf://datasets/a/b", "archive": "pairs.zip",
    "pickle": "pairs.pkl", "script": "pairs.py", "tar": "pairs.tar.gz", "above": "../../a", "revision": "a/b@",
    "device": "/dev/null", "folder": ".",
}  # fmt: skip


@pytest.mark.parametrize("kind", SOURCES)
def test_d31_other_kinds_of_sources(kind: str, command: Command, tiny_folder) -> None:
    for name in ("pairs.zip", "pairs.pkl", "pairs.py", "pairs.tar.gz"):
        (command.root / name).write_bytes(b"raise SystemExit('executed')")
    command.refused(
        compare(tiny_folder("llama"), "--name", "mine", data=SOURCES[kind]),
        status=2,
        said=("prefopt: data ", "give a local .jsonl"),
    )


def test_odd_but_usable_data_are_used_and_counted(command: Command, tiny_folder) -> None:
    """D04, D12, D17, D18, D22, D26, D27: accepted, counted in the manifest, said on the screen."""
    marked = "\u202ebidi\u200b"
    rows: list[dict[str, Any]] = [
        {
            **row,
            "prompt": f"{marked} {row['prompt']} {i}",
            "notes": "EXTRA-CANARY",
            "chosen": f"{row['chosen']} </s> on",
        }
        for i, row in enumerate(ROWS * 2)
    ]
    rows.append(rows[0])
    rows.append({**rows[1], "chosen": rows[1]["rejected"], "rejected": rows[1]["chosen"]})
    rows.append({"prompt": "the c", "chosen": "at sat " * 40, "rejected": "ow sat " * 40, "notes": None})
    content = b"\xef\xbb\xbf" + jsonl(rows).replace(b"\n", b"\r\n")
    (command.root / "pairs.jsonl").write_bytes(content)
    words = compare(tiny_folder("llama"), "--name", "mine", "--set", "data.max_length=80")
    done = command(*[word for word in words if word != "--quiet"])
    assert done.status == 0, done.err
    for said in (
        "1 rows repeat an earlier one (kept; --dedup drops them): lines 1 and 49",
        "1 rows contradict an earlier one",
        "lines 2 and 50",
        "columns ignored: 'notes'",
        "responses were cut to the length limit",
        "control tokens in the rows' own text were encoded as text",
    ):
        assert said in " ".join(done.err.split()), said
    folder = ResultsFolder(command.root / "results" / "mine")
    facts = folder.manifest().data
    assert facts["rows"] == len(rows)
    assert (facts["duplicates"], facts["contradictions"], facts["extra_columns"]) == (1, 1, ["notes"])
    assert facts["control_tokens"] == len(rows) - 1
    assert facts["boundary_merges"] >= 1
    assert 0 < facts["no_eos_chosen"] == pytest.approx(facts["truncated_chosen"] / facts["train_pairs"])
    for path in folder.root.rglob("*"):
        assert not path.is_file() or b"EXTRA-CANARY" not in path.read_bytes(), path
    page = (folder.root / "report.html").read_text(encoding="utf-8")
    assert r"\u202ebidi\u200b the" in page
    assert "\u202e" not in page
    assert "\u200b" not in page
    kept = json.dumps(folder.frames("samples.parquet", ["prompt"])["prompt"].tolist(), ensure_ascii=False)
    assert marked in kept


def test_columns_are_mapped_and_repeats_left_out_when_asked(command: Command, tiny_folder) -> None:
    rows = [{"question": row["prompt"], "a": row["chosen"], "b": row["rejected"]} for row in [*ROWS, ROWS[0]]]
    (command.root / "pairs.jsonl").write_bytes(jsonl(rows))
    more = ("--column-map", "prompt=question,chosen=a,rejected=b", "--dedup", "--dry-run", "--json")
    done = command(*compare(tiny_folder("llama"), *more))
    assert done.status == 0, done.err
    command.refused(
        compare(tiny_folder("llama"), "--column-map", "prompt"), status=2, said=("--column-map prompt: write ours=",)
    )
