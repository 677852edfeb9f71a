"""What a loss of somebody else's does while it runs stays in its run: the others' results are equal to the byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from command import arguments, run, tree
from misbehaving import plugin

from prefopt.storage.results import ResultsFolder

# Name: (what it does, how its run ends; empty where that is harmless to all).
ACTS = {
    "tame": ("pass", ""),
    "clamps": ("logps.ref_chosen.clamp_(min=-1.0)", "LossError: it writes into its inputs (ref_chosen)"),
    "lengths": ("logps.chosen_len.add_(1)", "LossError: it writes into its inputs (chosen_len)"),
    "policy": ("logps.chosen.detach().zero_()", "LossError: it writes into its inputs (chosen)"),
    "behind": ("logps.ref_rejected.numpy()[:] = 0", ""),
    "no_grad": ("torch.set_grad_enabled(False)", ""),
    "double": ("torch.set_default_dtype(torch.float64)", ""),
    "threads": ("torch.set_num_threads(3); torch.use_deterministic_algorithms(False)", ""),
    "dice": ("torch.manual_seed(9); numpy.random.seed(9); random.seed(9)", ""),
    "python": ("warnings.simplefilter('error'); gc.disable(); os.environ['HF_HOME'] = '/'; sys.path.clear()", ""),
    "signals": ("signal.signal(signal.SIGTERM, signal.SIG_IGN); os.chdir('/')", ""),
    "refuses": ("raise DataError('mine')", "LossError: DataError: mine"),
    "leaves": ("sys.exit(3)", "LossError: SystemExit: 3"),
    "leaves_hard": ("os._exit(3)", "LossError: it ends the process: os._exit(3)"),
    "interrupts": ("raise KeyboardInterrupt", "LossError: KeyboardInterrupt"),
    "doubles": ("warnings.simplefilter('ignore'); os.fork()", ""),
    "chatters": ("print('x' * 9999); os.write(1, b'raw'); sys.__stderr__.write('y'); os.system('echo z')", ""),
    "hoards": ("bytearray(1 << 62)", "MemoryError: "),
    "odd_text": ("raise ValueError('\\ud800' + 'x' * 10**6)", "LossError: ValueError: \\ud800xxx"),
    "column": ("return loss.unsqueeze(1)", "LossError: the loss has shape (4, 1); (4,) is wanted"),
    "wide": ("return loss.double()", "LossError: the loss has type torch.float64; torch.float32 is wanted"),
}


def of(root: Path, *variants: str) -> dict[str, bytes]:
    return {name: data for name, data in tree(root).items() if name.split("/")[1:2] and name.split("/")[1] in variants}


def test_hostile_losses_beside_dpo_and_ipo(
    tmp_path: Path,
    tiny_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hostile = tmp_path / "hostile.py"
    hostile.write_text(plugin({name: act for name, (act, _) in ACTS.items()}), encoding="utf-8")
    common = ("--seeds", "0", "--quiet", "--plugin", str(hostile))
    harmless = [name for name, (_, reason) in ACTS.items() if not reason]

    def compare(name: str, losses: str) -> int:
        words = arguments(tmp_path, tiny_folder("llama"), "--losses", losses, *common, "--name", name)
        return run(monkeypatch, words)

    assert compare("good", "dpo,ipo") == 0, capsys.readouterr().err
    assert compare("mixed", ",".join(["dpo", *ACTS, "ipo"])) == 4
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    good, mixed = (tmp_path / "results" / name for name in ("good", "mixed"))
    assert of(good, "dpo", "ipo", "reference")
    assert of(mixed, "dpo", "ipo", "reference") == of(good, "dpo", "ipo", "reference")
    runs = ResultsFolder(mixed).runs()
    for name, (_, reason) in ACTS.items():
        if reason:
            assert runs[name, 0].status == "failed", name
            assert runs[name, 0].reason.startswith(reason), runs[name, 0].reason
            assert len(runs[name, 0].reason) < 500
    # Losses that only tried to change what others share trained as the one that tries nothing.
    adapter = Path("adapter") / "adapter_model.safetensors"
    tame = (ResultsFolder(mixed).run("tame", 0) / adapter).read_bytes()
    for name in harmless:
        assert (ResultsFolder(mixed).run(name, 0) / adapter).read_bytes() == tame, name
