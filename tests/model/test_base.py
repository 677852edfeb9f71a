"""Text to tokens and back by a loaded base, and the prompts that are made of them."""

from __future__ import annotations

from collections.abc import Callable

from prefopt.data.types import Message
from prefopt.evaluate.samples import Prompts
from prefopt.model.base import Base


def test_prompts_are_encoded_as_the_tokenizer_does_and_read_back_to_the_letter(tiny_base: Callable[..., Base]) -> None:
    base = tiny_base()
    texts = ["the cat sat", " a dog , and  a hat !"]
    assert base.encode(texts) == [tuple(base.tokenizer(text)["input_ids"]) for text in texts]
    assert [base.decode(ids) for ids in base.encode(texts)] == texts
    prompts = Prompts.of(base, texts)
    assert prompts.texts == tuple(texts)
    assert prompts == Prompts.shown(base.encode(texts), texts)


def test_control_tokens_are_shown_in_a_prompt_and_not_in_a_response(tiny_base: Callable[..., Base]) -> None:
    base = tiny_base()
    ids = (*base.encode(["the cat"])[0], base.eos)
    assert base.decode(ids) == "the cat"
    assert base.decode(ids, control=True) == "the cat</s>"


def test_readers_see_a_conversation_without_the_marks_of_its_template(tiny_base: Callable[..., Base]) -> None:
    base = tiny_base()
    chat = (Message("user", "the cat"), Message("assistant", "sat"), Message("user", "where?"))
    prompts = Prompts.of(base, [chat, (Message("user", "a hat"),)])
    assert "<|user|>" in base.decode(prompts.ids[0], control=True)
    assert prompts.texts == ("user: the cat\n\nassistant: sat\n\nuser: where?", "a hat")
    assert prompts.sources[0] == tuple((message.role, message.content) for message in chat)


def test_a_control_token_in_the_text_of_a_prompt_stays_text(tiny_base: Callable[..., Base]) -> None:
    base = tiny_base()
    (ids,) = base.encode(["the </s> cat"])
    assert base.eos not in ids
    assert base.decode(ids) == "the </s> cat"
