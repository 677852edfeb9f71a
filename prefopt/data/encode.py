"""Text and chats to token ids, such that prompt and response can be told apart to the token.

Prompt and response are tokenised apart, so that no token spans the boundary, and the response as a continuation,
without the space that some tokenizers put in front of a text. Control tokens that stand in a row's own text are encoded
as text; only a chat template's own become tokens. BOS comes from the tokenizer or the template, never from
both; a response ends with one end token: the template's own where it writes one, else EOS.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefopt.data.problems import RowError, show
from prefopt.data.render import MARK_END, MARK_START, control_pattern, mark, render_chats
from prefopt.data.types import Message, Text
from prefopt.errors import DataError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKED = re.compile(f"{MARK_START}([^{MARK_END}]*){MARK_END}")
_ANCHORS = ("\n", ":", "a")


@dataclass(frozen=True, slots=True)
class Rendered:
    """One pair as marked text: the prompt, what follows it, and whether a template wrote it."""

    prompt: str
    chosen: str
    rejected: str
    chat: bool


@dataclass(frozen=True)
class Encoder:
    """A tokenizer, with the facts about it that encoding needs.

    Attributes:
        tokenizer: Turns text into ids.
        control: Matches control tokens in text.
        bos: Ids that the tokenizer puts before a plain text: BOS or nothing.
        eos: The id of the EOS token.
        anchor: Text and ids to tokenise continuations after, or None where a text has no space put before it.
    """

    tokenizer: PreTrainedTokenizerBase
    control: re.Pattern[str]
    bos: tuple[int, ...]
    eos: int
    anchor: tuple[str, tuple[int, ...]] | None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Encoder:
        """Look these facts up.
        Raises:
            UsageError: If the tokenizer has no EOS token.
        """
        if tokenizer.eos_token_id is None:
            raise UsageError("the tokenizer has no EOS token, so the end of a response cannot be learnt: set eos_token")
        plain = tokenizer("a", add_special_tokens=False)["input_ids"]
        special = tokenizer("a", add_special_tokens=True)["input_ids"]
        start = next((i for i in range(len(special)) if special[i : i + len(plain)] == plain), 0)
        return cls(
            tokenizer=tokenizer,
            control=control_pattern(tokenizer),
            bos=tuple(special[:start]),
            eos=int(tokenizer.eos_token_id),
            anchor=_find_anchor(tokenizer, plain),
        )

    def encode(self, texts: Sequence[str], *, start: bool) -> list[list[int]]:
        """Ids of marked texts, without BOS and EOS.

        Args:
            texts: Control tokens between marks become text, all others control tokens.
            start: Whether the texts begin a sequence, rather than continue one.

        Raises:
            RowError: If the tokenizer knows a marked control token in no other form.
        """
        pieces = [_MARKED.split(text) for text in texts]
        # Pieces alternate: the template's or the row's text, a marked token, text, and so on.
        starts = [split[0] if start else "" for split in pieces]
        rest = [piece for split in pieces for i, piece in enumerate(split) if i % 2 == 0 and (i or not start)]
        start_ids, rest_ids = iter(self._ids(starts)), iter(self._continue(rest))
        encoded = []
        for split in pieces:
            ids = list(next(start_ids))
            for i, piece in enumerate(split):
                if i % 2:
                    ids += self._as_text(piece)
                elif i or not start:
                    ids += next(rest_ids)
            encoded.append(ids)
        return encoded

    def _ids(self, texts: list[str], **options: Any) -> list[list[int]]:
        if not texts:
            return []
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False, verbose=False, **options)["input_ids"]
        return ids

    def _continue(self, texts: list[str], **options: Any) -> list[list[int]]:
        """Ids of texts that follow other text."""
        if not self.anchor:
            return self._ids(texts, **options)
        text, ids = self.anchor
        anchored = self._ids([text + continuation for continuation in texts], **options)
        for i, whole in enumerate(anchored):
            # Where the anchor merged into the text, the space in front is the lesser evil.
            merged = tuple(whole[: len(ids)]) != ids
            anchored[i] = self._ids([texts[i]], **options)[0] if merged else whole[len(ids) :]
        return anchored

    def _as_text(self, token: str) -> list[int]:
        """Ids of a control token's letters."""
        forbidden = self.tokenizer.convert_tokens_to_ids(token)
        (ids,) = self._continue([token], split_special_tokens=True)
        if forbidden in ids:  # an added token that is not special is found all the same, but not in two halves
            first, second = self._continue([token[:1], token[1:]], split_special_tokens=True)
            ids = first + second
        if forbidden in ids:
            raise RowError("DATA026", f"the control token {show(token)} cannot be encoded as text")
        return ids

    def prompts(self, texts: Sequence[str], *, chat: bool) -> list[list[int]]:
        """Ids of marked prompts; a template has written its own BOS, if any."""
        before = [] if chat else list(self.bos)
        return [before + ids for ids in self.encode(texts, start=True)]

    def responses(self, texts: Sequence[str], *, chat: bool) -> list[list[int]]:
        """Ids of marked responses, each with its end token."""
        cut = [self._cut_after_end(text) if chat else (text, False) for text in texts]
        ids = self.encode([text for text, _ in cut], start=False)
        return [tokens if ended else [*tokens, self.eos] for tokens, (_, ended) in zip(ids, cut, strict=True)]

    def _cut_after_end(self, text: str) -> tuple[str, bool]:
        """A template's response without what follows its end token, and whether there is one."""
        last = max((match.end() for match in self.control.finditer(text)), default=0)
        # A marked token is followed by its mark, which is no white space.
        if last and not text[last:].strip():
            return text[:last], True
        return text.rstrip("\n"), False


def _find_anchor(tokenizer: PreTrainedTokenizerBase, plain: list[int]) -> tuple[str, tuple[int, ...]] | None:
    """Text to tokenise continuations after, for a tokenizer that puts a space before each text."""
    if not tokenizer.convert_ids_to_tokens(plain)[0].startswith(("\u2581", "\u0120")):
        return None
    for anchor in _ANCHORS:
        ids = tokenizer(anchor, add_special_tokens=False)["input_ids"]
        whole = tokenizer(anchor + "b", add_special_tokens=False)["input_ids"]
        if whole[: len(ids)] == ids and len(whole) > len(ids):
            return anchor, tuple(ids)
    return None


def render_pairs(rows: Sequence[tuple[Text, Text, Text]], encoder: Encoder) -> list[Rendered | RowError]:
    """(prompt, chosen, rejected) of each row as marked text."""
    chats: list[tuple[tuple[Message, ...], bool]] = []
    for prompt, chosen, rejected in rows:
        if not isinstance(prompt, str):
            chats += [(prompt, True), (prompt + _turns(chosen), False), (prompt + _turns(rejected), False)]
    texts = iter(render_chats(chats, encoder.tokenizer, encoder.control))
    rendered: list[Rendered | RowError] = []
    for row in rows:
        if isinstance(row[0], str):
            prompt, chosen, rejected = (mark(str(text), encoder.control) for text in row)
            rendered.append(Rendered(prompt, chosen, rejected, chat=False))
        else:
            rendered.append(_responses(next(texts), next(texts), next(texts)))
    return rendered


def _turns(response: Text) -> tuple[Message, ...]:
    return (Message("assistant", response),) if isinstance(response, str) else response


def _responses(prompt: str | RowError, *wholes: str | RowError) -> Rendered | RowError:
    """The responses of two rendered conversations: what follows their rendered prompt."""
    if isinstance(prompt, RowError):
        return prompt
    responses = []
    for whole in wholes:
        if isinstance(whole, RowError):
            return whole
        if not whole.startswith(prompt) or whole == prompt:
            return RowError(
                "DATA027",
                "the template renders the prompt differently once a response follows, so the two cannot be told apart",
                fix="choose a model whose template does not, or give the rows as text",
            )
        responses.append(whole[len(prompt) :])
    return Rendered(prompt, responses[0], responses[1], chat=True)


def encode_prompts(prompts: Sequence[Text], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Ids that responses are sampled after; a chat ends with the beginning of an assistant's turn.

    Raises:
        DataError: If the template refuses a chat, or a control token cannot be encoded as text.
    """
    return _encode_texts(prompts, tokenizer, generation=True)


def encode_conversations(chats: Sequence[tuple[Message, ...]], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Ids of whole conversations, as the template ends them.

    Raises:
        DataError: As for ``encode_prompts``.
    """
    return _encode_texts(chats, tokenizer, generation=False)


def _encode_texts(prompts: Sequence[Text], tokenizer: PreTrainedTokenizerBase, *, generation: bool) -> list[list[int]]:
    encoder = Encoder.of(tokenizer)
    chats = [(prompt, generation) for prompt in prompts if not isinstance(prompt, str)]
    rendered = iter(render_chats(chats, tokenizer, encoder.control))
    encoded = []
    for i, prompt in enumerate(prompts):
        try:
            text = mark(prompt, encoder.control) if isinstance(prompt, str) else next(rendered)
            if isinstance(text, RowError):
                raise text
            encoded += encoder.prompts([text], chat=not isinstance(prompt, str))
        except RowError as problem:
            raise DataError(problem.describe("prompt" if generation else "conversation", i + 1)) from None
    return encoded


def encode_prompt(prompt: Text, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """``encode_prompts`` of one prompt; for many chats that is much faster, since each call starts a process."""
    return encode_prompts([prompt], tokenizer)[0]


def encode_response(response: Text, tokenizer: PreTrainedTokenizerBase, *, prompt: Text = "") -> list[int]:
    """Ids of a response with its end token.

    Args:
        response: Text, or one assistant message.
        tokenizer: As for the prompt.
        prompt: What it answers; needed where the prompt is a chat, which the template renders together with it.

    Raises:
        DataError: As for ``encode_prompt``.
    """
    encoder = Encoder.of(tokenizer)
    try:
        (rendered,) = render_pairs([(prompt, response, response)], encoder)
        if isinstance(rendered, RowError):
            raise rendered
        return encoder.responses([rendered.chosen], chat=rendered.chat)[0]
    except RowError as problem:
        raise DataError(problem.describe("response", 0)) from None
