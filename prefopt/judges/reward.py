"""Judges of single responses: a task's gold reward, and reward models with a classification head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers

from prefopt.errors import MachineError, UsageError
from prefopt.judges.contract import Floats, short_name
from prefopt.model.checks import check_folder, check_loaded, first_line
from prefopt.model.scalar import scored_ids
from prefopt.model.source import local_folder
from prefopt.runtime.device import pick_dtype
from prefopt.storage.hashing import digest, sha256_file
from prefopt.storage.schema import ORACLE
from prefopt.tasks.base import Prompt, Task

TOKENS_PER_BATCH = 8192


class OracleJudge:
    """The gold reward of a task: exact and free, and right about what the task rewards and about nothing else.

    Raises:
        UsageError: If the task has none.
    """

    def __init__(self, task: Task) -> None:
        if not task.has_reward:
            raise UsageError(f"--judge oracle: the task {task.name} has no gold reward; name another judge")
        self.task = task
        self.name = ORACLE
        self.fingerprint = digest([ORACLE, task.name, task.fingerprint])

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> Floats:
        """(N,) gold rewards."""
        return self.task.reward(prompts, responses)

    def facts(self) -> dict[str, object]:
        """How far the reward can be trusted, by its task."""
        return {f"reward {key}": float(value) for key, value in self.task.reward_report().items()}


class RewardModelJudge:
    """A sequence-classification reward model with one output.

    Prompt and response are put through the tokenizer's chat template, as a user's message and the assistant's, and
    where it has none they are joined as they are. Texts longer than the model's window lose the start of the prompt.

    Args:
        model: A local folder or a hub id.
        device: Where it runs.

    Raises:
        MachineError: If it cannot be had, or has more than one output.
    """

    def __init__(self, model: str, *, device: torch.device, trained_here: bool = False) -> None:
        folder = local_folder(model)
        check_folder(model, Path(folder))
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            self.model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
                folder,
                dtype=pick_dtype("auto", device),
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
        except Exception as problem:  # whatever a damaged or hostile folder makes a dozen libraries raise
            raise MachineError(f"reward model {model}: cannot be loaded: {first_line(problem)}") from None
        check_loaded(model, self.model, self.tokenizer, info)
        outputs = int(self.model.config.num_labels)
        if outputs != 1:
            raise MachineError(f"reward model {model}: has {outputs} outputs; a reward model has one")
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self.model.eval().requires_grad_(False).to(device)
        self.device = device
        self.name = f"{'bt' if trained_here else 'rm'}:{short_name(model)}"
        self.hash = weights_hash(folder, self.model)
        self.window = int(getattr(self.model.config, "max_position_embeddings", 0) or 4096)
        self.fingerprint = digest(["rm", self.hash, str(self.model.dtype), self.tokenizer.chat_template or ""])

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Floats:
        """(N,) raw rewards; their differences, through a sigmoid, are the model's win probabilities."""
        rows = self._tokens(prompts, responses)
        out = np.empty(len(rows))
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        start = 0
        while start < len(order):
            size = max(1, TOKENS_PER_BATCH // len(rows[order[start]]))
            batch = order[start : start + size]
            out[batch] = self._forward([rows[i] for i in batch])
            start += size
        if not np.isfinite(out).all():
            raise MachineError(f"{self.name}: {int((~np.isfinite(out)).sum())} of {len(out)} rewards are not finite")
        return out

    def facts(self) -> dict[str, object]:
        """Its weights."""
        return {"weights": self.hash, "dtype": str(self.model.dtype).removeprefix("torch.")}

    def _tokens(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[list[int]]:
        rows = scored_ids(prompts, responses, self.tokenizer)
        return [ids[-self.window :] or [self.tokenizer.pad_token_id] for ids in rows]

    @torch.inference_mode()
    def _forward(self, rows: list[list[int]]) -> Floats:
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.tokenizer.pad_token_id)
        seen = torch.zeros_like(ids)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            seen[row, : len(tokens)] = 1
        # A head that looks for the last token that is not padding would miss an end token that doubles as padding,
        # so rows of one length go together and none is padded where the two are the same.
        if self.tokenizer.pad_token_id == self.tokenizer.eos_token_id and len({len(r) for r in rows}) > 1:
            return np.concatenate([self._forward([row]) for row in rows])
        logits = self.model(input_ids=ids.to(self.device), attention_mask=seen.to(self.device)).logits
        values: Floats = logits.float().squeeze(-1).cpu().double().numpy()
        return values


def weights_hash(folder: str, model: torch.nn.Module) -> str:
    """Hash of the weights in a local folder, or of a hub model's parameters."""
    files = sorted(Path(folder).glob("*.safetensors")) if Path(folder).is_dir() else []
    if files:
        return digest([sha256_file(file) for file in files])
    return digest([[name, tuple(p.shape), float(p.double().sum())] for name, p in model.named_parameters()])
