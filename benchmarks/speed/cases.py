"""What is measured: model shapes, random preference pairs, initial adapters, and the count of useful arithmetic."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from peft.tuners.lora import LoraLayer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn

from prefopt.data import TokenPair
from prefopt.model.source import local_folder

RANK, ALPHA, BETA, LEARNING_RATE = 16, 32.0, 0.1, 5e-4


@dataclass(frozen=True)
class Shape:
    """A Llama by its sizes; its weights are random."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int
    tied: bool = True


SHAPES = {
    "tiny": Shape(2, 64, 4, 2, 128, 256),
    "30m": Shape(10, 384, 6, 2, 1024, 49152),
    "135m": Shape(30, 576, 9, 3, 1536, 49152),
    "360m": Shape(32, 960, 15, 5, 2560, 49152),
    "1b": Shape(16, 2048, 32, 8, 8192, 128256),
    "8b": Shape(32, 4096, 32, 8, 14336, 128256, tied=False),
}


@dataclass(frozen=True)
class Case:
    """A model, a batch and a device.

    Attributes:
        shape: Key of SHAPES.
        model: A model that prefopt can load, to use its weights instead of random ones.
        device: ``cpu`` or ``cuda``.
        dtype: Of the frozen weights, ``float32`` or ``bfloat16``.
        quantization: ``none`` or ``nf4``; ours only.
        pairs: Pairs of one optimizer step.
        prompt, response: Mean tokens of a prompt, and of each response.
        jitter: Lengths are uniform within this share of the mean.
        n_pairs: Pairs of the data set.
        seed: Of weights, tokens, lengths and adapters.
    """

    shape: str = "135m"
    model: str = ""
    device: str = "cpu"
    dtype: str = "bfloat16"
    quantization: str = "none"
    pairs: int = 8
    prompt: int = 40
    response: int = 40
    jitter: float = 0.25
    n_pairs: int = 64
    seed: int = 0

    def but(self, **changes: Any) -> Case:
        """This case with some values replaced."""
        return dataclasses.replace(self, **changes)

    @property
    def torch_dtype(self) -> torch.dtype:
        """``dtype`` as torch knows it."""
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32

    @property
    def vocabulary(self) -> int:
        """Token ids to draw from."""
        return SHAPES[self.shape].vocabulary


def llama_config(shape: Shape) -> transformers.LlamaConfig:
    """The transformers configuration of a shape."""
    return transformers.LlamaConfig(
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.mlp,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=8192,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    )


def build_model(case: Case, dtype: torch.dtype) -> Any:
    """The frozen model, built where it will live; equal for equal case and type."""
    if case.model:
        model = transformers.AutoModelForCausalLM.from_pretrained(local_folder(case.model), dtype=dtype)
        return model.to(case.device)
    torch.manual_seed(case.seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(case.device):
            model = transformers.LlamaForCausalLM(llama_config(SHAPES[case.shape]))
    finally:
        torch.set_default_dtype(before)
    return model


def build_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A tokenizer that has a padding and an end token, which is all that is asked of it."""
    backend = Tokenizer(WordLevel({"<pad>": 0, "</s>": 1}, unk_token="<pad>"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")


def make_pairs(case: Case) -> tuple[TokenPair, ...]:
    """Random preference pairs; token ids 2 and up, so that padding and end are never among them."""
    rng = np.random.default_rng(case.seed)

    def tokens(mean: int) -> tuple[int, ...]:
        spread = int(mean * case.jitter)
        size = int(rng.integers(mean - spread, mean + spread + 1))
        return tuple(int(i) for i in rng.integers(2, case.vocabulary, size))

    return tuple(
        TokenPair(
            prompt_ids=tokens(case.prompt),
            chosen_ids=tokens(case.response),
            rejected_ids=tokens(case.response),
            prompt_id=i,
            pair_id=i,
            chosen_score=None,
            rejected_score=None,
            chosen_truncated=False,
            rejected_truncated=False,
        )
        for i in range(case.n_pairs)
    )


def mean_tokens(pairs: Sequence[TokenPair]) -> tuple[float, float]:
    """(tokens of ``[prompt | chosen | rejected]``, scored tokens), means over pairs."""
    scored = [len(p.chosen_ids) + len(p.rejected_ids) for p in pairs]
    return float(np.mean([p.length for p in pairs])), float(np.mean(scored))


def useful_tflop(case: Case) -> float:
    """Of one pair: 4 N_b for each of its P + 2C tokens and 4 H for each scored one, whatever a program computes.

    Forward and the gradient of activations, 2 N_b each; frozen weights have no gradient of their own. Attention,
    adapters and the optimizer are left out, and so is the reference, which need not be computed at every step.
    """
    shape = SHAPES[case.shape]
    head = shape.hidden // shape.heads
    attention = shape.hidden * shape.hidden * 2 + 2 * shape.hidden * head * shape.kv_heads
    backbone = shape.layers * (attention + 3 * shape.hidden * shape.mlp)
    total, scored = mean_tokens(make_pairs(case))
    return 4 * (backbone * total + shape.hidden * shape.vocabulary * scored) / 1e12


def initial_adapter(model: nn.Module, seed: int, *, b_std: float = 0.0) -> list[tuple[Tensor, Tensor]]:
    """(A, B) of every adapted layer in the order of ``named_modules``, from ``seed`` alone, on the CPU.

    ``b_std`` above 0 starts off the reference, where a step's loss says something about the forward pass.
    """
    source = torch.Generator().manual_seed(seed)
    out = []
    for module in model.modules():
        if isinstance(module, LoraLayer):
            n_in, n_out = module.in_features, module.out_features
            a = torch.empty(RANK, n_in).uniform_(-(n_in**-0.5), n_in**-0.5, generator=source)
            b = torch.empty(n_out, RANK).normal_(generator=source) * b_std
            out.append((a, b))
    return out
