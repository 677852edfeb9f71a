"""Text and chats to token ids, such that prompt and response can be told apart to the token.

Prompt and response are tokenised apart, so that no token spans the boundary, and the response as a continuation,
without the space that some tokenizers put in front of a text. What looks like a control token and is letters
(``prefopt.data.control``) is encoded as letters. BOS comes from the tokenizer or the template, never from both; a
response ends with one end token: the template's end of turn where it writes one, else EOS. What a template writes
behind it is never sampled, and left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefopt.data.control import Control, Spelled
from prefopt.data.problems import RowError, show
from prefopt.data.render import Chat, render_chats
from prefopt.data.turns import Rendered, responses_of
from prefopt.data.types import Message, Text
from prefopt.errors import DataError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANCHORS = ("\n", ":", "a")


@dataclass(frozen=True)
class Encoder:
    """A tokenizer, with the facts about it that encoding needs.

    Attributes:
        tokenizer: Turns text into ids.
        control: Its control tokens.
        bos: Ids that the tokenizer puts before a plain text: BOS or nothing.
        eos: The id of the EOS token.
        anchor: Text and ids to tokenise continuations after, or None where a text has no space put before it.
    """

    tokenizer: PreTrainedTokenizerBase
    control: Control
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
            control=Control.of(tokenizer),
            bos=tuple(special[:start]),
            eos=int(tokenizer.eos_token_id),
            anchor=_find_anchor(tokenizer, plain),
        )

    def id_of(self, token: str) -> int | None:
        """The id of a control token, or None for an empty text."""
        return int(self.tokenizer.convert_tokens_to_ids(token)) if token else None

    def encode(self, texts: Sequence[Spelled], *, start: bool) -> list[list[int]]:
        """Ids of texts, without BOS and EOS.

        Args:
            texts: Control tokens in their spans are encoded as letters, all others as control tokens.
            start: Whether the texts begin a sequence, rather than continue one.

        Raises:
            RowError: If the tokenizer knows one that is letters in no other form.
        """
        pieces = [text.pieces() for text in texts]
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

    def prompts(self, texts: Sequence[Spelled], *, chat: bool) -> list[list[int]]:
        """Ids of prompts; a template has written its own BOS, if any."""
        before = [] if chat else list(self.bos)
        return [before + ids for ids in self.encode(texts, start=True)]

    def responses(self, texts: Sequence[Spelled], *, chat: bool, end: str = "") -> list[list[int]]:
        """Ids of responses, each with its end token; ``end`` is the template's end of turn."""
        cut = [self._cut_after_end(text, end) if chat else (text, False) for text in texts]
        ids = self.encode([text for text, _ in cut], start=False)
        return [tokens if ended else [*tokens, self.eos] for tokens, (_, ended) in zip(ids, cut, strict=True)]

    def _cut_after_end(self, text: Spelled, end: str) -> tuple[Spelled, bool]:
        """A template's response up to its end of turn, and whether there is one."""
        written = list(self.control.written(text))
        turn = next((match.end() for match in written if end and match[0] == end), 0)
        if turn and not self.control.tokens.sub("", text.text[turn:]).strip():
            return text.part(0, turn), True
        last = max((match.end() for match in written), default=0)
        if last and not text.text[last:].strip() and not _is_closing(text.text[:last]):
            return text.part(0, last), True
        return text.part(0, len(text.text.rstrip("\n"))), False


def _is_closing(text: str) -> bool:
    """Whether a text ends with a tag such as ``</tool_call>``, which ends no turn."""
    return text.endswith(">") and text.rpartition("<")[2].startswith("/") and not text.endswith("</s>")


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


def render_pairs(
    rows: Sequence[tuple[Text, Text, Text]], encoder: Encoder, *, merge_system: bool = False
) -> list[Rendered | RowError]:
    """(prompt, chosen, rejected) of each row as text."""
    chats: list[Chat] = []
    for prompt, *responses in rows:
        if not isinstance(prompt, str):
            chats += [Chat(prompt, True), *(Chat(prompt + _turns(response), False) for response in responses)]
    texts = iter(render_chats(chats, encoder.tokenizer, encoder.control, merge_system=merge_system))
    rendered: list[Rendered | RowError] = []
    for prompt, chosen, rejected in rows:
        if isinstance(prompt, str):
            one, other = (Spelled.of(str(text), encoder.control.said) for text in (chosen, rejected))
            rendered.append(Rendered(Spelled.of(prompt, encoder.control.tokens), one, other, chat=False))
        else:
            last = [_turns(response)[-1] for response in (chosen, rejected)]
            rendered.append(responses_of(next(texts), [next(texts), next(texts)], last, encoder.control.said))
    return rendered


def _turns(response: Text) -> tuple[Message, ...]:
    return (Message("assistant", response),) if isinstance(response, str) else response


def encode_prompts(
    prompts: Sequence[Text], tokenizer: PreTrainedTokenizerBase, *, merge_system: bool = False
) -> list[list[int]]:
    """Ids that responses are sampled after; a chat ends with the beginning of an assistant's turn.

    Raises:
        DataError: If the template refuses a chat, or a control token cannot be encoded as text.
    """
    return _encode_texts(prompts, tokenizer, generation=True, merge_system=merge_system)


def encode_conversations(chats: Sequence[tuple[Message, ...]], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Ids of whole conversations, as the template ends them.

    Raises:
        DataError: As for ``encode_prompts``.
    """
    return _encode_texts(chats, tokenizer, generation=False)


def _encode_texts(
    prompts: Sequence[Text], tokenizer: PreTrainedTokenizerBase, *, generation: bool, merge_system: bool = False
) -> list[list[int]]:
    encoder = Encoder.of(tokenizer)
    chats = [Chat(prompt, generation) for prompt in prompts if not isinstance(prompt, str)]
    rendered = iter(render_chats(chats, tokenizer, encoder.control, merge_system=merge_system))
    encoded = []
    for i, prompt in enumerate(prompts):
        try:
            if isinstance(prompt, str):
                text = Spelled.of(prompt, encoder.control.tokens)
            else:
                chat = next(rendered)
                if isinstance(chat, RowError):
                    raise chat
                text = chat.text
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
        return encoder.responses([rendered.chosen], chat=rendered.chat, end=rendered.end)[0]
    except RowError as problem:
        raise DataError(problem.describe("response", 0)) from None
