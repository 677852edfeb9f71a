"""Many LoRA adapters on one frozen base: PEFT's structure and files, one flat tensor for the numbers.

PEFT decides which layers are adapted and how an adapter is stored. The numbers of all adapters lie in one float32
tensor (K, P), a row for each adapter, so that an adapter is cloned, hashed, clipped, stepped and saved as one vector,
and several adapters run stacked in one pass.

Shapes: K adapters, P parameters of one, k active ones, T tokens each, r rank, in and out features of a layer.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from prefopt.errors import UsageError
from prefopt.model.dropout import dropped
from prefopt.model.packing import PackedRows, layout_in_use
from prefopt.model.source import as_loaded
from prefopt.model.targets import check_layers, target_modules
from prefopt.runtime.seeding import generator
from prefopt.storage.folders import fill_folder


class Matrices(NamedTuple):
    """One site's active adapters: A (k, r, in) and B (k, out, r) in the base's type, and the scale of their product.

    ``gradients`` are float32 views of the bank's, ``anchor`` is an empty tensor that asks autograd for them, and
    ``dropout`` is the share of the input's values that the adapter does not see.
    """

    a: Tensor
    b: Tensor
    scale: float
    gradients: tuple[Tensor, Tensor] | None = None
    anchor: Tensor | None = None
    dropout: float = 0.0


class _LoraLinear(torch.autograd.Function):
    """``x W' + b + s (x A') B'`` for a frozen W; keeps x and the (T, r) product alone for the backward pass.

    Without W it is the delta alone. The gradients of A and B are added to the bank's, not returned: its rows are
    strided, which autograd's own accumulation does without.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, anchor: Tensor | None, weight: Tensor | None, bias: Tensor | None, active: Matrices
    ) -> Tensor:
        a, b, scale = active.a, active.b, active.scale
        k = a.shape[0]
        flat = x.reshape(-1, x.shape[-1])  # (k*T, in): one adapter's tokens after the other's
        if weight is None:
            y = flat.new_zeros(flat.shape[0], b.shape[1])  # (k*T, out)
        else:
            y = flat @ weight.t() if bias is None else torch.addmm(bias, flat, weight.t())
        if k == 1:
            u = flat @ a[0].t()  # (T, r)
            y.addmm_(u, b[0].t(), alpha=scale)
        else:
            u = torch.bmm(flat.view(k, -1, flat.shape[-1]), a.mT)  # (k, T, r)
            y.view(k, -1, y.shape[-1]).baddbmm_(u, b.mT, alpha=scale)
        ctx.save_for_backward(flat, weight, a, b, u)
        ctx.active, ctx.shape = active, x.shape
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, a, b, u = ctx.saved_tensors
        k, scale = a.shape[0], ctx.active.scale
        g = grad.reshape(-1, grad.shape[-1])  # (k*T, out)
        if k == 1:
            gb = g @ b[0]  # (T, r)
            da, db = gb.t() @ x, g.t() @ u  # (r, in), (out, r)
        else:
            gk = g.view(k, -1, g.shape[-1])  # (k, T, out)
            gb = torch.bmm(gk, b)  # (k, T, r)
            da, db = torch.bmm(gb.mT, x.view(k, -1, x.shape[-1])), torch.bmm(gk.mT, u)  # (k, r, in), (k, out, r)
        if ctx.active.gradients is not None:
            a_sum, b_sum = ctx.active.gradients
            a_sum.add_(da, alpha=scale)
            b_sum.add_(db, alpha=scale)
        dx = None
        if ctx.needs_input_grad[0]:  # not in the first layers: nothing below them is trained
            through_base = x.new_zeros(()) if weight is None else g @ weight  # (k*T, in)
            if k == 1:
                dx = torch.addmm(through_base, gb, a[0], alpha=scale)
            else:
                through_base = through_base if weight is None else through_base.view(k, -1, x.shape[-1])
                dx = torch.baddbmm(through_base, gb, a, alpha=scale)
            dx = dx.view(ctx.shape)
        return dx, None, None, None, None


def _forward(layer: LoraLayer, bank: AdapterBank, site: int, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """What an adapted layer computes: its base alone, or with the active adapters' deltas."""
    base = layer.base_layer
    out: Tensor
    if bank.active is None:
        out = base(x, *args, **kwargs)
        return out
    active = bank.active[site]
    layout = layout_in_use()
    if active.dropout and isinstance(layout, PackedRows) and layout.keys is not None:
        seen = dropped(x, layout, site, active.dropout)
        out = _LoraLinear.apply(seen, active.anchor, None, None, active)  # type: ignore[no-untyped-call]
        out = out + base(x, *args, **kwargs)
        return out
    plain = type(base) is nn.Linear  # others, such as quantized layers, multiply by kernels of their own
    weight, bias = (base.weight, base.bias) if plain else (None, None)
    y: Tensor = _LoraLinear.apply(x, active.anchor, weight, bias, active)  # type: ignore[no-untyped-call]
    if not plain:
        y = y + base(x, *args, **kwargs)
    return y


@dataclass(frozen=True, slots=True)
class Site:
    """One adapted layer: where its two matrices lie in the flat row."""

    name: str
    a_at: int
    b_at: int
    end: int
    rank: int
    n_in: int
    n_out: int


class AdapterBank:
    """K LoRA adapters of one shape on one base model.

    Args:
        base: The frozen causal language model; its adapted layers are wrapped in place.
        size: K.
        rank: r.
        alpha: LoRA's alpha; the delta is scaled by alpha / r.
        targets: PEFT's target modules: ``"all-linear"`` or suffixes of module names.
        dropout: Share of the values of their inputs that adapters do not see while they are trained.
        device: Where the numbers live.

    Raises:
        UsageError: If PEFT cannot adapt these targets in this model.

    Attributes:
        params: (K, P) float32, an adapter a row; views of it are what the layers read.
        grads: (K, P) float32, filled by backward passes of active adapters.
        active: What each site computes with, or None for the base alone.
    """

    def __init__(
        self,
        base: nn.Module,
        *,
        size: int,
        rank: int,
        alpha: float,
        targets: str | Sequence[str] = "all-linear",
        dropout: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> None:
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules=target_modules(base, targets),
            task_type="CAUSAL_LM",
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in base.modules()),
        )
        try:
            # Its own matrices stay without storage (on the meta device): the numbers are in self.params.
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")  # refused below
                self.peft: Any = get_peft_model(base, config, low_cpu_mem_usage=True)
        except ValueError as problem:
            raise UsageError(f"lora.targets = {targets!r} does not fit this model: {problem}") from None
        settings = self.peft.peft_config["default"]
        settings.target_modules = sorted(
            settings.target_modules
        )  # a set, which each process would write in another order
        # As it is found again from any folder; what is published is made portable, what is loaded must not be.
        name, revision = as_loaded(str(settings.base_model_name_or_path or ""))
        settings.base_model_name_or_path, settings.revision = name, revision or None
        check_layers(self.peft, base, targets)
        self.scale, self.dropout = alpha / rank, dropout
        self.sites: list[Site] = []
        end = 0
        for name, layer in self.peft.named_modules():
            if isinstance(layer, LoraLayer):
                a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
                site = Site(name, end, end + a.numel(), end + a.numel() + b.numel(), rank, a.shape[1], b.shape[0])
                end = site.end
                layer.forward = partial(_forward, layer, self, len(self.sites))
                self.sites.append(site)
        for parameter in self.peft.parameters():
            parameter.requires_grad_(False)
        self.params = torch.zeros(size, end, device=device)
        self.grads = torch.zeros(size, end, device=device)
        self.active: list[Matrices] | None = None

    def views(self, flat: Tensor) -> list[tuple[Tensor, Tensor]]:
        """A and B of every site, (k, r, in) and (k, out, r), as views of (k, P) rows."""
        k = flat.shape[0]
        return [
            (flat[:, s.a_at : s.b_at].view(k, s.rank, s.n_in), flat[:, s.b_at : s.end].view(k, s.n_out, s.rank))
            for s in self.sites
        ]

    def initialise(self, index: int, seed: int) -> None:
        """Draw adapter ``index`` as PEFT does: A uniform in +-1/sqrt(in), B zero; on the CPU, from ``seed`` alone."""
        source = generator(seed, "adapter")
        row = torch.zeros(1, self.params.shape[1])  # (1, P)
        for (a, _), site in zip(self.views(row), self.sites, strict=True):
            a.uniform_(-(site.n_in**-0.5), site.n_in**-0.5, generator=source)
        self.params[index] = row[0].to(self.params.device)

    @contextmanager
    def train(self, slots: slice) -> Iterator[None]:
        """Run the model with the adapters of ``slots`` stacked; their gradients go to ``grads``.

        There is dropout where the layout in use has keys for it.
        """
        # Autograd calls backward only below something that wants a gradient, and x wants none in the first layers.
        anchor = torch.zeros(0, device=self.params.device, requires_grad=True)
        sums = self.views(self.grads[slots])
        with self._activate(
            [
                m._replace(gradients=g, anchor=anchor, dropout=self.dropout)
                for m, g in zip(self._matrices(slots), sums, strict=True)
            ]
        ):
            yield

    @contextmanager
    def use(self, slots: slice) -> Iterator[None]:
        """Run the model with the adapters of ``slots`` stacked, without gradients."""
        with self._activate(self._matrices(slots)):
            yield

    def _matrices(self, slots: slice) -> list[Matrices]:
        """The adapters of ``slots`` in the base's type, converted in one go."""
        dtype = next(p.dtype for p in self.peft.parameters() if p.is_floating_point() and p.device.type != "meta")
        return [Matrices(a, b, self.scale) for a, b in self.views(self.params[slots].to(dtype))]

    @contextmanager
    def off(self) -> Iterator[None]:
        """Run the base alone."""
        with self._activate(None):
            yield

    @contextmanager
    def _activate(self, values: list[Matrices] | None) -> Iterator[None]:
        before, self.active = self.active, values
        try:
            yield
        finally:
            self.active = before

    def hash(self, index: int) -> str:
        """First 16 hex digits of the SHA-256 of adapter ``index``'s bytes."""
        return hashlib.sha256(self.params[index].cpu().numpy().tobytes()).hexdigest()[:16]

    def save(self, index: int, folder: Path, tokenizer: Any = None) -> None:
        """Write adapter ``index`` as a PEFT folder, loadable with ``PeftModel.from_pretrained``, with its tokenizer."""
        layers = dict(self.peft.named_modules())
        with torch.no_grad():
            for (a, b), site in zip(self.views(self.params[index : index + 1].cpu()), self.sites, strict=True):
                for matrices, value in ((layers[site.name].lora_A, a[0]), (layers[site.name].lora_B, b[0])):
                    matrices["default"].weight = nn.Parameter(value.clone(), requires_grad=False)

        def fill(temporary: Path) -> None:
            self.peft.save_pretrained(temporary, safe_serialization=True, save_embedding_layers=False)
            (temporary / "README.md").unlink(missing_ok=True)  # PEFT's blank model card
            if tokenizer is not None:
                tokenizer.save_pretrained(temporary)

        fill_folder(folder, fill)

    def merge(self, index: int) -> None:
        """Add adapter ``index`` to the base weights for good, in float32 before rounding to the base's dtype."""
        layers = dict(self.peft.named_modules())
        with torch.no_grad():
            for (a, b), site in zip(self.views(self.params[index : index + 1]), self.sites, strict=True):
                layer = layers[site.name]
                weight = layer.base_layer.weight
                delta = (b[0] @ a[0]) * self.scale  # (out, in)
                delta = delta.t() if getattr(layer, "fan_in_fan_out", False) else delta
                weight.copy_((weight.float() + delta).to(weight.dtype))

    def remove(self) -> None:
        """Take the adapters' layers out of the base again."""
        self.peft.unload()
