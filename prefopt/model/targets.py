"""Which layers of a model are adapted: PEFT's names for them, and those whose adapters would not be trained."""

from __future__ import annotations

from collections.abc import Sequence

from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import nn

from prefopt.errors import UsageError


def target_modules(base: nn.Module, targets: str | Sequence[str]) -> str | list[str]:
    """The layers to adapt, as PEFT takes them.

    Where experts are stacked in tensors of three dimensions, all linear layers are those beside them: PEFT's adapters
    of such tensors are not matrices of rank r.
    """
    if not isinstance(targets, str):
        return list(targets)
    if targets != "all-linear" or not _has_stacked_experts(base):
        return targets
    head = base.get_output_embeddings()  # type: ignore[operator]
    return [name for name, layer in base.named_modules() if isinstance(layer, nn.Linear) and layer is not head]


def _has_stacked_experts(base: nn.Module) -> bool:
    layers = (layer for layer in base.modules() if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d))
    return any(parameter.ndim == 3 for layer in layers for parameter in layer.parameters(recurse=False))


def check_layers(peft: nn.Module, base: nn.Module, targets: str | Sequence[str]) -> None:
    """Refuse adapters that would not be trained, or not as two matrices.

    Raises:
        UsageError: Naming the layers.
    """
    head = base.get_output_embeddings()  # type: ignore[operator]
    for name, layer in peft.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        short = name.rpartition(".")[2]
        if layer is head or "default" not in layer.lora_A:
            what = f"{short} is the language-model head or an embedding, whose adapters are not trained"
        elif isinstance(layer, ParamWrapper):
            what = f"{short} is a tensor of experts or a router, not a linear layer"
        else:
            continue
        raise UsageError(f"lora.targets = {targets!r} does not fit this model: {what}; leave it out")
