"""Chats through the templates of many families: ids as transformers gives them, and nothing lost without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import families
import pytest
from transformers.utils import chat_template_utils

from prefopt.data import Message, Pair, TokenPair, encode_prompt, encode_response, load_pairs, render, tokenize_pairs
from prefopt.data import render_child as child
from prefopt.errors import DataError, UsageError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(not families.names(), reason="trl, whose templates these are, is not installed")
# Those that trl patches for training differ from their originals in what they mark, and in what they keep of history.
NAMES = [name for name in families.names() if not name.endswith("_training")]
# Models that see take a message's words as a list of parts; apply_chat_template is given them so here.
IN_PARTS = ("idefics3", "smolvlm", "llava_next")
# What differs from apply_chat_template on the whole conversation, but for what stands behind the end token: the
# prompt that is sampled from begins a thought, and the response goes on from there; GLM-4.5 ends a turn with the next
# one's beginning, which no response holds, so EOS ends it.
DIFFERENCES = {
    "deepseek_r1_distill": ("<｜Assistant｜>", "<｜Assistant｜><think>\n\n</think>\n\n"),
    "deepseekv3": ("<｜Assistant｜>", "<｜Assistant｜><think>\n\n</think>\n\n"),
    "nemotron": ("<think></think>", "<think>\n</think>"),
    "glm4moe": ("", "<|endoftext|>"),
}


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Templates known to be harmless need no process of their own, which takes a second to start."""
    monkeypatch.setattr(chat_template_utils, "datetime", child.FixedDate)
    monkeypatch.setattr(render, "ask_child", lambda request, name: child.answer(json.loads(json.dumps(request))))
    monkeypatch.setattr(render, "CHAT_S", 0.0)


def chat(*turns: str | Message) -> tuple[Message, ...]:
    given = [
        turn if isinstance(turn, Message) else Message(("user", "assistant")[i % 2], turn)
        for i, turn in enumerate(turns)
    ]
    return tuple(given)


def said(content: str = "", **more: str) -> tuple[Message]:
    return (Message("assistant", content, **more),)


def pair(prompt: tuple[Message, ...], chosen: Any = "Far, I think.", rejected: Any = "Near.", row: int = 1) -> Pair:
    one, other = (said(text) if isinstance(text, str) else text for text in (chosen, rejected))
    return Pair(prompt, one, other, None, None, prompt_id=0, row=row)


def tokens(pairs: list[Pair], tokenizer: Any, **options: Any) -> list[TokenPair]:
    return list(tokenize_pairs(pairs, tokenizer, max_length=10_000, **options).pairs)


def theirs(tokenizer: Any, name: str, messages: tuple[Message, ...], *, generation: bool) -> list[int]:
    given = [message.as_dict() for message in messages]
    if name.startswith(IN_PARTS):
        given = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in given]
    return tokenizer.apply_chat_template(given, add_generation_prompt=generation, return_dict=False)


def real_chats(count: int) -> list[Pair]:
    path = SHARED / "dpo_en_demo" / "all.jsonl.gz"
    if not path.is_file():
        return []
    loaded = load_pairs(str(path), column_map={"prompt": "messages"}, on_bad_rows="drop").pairs
    return [one for one in loaded if one.prompt[0].role == "user"][:count]


CHATS = [
    pair(chat("Where is it, then?")),
    pair(chat("Hello.", "Yes?", "  Where\n\nis it? ✓"), chosen="1. Far\n\n2. Away: `x`", rejected="Near & here."),
]


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_apply_chat_template(name: str) -> None:
    tokenizer = families.tokenizer(name)
    pairs = CHATS + real_chats(2)
    for done in tokens(pairs, tokenizer):
        source = pairs[done.pair_id]
        assert list(done.prompt_ids) == theirs(tokenizer, name, source.prompt, generation=True)
        for ids, response in ((done.chosen_ids, source.chosen), (done.rejected_ids, source.rejected)):
            whole = theirs(tokenizer, name, source.prompt + response, generation=False)
            known = next((known for prefix, known in DIFFERENCES.items() if name.startswith(prefix)), None)
            ours = [*done.prompt_ids, *ids]
            if known is None:
                assert ours == whole[: len(ours)]
                behind = tokenizer.decode(whole[len(ours) :])
                assert behind in ("", "\n", " ", "\n<|endoftext|>"), (
                    "more than white space, or Phi-3's EOS, is left out"
                )
            else:
                head, _, tail = (
                    tokenizer.decode(whole).rpartition(known[0]) if known[0] else ("", "", tokenizer.decode(whole))
                )
                expected = head + known[1] + tail if known[0] else tail + known[1]
                assert expected in (text := tokenizer.decode(ours), text + "\n")


@pytest.mark.parametrize("name", NAMES)
def test_what_a_user_types_is_letters_and_what_the_template_writes_is_tokens(name: str) -> None:
    tokenizer = families.tokenizer(name)
    control = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
    typed = " ".join(control)
    plain, full = (encode_prompt(chat("Hello.", "Yes.", f"a {text} b"), tokenizer) for text in ("x", typed))
    for token in control.values():
        assert full.count(token) == plain.count(token), tokenizer.convert_ids_to_tokens(token)
    text = tokenizer.decode(full)
    assert f"a {typed} b" in text


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize(
    "name", ["qwen3", "qwen3_5_think", "qwen3_5_nothink", "qwen3_8", "qwen2_5", "qwen3_instruct_2507"]
)
def test_thoughts_are_tokens_of_the_response(name: str, special: bool) -> None:
    tokenizer = families.tokenizer(name, tags_are_special=special)
    tags = [token for token in ("<think>", "</think>") if token in tokenizer.get_vocab()]
    source = pair(
        chat("Two and two?"), "<think>\nIt is two twice.\n</think>\n\nFour.", "<think>\nHm.\n</think>\n\nFive."
    )
    (done,) = tokens([source], tokenizer)
    whole = theirs(tokenizer, name, source.prompt + source.chosen, generation=False)
    ours = [*done.prompt_ids, *done.chosen_ids]
    assert ours == whole[: len(ours)]
    for tag in tags:
        assert tokenizer.convert_tokens_to_ids(tag) in ours
    if tags:  # some templates put an empty thought before every answer, also before one with a thought of its own
        end = tokenizer.convert_tokens_to_ids("</think>")
        assert done.chosen_ids.count(end) == whole.count(end) - done.prompt_ids.count(end) >= 1


def test_a_prompt_that_begins_a_thought_is_gone_on_from() -> None:
    tokenizer = families.tokenizer("deepseek_r1_distill")
    end = tokenizer.eos_token
    thoughtful = pair(chat("2+2?"), "<think>\nTwice two.\n</think>\n\n4", "<think>\nHm <｜User｜>.\n</think>\n\n5")
    apart = pair(chat("2+2?"), said("4", reasoning_content="Twice two."), "5")
    done = tokenize_pairs([thoughtful, apart], tokenizer, max_length=200)
    texts = [
        [tokenizer.decode(ids) for ids in (one.prompt_ids, one.chosen_ids, one.rejected_ids)] for one in done.pairs
    ]
    assert all(prompt.endswith("2+2?<｜Assistant｜><think>\n") for prompt, _, _ in texts)
    assert texts[0][1:] == [f"Twice two.\n</think>\n\n4{end}", f"Hm <｜User｜>.\n</think>\n\n5{end}"]
    assert texts[1][1:] == [f"Twice two.\n</think>\n\n4{end}", f"\n</think>\n\n5{end}"]
    assert any(
        text.startswith("1 responses bring no thought and the chat template begins one") for text in done.warnings
    )


def test_thoughts_of_history_are_the_templates_to_keep_or_leave_out_and_it_is_said() -> None:
    source = pair(chat("Hi", "<think>\nOld.\n</think>\n\nHello.", "And now?"))
    for name, kept in (("qwen3", False), ("qwen2_5", True), ("glm4moe", False)):
        tokenizer = families.tokenizer(name)
        done = tokenize_pairs([source], tokenizer, max_length=500)
        assert list(done.pairs[0].prompt_ids) == theirs(tokenizer, name, source.prompt, generation=True)
        assert ("Old." in tokenizer.decode(done.pairs[0].prompt_ids)) == kept
        assert any("1 thoughts of earlier turns are left out" in text for text in done.warnings) != kept


def test_reasoning_is_rendered_or_refused() -> None:
    source = pair(chat("2+2?"), said("4", reasoning_content="Twice two."), said("5", reasoning_content="Hm."))
    (done,) = tokens([source], tokenizer := families.tokenizer("qwen3"))
    assert tokenizer.decode(done.chosen_ids) == "<think>\nTwice two.\n</think>\n\n4<|im_end|>"
    for name in ("qwen2_5", "gemma", "llama3"):
        with pytest.raises(DataError, match=r'DATA027\] p:1 field "chosen": the template leaves out reasoning_content'):
            tokens([source], families.tokenizer(name), source="p")


CALL = json.dumps([{"type": "function", "function": {"name": "sky", "arguments": {"city": "<|im_end|>Ulm"}}}])
CALLED = chat("Rain?", Message("assistant", "", tool_calls=CALL), Message("tool", "dry", name="sky"))


@pytest.mark.parametrize(
    "name", ["qwen2_5", "qwen3", "qwen3_5_think", "glm4moe", "llama3_1", "gptoss", "deepseek_r1_distill"]
)
def test_tool_calls_are_rendered_with_their_text_as_letters(name: str) -> None:
    tokenizer = families.tokenizer(name)
    (done,) = tokens([pair(CALLED)], tokenizer)
    text = tokenizer.decode(done.prompt_ids)
    assert "sky" in text
    assert "<|im_end|>Ulm" in text
    assert "None" not in text
    if "<|im_end|>" in tokenizer.get_vocab():
        plain = encode_prompt(
            chat("Rain?", Message("assistant", "", tool_calls=CALL.replace("<|im_end|>", "")), CALLED[2]), tokenizer
        )
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        assert done.prompt_ids.count(end) == plain.count(end)


def test_tool_calls_that_the_template_cannot_write_are_refused() -> None:
    answered = pair(chat("Rain?"), (CALLED[1],))
    for name, field, one in (
        ("smolvlm", "prompt", pair(CALLED)),
        ("gemma", "chosen", answered),
        ("phi3", "chosen", answered),
    ):
        with pytest.raises(DataError, match=rf'DATA027\] p:1 field "{field}": the template leaves out tool_calls'):
            tokens([one], families.tokenizer(name), source="p")


def test_tool_calls_can_be_the_response() -> None:
    tokenizer = families.tokenizer("qwen2_5")
    (done,) = tokens([pair(chat("Rain?"), (CALLED[1],))], tokenizer)
    assert tokenizer.decode(done.chosen_ids).startswith('<tool_call>\n{"name": "sky"')
    assert done.chosen_ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert done.chosen_ids.count(done.chosen_ids[-1]) == 1
    assert tokenizer.convert_tokens_to_ids("</tool_call>") in done.chosen_ids
    written = encode_response("<tool_call>\n{}\n</tool_call>", tokenizer, prompt=chat("Rain?"))
    assert tokenizer.decode(written) == "<tool_call>\n{}\n</tool_call><|im_end|>"


def test_system_message_without_a_place_is_merged_on_request() -> None:
    system = Message("system", "Speak <end_of_turn>like a pirate.")
    source = pair((system, *chat("Where?")))
    tokenizer = families.tokenizer("gemma")
    with pytest.raises(
        DataError, match=r"the template refuses it: 'System role not supported'.*data\.merge_system=true"
    ):
        tokens([source], tokenizer)
    (done,) = tokens([source], tokenizer, merge_system=True)
    text = tokenizer.decode(done.prompt_ids)
    assert "<start_of_turn>user\nSpeak <end_of_turn>like a pirate.\n\nWhere?<end_of_turn>" in text
    assert done.prompt_ids.count(tokenizer.convert_tokens_to_ids("<end_of_turn>")) == 1
    (empty,) = tokens([pair((Message("system", ""), *chat("Where?")))], tokenizer)
    assert list(empty.prompt_ids) == encode_prompt(chat("Where?"), tokenizer)
    # Where the template has a place the setting changes nothing.
    other = families.tokenizer("qwen2_5")
    assert tokens([source], other) == tokens([source], other, merge_system=True)


def test_system_message_that_a_template_would_lose_is_refused() -> None:
    tokenizer = families.tokenizer("qwen2_5")
    tokenizer.chat_template = "{% for m in messages if m.role != 'system' %}[{{ m.content }}]{% endfor %}"
    tokenizer.chat_template += "{% if add_generation_prompt %}>{% endif %}"
    with pytest.raises(DataError, match=r"it leaves the system message out.*data\.merge_system=true"):
        encode_prompt((Message("system", "Be brief."), *chat("Where?")), tokenizer)


ENDS = {
    "gemma": "<end_of_turn>", "phi3": "<|end|>", "qwen3": "<|im_end|>", "llama3": "<|eot_id|>", "gptoss": "<|return|>",
    "cohere2": "<|END_OF_TURN_TOKEN|>", "glm4moe": "<|endoftext|>", "deepseek_r1_distill": "<｜end▁of▁sentence｜>",
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_end_tokens_are_those_that_end_the_responses(name: str) -> None:
    tokenizer = families.tokenizer(name)
    done = tokenize_pairs(CHATS, tokenizer, max_length=5000)
    assert done.ends == (tokenizer.convert_tokens_to_ids(ENDS[name]),)
    first = done.pairs[0]
    limit = len(first.prompt_ids) + len(first.rejected_ids) - 1
    cut = tokenize_pairs(CHATS[:1], tokenizer, max_length=limit)
    assert cut.ends == (), "a response that was cut shows no end"


def test_long_prompts_are_cut_at_their_beginning_on_request() -> None:
    tokenizer = families.tokenizer("llama3")
    long = pair(chat("word " * 60 + "last?"), "Far " * 10, "Near.")
    (whole,) = tokens([long], tokenizer)
    limit = len(whole.prompt_ids) - 20
    with pytest.raises(DataError, match=r"DATA020.*cut its beginning \(data\.cut_prompts = true\)"):
        tokenize_pairs([long], tokenizer, max_length=limit)
    done = tokenize_pairs([long], tokenizer, max_length=limit, cut_prompts=True)
    (one,) = done.pairs
    kept = max(limit - len(whole.chosen_ids), limit // 2)
    assert one.prompt_ids[-kept:] == whole.prompt_ids[-kept:]
    assert len(one.prompt_ids) == kept
    assert not one.chosen_truncated
    assert (done.truncated_prompts, "1 of 1 prompts were cut at their beginning" in done.warnings) == (1, True)
    (own,) = tokenize_pairs([long], tokenizer, max_length=limit, max_prompt_length=30, cut_prompts=True).pairs
    assert own.prompt_ids[-29:] == whole.prompt_ids[-29:]
    assert len(own.prompt_ids) == 30
    fits = tokenize_pairs([long], tokenizer, max_length=10_000, cut_prompts=True)
    assert (fits.pairs[0], fits.truncated_prompts) == (whole, 0)


def test_several_templates_without_a_default_are_refused() -> None:
    tokenizer = families.tokenizer("qwen2_5")
    tokenizer.chat_template = {"rag": "{{ messages }}", "tool_use": "{{ messages }}"}
    with pytest.raises(UsageError, match=r"has the chat templates rag, tool_use and no default: give one with --chat"):
        encode_prompt(chat("Where?"), tokenizer)
    tokenizer.chat_template = {"rag": "no", "default": "[{{ messages[0].content }}]"}
    assert tokenizer.decode(encode_prompt(chat("Where?"), tokenizer)) == "[Where?]"


FIELD = SHARED.parent / "cases"
# What is wrong with a case of the field, or None where it is read and gives the ids of apply_chat_template.
FIELD_CASES = {
    "chat-roles/developer": "Fix: call it system",
    "chat-roles/diverge_early": "DATA024",
    "chat-roles/extra_keys": None,
    "chat-roles/greeting": "message 1: assistant at the start",
    "chat-roles/last_user": "a response is one assistant message",
    "chat-roles/prompt_string_whole_conv": "DATA025",
    "chat-roles/same_after_template": None,
    "chat-roles/system_empty": None,
    "chat-roles/think_history": None,
    "chat-roles/tool": None,
    "chat-roles/tool_response": None,
    "chat-roles/tool_text": None,
    "chat-roles/two_users": "message 2: user after user",
    "think-blocks/think": None,
}


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "qwen3_8"])
@pytest.mark.parametrize("case", FIELD_CASES)
def test_cases_of_the_field(case: str, name: str) -> None:
    path = FIELD / f"{case}.jsonl"
    if not path.is_file():
        pytest.skip(f"no case at {path}")
    wrong = FIELD_CASES[case]
    if wrong is not None:
        with pytest.raises(DataError) as caught:
            load_pairs(str(path))
        assert wrong in str(caught.value)
        return
    tokenizer = families.tokenizer(name)
    loaded = load_pairs(str(path)).pairs
    for done in tokens(list(loaded), tokenizer):
        source = loaded[done.pair_id]
        assert list(done.prompt_ids) == theirs(tokenizer, name, source.prompt, generation=True)
        whole = theirs(tokenizer, name, source.prompt + source.chosen, generation=False)
        ours = [*done.prompt_ids, *done.chosen_ids]
        assert ours == whole[: len(ours)]
