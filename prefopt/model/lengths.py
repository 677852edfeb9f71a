"""Whether texts fit a model: its table of positions, its windows, and the lengths that it was trained on.

Decided once, from the real lengths, before anything is trained.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from prefopt.data import TokenPair
from prefopt.errors import UsageError
from prefopt.model.base import Base, plain_path

_POSITIONS = re.compile(r"(^|\.)(wpe|embed_positions|position_embeddings?|pos_emb\w*)$")
_SPARE_POSITIONS = 8  # rows of a table before the first position, such as OPT's two


@dataclass(frozen=True, slots=True)
class Lengths:
    """The longest texts of a comparison, in tokens.

    Attributes:
        row: Of a prompt with one response.
        prompt: Of an evaluation prompt.
        new: Of what is sampled after it.
    """

    row: int
    prompt: int
    new: int

    @classmethod
    def of(
        cls, pairs: Sequence[TokenPair], prompts: Sequence[Sequence[int]], new: int, *, crossed: bool = False
    ) -> Lengths:
        """Those of pairs and evaluation prompts; ``crossed`` where a loss reads prompts with others' responses."""
        sizes = [(len(p.prompt_ids), max(len(p.chosen_ids), len(p.rejected_ids))) for p in pairs]
        rows = [sum(size) for size in sizes]
        if crossed and sizes:
            rows = [sum(map(max, zip(*sizes, strict=True)))]
        return cls(max(rows, default=0), max(map(len, prompts), default=0), new)

    @property
    def longest(self) -> int:
        """Tokens of the longest text of all."""
        return max(self.row, self.prompt + self.new)


def fit_lengths(base: Base, lengths: Lengths, say: Callable[[str], None]) -> Base:
    """``base`` as it can take texts of these lengths: as it is, or on the plain path where a window is shorter.

    Args:
        base: The model.
        lengths: The longest texts.
        say: Hears a sentence where a text is longer than the model was made for.

    Raises:
        UsageError: If a text has more tokens than the model has positions.
    """
    most = made_for(base)
    if most and lengths.longest > most:
        if has_position_table(base, most):
            raise UsageError(_too_long(base, lengths, most))
        say(
            f"the longest text has {lengths.longest} tokens and the model was made for {most}: what it says of "
            "longer ones is not known to be good"
        )
    window = shortest_window(base)
    if base.packed and window and lengths.longest > window:
        return plain_path(base, f"a window of {window} tokens, and the longest text has {lengths.longest}")
    return base


def made_for(base: Base) -> int:
    """The most tokens of a text that the model was trained on, by its configuration; 0 where that does not say."""
    config = base.model.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", 0) or getattr(config, "n_positions", 0) or 0)


def has_position_table(base: Base, positions: int) -> bool:
    """Whether positions are rows of a table, which ends, as in GPT-2 and OPT, rather than angles."""
    return any(
        isinstance(module, nn.Embedding) and 0 <= module.num_embeddings - positions <= _SPARE_POSITIONS
        for name, module in base.model.named_modules()
        if _POSITIONS.search(name)
    )


def shortest_window(base: Base) -> int:
    """How many tokens back the layers with a window see; 0 where none has one."""
    config = base.model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    sizes = {
        "sliding": getattr(config, "sliding_window", None),
        "chunked": getattr(config, "attention_chunk_size", None),
        "local": getattr(config, "window_size", None) or getattr(config, "local_attention", None),
    }
    used = [
        size
        for kind, size in sizes.items()
        if isinstance(size, int) and size > 0 and (not kinds or any(kind in str(layer) for layer in kinds))
    ]
    return min(used, default=0)


def _too_long(base: Base, lengths: Lengths, limit: int) -> str:
    if lengths.row > limit:
        what = f"the longest pair has {lengths.row} tokens of prompt and response"
        mend = f"set data.max_length to {limit} or less"
    else:
        what = f"the longest prompt has {lengths.prompt} tokens, and {lengths.new} are sampled after it"
        mend = (
            f"set max_new_tokens to {max(0, limit - lengths.prompt)} or less"
            if lengths.prompt < limit
            else "shorten it"
        )
    return f"model {base.name}: has {limit} positions, and {what}: {mend}, or choose a model with more"
