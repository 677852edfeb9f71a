"""Policies taken home: adapters load where they lie, cards say what they are, merged weights say the same."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import command
import pytest
import tiny
import torch
import transformers
from peft import AutoPeftModelForCausalLM

import prefopt
from prefopt.errors import IncompleteError, PrefoptError, UsageError
from prefopt.model.source import as_loaded
from prefopt.storage.results import ResultsFolder

IDS = torch.tensor([[5, 9, 17, 33, 60, 7, 8]])


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison whose base model was named by a path that holds from one folder only."""
    root = tmp_path_factory.mktemp("export")
    tiny.save(root / "model", "llama_tied")
    command.write_pairs(root / "pairs.jsonl")
    before = Path.cwd()
    os.chdir(root)
    try:
        prefopt.run(
            "compare", data="pairs.jsonl", model="model", losses=["dpo", "noop"], seeds=[0, 1], name="mine",
            results="results", device="cpu", quiet=True, in_process=True, settings=list(command.SHORT),
        )  # fmt: skip
    finally:
        os.chdir(before)
    return root / "results" / "mine"


def logps(folder: Path, kind: type = transformers.AutoModelForCausalLM) -> torch.Tensor:
    model = kind.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return model(input_ids=IDS).logits.log_softmax(-1)


def test_an_adapter_loads_where_it_lies_and_has_learnt(compared: Path) -> None:
    results = prefopt.load(compared)
    trained = logps(results.adapter("dpo", 0), AutoPeftModelForCausalLM)
    untouched = logps(results.adapter("noop", 0), AutoPeftModelForCausalLM)
    base = logps(compared.parent.parent / "model")
    assert torch.equal(untouched, base)
    assert (trained - base).abs().max() > 1e-3


def test_the_card_says_data_loss_settings_and_results(compared: Path) -> None:
    text = (compared / "runs" / "dpo" / "seed-0" / "adapter" / "README.md").read_text(encoding="utf-8")
    header = text.split("---")[1]
    assert "library_name: peft" in header
    assert "base_model" not in header, "a folder of this machine is no model of the hub's"
    for said in ("pairs.jsonl", "| loss | dpo |", "beta=0.1", "| steps | 3 |", "| LoRA rank | 4 |", "| seed | 0 |",
                 "AutoPeftModelForCausalLM", "| dpo | 1 |", "Nobody has judged it", "$ prefopt compare"):  # fmt: skip
        assert said in text, said


def test_a_card_changes_nothing_of_the_run_and_is_written_again(compared: Path) -> None:
    folder = ResultsFolder(compared)
    assert folder.complete("dpo", 0) is not None
    card = folder.run("dpo", 0) / "adapter" / "README.md"
    before = card.read_bytes()
    card.unlink()
    prefopt.load(compared).report()
    assert card.read_bytes() == before


def test_export_copies_the_adapter_with_its_card(compared: Path, tmp_path: Path) -> None:
    target = prefopt.export(compared, "dpo", seed=1, out=tmp_path / "deep" / "adapter")
    assert torch.equal(
        logps(target, AutoPeftModelForCausalLM),
        logps(prefopt.load(compared).adapter("dpo", 1), AutoPeftModelForCausalLM),
    )
    assert "# dpo, seed 1" in (target / "README.md").read_text()


def test_export_merges_whole_weights_that_need_nothing_else(compared: Path, tmp_path: Path) -> None:
    target = prefopt.export(compared, "dpo", seed=0, merge=tmp_path / "merged")
    assert list(target.glob("*.safetensors"))
    assert not list(target.glob("adapter*"))
    adapted = logps(prefopt.load(compared).adapter("dpo", 0), AutoPeftModelForCausalLM)
    torch.testing.assert_close(logps(target), adapted, atol=1e-4, rtol=0)
    assert transformers.AutoTokenizer.from_pretrained(target)("the cat")["input_ids"]
    card = (target / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "AutoModelForCausalLM" in card
    assert "peft" not in card.lower()


@pytest.mark.parametrize(
    ("variant", "options", "error", "message"),
    [
        ("dop", {"seed": 0}, UsageError, "has no variant 'dop'; did you mean dpo"),
        ("reference", {"seed": 0}, UsageError, "the reference is the model before training"),
        ("dpo", {"seed": 7}, UsageError, "has no seed 7; it has 0, 1"),
        ("dpo", {}, UsageError, "has the seeds 0, 1; name one with --seed"),
        ("dpo", {"seed": 0, "merge": "there"}, UsageError, "is there already"),
        ("dpo", {"seed": 0, "merge": "x", "out": "y"}, UsageError, "--out FOLDER for the adapter, or --merge"),
    ],
)
def test_what_cannot_be_exported_is_said(
    compared: Path, tmp_path: Path, variant: str, options: dict, error: type[PrefoptError], message: str
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    places = {key: tmp_path / value if isinstance(value, str) else value for key, value in options.items()}
    if "merge" not in places:
        places["out"] = tmp_path / "new"
    with pytest.raises(error, match=message):
        prefopt.export(compared, variant, **places)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]


def test_runs_without_a_policy_and_damaged_ones_are_said(compared: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(compared, root)
    folder = ResultsFolder(root)
    record = folder.runs()["dpo", 1]
    weights = folder.run("dpo", 0) / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0\0")
    with pytest.raises(UsageError, match=r"adapter_model.safetensors has other bytes than were written"):
        prefopt.export(root, "dpo", seed=0, out=tmp_path / "new")
    shutil.rmtree(weights.parent)
    with pytest.raises(UsageError, match="adapter is missing: the comparison was published without it"):
        prefopt.export(root, "dpo", seed=0, out=tmp_path / "new")
    config = folder.run("noop", 0) / "adapter" / "adapter_config.json"
    facts = json.loads(config.read_text())
    shutil.rmtree(folder.run("dpo", 1))
    with pytest.raises(IncompleteError, match="dpo, seed 1, has not run yet; seeds that finished: 0"):
        prefopt.export(root, "dpo", seed=1, out=tmp_path / "new")
    assert record.is_complete
    assert Path(facts["base_model_name_or_path"]).is_absolute()
    assert not (tmp_path / "new").exists()


def test_a_base_that_is_gone_is_said(compared: Path, tmp_path: Path) -> None:
    model = compared.parent.parent / "model"
    model.rename(model.with_name("moved"))
    try:
        with pytest.raises(PrefoptError, match=r"its base model .*model is not there any more; put it back"):
            prefopt.export(compared, "dpo", seed=0, merge=tmp_path / "merged")
    finally:
        model.with_name("moved").rename(model)
    assert not (tmp_path / "merged").exists()


def test_a_hubs_snapshot_is_called_by_name_and_commit(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "hub" / "models--org--a-name" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    assert as_loaded(str(snapshot)) == ("org/a-name", commit)
    assert as_loaded(str(tmp_path)) == (str(tmp_path.resolve()), "")
