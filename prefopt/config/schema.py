"""What a comparison is: strict, frozen models of its settings, and their fingerprint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from prefopt.config.consistent import check_recipe, check_task, check_tuning, check_variants
from prefopt.config.open_settings import OpenSettings
from prefopt.config.sections import Pairs, Rounds
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
        chat_template: A file with the chat template to use in place of the tokenizer's own.
        adapter: A folder with a LoRA adapter of this model, merged into it: the reference and every policy start there.
    """

    name: Place = EMBEDDED_MODEL
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantization: Literal["none", "nf4", "int8"] = "none"
    chat_template: Place = ""
    adapter: Place = ""


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
        source: A local file (JSON, JSONL, CSV, TSV, Parquet, Arrow), a folder of them, a saved dataset, or a hub
            dataset ``org/name[@revision][:split]``.
        heldout: Held-out pairs, in the same forms; empty to split them off ``source`` by prompt.
        heldout_share: The share of prompts that is split off; by situation a tenth, more where that is too few.
        eval_prompts: Prompts to sample on, in the same forms; empty for those of the held-out pairs.
        on_bad_rows: ``refuse`` to stop at bad rows, ``drop`` to count and leave them out.
        max_length: Most tokens of prompt and response together; longer responses are cut and counted.
        max_prompt_length: Most tokens of a prompt; all but one of ``max_length`` where it is not set.
        cut_prompts: Cut longer prompts at their beginning, and count them, rather than refuse them. Without
            ``max_prompt_length`` to what the longer response leaves, but not below half of ``max_length``.
        merge_system: Put a system message that the chat template has no place for in front of the first user's.
        column_map: Names of your columns by ours, such as ``{prompt = "question"}``; ``-`` for one to leave out.
        dedup: Leave out rows that repeat an earlier one.
    """

    source: Place = ""
    heldout: Place = ""
    heldout_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    eval_prompts: Place = ""
    on_bad_rows: Literal["refuse", "drop"] = "refuse"
    max_length: Positive = 1024
    max_prompt_length: Positive | None = None
    cut_prompts: bool = False
    merge_system: bool = False
    column_map: dict[str, str] = Field(default_factory=dict)
    dedup: bool = False


class Sft(Strict):
    """The fine-tune of the base that makes the reference.

    Attributes:
        on: ``texts`` of the task, or the ``chosen`` responses of your pairs, as the DPO paper (section 4) does where
            pairs are not the model's own.
        steps: Optimizer steps; 0 uses the base itself. Where it is not given: 40 for the embedded model on its task, an
            epoch on chosen responses, and else 0.
        texts_per_step: Texts, or chosen responses, of one step.
        text_tokens: Tokens that a text is cut to.
        learning_rate: Of AdamW, falling linearly to zero; on chosen responses that of ``train`` by situation.
    """

    on: Literal["texts", "chosen"] = "texts"
    steps: Count | None = None
    texts_per_step: Positive = 12
    text_tokens: Positive = 64
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4


class Lora(Strict):
    """The adapter, one shape for every run.

    Attributes:
        rank: Of the two matrices that are trained beside each target.
        alpha: Their product is multiplied by alpha / rank.
        targets: Layers that get an adapter: ``all-linear``, or names as PEFT takes them.
        dropout: Share of the values of their inputs that adapters do not see while they are trained; which ones is the
            same for every variant.
    """

    rank: Positive = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    targets: str | list[str] = "all-linear"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Train(Strict):
    """The shared training loop.

    Attributes:
        steps: Optimizer steps; by situation as many as ``epochs`` are.
        epochs: Passes over the training pairs, instead of ``steps``; one by situation.
        pairs_per_step: Pairs of one optimizer step.
        learning_rate: Peak rate of AdamW; a loss's ``lr_scale`` multiplies it, a variant's own rate replaces it. By
            situation one for LoRA on a model of that size.
        warmup_steps: Steps in which the rate rises to its peak.
        schedule: What follows: ``constant``, or ``linear`` or ``cosine`` to zero.
        weight_decay: AdamW's decoupled decay.
        max_grad_norm: Each run's gradient is clipped to this norm.
        optimizer: ``adamw``, or bitsandbytes' ``adamw8bit`` or ``paged_adamw8bit``.
        micro_batch: Pairs of one forward pass, or ``auto``: as many as memory allows. Never changes the result but
            for rounding.
        stack: Adapters of one forward pass, or ``auto``: 1 on a CPU, as many as help on CUDA.
        checkpointing: Recompute activations in the backward pass: ``auto`` only where memory asks for it.
        eval_every: Steps between held-out evaluations; they also take place at step 0 and at the end. By situation an
            eighth of the steps, and at least 16.
        log_every: Steps between synchronisations with the device.
        checkpoint_every: Steps between checkpoints; there is one after the last step, too. ``auto`` takes one when
            a minute has passed since the last. Changes nothing in what a run computes.
    """

    steps: Positive = 48
    epochs: Annotated[float, Field(gt=0, le=1000)] | None = None
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
        prompts: Evaluation prompts: of texts that give no training or held-out pair, or, with your pairs, the held-out
            ones or those of ``data.eval_prompts``. By situation as many as it takes to see 5 points.
        samples: Responses for each prompt, seed and policy.
        max_new_tokens: Longest response, in tokens; by situation as long as 95 % of the chosen ones, and at most 512.
        temperature: Sampling temperature; the KL is that of the policy at temperature 1.
        best_of: Further responses of the reference to each prompt, from which the reward of the best of n is read; 0
            reads it from the ``samples``.
        top_p: Only the most probable tokens that together have this probability are drawn; 1 for all.
        stop: Texts that end a response, such as ``["\\nUser:"]``; none is part of it.
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
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    stop: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    delta: Annotated[float, Field(gt=0, lt=0.5)] = 0.02
    every: Count = 0
    validation_prompts: Count = 0
    part: Literal["test", "validation"] = "test"


class Config(Strict, OpenSettings):
    """A whole comparison; ``track`` names the experiment trackers that its finished runs are sent to.

    With pairs of the user's own, settings of ``SITUATIONAL`` that were not given are open until ``settle`` of
    ``config/situation.py`` has seen the pairs and the model; what they hold before is the embedded experiment's.
    """

    name: str = "imdb"
    seeds: tuple[Seed, ...] = (0, 1, 2)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    track: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ()
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
        if self.model.adapter:
            return 0
        return 40 if self.task.name == "imdb" and self.model.name == EMBEDDED_MODEL else 0

    def learning_rate(self, variant: Variant) -> float:
        """The peak learning rate that a variant trains with."""
        return variant.learning_rate or self.train.learning_rate * variant.build().lr_scale

    def fingerprint(self, *sections: str) -> str:
        """Hash of some sections, or of everything that is not a name, a device or a tracker."""
        whole = self.model_dump(mode="json", exclude={"name", "device", "track"})
        return digest({key: whole[key] for key in sections} if sections else whole)
