"""What a comparison is: strict, frozen models of its settings, and their fingerprint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, model_validator

from prefopt.contract.loss import Loss
from prefopt.contract.registry import make_loss
from prefopt.storage.hashing import digest
from prefopt.storage.redact import portable
from prefopt.storage.results import check_name
from prefopt.storage.schema import REFERENCE

EMBEDDED_MODEL = "smollm2-135m-instruct"
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
# A path or a hub name: as it was typed, but published without the home folder and without secrets.
Place = Annotated[str, PlainSerializer(portable, when_used="json")]
Share = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """Base of every section: unknown keys refused, no conversion of types, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Model(Strict):
    """The base model.

    Attributes:
        name: ``smollm2-135m-instruct`` (embedded), a local folder, a GGUF file, or a hub id.
        dtype: Type of the frozen weights; ``auto`` is bfloat16 where the device multiplies it fast, else float32.
        quantization: ``nf4`` or ``int8`` weights through bitsandbytes, or ``none``.
    """

    name: Place = EMBEDDED_MODEL
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantization: Literal["none", "nf4", "int8"] = "none"


class Task(Strict):
    """Where prompts and the gold reward come from: ``imdb``, or ``data`` for your own pairs."""

    name: Literal["imdb", "data"] = "imdb"


class Data(Strict):
    """Your own pairs.

    Attributes:
        source: A local JSONL, JSON, CSV or Parquet file, or a hub dataset ``org/name[@revision][:split]``.
        heldout: Held-out pairs, in the same forms; empty to split them off ``source`` by prompt.
        heldout_share: The share of prompts that is split off.
        on_bad_rows: ``refuse`` to stop at bad rows, ``drop`` to count and leave them out.
        max_length: Most tokens of prompt and response together; longer responses are cut and counted.
        column_map: Names of your columns by ours, such as ``{prompt = "question"}``.
        dedup: Leave out rows that repeat an earlier one.
    """

    source: Place = ""
    heldout: Place = ""
    heldout_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    on_bad_rows: Literal["refuse", "drop"] = "refuse"
    max_length: Positive = 1024
    column_map: dict[str, str] = Field(default_factory=dict)
    dedup: bool = False


class Sft(Strict):
    """The fine-tune of the base that makes the reference; ``steps = 0`` uses the base itself."""

    steps: Count | None = None
    texts_per_step: Positive = 12
    text_tokens: Positive = 64
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4


class Pairs(Strict):
    """Preference pairs made on-policy: responses of the reference, labelled by the gold reward.

    Attributes:
        prompts: Prompts that training pairs are made for.
        heldout_prompts: Prompts of held-out pairs.
        samples: Responses for each prompt; all their pairs are labelled.
        max_new_tokens: Longest response, in tokens.
        temperature: Sampling temperature.
        labels: ``bradley-terry`` draws each label from sigmoid(scale * reward difference); ``argmax`` takes the larger.
        scale: Multiplies the reward difference; at 3 the embedded task has about one label in eight against the reward.
        label_noise: Share of the training labels that is flipped afterwards.
        seed: Of sampling and labels. The pairs are made once, for every seed of the comparison.
    """

    prompts: Positive = 128
    heldout_prompts: Positive = 16
    samples: Annotated[int, Field(ge=2, le=64)] = 4
    max_new_tokens: Positive = 24
    temperature: Annotated[float, Field(gt=0)] = 1.0
    labels: Literal["bradley-terry", "argmax"] = "bradley-terry"
    scale: Annotated[float, Field(gt=0)] = 3.0
    label_noise: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    seed: Seed = 0


class Lora(Strict):
    """The adapter, one shape for every run."""

    rank: Positive = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    targets: str | list[str] = "all-linear"


class Train(Strict):
    """The shared training loop.

    Attributes:
        steps: Optimizer steps.
        pairs_per_step: Pairs of one optimizer step.
        learning_rate: Peak rate of AdamW; a loss's ``lr_scale`` multiplies it, a variant's own rate replaces it.
        warmup_steps: Linear warm-up; then ``schedule``, ``constant`` or ``linear`` or ``cosine`` to zero.
        weight_decay: AdamW's decoupled decay.
        max_grad_norm: Each run's gradient is clipped to this norm.
        optimizer: ``adamw``, or bitsandbytes' ``adamw8bit`` or ``paged_adamw8bit``.
        micro_batch: Pairs of one forward pass, or ``auto``: as many as memory allows. Never changes the result but
            for rounding.
        stack: Adapters of one forward pass, or ``auto``: 1 on a CPU, as many as help on CUDA.
        checkpointing: Recompute activations in the backward pass: ``auto`` only where memory asks for it.
        eval_every: Steps between held-out evaluations; they also take place at step 0 and at the end.
        log_every: Steps between synchronisations with the device.
        checkpoint_every: Steps between checkpoints; there is one after the last step, too. ``auto`` takes one when
            a minute has passed since the last. Changes nothing in what a run computes.
    """

    steps: Positive = 48
    pairs_per_step: Positive = 8
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 1.5e-3
    warmup_steps: Count = 5
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    optimizer: Literal["adamw", "adamw8bit", "paged_adamw8bit"] = "adamw"
    micro_batch: Positive | Literal["auto"] = "auto"
    stack: Positive | Literal["auto"] = "auto"
    checkpointing: bool | Literal["auto"] = "auto"
    eval_every: Positive = 16
    log_every: Positive = 5
    checkpoint_every: Positive | Literal["auto"] = "auto"


class Evaluation(Strict):
    """What trained policies are asked.

    Attributes:
        prompts: Evaluation prompts, from texts that give no training or held-out pair.
        samples: Responses for each prompt, seed and policy.
        max_new_tokens: Longest response, in tokens.
        temperature: Sampling temperature; the KL is that of the policy at temperature 1.
        delta: Half-width of the band around "no difference" inside which two win rates count as equal.
    """

    prompts: Positive = 64
    samples: Positive = 4
    max_new_tokens: Positive = 24
    temperature: Annotated[float, Field(gt=0)] = 1.0
    delta: Annotated[float, Field(gt=0, lt=0.5)] = 0.02


class Variant(Strict):
    """One loss with its hyperparameters, under the name that it has everywhere.

    Attributes:
        loss: The loss with hyperparameters, such as ``simpo[beta=2.5]``.
        label: Its name in folders, tables and legends; the loss's own label where empty.
        learning_rate: Replaces the shared rate.
    """

    loss: str
    label: str = ""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] | None = None

    def build(self) -> Loss:
        """The loss itself."""
        return make_loss(self.loss)

    @property
    def name(self) -> str:
        """The label, or the loss's own."""
        return self.label or self.build().label


class Config(Strict):
    """A whole comparison."""

    name: str = "imdb"
    seeds: tuple[Seed, ...] = (0, 1, 2)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    model: Model = Model()
    task: Task = Task()
    data: Data = Data()
    sft: Sft = Sft()
    pairs: Pairs = Pairs()
    lora: Lora = Lora()
    train: Train = Train()
    evaluation: Evaluation = Evaluation()
    variants: tuple[Variant, ...] = tuple(Variant(loss=name) for name in ("dpo", "cdpo", "simpo", "ipo", "noop"))

    @model_validator(mode="before")
    @classmethod
    def _tuples(cls, value: Any) -> Any:
        """Lists, which is what TOML has, to the tuples that frozen models hold."""
        if isinstance(value, Mapping):
            value = {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        check_name(self.name, "name")
        names = [check_name(variant.name, "variant") for variant in self.variants]
        if not names:
            raise ValueError("variants: at least one is needed")
        if REFERENCE in [name.casefold() for name in names]:
            raise ValueError(f"variant {REFERENCE}: the policy before training has this name; choose another")
        for kind, values in (("variant", [n.casefold() for n in names]), ("seed", [str(s) for s in self.seeds])):
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ValueError(f"{kind} {', '.join(twice)} is given twice")
        specs = [(digest(v.build().spec()), v.learning_rate) for v in self.variants]
        for name, spec in zip(names, specs, strict=True):
            other = names[specs.index(spec)]
            if other != name:
                raise ValueError(f"variants {other} and {name} are the same experiment; drop one")
        if not self.seeds:
            raise ValueError("seeds: at least one is needed")
        if self.task.name == "data" and not self.data.source:
            raise ValueError("task data needs data.source: give --data FILE")
        return self

    @property
    def sft_steps(self) -> int:
        """Steps of the reference's fine-tune: 40 for the embedded model on a task of ours, else 0 unless set."""
        if self.sft.steps is not None:
            return self.sft.steps
        return 40 if self.task.name == "imdb" and self.model.name == EMBEDDED_MODEL else 0

    def learning_rate(self, variant: Variant) -> float:
        """The peak learning rate that a variant trains with."""
        return variant.learning_rate or self.train.learning_rate * variant.build().lr_scale

    def fingerprint(self, *sections: str) -> str:
        """Hash of some sections, or of everything that is not a name or a device."""
        whole = self.model_dump(mode="json", exclude={"name", "device"})
        return digest({key: whole[key] for key in sections} if sections else whole)
