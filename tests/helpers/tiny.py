"""Tiny random models with a real byte-level tokenizer, saved as folders that the project loads like any other."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SHAPE = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
GPT2 = {"vocab_size": 320, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "bos_token_id": 1}

CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SHAPE),
    "llama_tied": lambda: transformers.LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "qwen2": lambda: transformers.Qwen2Config(**SHAPE),
    "qwen3": lambda: transformers.Qwen3Config(**SHAPE, head_dim=8),
    "gpt2": lambda: transformers.GPT2Config(
        **GPT2, eos_token_id=2, pad_token_id=2, resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1
    ),
    "gemma": lambda: transformers.GemmaConfig(**SHAPE, head_dim=8),
    "gemma3": lambda: transformers.Gemma3TextConfig(**SHAPE, head_dim=8, sliding_window=128),
    "gemma2": lambda: transformers.Gemma2Config(**SHAPE, head_dim=8),
    "mistral_window": lambda: transformers.MistralConfig(**SHAPE, sliding_window=4),
    "gpt2_short": lambda: transformers.GPT2Config(**{**GPT2, "n_positions": 48}, eos_token_id=2, pad_token_id=2),
    "opt_short": lambda: transformers.OPTConfig(
        vocab_size=320,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        max_position_embeddings=48,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    ),
    "llama_short": lambda: transformers.LlamaConfig(**{**SHAPE, "max_position_embeddings": 48}),
    "gemma3_short": lambda: transformers.Gemma3TextConfig(
        **{**SHAPE, "num_hidden_layers": 6}, head_dim=8, sliding_window=24
    ),
    "mixtral": lambda: transformers.MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **SHAPE, head_dim=8, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2, decoder_sparse_step=1
    ),
    "mamba": lambda: transformers.MambaConfig(
        vocab_size=320, hidden_size=32, num_hidden_layers=2, state_size=4, eos_token_id=2, bos_token_id=1
    ),
}
PACKED = ("llama", "llama_tied", "qwen2", "qwen3", "gpt2", "gemma", "gemma3")
PLAIN = ("gemma2", "mistral_window", "mamba")
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE of 320 entries; pad is eos."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(["the cat sat on the mat and the dog ran off with a hat"] * 4, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    fast.chat_template = CHAT
    return fast


def save(folder: Path, kind: str, tokens: transformers.PreTrainedTokenizerFast | None = None) -> Path:
    """A model folder of one kind, the same weights each time, with a tokenizer of more tokens if one is given."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind]())
    if tokens is not None:
        model.resize_token_embeddings(len(tokens))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
    model.generation_config.pad_token_id = 2
    model.save_pretrained(folder)
    (tokens or tokenizer()).save_pretrained(folder)
    return folder
