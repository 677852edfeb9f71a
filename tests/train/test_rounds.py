"""Rounds: the prompts and the order of each, bytes that neither a kill nor companions change, and failures alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from command import SHORT, tree, without_report
from command import run as command
from training import LORA, pair_set, scored

from prefopt.config.load import load
from prefopt.config.schema import Train
from prefopt.data.builders import Builder, Labelling, make_builder
from prefopt.errors import UsageError
from prefopt.losses import make_loss
from prefopt.model.adapted import AdaptedModel
from prefopt.model.base import Base
from prefopt.runtime.interrupts import Stopped
from prefopt.runtime.progress import Silent
from prefopt.storage.results import ResultsFolder
from prefopt.tasks.rewards import RewardError
from prefopt.train.checkpoint import Checkpoints
from prefopt.train.loop import train_group
from prefopt.train.rounds import OnPolicy, Plan, from_frame, order_of_step, prompts_of_round
from prefopt.train.state import Run

PLAN = Plan(
    steps=2, prompts=3, samples=3, max_new_tokens=5, temperature=1.0, reference="first",
    labelling=Labelling("argmax", 1.0), pairs_per_step=4, seed=0,
)  # fmt: skip
CONFIG = Train(
    steps=4, pairs_per_step=4, learning_rate=1e-2, warmup_steps=1, eval_every=4, log_every=1, checkpoint_every=1
)
VARIANTS = (("dpo", "best-worst"), ("rloo", "all"), ("grpo", "all"))


def test_the_prompts_of_all_rounds_go_through_all_of_them_evenly() -> None:
    stream = [prompts_of_round(PLAN, number, 7) for number in range(7)]
    assert all(len(part) == 3 for part in stream)
    assert set(Counter(i for part in stream for i in part).values()) == {3}
    assert stream != [prompts_of_round(PLAN, 0, 7)] * 7


def test_a_step_takes_each_pair_of_its_round_as_often_as_any_other() -> None:
    steps = [order_of_step(PLAN, 5, within, 3, 4) for within in range(3)]
    assert set(Counter(i for step in steps for i in step).values()) == {4}
    assert order_of_step(PLAN, 6, 0, 8, 4) != order_of_step(PLAN, 5, 0, 8, 4)


def vowels(which: Sequence[int], responses: Sequence[str]) -> npt.NDArray[np.float64]:
    return np.array([sum(c in "aeiou" for c in r) / (1 + len(r)) for r in responses])


class Trial:
    """A few runs in two rounds, in a folder of their own, which can be stopped and gone on with."""

    def __init__(self, base: Base, folder: Path, variants: Sequence[tuple[str, str]], plan: Plan = PLAN) -> None:
        self.model = AdaptedModel.wrap(base, LORA, size=len(variants) + 1)
        self.folder, self.variants, self.plan = folder, variants, plan
        self.heldout = pair_set(base, scored(4, 2))
        self.scores = [vowels] * len(variants)

    def go(self, *, stop_after: int | None = None) -> list[Run]:
        bank = self.model.adapters
        bank.params.zero_()
        runs = [Run(f"{slot}", make_loss(loss), 1e-2, slot) for slot, (loss, _) in enumerate(self.variants)]
        builders: dict[int, Builder] = {slot: make_builder(name, {}) for slot, (_, name) in enumerate(self.variants)}
        feed = OnPolicy(
            model=self.model,
            prompts=[(1, 5 + i, 9) for i in range(7)],
            score=dict(enumerate(self.scores)),
            plans={run.slot: self.plan for run in runs},
            builders=builders,
            path=lambda slot, number: self.folder / str(slot) / f"round-{number:06}-key.sealed",
        )
        keepers = {slot: Checkpoints(self.folder / str(slot), {"run": slot}) for slot in builders}
        for run in runs:
            bank.initialise(run.slot, 0)
            steps = [step for step in keepers[run.slot].look() if feed.can_continue(run.slot, step)]
            if steps:
                keepers[run.slot].restore(steps[0], run, bank, CONFIG)
            feed.forget_after(run.slot, run.counters.step)
        listener = Stopper(stop_after)
        try:
            train_group(
                self.model, runs, feed=feed, heldout=self.heldout, config=CONFIG, seed=0, progress=listener,
                keepers=keepers,
            )  # fmt: skip
        except Stopped:
            assert stop_after is not None
        return runs

    def adapters(self) -> list[torch.Tensor]:
        return list(self.model.adapters.params.clone())


class Stopper(Silent):
    """Ends the process's work once a step is told of, when its checkpoints are written."""

    def __init__(self, after: int | None) -> None:
        self.after = after

    def step(self, text: str, done: int, total: int, values: object) -> None:
        if done == self.after:
            raise Stopped(15)


@pytest.fixture(scope="module")
def base(tiny_folder: Callable[[str], Path]) -> Callable[[], Base]:
    from prefopt.model.base import load_base

    return lambda: load_base(str(tiny_folder("llama")), dtype="float32", device=torch.device("cpu"))


@pytest.fixture(scope="module")
def whole(base: Callable[[], Base], tmp_path_factory: pytest.TempPathFactory) -> list[torch.Tensor]:
    """The adapters of runs that nothing has interrupted."""
    trial = Trial(base(), tmp_path_factory.mktemp("whole"), VARIANTS)
    assert [run.outcome.reason for run in trial.go()] == ["", "", ""]
    return trial.adapters()


@pytest.mark.parametrize("steps", [2, 3])  # between the two rounds, and inside the second
def test_a_run_goes_on_in_the_same_bytes(
    steps: int, base: Callable[[], Base], whole: list[torch.Tensor], tmp_path: Path
) -> None:
    Trial(base(), tmp_path, VARIANTS).go(stop_after=steps)
    assert len(list(tmp_path.rglob("round-*"))) == 3 * (1 if steps < 3 else 2)
    again = Trial(base(), tmp_path, VARIANTS)
    assert {run.counters.step for run in again.go()} == {4}
    assert all(torch.equal(a, b) for a, b in zip(again.adapters(), whole, strict=True))


def test_without_its_responses_a_run_goes_back_to_where_it_can_go_on(
    base: Callable[[], Base], whole: list[torch.Tensor], tmp_path: Path
) -> None:
    Trial(base(), tmp_path, VARIANTS).go(stop_after=3)
    for path in tmp_path.rglob("round-000001-*"):
        path.write_bytes(path.read_bytes()[:-20])
    again = Trial(base(), tmp_path, VARIANTS)
    again.go()
    assert all(torch.equal(a, b) for a, b in zip(again.adapters(), whole, strict=True))


def test_companions_change_nothing(base: Callable[[], Base], whole: list[torch.Tensor], tmp_path: Path) -> None:
    for slot, variant in ((0, VARIANTS[0]), (2, VARIANTS[2])):
        alone = Trial(base(), tmp_path / str(slot), [variant])
        alone.go()
        assert torch.equal(alone.adapters()[0], whole[slot])


def test_a_reward_that_fails_in_a_round_ends_that_run_alone(
    base: Callable[[], Base], whole: list[torch.Tensor], tmp_path: Path
) -> None:
    asked = Counter[str]()

    def tired(which: Sequence[int], responses: Sequence[str]) -> npt.NDArray[np.float64]:
        asked["rounds"] += 1
        if asked["rounds"] == 2:
            raise RewardError("reward mine.py:f: raised ValueError: tired")
        return vowels(which, responses)

    trial = Trial(base(), tmp_path, VARIANTS)
    trial.scores[1] = tired
    runs = trial.go()
    assert "RewardError: reward mine.py:f: raised ValueError: tired" in runs[1].outcome.reason
    assert runs[1].counters.step == 2
    assert [runs[i].outcome.reason for i in (0, 2)] == ["", ""]
    assert all(torch.equal(trial.adapters()[i], whole[i]) for i in (0, 2))


def test_the_reference_may_move(base: Callable[[], Base], whole: list[torch.Tensor], tmp_path: Path) -> None:
    moved = Trial(base(), tmp_path, VARIANTS[:2], replace(PLAN, reference="previous"))
    moved.go()
    assert not torch.equal(moved.adapters()[0], whole[0])
    assert not torch.equal(moved.adapters()[1], whole[1])


BAD = {
    "dpo@rsoo": "did you mean rso", "dpo@3rounds": "cannot be parted into 3 rounds", "rloo@rso": "takes all responses",
    "dpo@rso@best": "two builders", "dpo@offpolicy": "needs pairs.offpolicy", "dpo@rso[accept=8]": "pairs.samples",
}  # fmt: skip


@pytest.mark.parametrize("loss", BAD)
def test_bad_recipes_are_one_line(loss: str) -> None:
    with pytest.raises(UsageError, match=BAD[loss]) as problem:
        load(None, {"train.steps": 4, "variants": [{"loss": loss}]})
    assert "\n" not in str(problem.value)


def test_other_things_that_do_not_go_together() -> None:
    rounds = [{"loss": "tdpo@2rounds"}]
    for more, said in (
        ({"variants": rounds, "rounds.reference": "previous"}, "token by token"),
        ({"variants": rounds, "rounds.prompts": 500}, "cannot have more prompts"),
        ({"variants": [{"loss": "rloo"}], "pairs.label_noise": 0.1}, "cannot flip"),
        ({"variants": [{"loss": "dpo", "reward": "imdb"}]}, "scores what it says in rounds"),
        ({"variants": [{"loss": "dpo@best"}, {"loss": "dpo@best-worst", "label": "x"}]}, "the same experiment"),
        ({"variants": [{"loss": "dpo@2rounds"}, {"loss": "dpo@2rounds", "label": "x"}]}, "the same experiment"),
    ):
        with pytest.raises(UsageError, match=said):
            load(None, {"train.steps": 4, **more})
    named = load(None, {"variants": [{"loss": "sft@best"}, {"loss": "ipo[tau=0.2]@1round"}]}).variants
    assert [variant.name for variant in named] == ["sft@best-worst", "ipo[tau=0.2]@1round"]


def test_a_whole_pipeline_and_its_evidence(
    tmp_path: Path,
    tiny_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    without_report(monkeypatch)
    prompts, reward, other = tmp_path / "prompts.jsonl", tmp_path / "mine.py", tmp_path / "other.jsonl"
    rows = [{"prompt": f"the {('cat', 'dog', 'rat', 'hen')[i % 4]} {i} sat"} for i in range(16)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = "def {}(prompts, responses):\n    return [sum(c in '{}' for c in r) / (1 + len(r)) for r in responses]\n"
    reward.write_text(source.format("f", "aeiou") + source.format("g", "xyzt"), encoding="utf-8")
    pairs = [{"prompt": f"a hen {i}", "chosen": " on a mat", "rejected": f" off {i}"} for i in range(6)]
    other.write_text("".join(json.dumps(row) + "\n" for row in pairs), encoding="utf-8")
    named = {
        "dpo": "dpo", "rso": "dpo@rso", "iterated": "dpo@best-worst@2rounds", "listwise": "dpo_pl", "raft": "sft@best",
        "grpo": "grpo@2rounds", "rl": "rloo@4rounds", "proxy": "rloo@4rounds", "off": "dpo@offpolicy",
    }  # fmt: skip
    toml = "".join(f'[[variants]]\nlabel = "{name}"\nloss = "{loss}"\n' for name, loss in named.items())
    toml = toml.replace('label = "proxy"\n', f'label = "proxy"\nreward = "{reward}:g"\n')
    (tmp_path / "c.toml").write_text(toml, encoding="utf-8")
    sizes = ("pairs.prompts=8", "pairs.heldout_prompts=3", "pairs.samples=4", "pairs.max_new_tokens=6", "train.steps=4")
    settings = [word for s in (*SHORT[1:], *sizes, f"pairs.offpolicy={other}") for word in ("--set", s)]
    words = [
        "compare", str(tmp_path / "c.toml"), "--prompts", str(prompts), "--reward", f"{reward}:f", "--model",
        str(tiny_folder("llama")), "--name", "mine", "--results", str(tmp_path / "results"), "--device", "cpu",
        "--seeds", "0", "--quiet", *settings,
    ]  # fmt: skip
    assert command(monkeypatch, words) == 0, capsys.readouterr().err
    folder = ResultsFolder(tmp_path / "results" / "mine")
    runs = folder.runs()
    assert {name for name, _ in runs} == {*named, "reference"}
    assert len({runs[name, 0].conditions.stream for name in named}) == 1
    orders = {name: runs[name, 0].conditions.pair_order for name in named}
    assert [name for name, order in orders.items() if order is not None] == ["dpo"]
    rounds = {name: runs[name, 0].conditions.rounds for name in named}
    assert rounds["iterated"] == rounds["grpo"] != rounds["rl"] == rounds["proxy"]
    facts = {v["variant"]: v for v in folder.manifest().variants}
    assert facts["iterated"]["generations"] == facts["rso"]["generations"] == 32
    assert "generations" not in facts["dpo"]
    adapters = [tree(folder.run(name, 0) / "adapter")["adapter_model.safetensors"] for name in named]
    assert len(set(adapters)) == len(named)
    assert not list((folder.root / "runs").rglob("round-*"))


def test_a_round_survives_its_file() -> None:
    frame = pd.DataFrame(
        {
            "group": [0, 0], "prompt_id": [4, 4], "prompt_ids": [[1, 5]] * 2, "tokens": [[3], [4, 2]],
            "finished": [False, True], "reward": [0.5, 1.0], "preference": [0.5, 1.0],
            "reference": np.array([-1, -2], dtype=np.float32), "behaviour": [[-1.0], [-1.5, -0.5]],
        }
    )  # fmt: skip
    back = from_frame(frame)
    assert back.groups[0].responses == ((3,), (4, 2))
    assert [values.tolist() for values in back.behaviour[0]] == [[-1.0], [-1.5, -0.5]]
