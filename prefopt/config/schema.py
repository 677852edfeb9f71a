"""What a comparison is: strict, frozen models of its settings, and their fingerprint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from prefopt.config.consistent import check_recipe, check_task, check_tuning, check_variants
from prefopt.config.strict import Count, Place, Positive, Seed, Strict
from prefopt.config.tune import Tune
from prefopt.config.variant import Variant, swept_variants
from prefopt.storage.hashing import digest

__all__ = ["Config", "Variant"]

EMBEDDED_MODEL = "smollm2-135m-instruct"


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
    """Where prompts and the gold reward come from.

    Attributes:
        name: ``imdb``, ``data`` for your own pairs, ``prompts`` for your own prompts, or a task of a plug-in.
        prompts: Your own prompts: a file of texts or chats, one a row or a line.
        reward: ``imdb``, ``rm:MODEL``, ``bt:FOLDER``, ``file.py:function`` or the entry point of an installed package;
            it evaluates policies and labels pairs. Empty for the task's own.
        reward_s: Seconds that one call of it, about 64 responses at most, may take.
    """

    name: str = "imdb"
    prompts: Place = ""
    reward: Place = ""
    reward_s: Annotated[float, Field(gt=0)] = 300.0


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
        offpolicy: Pairs of another policy, in the forms of ``data.source``, for variants that ask for ``@offpolicy``.
        reward: Labels the pairs in place of the task's reward, which then evaluates alone; in the same forms.
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
    offpolicy: Place = ""
    reward: Place = ""


class Rounds(Strict):
    """Rounds in which each policy answers prompts, its answers are labelled, and it trains on them.

    Attributes:
        count: How many for a variant that does not say so itself, as ``dpo@3rounds`` does; 0 for none: it trains on
            responses of the reference. As many as there are steps is online feedback, a step a round.
        prompts: Prompts of a round; ``auto`` spreads ``pairs.prompts`` over the rounds, so that a variant in rounds
            generates as much as one without.
        label: What labels the answers: ``reward``, or a judge (``lm:MODEL``, ``openai:NAME``), asked in both orders;
            a tie is a pair of weight 0. Verdicts are kept and not asked for twice.
        base_url: The address of the server of an ``openai`` judge.
        key_variable: The environment variable that holds its key.
        max_calls: Requests to it at most; none is sent beyond.
        reference: Whether log-ratios stay against the first policy, or are against the one that began the round.
    """

    count: Count = 0
    prompts: Positive | Literal["auto"] = "auto"
    label: Place = "reward"
    base_url: str = ""
    key_variable: str = "OPENAI_API_KEY"
    max_calls: Positive | None = None
    reference: Literal["first", "previous"] = "first"


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
        best_of: Further responses of the reference to each prompt, from which the reward of the best of n is read; 0
            reads it from the ``samples``.
        delta: Half-width of the band around "no difference" inside which two win rates count as equal.
        every: Optimizer steps between evaluations of samples while a run trains, each as long as that at its end; 0
            for none.
        validation_prompts: Prompts set apart to choose settings by, with as many held-out pairs as are kept to report
            on; where pairs are your own, half of the held-out prompts. 0 sets none apart; ``tune`` does.
        part: Which prompts and held-out pairs are asked: ``test``, or ``validation`` for those that were set apart.
    """

    prompts: Positive = 64
    samples: Positive = 4
    max_new_tokens: Positive = 24
    temperature: Annotated[float, Field(gt=0)] = 1.0
    best_of: Annotated[int, Field(ge=0, le=1024)] = 0
    delta: Annotated[float, Field(gt=0, lt=0.5)] = 0.02
    every: Count = 0
    validation_prompts: Count = 0
    part: Literal["test", "validation"] = "test"


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
    rounds: Rounds = Rounds()
    lora: Lora = Lora()
    train: Train = Train()
    evaluation: Evaluation = Evaluation()
    tune: Tune = Tune()
    variants: tuple[Variant, ...] = tuple(Variant(loss=name) for name in ("dpo", "cdpo", "simpo", "ipo", "noop"))

    @model_validator(mode="before")
    @classmethod
    def _tuples(cls, value: Any) -> Any:
        """Lists, which is what TOML has, to the tuples that frozen models hold; a sweep to its variants."""
        if isinstance(value, Mapping):
            value = {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
        if isinstance(value, Mapping) and isinstance(value.get("variants"), tuple):
            value = {
                **value,
                "variants": tuple(one for variant in value["variants"] for one in swept_variants(variant)),
            }
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        check_variants(self)
        check_task(self)
        for variant in self.variants:
            check_recipe(self, variant)
        check_tuning(self)
        return self

    def rounds_of(self, variant: Variant) -> int:
        """In how many rounds a variant makes its own data; 0 for none."""
        own = variant.recipe.rounds
        return self.rounds.count if own is None else own

    def prompts_of_round(self, count: int) -> int:
        """Prompts of one of so many rounds."""
        given = self.rounds.prompts
        return max(1, self.pairs.prompts // count) if given == "auto" else given

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
