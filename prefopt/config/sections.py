"""The sections on pairs that are sampled here: labelled once, or in rounds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from prefopt.config.strict import Count, Place, Positive, Seed, Strict


class Pairs(Strict):
    """Preference pairs made on-policy: responses of the reference, labelled by the gold reward.

    Attributes:
        prompts: Prompts that training pairs are made for.
        heldout_prompts: Prompts of held-out pairs.
        samples: Responses for each prompt; all their pairs are labelled.
        max_new_tokens: Longest response, in tokens.
        temperature: Sampling temperature.
        top_p: Only the most probable tokens that together have this probability are drawn; 1 for all.
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
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
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
