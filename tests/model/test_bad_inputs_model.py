"""Bad models through the whole command: nothing runs, nothing is asked, one line, status 6, an untouched folder."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from bad_inputs import ROWS, SHORT, Command, compare, jsonl, snapshot
from safetensors.torch import load_file, save_file

from prefopt.errors import MachineError
from prefopt.judges.reward import RewardModelJudge
from prefopt.model import checks
from prefopt.model.base import load_base
from prefopt.storage.results import ResultsFolder

EVIL = "from pathlib import Path\nPath('executed').write_text('x')\n"
CHATS = [
    {
        "prompt": [{"role": "user", "content": f"Hi {i}"}],
        "chosen": [{"role": "assistant", "content": "Yes."}],
        "rejected": [{"role": "assistant", "content": "No."}],
    }
    for i in range(24)
]


class NoStdin(io.StringIO):
    """Fails whoever asks a question."""

    def readline(self, *words: Any) -> str:
        raise AssertionError("something was read from standard input")

    read = readline


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    (tmp_path / "pairs.jsonl").write_bytes(jsonl(ROWS))
    monkeypatch.setattr(sys, "stdin", NoStdin())
    return Command(tmp_path, monkeypatch, capsys)


@pytest.fixture
def model(command: Command, tiny_folder: Callable[[str], Path]) -> Path:
    return Path(shutil.copytree(tiny_folder("llama"), command.root / "model"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", **changes)


def weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def remote_code(folder: Path) -> None:
    auto = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    edit(folder / "config.json", model_type="evil", architectures=["Evil"], auto_map=auto)
    (folder / "evil.py").write_text(EVIL)


def remote_tokenizer(folder: Path) -> None:
    auto = {"AutoTokenizer": ["evil.T", None]}
    edit(folder / "tokenizer_config.json", tokenizer_class="EvilTokenizer", auto_map=auto)
    (folder / "evil.py").write_text(EVIL)


def only_bin(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "evil/model"}')


def drop_weight(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.layers.0.mlp.down_proj.weight"]


def not_finite(value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.mlp.down_proj.weight"][0, 0] = value

    return change


def overflow(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"].fill_(3e38)


def fewer_embeddings(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = tensors[name][:280].clone()

    weights(change)(folder)
    edit(folder / "config.json", vocab_size=280)


def no_end_token(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({name: value for name, value in settings.items() if name not in ("eos_token", "pad_token")})
    )


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size]) and None


NATIVE = "and native code is not fetched; known: eager, sdpa, flash_attention_2"
# id: (what is done to a good folder, what must be said)
MODELS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "M01 model": (remote_code, ("cannot be loaded: no code of a model is ever run, and it needs its own",)),
    "M01 tokenizer": (remote_tokenizer, ("cannot be loaded: no code of a model is ever run, and it needs its own",)),
    "M02": (only_bin, ("has no weights as .safetensors, only pytorch_model.bin, which could run code",)),
    "M02 none": (lambda folder: (folder / "model.safetensors").unlink(), ("has no weights as .safetensors; conv",)),
    "M02 adapter": (adapter, ("is an adapter; merge it into its base model",)),
    "M04": (config(attn_implementation="evil/repo"), ("asks for attention 'evil/repo'", NATIVE)),
    "M04 private": (config(_attn_implementation="evil/repo"), ("asks for attention 'evil/repo'", NATIVE)),
    "M04 nested": (config(attn_implementation={"": "evil/repo"}), ("asks for attention", NATIVE)),
    "M05 end": (no_end_token, ("its tokenizer has no end-of-sequence token",)),
    "M05 vocabulary": (fewer_embeddings, ("its tokenizer has the id 286, and the model 280 embeddings",)),
    "M07 NaN": (weights(not_finite(float("nan"))), ("model.layers.0.mlp.down_proj.weight is not finite",)),
    "M07 infinity": (weights(not_finite(float("-inf"))), ("model.layers.0.mlp.down_proj.weight is not finite",)),
    "M07 overflow": (weights(overflow), ("its log-probabilities in float32 are not finite",)),
    "missing weight": (weights(drop_weight), ("its files lack 1 weights, such as model.layers.0.mlp.down_proj",)),
    "cut weights": (cut("model.safetensors", 1000), ("cannot be loaded: ",)),
    "cut tokenizer": (cut("tokenizer.json", 1000), ("cannot be loaded: ",)),
    "cut config": (cut("config.json", 20), ("config.json cannot be read",)),
    "config is a list": (lambda folder: (folder / "config.json").write_text("[]") and None, ("config.json cannot",)),
    "wrong type": (config(hidden_size="x"), ("cannot be loaded: ",)),
}


@pytest.mark.parametrize("case", MODELS)
def test_bad_model_is_refused(case: str, command: Command, model: Path) -> None:
    damage, said = MODELS[case]
    damage(model)
    command.refused(compare("model"), status=6, said=("prefopt: model model: ", *said))
    assert not (command.root / "executed").exists()


@pytest.mark.parametrize("name", ["./none", "a/b/c", "../model", "/none", "org/name\x00", "https://host/model"])
def test_model_that_is_no_name(name: str, command: Command) -> None:
    command.refused(compare(name), status=6, said=("no such folder; give a model folder, a .gguf file or a hub id",))


def test_damaged_gguf_is_one_line(command: Command) -> None:
    (command.root / "x.gguf").write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 100)
    command.refused(compare("x.gguf"), status=6, said=("model x.gguf: cannot be read as GGUF: ",))


def test_m05_models_that_are_used_all_the_same(command: Command, model: Path) -> None:
    """With code that is not needed, without a pad token, and without a chat template as long as there are no chats."""
    edit(model / "config.json", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}, pad_token_id=None)
    edit(model / "tokenizer_config.json", pad_token=None)
    (model / "evil.py").write_text(EVIL)
    (model / "chat_template.jinja").unlink()
    done = command(*compare("model", "--name", "mine"))
    assert done.status == 0, done.err
    assert not (command.root / "executed").exists()
    (command.root / "pairs.jsonl").write_bytes(jsonl(CHATS))
    command.refused(compare("model"), status=2, said=("the tokenizer has no chat template", "give prompt, chosen"))


TEMPLATES = {
    "loops": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "did not end within"),
    "one operation": ("{{ (7 ** (7 ** 9)) % 10 }}", "did not end within"),
    "memory": ("{{ 'a' * 10000000000 }}", "it takes too much memory"),
    "escape": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "the template refuses it"),
    "file": ("{% include '/etc/passwd' %}", "the template refuses it"),
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_m06_hostile_template_is_bounded_and_named(
    kind: str, command: Command, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template, said = TEMPLATES[kind]
    monkeypatch.setattr("prefopt.data.render.CHAT_S", 1.0)
    (model / "chat_template.jinja").write_text(template)
    (command.root / "pairs.jsonl").write_bytes(jsonl(CHATS))
    busy = said == "did not end within"
    named = ("the chat template of model (SHA-256 ", "choose another model") if busy else ("DATA027] pairs.jsonl:1",)
    command.refused(compare("model"), status=6 if busy else 3, said=(said, *named), lines=21)


def test_m03_hub_model_is_fetched_as_data_of_one_commit(command: Command, model: Path, monkeypatch) -> None:
    commit = "0a" * 20
    place = command.root / "hub" / "models--org--name" / "snapshots" / commit
    asked: dict[str, Any] = {}

    def download(repo: str, **options: Any) -> str:
        asked.update(repo=repo, **options)
        return str(shutil.copytree(model, place, dirs_exist_ok=True))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert command(*compare("org/name@v1", "--name", "mine")).status == 0
    assert (asked["repo"], asked["revision"]) == ("org/name", "v1")
    fetched = asked["allow_patterns"]
    assert not [p for p in fetched if Path("x.py").match(p) or Path("x.bin").match(p) or Path("x.pt").match(p)]
    facts = ResultsFolder(command.root / "results" / "mine").manifest().model
    assert (facts["name"], facts["revision"]) == ("org/name@v1", commit)


def test_m03_hub_out_of_reach_is_one_line(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*words: Any, **options: Any) -> str:
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    command.refused(
        compare("org/name"), status=6, said=("model org/name: cannot be had from the hub: no network; che",)
    )


def test_reward_model_without_its_head_is_refused(model: Path) -> None:
    with pytest.raises(MachineError, match=r"lack 1 weights, such as score\.weight"):
        RewardModelJudge(str(model), device=torch.device("cpu"))


def test_m04_native_code_of_a_hub_is_off() -> None:
    assert os.environ["USE_HUB_KERNELS"] == "0"
    lock = (Path(checks.__file__).parents[2] / "requirements" / "lock.txt").read_text(encoding="utf-8")
    assert "kernels==" not in lock


def test_a_real_process_asks_nothing_and_runs_nothing(command: Command, model: Path) -> None:
    remote_code(model)
    before = snapshot(command.root)
    settings = [word for setting in SHORT for word in ("--set", setting)]
    words = [
        "compare",
        "--data",
        "pairs.jsonl",
        "--model",
        "model",
        "--losses",
        "noop",
        "--seeds",
        "0",
        "--device",
        "cpu",
    ]
    command_line = [sys.executable, "-m", "prefopt", *words, *settings]
    done = subprocess.run(command_line, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 6, done.stderr
    assert "no code of a model is ever run" in done.stderr
    assert "Traceback" not in done.stderr
    assert snapshot(command.root) == before


def test_weights_on_disk_and_in_memory_are_the_same(tiny_folder: Callable[[str], Path]) -> None:
    base = load_base(str(tiny_folder("llama")), dtype="float32", device=torch.device("cpu"))
    stored = load_file(tiny_folder("llama") / "model.safetensors")
    assert all(torch.equal(dict(base.model.named_parameters())[name], value) for name, value in stored.items())
