"""Tokenises validated pairs, and counts every truncation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefopt.data.encode import Encoder, render_pairs
from prefopt.data.problems import Problems, RowError, or_drop, refuse
from prefopt.data.turns import Rendered
from prefopt.data.types import BadRows, Pair, TokenizedPairs, TokenPair
from prefopt.storage.hashing import digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK = 1000  # pairs in hand at a time


def tokenize_pairs(
    pairs: Sequence[Pair],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    max_prompt_length: int | None = None,
    cut_prompts: bool = False,
    merge_system: bool = False,
    on_bad_rows: BadRows = "refuse",
    source: str = "pairs",
) -> TokenizedPairs:
    """Tokenise pairs; a response that does not fit is cut at its end, a prompt on request alone, at its beginning.

    Args:
        pairs: As ``load_pairs`` gives them.
        tokenizer: Of the model that is trained; its chat template renders chats.
        max_length: Limit for prompt and response together, in tokens.
        max_prompt_length: Limit for the prompt; ``max_length - 1`` if None, which leaves one token to the response.
        cut_prompts: Cut prompts that are too long, rather than refuse them: to ``max_prompt_length``, or where that is
            None to what the longer response leaves, but not below half of ``max_length``. BOS stays.
        merge_system: Put a system message that the chat template has no place for in front of the first user's.
        on_bad_rows: ``"refuse"`` or ``"drop"``, as in ``load_pairs``.
        source: Names the pairs in messages.

    Raises:
        DataError: If a prompt is too long, or two responses are equal once cut, or nothing is left.
        UsageError: If the pairs are chats and the tokenizer has no chat template.
        MachineError: If the chat template does not end.
    """
    encoder = Encoder.of(tokenizer)
    problems = Problems(source, on_bad_rows)
    counts = _Counts()
    limits = _Limits(max_length, max_prompt_length, cut_prompts)
    kept: list[TokenPair] = []
    for start in range(0, len(pairs), _CHUNK):
        chunk = pairs[start : start + _CHUNK]
        texts = [(pair.prompt, pair.chosen, pair.rejected) for pair in chunk]
        rendered = render_pairs(texts, encoder, merge_system=merge_system)
        for pair_id, (pair, ids) in enumerate(zip(chunk, _encode(rendered, encoder), strict=True), start):
            try:
                if isinstance(ids, RowError):
                    raise ids
                text = rendered[pair_id - start]
                assert isinstance(text, Rendered)
                _check_one_end(ids, {encoder.eos, encoder.id_of(text.end)})
                kept.append(_token_pair(pair, pair_id, (limits.prompt(ids, encoder), *ids[1:]), limits))
            except RowError as problem:
                problems.add(pair.row, problem)
                continue
            counts.add(text, ids, cut=len(kept[-1].prompt_ids) < len(ids[0]), encoder=encoder)
    problems.raise_if_any()
    if not kept:
        dropped = "; ".join(f"{reason}: {n}" for reason, n in sorted(problems.dropped.items()))
        message = f"every row was dropped ({dropped})" if dropped else "there are no rows"
        long = not dropped or any(reason.startswith(("DATA020", "DATA021")) for reason in problems.dropped)
        fix = (
            "raise max_length, or give shorter rows"
            if long
            else "mend the rows; without --on-bad-rows=drop each is named"
        )
        raise refuse(source, 0, RowError("DATA001", message, fix=fix))
    return _counted(kept, counts, encoder.eos, dropped=dict(sorted(problems.dropped.items())))


def _counted(kept: Sequence[TokenPair], counts: _Counts, eos: int, *, dropped: dict[str, int]) -> TokenizedPairs:
    """The pairs that were kept, with what is counted over them."""
    no_eos = [sum(ids[-1] != eos for ids in side) for side in _sides(kept)]
    return TokenizedPairs(
        pairs=tuple(kept),
        truncated_chosen=sum(pair.chosen_truncated for pair in kept),
        truncated_rejected=sum(pair.rejected_truncated for pair in kept),
        no_eos_chosen=no_eos[0] / len(kept),
        no_eos_rejected=no_eos[1] / len(kept),
        control_tokens=counts.control,
        boundary_merges=counts.merges,
        truncated_prompts=counts.cut_prompts,
        ends=_ends(kept),
        dropped=dropped,
        warnings=counts.warnings(kept, no_eos),
    )


Ids = tuple[list[int], list[int], list[int]]


@dataclass(frozen=True, slots=True)
class _Limits:
    """How long a row and its prompt may be, in tokens, and whether a longer prompt is cut."""

    whole: int
    own: int | None
    cut: bool

    def prompt(self, ids: Ids, encoder: Encoder) -> list[int]:
        """The prompt that is used: its beginning (but BOS) cut off where that is wanted.

        Raises:
            RowError: If it is too long and not to be cut.
        """
        prompt, *responses = ids
        if self.cut:
            room = max(self.whole - max(map(len, responses)), self.whole // 2)
            limit = min(room if self.own is None else self.own, self.whole - 1)
            if len(prompt) <= limit:
                return prompt
            head = list(encoder.bos) if tuple(prompt[: len(encoder.bos)]) == encoder.bos else []
            head = head if len(head) < limit else []
            return head + prompt[len(prompt) - limit + len(head) :]
        limit = self.whole - 1 if self.own is None else min(self.own, self.whole - 1)
        if len(prompt) > limit:
            raise RowError(
                "DATA020",
                f"the prompt has {len(prompt)} tokens; the limit is {limit}, with max_length = {self.whole}",
                field="prompt",
                fix=or_drop("raise max_length, shorten the prompt, cut its beginning (data.cut_prompts = true)"),
            )
        return prompt


def _ends(pairs: Sequence[TokenPair]) -> tuple[int, ...]:
    """The tokens with which responses that were not cut end."""
    chosen = {pair.chosen_ids[-1] for pair in pairs if not pair.chosen_truncated}
    return tuple(sorted(chosen | {pair.rejected_ids[-1] for pair in pairs if not pair.rejected_truncated}))


def _encode(rendered: Sequence[Rendered | RowError], encoder: Encoder) -> list[Ids | RowError]:
    """(prompt, chosen, rejected) ids; all rows at once, and one by one only to find the one that cannot be."""
    good = [text for text in rendered if isinstance(text, Rendered)]
    try:
        encoded: dict[int, Ids | RowError] = {}
        for chat, end in sorted({(text.chat, text.end) for text in good}):
            alike = [text for text in good if (text.chat, text.end) == (chat, end)]
            prompts = encoder.prompts([text.prompt for text in alike], chat=chat)
            chosen = encoder.responses([text.chosen for text in alike], chat=chat, end=end)
            rejected = encoder.responses([text.rejected for text in alike], chat=chat, end=end)
            encoded |= {id(text): ids for text, *ids in zip(alike, prompts, chosen, rejected, strict=True)}  # type: ignore[misc]
    except RowError as problem:
        if len(rendered) == 1:
            return [problem]
        return [_encode([text], encoder)[0] for text in rendered]
    return [text if isinstance(text, RowError) else encoded[id(text)] for text in rendered]


def _check_one_end(ids: Ids, ends: set[int | None]) -> None:
    for name, response in zip(("chosen", "rejected"), ids[1:], strict=True):
        if not ends.isdisjoint(response[:-1]):
            raise RowError(
                "DATA027",
                "the template writes the end token inside the response",
                field=name,
                fix="choose a model whose template does not, or give the rows as text",
            )


def _token_pair(pair: Pair, pair_id: int, ids: Ids, limits: _Limits) -> TokenPair:
    prompt, chosen, rejected = ids
    if not prompt:
        raise RowError("DATA015", "the tokenizer makes no token of it", field="prompt")
    room = limits.whole - len(prompt)
    if chosen[:room] == rejected[:room]:
        raise RowError(
            "DATA021",
            f'equal to "chosen" in the {min(room, len(chosen))} tokens that fit after {len(prompt)} of the prompt',
            field="rejected",
            fix=or_drop("raise max_length"),
        )
    return TokenPair(
        prompt_ids=tuple(prompt),
        chosen_ids=tuple(chosen[:room]),
        rejected_ids=tuple(rejected[:room]),
        prompt_id=pair.prompt_id,
        pair_id=pair_id,
        chosen_score=pair.chosen_score,
        rejected_score=pair.rejected_score,
        chosen_truncated=len(chosen) > room,
        rejected_truncated=len(rejected) > room,
    )


def _sides(pairs: Sequence[TokenPair]) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    return [pair.chosen_ids for pair in pairs], [pair.rejected_ids for pair in pairs]


class _Counts:
    """Counts that need the text."""

    def __init__(self) -> None:
        self.control = 0
        self.merges = 0
        self.cut_prompts = 0
        self.left_out = 0
        self.closed = 0
        self.reopened = 0

    def add(self, text: Rendered, ids: Ids, *, cut: bool, encoder: Encoder) -> None:
        """Count what the kept row shows."""
        letters = sum(len(part.spans) for part in (text.prompt, text.chosen, text.rejected))
        self.control += letters
        self.cut_prompts += cut
        self.left_out += text.left_out
        self.closed += text.closed
        self.reopened += text.reopened
        if not letters and not text.chat:
            prompt, chosen, _ = ids
            (joint,) = encoder.prompts([text.prompt + text.chosen], chat=False)
            self.merges += joint != prompt + chosen[:-1]

    def warnings(self, pairs: Sequence[TokenPair], no_eos: Sequence[int]) -> tuple[str, ...]:
        """Sentences for the user."""
        sentences = []
        truncated = [sum(p.chosen_truncated for p in pairs), sum(p.rejected_truncated for p in pairs)]
        for name, cut, endless in zip(("chosen", "rejected"), truncated, no_eos, strict=True):
            if cut:
                sentences.append(f"{cut} of {len(pairs)} {name} responses were cut to the length limit")
            if endless > cut:
                sentences.append(f"{endless - cut} of {len(pairs)} {name} responses end with another token than EOS")
        if self.cut_prompts:
            sentences.append(f"{self.cut_prompts} of {len(pairs)} prompts were cut at their beginning")
        if self.left_out:
            sentences.append(
                f"{self.left_out} thoughts of earlier turns are left out by the chat template, as they are when the "
                "model is used"
            )
        if self.reopened:
            sentences.append(
                f"{self.reopened} prompts end before the empty thought that the chat template closes, since a response "
                "brings one"
            )
        if self.closed:
            sentences.append(
                f"{self.closed} responses bring no thought and the chat template begins one: an empty one is closed "
                "in front of them"
            )
        if self.control:
            sentences.append(
                f"{self.control} control tokens in the rows' own text were encoded as text; rows that bring a "
                "rendered chat template should be given as messages"
            )
        return tuple(sentences)


def hash_ids(pairs: Sequence[TokenPair]) -> str:
    """16 hex digits that change with any token of any pair, and with their order."""
    return digest([pair.ids for pair in pairs])
