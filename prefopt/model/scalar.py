"""A scalar head on the last token of a text: what a reward model reads, computes and is saved as.

Shapes: N texts, d hidden size, P parameters of an adapter.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prefopt.data import Message, encode_conversations, encode_prompts
from prefopt.errors import DataError, MachineError
from prefopt.model.adapted import AdaptedModel
from prefopt.model.packing import Row, pack, use_layout
from prefopt.storage.redact import portable
from prefopt.tasks.base import Prompt, text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def scored_ids(
    prompts: Sequence[Prompt], responses: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> list[list[int]]:
    """Ids of what a reward model reads, prompt and response together; control tokens in the texts are text.

    They are put through the tokenizer's chat template, as a user's message and the assistant's, and where it has none
    they are joined as they are.

    Raises:
        DataError: If the template refuses a chat.
    """
    both = list(zip(prompts, responses, strict=True))
    if tokenizer.chat_template:
        chats = [(*_turns(prompt), Message("assistant", response)) for prompt, response in both]
        return encode_conversations(chats, tokenizer)
    return encode_prompts([text_of(prompt) + response for prompt, response in both], tokenizer)


def _turns(prompt: Prompt) -> tuple[Message, ...]:
    return (Message("user", prompt),) if isinstance(prompt, str) else tuple(Message(*turn) for turn in prompt)


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What a classifier takes for padding, and so never for the last token of a text."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return int(pad)


def shared_row(texts: Sequence[Sequence[int]], *, pad: int, window: int) -> Row:
    """Texts that begin alike as one row: what they share, then the rest of each; padding at their ends is cut off.

    Texts longer than the window lose their beginning, each by itself, and may then share nothing.

    Raises:
        DataError: If a text has fewer than two tokens.
    """
    cut = [_without_padding(list(text), pad)[-window:] for text in texts]
    if min(map(len, cut)) < 2:
        raise DataError("a text of fewer than two tokens cannot be scored; leave its row out")
    shared = 0
    while all(len(text) > shared + 1 and text[shared] == cut[0][shared] for text in cut):
        shared += 1
    return Row(cut[0][:shared], tuple(tuple(text[shared:]) for text in cut))


def _without_padding(text: list[int], pad: int) -> list[int]:
    while len(text) > 1 and text[-1] == pad:
        text.pop()
    return text


def last_positions(rows: Sequence[Row]) -> list[int]:
    """Where the last token of each text stands in rows laid end to end."""
    positions, end = [], 0
    for row in rows:
        end += len(row.prompt)
        for response in row.responses:
            end += len(response)
            positions.append(end - 1)
    return positions


def scalars(model: AdaptedModel, rows: Sequence[Row], head: Tensor) -> Tensor:
    """(N,) float32 rewards of the rows' texts under the active adapter, with a graph."""
    packed = pack(rows, device=model.base.device)
    with use_layout(packed):
        hidden = model.base.hidden(packed)
    last = torch.tensor(last_positions(rows), device=hidden.device)
    return hidden.index_select(0, last).float() @ head


def save_classifier(folder: Path, model: AdaptedModel, head: Tensor) -> None:
    """Write adapter 0 and the head as a PEFT folder ``adapter``, and merged with the base as a classifier.

    Both are sequence classifiers of one output: transformers loads ``folder``, peft loads ``folder/adapter`` on the
    base. The base is changed: the adapter is merged into it.

    Raises:
        MachineError: If transformers has no such classifier for the architecture.
    """
    base, bank = model.base, model.adapters
    config = copy.deepcopy(base.model.config)
    config.num_labels, config.pad_token_id = 1, pad_id(base.tokenizer)
    config.architectures = None
    config._attn_implementation = None
    try:
        classifier = transformers.AutoModelForSequenceClassification.from_config(config)
    except ValueError as problem:
        raise MachineError(f"model {base.name}: transformers has no classifier for it: {problem}") from None
    name = next(n for n, module in classifier.named_children() if isinstance(module, nn.Linear))
    bank.save(0, folder / "adapter")
    _as_classifier_adapter(folder / "adapter", name, head)
    bank.merge(0)
    bank.remove()
    state = {k: v for k, v in base.model.state_dict().items() if k in classifier.state_dict()}
    state[f"{name}.weight"] = head.detach()[None].to(base.dtype)
    lacking = classifier.to(base.dtype).load_state_dict(state, strict=False).missing_keys
    if lacking:
        raise MachineError(f"model {base.name}: its classifier has weights that it lacks, such as {lacking[0]}")
    classifier.save_pretrained(folder)
    tokenizer = base.tokenizer
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)


def _as_classifier_adapter(folder: Path, name: str, head: Tensor) -> None:
    """Make a causal model's PEFT folder one of a classifier, with its head among the weights."""
    path = folder / "adapter_config.json"
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    values |= {"task_type": "SEQ_CLS", "modules_to_save": [name]}
    values["base_model_name_or_path"] = portable(str(values.get("base_model_name_or_path") or ""))
    path.write_text(json.dumps(values, indent=2, sort_keys=True), encoding="utf-8")
    weights = load_file(folder / "adapter_model.safetensors")
    weights[f"base_model.model.{name}.weight"] = head.detach()[None].cpu().contiguous()
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
