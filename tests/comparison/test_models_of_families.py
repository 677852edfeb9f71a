"""Whole comparisons on models of many kinds: what they end with, what they can read, and where they start."""

from __future__ import annotations

import json
from pathlib import Path

import families
import pandas as pd
import pytest
import tiny
import torch
import transformers
from bad_inputs import Command, compare, jsonl
from peft import PeftModel

from prefopt.model.base import load_base
from prefopt.model.source import merge_adapter
from prefopt.storage.results import ResultsFolder

needs_templates = pytest.mark.skipif(not families.names(), reason="trl, whose templates these are, is not installed")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    (tmp_path / "chats.jsonl").write_bytes(jsonl(chat(i) for i in range(24)))
    (tmp_path / "pairs.jsonl").write_bytes(
        jsonl(
            {
                "prompt": f"Say where the {i}th cat sat and on which mat, so that {i} children see it, please.",
                "chosen": f" On mat {i}.",
                "rejected": f" Off hat {i}.",
            }
            for i in range(24)
        )
    )
    return Command(tmp_path, monkeypatch, capsys)


def chat(i: int, *, system: str = "") -> dict[str, object]:
    prompt = [{"role": "system", "content": system}] if system else []
    return {
        "prompt": [*prompt, {"role": "user", "content": f"Where is it {i}?"}],
        "chosen": [{"role": "assistant", "content": f"Far {i}."}],
        "rejected": [{"role": "assistant", "content": f"Near {i}."}],
    }


@needs_templates
def test_sampling_stops_at_every_end_token_and_says_which(command: Command) -> None:
    tokens = families.tokenizer("gemma")
    folder = tiny.save(command.root / "model", "llama", tokens)
    settings = folder / "generation_config.json"
    settings.write_text(settings.read_text().replace('"eos_token_id": 2', '"eos_token_id": [2, 9]'))
    planned = command(*compare("model", "--dry-run", "--json", data="chats.jsonl"))
    assert planned.status == 0, planned.err
    shown = json.loads(planned.out)["ends of a response"].split()
    assert set(shown) == {"<end_of_turn>", "<eos>", *tokens.convert_ids_to_tokens([2, 9])}
    done = command(*compare("model", "--name", "mine", "--set", "evaluation.max_new_tokens=40", data="chats.jsonl"))
    assert done.status == 0, done.err
    results = ResultsFolder(command.root / "results" / "mine")
    assert set(results.manifest().model["ends"].split()) == set(shown)
    scores = pd.read_parquet(results.run("noop", 0) / "scores.parquet")
    assert (scores["finished"] | (scores["n_tokens"] == 40)).all()
    assert (
        not pd.read_parquet(results.run("noop", 0) / "samples.parquet")["response"].str.contains("<end_of_turn>").any()
    )
    beside = transformers.AutoTokenizer.from_pretrained(results.run("noop", 0) / "adapter")
    assert beside.chat_template == tokens.chat_template
    assert beside.get_vocab() == tokens.get_vocab()


def test_template_from_a_file(command: Command) -> None:
    folder = tiny.save(command.root / "model", "llama")
    (folder / "chat_template.jinja").unlink()
    (command.root / "mine.jinja").write_text(tiny.CHAT, encoding="utf-8")
    command.refused(
        compare("model", data="chats.jsonl"), status=2, said=("give its template with --chat-template FILE",)
    )
    given = compare("model", "--chat-template", "mine.jinja", "--name", "mine", data="chats.jsonl")
    done = command(*given)
    assert done.status == 0, done.err
    (command.root / "mine.jinja").write_text(tiny.CHAT + " ", encoding="utf-8")
    changed = command(*given)
    assert changed.status == 2
    assert "chat_template" in changed.err
    command.refused(
        compare("model", "--chat-template", "mine.jinja"), status=2,
        said=("model.chat_template is for rows that are chats, and the rows of pairs.jsonl are text: drop it",),
    )  # fmt: skip
    command.refused(
        compare("model", "--chat-template", "none.jinja"), status=2, said=("chat template none.jinja: cannot",)
    )


@needs_templates
def test_system_message_is_merged_on_request(command: Command) -> None:
    tiny.save(command.root / "model", "llama", families.tokenizer("gemma"))
    (command.root / "chats.jsonl").write_bytes(jsonl(chat(i, system="Be brief.") for i in range(24)))
    command.refused(
        compare("model", data="chats.jsonl"), status=3, lines=21,
        said=("System role not supported", "--set data.merge_system=true"),
    )  # fmt: skip
    done = command(*compare("model", "--name", "mine", "--set", "data.merge_system=true", data="chats.jsonl"))
    assert done.status == 0, done.err


@pytest.mark.parametrize("kind", ["gpt2_short", "opt_short"])
def test_text_longer_than_the_positions_is_refused_before_training(kind: str, command: Command) -> None:
    tiny.save(command.root / "model", kind)
    command.refused(
        compare("model"),
        status=2,
        said=("model model: has 48 positions, and the longest pair has", "data.max_length to 48"),
    )
    fits = ("--set", "data.max_length=46", "--set", "data.cut_prompts=true")
    command.refused(
        compare("model", *fits, "--set", "evaluation.max_new_tokens=30"), status=2,
        said=("the longest prompt has", "and 30 are sampled after it"),
    )  # fmt: skip
    done = command(*compare("model", *fits, "--name", "mine"))
    assert done.status == 0, done.err


@pytest.mark.parametrize("kind", ["gemma3_short", "mixtral", "mamba", "llama_short"])
def test_models_of_other_kinds_are_trained_and_sampled(kind: str, command: Command) -> None:
    tiny.save(command.root / "model", kind)
    more = ("--set", 'lora.targets=["in_proj"]') if kind == "mamba" else ()
    words = [word.replace("noop", "dpo") for word in compare("model", "--name", "mine", *more) if word != "--quiet"]
    done = command(*words)
    assert done.status == 0, done.err
    said = {
        "gemma3_short": "a window of 24 tokens, and",
        "mamba": "its cache cannot be used",
        "llama_short": "was made for 48",
    }
    assert said.get(kind, "") in done.out + done.err
    scores = pd.read_parquet(command.root / "results" / "mine" / "runs" / "dpo" / "seed-0" / "scores.parquet")
    assert scores["kl"].notna().all()


def test_reference_and_policies_start_from_an_own_adapter(command: Command) -> None:
    tiny.save(command.root / "model", "llama")
    first = command(*[word.replace("noop", "sft") for word in compare("model", "--name", "first")])
    assert first.status == 0, first.err
    adapter = command.root / "results" / "first" / "runs" / "sft" / "seed-0" / "adapter"
    plain = transformers.AutoModelForCausalLM.from_pretrained(command.root / "model", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(plain, adapter).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    wanted = adapted(ids).logits
    done = command(*compare("model", "--adapter", str(adapter), "--name", "second"))
    assert done.status == 0, done.err
    before, after = (ResultsFolder(command.root / "results" / name).manifest() for name in ("first", "second"))
    assert before.model["hash"] != after.model["hash"]
    base = load_base(str(command.root / "model"), dtype="float32", device=torch.device("cpu"))
    base.model.set_attn_implementation("eager")
    torch.testing.assert_close(merge_adapter(base.model, str(adapter)).eval()(ids).logits, wanted, atol=1e-4, rtol=1e-4)
    tiny.save(command.root / "other", "gpt2")
    (command.root / "empty").mkdir()
    for model, folder, said in (
        ("model", "empty", "adapter empty: has no adapter_config.json and no adapter_model.safetensors"),
        ("other", str(adapter), "does not fit the model"),
    ):
        command.refused(compare(model, "--adapter", folder), status=2, said=(said,))
    words = compare("model", "--adapter", str(adapter), "--set", "sft.steps=3")
    command.refused(
        words, status=2, lines=2,
        said=("model.adapter has no effect where the reference is fine-tuned", "sft.on = texts has no effect"),
    )  # fmt: skip
