"""The frozen base model: where it comes from, in which type, and how its rows are run.

Shapes: T tokens of a batch of rows, K stacked adapters, N rows, S tokens of the longest, R scored tokens, d hidden
size, V vocabulary.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from prefopt.data import Text, encode_prompts
from prefopt.errors import MachineError, PrefoptError
from prefopt.model.checks import check_folder, check_loaded, first_line
from prefopt.model.packing import ATTENTION, PackedRows, Row, UnsupportedAttention, pack, use_layout
from prefopt.model.source import local_folder, read_template, revision, weights_hash
from prefopt.runtime.device import pick_dtype
from prefopt.storage.hashing import digest

os.environ["USE_HUB_KERNELS"] = "0"  # native code is never fetched from a hub
_HEAD_TRANSFORMS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "output_multiplier_scale")

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()


@dataclass(frozen=True, slots=True)
class Base:
    """A frozen causal language model, ready to score rows.

    Attributes:
        model: The transformers model; adapters wrap its layers in place.
        tokenizer: Its tokenizer.
        name: As the user gave it.
        hash: Of weights, type and quantization.
        dtype: Type of the frozen weights.
        device: Where it lives.
        packed: Whether rows run end to end with a shared prefix; else they are padded, each response by itself.
        why_plain: The reason where ``packed`` is False.
        revision: The commit of a hub's model, else empty.
        ends: The tokens that end a response: the tokenizer's EOS, those of the model's generation settings, and, once
            pairs are there, those with which their responses end.
        own_attention: The attention that the model itself uses.
        cached: Whether it decodes with a cache of what it has read; else it reads everything again for each token.
    """

    model: Any
    tokenizer: Any
    name: str
    hash: str
    dtype: torch.dtype
    device: torch.device
    packed: bool = True
    why_plain: str = ""
    revision: str = ""
    ends: tuple[int, ...] = ()
    own_attention: str = "eager"
    cached: bool = True

    @property
    def head(self) -> Tensor:
        """(V, d) weights of the language-model head."""
        weight: Tensor = self.model.get_output_embeddings().weight
        return weight

    @property
    def parameters(self) -> int:
        """Parameters of the model itself, those of quantized weights counted as they were before."""
        kept = [p for name, p in self.model.named_parameters() if p.device.type != "meta" and "lora" not in name]
        shapes = [getattr(getattr(p, "quant_state", None), "shape", None) or p.shape for p in kept]
        return sum(int(np.prod(tuple(shape))) for shape in shapes)

    @property
    def eos(self) -> int:
        """The end-of-sequence token."""
        return int(self.tokenizer.eos_token_id)

    def encode(self, prompts: Sequence[Text]) -> list[tuple[int, ...]]:
        """The tokens of prompts: texts with the tokenizer's own beginning, chats as its template renders them."""
        return [tuple(ids) for ids in encode_prompts(prompts, self.tokenizer)]

    def decode(self, tokens: Sequence[int], *, control: bool = False) -> str:
        """Tokens as text, to the letter; without control tokens and the end of a response unless ``control``."""
        while not control and tokens and tokens[-1] in self.ends:
            tokens = tokens[:-1]
        text: str = self.tokenizer.decode(
            list(tokens), skip_special_tokens=not control, clean_up_tokenization_spaces=False
        )
        return text

    def hidden(self, rows: PackedRows) -> Tensor:
        """(K*T, d) last hidden states of packed rows; call inside ``use_layout(rows)``."""
        return self.last_hidden(rows.input_ids, rows.position_ids)

    def last_hidden(self, ids: Tensor, positions: Tensor) -> Tensor:
        """(T, d) last hidden states of tokens (T,) at positions (T,) that attend as the layout in use says."""
        out: Tensor = self.model.base_model(
            input_ids=ids.unsqueeze(0), position_ids=positions.unsqueeze(0), use_cache=False
        ).last_hidden_state
        return out[0]

    def padded_logits(self, rows: PackedRows) -> Tensor:
        """(K*T, V) logits by the model's own attention, from rows of one response each, padded on the right."""

        def spread(values: Tensor) -> Tensor:
            out = values.new_zeros(rows.rows * rows.width)  # (K*N*S,)
            return out.index_copy_(0, rows.grid, values).view(rows.rows, rows.width)

        seen = spread(torch.ones_like(rows.input_ids))
        ids, positions = spread(rows.input_ids), spread(rows.position_ids)
        out: Tensor = self.model(input_ids=ids, attention_mask=seen, position_ids=positions, use_cache=False).logits
        return out.flatten(0, 1)[rows.grid]  # (K*N*S, V) without the places of padding


def load_base(
    name: str, *, dtype: str = "auto", quantization: str = "none", chat_template: str = "", device: torch.device
) -> Base:
    """Load a model for training adapters on it.

    Args:
        name: The embedded model's name, a local folder, a GGUF file, or a hub id.
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        quantization: ``none``, ``nf4`` or ``int8``.
        chat_template: A file with the template to use in place of the tokenizer's own.
        device: Where it goes.

    Raises:
        UsageError: If the template's file cannot be read.
        MachineError: If the model cannot be had or read, or the machine lacks what the quantization needs.
    """
    torch_dtype = pick_dtype(dtype, device)
    folder = local_folder(name)
    check_folder(name, Path(folder))
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch_dtype,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **_own_attention(folder),
            **_quantization(quantization, torch_dtype, device),
        )
    except PrefoptError:
        raise
    except Exception as problem:  # whatever a damaged or hostile folder makes a dozen libraries raise
        why = "no code of a model is ever run, and it needs its own" if "trust_remote" in str(problem) else ""
        raise MachineError(f"model {name}: cannot be loaded: {why or first_line(problem)}") from None
    check_loaded(name, model, tokenizer, info)
    if chat_template:
        tokenizer.chat_template = read_template(chat_template)
    if quantization == "none":
        model.to(device)
    model.requires_grad_(False)
    model.eval()
    key = digest([weights_hash(folder), str(torch_dtype), quantization])
    return choose_path(
        Base(
            model,
            tokenizer,
            name,
            key,
            torch_dtype,
            device,
            revision=revision(Path(folder)),
            ends=end_tokens(model, tokenizer),
            own_attention=model.config._attn_implementation,
        )
    )


def end_tokens(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The tokenizer's EOS and those of the model's generation settings, which chat models have several of."""
    settings = getattr(model, "generation_config", None)
    more = getattr(settings, "eos_token_id", None)
    more = more if isinstance(more, list | tuple) else [] if more is None else [more]
    return tuple(sorted({int(tokenizer.eos_token_id), *map(int, more)}))


def _own_attention(folder: str) -> dict[str, str]:
    """Eager attention for soft-capped scores, which no fused kernel of PyTorch computes; else the model's default."""
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return {"attn_implementation": "eager"} if getattr(config, "attn_logit_softcapping", None) else {}


def choose_path(base: Base) -> Base:
    """``base`` with packed rows if its packed log-probabilities agree with the padded ones, else without.

    Models whose layers mix tokens other than by plain attention (state-space models, soft-capped scores, a sliding
    window shorter than a row) are found by comparing the two on random tokens.
    """
    why = _head_transform(base)
    if not why:
        source = torch.Generator().manual_seed(0)
        draw = [torch.randint(0, base.model.config.vocab_size, (7,), generator=source).tolist() for _ in range(6)]
        shared = [Row(draw[i][: 3 + i], (draw[i + 2][:5], draw[i + 4][:7])) for i in range(2)]
        plain = [Row(row.prompt, (response,)) for row in shared for response in row.responses]
        with torch.no_grad():
            wanted = base.padded_logits(padded := pack(plain, device=base.device))[padded.predictors].float()  # (R, V)
            wanted = wanted.log_softmax(-1).gather(1, padded.targets[:, None])  # (R, 1)
            if not wanted.isfinite().all():
                kind = str(base.dtype).removeprefix("torch.")
                raise MachineError(f"model {base.name}: its log-probabilities in {kind} are not finite; give another")
            try:
                base.model.set_attn_implementation(ATTENTION)
                rows = pack(shared, device=base.device)
                with use_layout(rows):
                    logits = (base.hidden(rows)[rows.predictors] @ base.head.t()).float()
                error = (logits.log_softmax(-1).gather(1, rows.targets[:, None]) - wanted).abs()
                tolerance = 1e-3 if base.dtype == torch.float32 else 0.02 * float(wanted.abs().max())
                if not float(error.max()) <= tolerance:
                    why = f"packed rows differ from padded ones by {float(error.max()):.2g} nats"
            except (UnsupportedAttention, AttributeError, TypeError, ValueError, RuntimeError, KeyError) as problem:
                why = first_line(problem)
    return plain_path(base, why) if why else base


def plain_path(base: Base, why: str) -> Base:
    """``base`` with padded rows and its own attention, for a reason."""
    base.model.set_attn_implementation(base.own_attention)
    return replace(base, packed=False, why_plain=why)


def _head_transform(base: Base) -> str:
    """Why log-probabilities are not simply those of ``hidden @ head.T``, or an empty string."""
    head = base.model.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None:
        return "its language-model head is not a plain linear layer"
    config = base.model.config.get_text_config()
    for name in _HEAD_TRANSFORMS:
        if getattr(config, name, None) not in (None, 1, 1.0):
            return f"its logits are transformed ({name})"
    return ""


def _quantization(kind: str, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    if kind == "none":
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MachineError(f"--quantization {kind} needs bitsandbytes: pip install bitsandbytes")
    nf4 = kind == "nf4"
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=nf4,
        load_in_8bit=not nf4,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config, "device_map": {"": device}}
