"""``run.json`` and ``manifest.json`` as values that read and write themselves: the schema of both files."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from prefopt.errors import UsageError
from prefopt.storage.conditions import Conditions

Facts = Mapping[str, Any]
Status = Literal["complete", "diverged", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What ``run.json`` says of one run, and what ``cost.json`` beside it says.

    A diverged run has its history and its adapter as it was before the step that was not taken; a failed one has
    nothing, and the next invocation tries it again.

    Attributes:
        variant: The variant's name, or "reference".
        seed: The seed.
        status: What became of the run; earlier versions wrote records of complete runs alone.
        diverged_at: The step at which something was not finite.
        reason: Why it diverged or failed, in words.
        files: SHA-256 of the run's files, by path below its folder.
        key: What the run is, before anything is loaded: hashes of settings, code, packages and device, and the loss.
        conditions: What must be equal for all variants of the seed.
        loss: The loss and its hyperparameters; empty for the reference and for a failed run.
        learning_rate: Of the run; None as ``loss``.
        steps: Optimizer steps taken; None as ``loss``.
        diversity: distinct1, distinct2 and compression of its samples; None for a failed run.
        neutral: Of plain sentences: tokens, logps and ref_logps of each (nats, summed); empty where not measured.
        cost: From ``cost.json``: train_s, evaluate_s, sample_s, pairs, tokens, pairs_per_s, tokens_per_s and
            peak_memory_gib. Earlier versions kept them in ``run.json``.
        more: Fields that this version does not know.
    """

    variant: str
    seed: int
    status: Status = "complete"
    diverged_at: int | None = None
    reason: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    key: Facts = field(default_factory=dict)
    conditions: Conditions = field(default_factory=Conditions)
    loss: Facts = field(default_factory=dict)
    learning_rate: float | None = None
    steps: int | None = None
    diversity: Mapping[str, float] | None = None
    neutral: Mapping[str, Sequence[float]] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    more: Facts = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether it trained to the end and was evaluated."""
        return self.status == "complete"

    @property
    def has_numbers(self) -> bool:
        """Whether it is complete or diverged: it has numbers, and is not tried again."""
        return self.status != "failed"

    @classmethod
    def from_dict(cls, value: Facts, path: Path) -> RunRecord:
        """A record from the content of ``path``.

        Raises:
            UsageError: If it is not of the folder it lies in, or a field is not what it must be.
        """
        own, place = (value.get("variant"), f"seed-{value.get('seed')}"), (path.parent.parent.name, path.parent.name)
        if own != place:
            raise UsageError(f"{path} is of {'/'.join(map(str, own))}: folders of runs keep their names; move it back")
        known = _known(cls, value, path)
        if known.get("status", "complete") not in get_args(Status):
            raise _damaged(path, f"status is {known['status']!r}")
        conditions = Conditions.from_dict(known.pop("conditions", {}))
        return cls(**{**known, "seed": int(value["seed"])}, conditions=conditions)

    def as_dict(self) -> dict[str, Any]:
        """What ``run.json`` holds, before it is sealed."""
        always = {name: getattr(self, name) for name in ("variant", "seed", "status", "diverged_at", "reason", "files")}
        if self.diversity is not None:
            always["diversity"] = self.diversity
        where_known = {
            "key": self.key,
            "conditions": self.conditions.as_dict(),
            "loss": self.loss,
            "learning_rate": self.learning_rate,
            "steps": self.steps,
            "neutral": self.neutral,
        }
        return {**self.more, **always, **{k: v for k, v in where_known.items() if v is not None and v != {}}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What ``manifest.json`` says of a comparison: all that it was made of.

    Attributes:
        schema: The version of the files' layout; what the first one wrote is not sealed.
        name: The comparison's.
        prefopt_version: That of the package that wrote it.
        created: When, in UTC.
        command: The words of the command line; one text in some earlier folders.
        earlier_commands: The command lines that made what is there beside the command's own variants and seeds.
        commit: Of the checkout, if it was one.
        config: The resolved configuration.
        by_situation: Settings that were not given but follow from pairs and model, with the reason of each.
        seeds: Planned seeds.
        variants: For each planned variant: variant, loss, family, spec, source, summary, needs_reference,
            length_normalized, batch_coupled, learning_rate, seeds (in folders of earlier versions all of them).
        model: name, revision, hash, dtype, parameters, packed, why_plain.
        reference: sft_steps, hash.
        task: name, reward, reward_accuracy, reward_figures, label_accuracy, fingerprint.
        data: train_pairs, heldout_pairs, evaluation_prompts, samples_per_prompt, truncated_chosen, truncated_rejected,
            dropped_rows, and what was counted in the user's own file.
        step: How an optimizer step was fitted to the machine.
        hashes: Of the pairs, of their reference log-probabilities, and of the code.
        packages: Versions.
        device: kind, name, threads.
        code_files: Hashes of the sources one by one; None in folders of earlier versions.
        data_files: Hashes of the user's files; None in folders of earlier versions.
        determinism: Whether a few steps trained twice were equal, and what is promised.
        more: Fields that this version does not know.
    """

    schema: int = 1
    name: str = ""
    prefopt_version: str = "?"
    created: str = ""
    command: tuple[str, ...] | str = ()
    earlier_commands: tuple[str, ...] = ()
    commit: str | None = None
    config: Facts = field(default_factory=dict)
    by_situation: Mapping[str, str] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    variants: tuple[Facts, ...] = ()
    model: Facts = field(default_factory=dict)
    reference: Facts = field(default_factory=dict)
    task: Facts = field(default_factory=dict)
    data: Facts = field(default_factory=dict)
    step: Facts = field(default_factory=dict)
    hashes: Facts = field(default_factory=dict)
    packages: Facts = field(default_factory=dict)
    device: Facts = field(default_factory=dict)
    code_files: Mapping[str, str] | None = None
    data_files: Mapping[str, str] | None = None
    determinism: Facts | str | None = None
    more: Facts = field(default_factory=dict)

    @property
    def variant_names(self) -> tuple[str, ...]:
        """Planned variants, in order."""
        return tuple(str(entry["variant"]) for entry in self.variants)

    def planned_seeds(self, variant: str) -> tuple[int, ...]:
        """The seeds that a variant was planned at; none for one that was not planned."""
        entry = next((entry for entry in self.variants if entry["variant"] == variant), {"seeds": ()})
        return tuple(int(seed) for seed in entry.get("seeds", self.seeds))

    @property
    def command_line(self) -> str:
        """The command as it can be typed."""
        return self.command if isinstance(self.command, str) else shlex.join(self.command)

    @classmethod
    def from_dict(cls, value: Facts, path: Path) -> Manifest:
        """A manifest from the content of ``path``.

        Raises:
            UsageError: If a field is not what it must be.
        """
        known = _known(cls, value, path, schema=value.get("schema", 1))
        for name, kind in (("command", str), ("earlier_commands", str), ("seeds", int)):
            if isinstance(known.get(name), list):
                known[name] = tuple(map(kind, known[name]))
        known["variants"] = tuple(known.get("variants", ()))
        if not all(isinstance(entry, dict) and "variant" in entry for entry in known["variants"]):
            raise _damaged(path, "one of variants has no name")
        return cls(**known)

    def as_dict(self) -> dict[str, Any]:
        """What ``manifest.json`` holds, before it is sealed."""
        newer = ("earlier_commands", "by_situation")  # a folder of before has neither, and stays as it is
        left_out = {"more", *(name for name in newer if not getattr(self, name))}
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out}
        lists = {name: list(own[name]) for name in _LISTS if isinstance(own.get(name), tuple)}
        return {**self.more, **{name: value for name, value in own.items() if value is not None}, **lists}


def check_conditions(runs: Mapping[tuple[str, int], RunRecord]) -> None:
    """Refuse to compare variants that differ, at one seed, in anything but the loss.

    Raises:
        UnequalConditions: As ``Conditions.require_equal``.
    """
    first: dict[int, RunRecord] = {}
    for (variant, seed), run in sorted(runs.items(), key=lambda item: item[0]):
        if run.has_numbers:
            other = first.setdefault(seed, run)
            other.conditions.require_equal(run.conditions, seed=seed, own=other.variant, others=variant)


_LISTS = ("command", "earlier_commands", "seeds", "variants")
# What a field of either file must be, by its name, and what the refusal calls that.
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    **dict.fromkeys(
        ("files", "key", "conditions", "loss", "diversity", "neutral", "cost", "config", "by_situation", "model",
         "reference", "task", "data", "step", "hashes", "packages", "device", "code_files", "data_files"),
        ((dict,), "a JSON object"),
    ),
    **dict.fromkeys(("seeds", "variants", "earlier_commands"), ((list,), "a list")),
    **dict.fromkeys(("diverged_at", "steps"), ((int, type(None)), "a whole number or null")),
    "command": ((list, str), "a list of words"),
}  # fmt: skip


def _known(cls: type, value: Facts, path: Path, **more: Any) -> dict[str, Any]:
    """The fields of ``value`` that a class has, checked, and the others as ``more``."""
    names = {f.name for f in fields(cls)} - {"more"}
    for name, (kinds, wanted) in _KINDS.items():
        if name in names and name in value and not isinstance(value[name], kinds):
            raise _damaged(path, f"{name} is not {wanted}")
    rest = {name: item for name, item in value.items() if name not in names and name not in ("schema", "sha256")}
    return {**{name: value[name] for name in names & value.keys()}, **more, "more": rest}


def _damaged(path: Path, problem: str) -> UsageError:
    return UsageError(f"{path} is damaged: {problem}; move it away and run the comparison again")
