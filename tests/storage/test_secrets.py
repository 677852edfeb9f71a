"""Canaries in place of secrets, a whole comparison, and then a look at every byte that came out."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import chat_server
import pandas as pd
import pytest
from bad_inputs import ROWS, Command, compare, jsonl

from prefopt.comparison import runner
from prefopt.storage.redact import portable, without_secrets
from prefopt.storage.results import ResultsFolder

SECRETS = {
    "HF_TOKEN": "hf_CanaryCanaryCanaryCanary",
    "OPENAI_API_KEY": chat_server.KEY,
    "AWS_SECRET_ACCESS_KEY": "swordfish-swordfish",
    "DB_PASSWORD": "hunter2-hunter2",
}


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "home" / "pairs.jsonl").write_bytes(jsonl(ROWS))
    return Command(tmp_path / "home", monkeypatch, capsys)


def contents(path: Path) -> bytes:
    """The bytes of a file, and the text in it where it may be compressed."""
    data = path.read_bytes()
    return data + pd.read_parquet(io.BytesIO(data)).to_csv().encode() if path.suffix == ".parquet" else data


def hits(root: Path, wanted: list[str], *, but: str = "") -> list[str]:
    """Where a value is found; a file called ``but`` is not looked into."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and path.name != but]
    assert len(files) > 1
    contents_by_path = {path: contents(path) for path in files}
    return [
        f"{value} in {path}" for path, data in contents_by_path.items() for value in wanted if value.encode() in data
    ]


def test_no_secret_in_any_byte_that_comes_out(command: Command, tiny_folder: Callable[[str], Path]) -> None:
    home = command.root
    shutil.copytree(tiny_folder("llama"), home / "models" / "mine")
    words = compare(home / "models" / "mine", "--losses", "dpo", "--name", "mine", data=str(home / "pairs.jsonl"))
    shown = [command(*[word for word in words if word != "--quiet"], "--results", str(home / "results"))]
    root = home / "results" / "mine"
    assert shown[0].status == 0, shown[0].err
    with chat_server.serve() as server:
        server.faults = ["echo", "echo", "prose", 500]
        judge = ["judge", str(root), "--judge", "openai:tiny", "--base-url", server.url]
        shown.append(command(*judge))
        assert any(chat_server.KEY in str(key) for key in server.keys), "the key did reach the server"
        server.faults = [401]
        shown.append(command(*judge, "--pairs", "all", "--judge", "openai:other"))
    shown.append(command("report", str(root)))
    assert shown[1].status in (0, 4), shown[1].err
    assert shown[2].status == 6
    assert shown[3].status == 0
    for outcome in shown:
        assert not [name for name, value in SECRETS.items() if value in outcome.out + outcome.err]
    values = list(SECRETS.values())
    assert hits(command.root.parent / "cache", values) == []
    host = socket.gethostname()
    machine = [str(home), *([host] if len(host) > 5 else [])]
    assert hits(home / "results", values) == []
    # An adapter's own configuration alone has the real path of its base model, which is loaded by it.
    assert hits(home / "results", machine, but="adapter_config.json") == []
    config = json.loads((root / "runs" / "dpo" / "seed-0" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(home / "models" / "mine")
    manifest = ResultsFolder(root).manifest()
    assert manifest.config["data"]["source"] == manifest.data["source"] == "~/pairs.jsonl"
    assert manifest.model["name"] == "~/models/mine"
    assert "~/pairs.jsonl" in manifest.command
    # The folder is the same one from another place of the same home.
    assert command(*words, "--results", str(home / "results")).status == 0


def test_the_working_process_gets_the_paths_that_were_typed(command: Command, tiny_folder) -> None:
    """What is published has ~ for the home folder; what is opened must not."""
    shutil.copytree(tiny_folder("llama"), command.root / "models" / "mine")
    words = compare(command.root / "models" / "mine", "--name", "mine", data=str(command.root / "pairs.jsonl"))
    words.remove("--in-process")
    done = subprocess.run([sys.executable, "-m", "prefopt", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    manifest = ResultsFolder(command.root / "results" / "mine").manifest()
    assert manifest.config["data"]["source"] == "~/pairs.jsonl"
    assert hits(command.root / "results", list(SECRETS.values())) == []
    assert hits(command.root / "results", [str(command.root)], but="adapter_config.json") == []


URL = "https://alice:swordfish-swordfish@host/x"


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["judge", "results/mine", "--judge", "openai:tiny", "--base-url", URL], 2),
        (compare("none", data=URL + ".jsonl"), 2),
        (compare(URL), 6),
        (compare("none", "--set", "data.hf_token=" + SECRETS["HF_TOKEN"]), 2),
        (compare("none", "--losses", SECRETS["HF_TOKEN"]), 2),
        (compare("none", "--device", SECRETS["DB_PASSWORD"]), 2),
    ],
)
def test_secrets_that_were_typed_are_not_repeated(words: list[str], status: int, command: Command) -> None:
    outcome = command.refused(words, status=status, said=())
    assert outcome.err
    assert not [value for value in (*SECRETS.values(), "alice") if value in outcome.err]


def test_a_defect_ends_with_a_traceback_without_secrets(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*words: object, **options: object) -> None:
        raise RuntimeError(f"token {os.environ['HF_TOKEN']} \x1b[31m")

    monkeypatch.setattr(runner, "work", fail)
    outcome = command(*compare("none"))
    assert outcome.status == 1
    assert "RuntimeError: token [secret] \\x1b[31m" in outcome.err
    assert "this is a defect of prefopt" in outcome.err
    assert SECRETS["HF_TOKEN"] not in outcome.err


def test_text_is_left_alone_where_there_is_nothing_to_hide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/a")
    monkeypatch.setenv("SOME_KEY", "true")
    text = "a mask-of-things at https://host/a@b, sk-ip, true, /home/ab/c, hf_mini"
    assert portable(text) == without_secrets(text) == text
    assert portable("--data=/home/a/x --out /home/a") == "--data=~/x --out ~"
