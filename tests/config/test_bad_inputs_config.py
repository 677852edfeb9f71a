"""Bad settings, names, folders and plugins through the whole command: one line, exit status 2, an untouched folder."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from bad_inputs import ROWS, Command, compare, jsonl

from prefopt.config.load import load, parse_seeds, parse_value
from prefopt.storage.formats import write_json


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    (tmp_path / "pairs.jsonl").write_bytes(jsonl(ROWS))
    return Command(tmp_path, monkeypatch, capsys)


# id: (content of x.toml, what must be said)
FILES: dict[str, tuple[str | bytes, tuple[str, ...]]] = {
    "C01": ('[train]\nlearning_rate = "1e-5"\n', ("x.toml: train.learning_rate: Input should be a valid number",)),
    "C02 no": ("name = no\n", ("x.toml cannot be read as TOML: Invalid value (at line 1, column 8)",)),
    "C02 octal": ("seeds = [010]\n", ("x.toml cannot be read as TOML", "at line 1")),
    "C02 time": ("seeds = [12:30:45]\n", ("x.toml: seeds.0: Input should be a valid integer",)),
    "C02 bool": ("seeds = [true]\n", ("x.toml: seeds.0: Input should be a valid integer; got True",)),
    "C03": ("[train]\nsteps = 3\nsteps = 4\n", ("x.toml cannot be read as TOML: Cannot overwrite a value", "line 3")),
    "C03 table": ("[train]\n[train]\n", ("x.toml cannot be read as TOML: Cannot declare", "line 2")),
    "C04": ("name: !!python/object/apply:os.system ['touch executed']\n", ("x.toml cannot be read as TOML",)),
    "C05 bomb": ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", ("x.toml cannot be read as TOML",)),
    "C05 size": ("# " + "x" * 1_000_001, ("x.toml is over 1 MB",)),
    "C05 nest": ("name = " + "[" * 5000 + "]" * 5000, ("x.toml cannot be read as TOML: it is nested too deeply",)),
    "C05 depth": ("name = " + "[" * 30 + "]" * 30, ("x.toml: values are nested more than 20 deep",)),
    "C05 keys": (".".join("a" * 30) + " = 1", ("x.toml: values are nested more than 20 deep",)),
    "C05 digits": ("seeds = [" + "9" * 5000 + "]", ("x.toml cannot be read as TOML",)),
    "C06": ("[train]\nlerning_rate = 1e-3\n", ("x.toml: unknown key train.lerning_rate; did you mean learning_rate?",)),
    "C06 top": ("sedes = [1]\n", ("x.toml: unknown key sedes; did you mean seeds?",)),
    "C06 variant": (
        '[[variants]]\nloss = "dpo"\nlabl = "x"\n', ("x.toml: unknown key variants.0.labl; did you mean label?",),
    ),
    "C07 nan": ("[train]\nlearning_rate = nan\n", ("x.toml: train.learning_rate: Input should be a finite number",)),
    "C07 inf": ("[lora]\nalpha = inf\n", ("x.toml: lora.alpha: Input should be a finite number; got inf",)),
    "C07 negative": ("[train]\nlearning_rate = -1.0\n", ("train.learning_rate: Input should be greater than 0",)),
    "C07 seed": ("seeds = [4294967296]\n", ("x.toml: seeds.0: Input should be less than 4294967296",)),
    "C07 beta": ('[[variants]]\nloss = "dpo[beta=0]"\n', ("dpo", "beta", "must lie in (0, inf)")),
    "C08 label": ('[[variants]]\nloss = "dpo"\nlabel = "../x"\n', ("variant '../x' cannot be a folder name",)),
    "C09": (
        '[[variants]]\nloss = "dpo"\nlabel = "Mine"\n[[variants]]\nloss = "ipo"\nlabel = "mine"\n',
        ("x.toml: variant mine is given twice",),
    ),
    "C09 reference": (
        '[[variants]]\nloss = "dpo"\nlabel = "Reference"\n',
        ("x.toml: variant reference: the policy before training has this name; choose another",),
    ),
    "C09 form": ('[[variants]]\nloss = "dpo"\nlabel = "ﬁne"\n', ("cannot be a folder name",)),
    "C10": (
        '[[variants]]\nloss = "dpo"\nlabel = "a"\n[[variants]]\nloss = "dpo[beta=0.1]"\nlabel = "b"\n',
        ("x.toml: variants a and b are the same experiment; drop one",),
    ),
    "not UTF-8": (b"name = '\xff'", ("x.toml cannot be read as TOML", "byte 0xff")),
    "no variants": ("variants = []\n", ("variants: at least one is needed",)),
    "no section": ("train = 3\n", ("x.toml: train: Input should be",)),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_bad_file_is_refused(case: str, command: Command) -> None:
    content, said = FILES[case]
    (command.root / "x.toml").write_bytes(content if isinstance(content, bytes) else content.encode())
    command.refused(["compare", "x.toml", "--quiet"], status=2, said=said)


# id: (more words of the command, what must be said)
OPTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "C01": (("--set", "train.learning_rate='1e-5'"), ("train.learning_rate: Input should be a valid number",)),
    "C05": (("--set", "name=" + "[" * 5000), ("--set: the value is nested too deeply",)),
    "C05 long": (("--set", "name=" + "x" * 20_000), ("--set: a value of 20000 characters",)),
    "C06": (("--set", "train.stesp=3"), ("unknown key train.stesp; did you mean steps?",)),
    "C06 section": (("--set", "trian.steps=3"), ("unknown key trian; did you mean train?",)),
    "C06 inside": (("--set", "name.x.y=3"), ("--set name.x.y: name is not a section",)),
    "C06 empty": (("--set", ".steps=3"), ("--set .steps: write section.key=value",)),
    "C06 option": (("--losess", "dpo"), ("No such option",)),
    "C07 nan": (("--set", "train.learning_rate=nan"), ("train.learning_rate: Input should be a finite number",)),
    "C07 inf": (("--set", "evaluation.temperature=-inf"), ("evaluation.temperature: Input should be a finite number",)),
    "C07 hyper": (("--losses", "dpo[beta=nan]"), ("dpo: beta must be finite; got nan",)),
    "C07 digits": (("--losses", "dpo[beta=" + "9" * 5000 + "]"), ("dpo: beta must be finite; got inf",)),
    "C07 zero": (("--losses", "dpo[beta=0]"), ("must lie in (0, inf)",)),
    "C07 seeds": (("--seeds", "4294967296"), ("seeds.0: Input should be less than 4294967296",)),
    "C07 many": (("--seeds", "0-4294967295"), ("more than 10,000 seeds",)),
    "C07 digit": (("--seeds", "\N{SUPERSCRIPT TWO}"), ("--seeds", "write 0-2 or 0,1,5")),
    "C07 long": (("--seeds", "1" * 5000), ("write 0-2 or 0,1,5",)),
    "C07 noise": (("--label-noise", "nan"), ("pairs.label_noise: Input should be",)),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_bad_option_is_refused(case: str, command: Command) -> None:
    more, said = OPTIONS[case]
    command.refused(compare("none", *more), status=2, said=said)


NAMES = [
    "../../x", "/abs", "a/b", "a\\b", "CON", "nul.txt", "-rf", "a\0b", "x" * 300, ".", "..", "a.", " a", "\u202ea", "",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=[repr(name)[:12] for name in NAMES])
def test_c08_names_that_leave_their_folder(name: str, command: Command) -> None:
    command.refused(compare("none", f"--name={name}"), status=2, said=("cannot be a folder name: start with a letter",))


def test_c01_numbers_of_toml_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"\xef\xbb\xbf[train]\nlearning_rate = 1e-5\n")
    assert load(tmp_path / "x.toml", {}).train.learning_rate == 1e-5
    assert parse_value("1e-5") == 1e-5
    assert parse_value("1\nother = 2") == "1\nother = 2"
    assert parse_seeds("0-2, 7") == [0, 1, 2, 7]


def results(root: Path) -> Path:
    (root / "results").mkdir()
    return root / "results"


def test_c11_folder_that_is_a_link_elsewhere(command: Command, tiny_folder) -> None:
    (command.root / "elsewhere").mkdir()
    (results(command.root) / "mine").symlink_to(command.root / "elsewhere")
    command.refused(
        compare(tiny_folder("llama"), "--name", "mine"), status=2, said=("mine is a link", "choose another --name")
    )


def test_c11_link_inside_the_folder(command: Command, tiny_folder) -> None:
    write_json(results(command.root) / "mine" / "manifest.json", {})
    (command.root / "results/mine/runs").mkdir()
    (command.root / "elsewhere").mkdir()
    (command.root / "results/mine/runs/dpo").symlink_to(command.root / "elsewhere")
    words = compare(tiny_folder("llama"), "--name", "mine", "--losses", "dpo")
    command.refused(words, status=2, said=("runs/dpo is a link", "choose another --name"))


def test_c11_folder_with_files_of_others(command: Command, tiny_folder) -> None:
    (results(command.root) / "mine").mkdir()
    (command.root / "results/mine/thesis.tex").write_text("years of work", encoding="utf-8")
    words = compare(tiny_folder("llama"), "--name", "mine")
    command.refused(
        words, status=2, said=("holds files that prefopt did not write, such as ", "; choose another --name")
    )


def test_c11_a_file_where_the_folder_should_be(command: Command, tiny_folder) -> None:
    (results(command.root) / "mine").write_text("a file", encoding="utf-8")
    before = (command.root / "results/mine").read_bytes()
    outcome = command(*compare(tiny_folder("llama"), "--name", "mine"))
    assert outcome.status in (2, 6)
    assert "Traceback" not in outcome.err
    assert "mine" in outcome.err
    assert (command.root / "results/mine").read_bytes() == before


@pytest.mark.parametrize("words", [("report",), ("judge", "--judge", "oracle"), ("compare",)])
def test_c13_folder_of_a_newer_version(words: tuple[str, ...], command: Command, tiny_folder) -> None:
    root = results(command.root) / "mine"
    write_json(root / "manifest.json", {"schema": 99, "prefopt_version": "9.1"})
    typed = (
        compare(tiny_folder("llama"), "--name", "mine") if words == ("compare",) else [words[0], str(root), *words[1:]]
    )
    command.refused(typed, status=2, said=("schema 99, written by prefopt 9.1",))


HEAD = """
from dataclasses import dataclass
import torch
from prefopt import ChosenRejected, Loss, PairLogps, register

class Base:
    source, needs_reference, length_normalized = "a test", True, False
    def rewards(self, logps):
        h = logps.logratios()
        return ChosenRejected(h.chosen, h.rejected)
    def dpo(self, logps):
        return -torch.nn.functional.logsigmoid(self.rewards(logps).margin)
"""
LOSS = (
    HEAD
    + """
@register("{name}")
@dataclass(frozen=True)
class Mine(Base, Loss):
    def __call__(self, logps):
        {body}
"""
)
# id: (content of mine.py, what must be said)
PLUGINS: dict[str, tuple[str, tuple[str, ...]]] = {
    "C14 import": ("import no_such_package\n", ("--plugin mine.py: ModuleNotFoundError: No module named",)),
    "C14 syntax": ("def (:\n", ("--plugin mine.py: SyntaxError",)),
    "C14 raises": ("1 / 0\n", ("--plugin mine.py: ZeroDivisionError: division by zero",)),
    "C14 exits": ("raise SystemExit(0)\n", ("--plugin mine.py: SystemExit: 0",)),
    "C14 nothing": ("x = 1\n", ("--plugin mine.py: registers no loss",)),
    "C14 clash": (LOSS.format(name="dpo", body="..."), ("loss name 'dpo' is taken by prefopt.losses",)),
    "C14 name": (LOSS.format(name="../x", body="..."), ("--plugin mine.py: loss name '../x' must match",)),
    "C15 nan": (
        LOSS.format(name="mine", body="return self.dpo(logps) * torch.nan"), ("mine: ", "nan"),
    ),
    "C15 shape": (
        LOSS.format(name="mine", body="return self.dpo(logps).mean()"), ("mine: output: shape must be (5,)",),
    ),
    "C15 detached": (
        LOSS.format(name="mine", body="return self.dpo(logps).detach()"), ("carries no gradient; do not detach",),
    ),
    "C15 device": (LOSS.format(name="mine", body="return self.dpo(logps).to('meta')"), ("device must be the input's",)),
    "C15 mutates": (
        LOSS.format(name="mine", body="logps.ref_chosen.detach().add_(1); return self.dpo(logps)"),
        ("changes its input ref_chosen",),
    ),
    "C15 raises": (LOSS.format(name="mine", body="raise KeyError('x')"), ("mine: output: raised KeyError",)),
}  # fmt: skip


@pytest.mark.parametrize("case", PLUGINS)
def test_bad_plugin_is_refused(case: str, command: Command, tiny_folder) -> None:
    source, said = PLUGINS[case]
    (command.root / "mine.py").write_text(source, encoding="utf-8")
    words = compare(tiny_folder("llama"), "--plugin", "mine.py", "--losses", "mine")
    command.refused(words, status=2, said=said, lines=8)


@pytest.mark.parametrize(
    ("plugin", "said"),
    [("none.py", "there is no such file"), ("acme", "neither a .py file nor the entry point"), (".", "neither a .py")],
)
def test_c14_plugin_that_is_none(plugin: str, said: str, command: Command) -> None:
    words = compare("none", "--plugin", plugin)
    command.refused(words, status=2, said=(f"--plugin {plugin}: ", said))


def test_c14_packages_load_only_when_named(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    place = command.root / "site"
    (place / "acme-1.0.dist-info").mkdir(parents=True)
    (place / "acme-1.0.dist-info" / "METADATA").write_text("Name: acme\nVersion: 1.0\n", encoding="utf-8")
    (place / "acme-1.0.dist-info" / "entry_points.txt").write_text(
        "[prefopt.losses]\nacme = acme_losses\nbroken = acme_broken\n", encoding="utf-8"
    )
    source = LOSS.format(name="acme_dpo", body="return self.dpo(logps)")
    loaded = "open(__file__ + '.loaded', 'w').close(); print('LOADED')"
    (place / "acme_losses.py").write_text(f"{source}\n{loaded}\n", encoding="utf-8")
    (place / "acme_broken.py").write_text("raise OSError('broken')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(place))
    importlib.invalidate_caches()
    plain = command("losses", "--json")
    assert plain.status == 0, "a broken package that nobody named is nobody's problem"
    assert not (place / "acme_losses.py.loaded").exists()
    named = command("losses", "--plugin", "acme", "--json")
    assert (place / "acme_losses.py.loaded").exists()
    assert "acme_dpo" in {row["name"] for row in json.loads(named.out)}, "what a plugin prints is no part of the JSON"
    command.refused(compare("none", "--plugin", "broken"), status=2, said=("--plugin broken: OSError: broken",))
    command.refused(
        compare("none", "--plugin", "other"), status=2, said=("--plugin other: neither", "installed: acme, broken")
    )


def test_c14_nothing_is_imported_from_the_working_folder(command: Command, tiny_folder) -> None:
    for name in ("numpy", "torch", "prefopt", "sitecustomize", "mine", "pairs"):
        (command.root / f"{name}.py").write_text("raise SystemExit('imported from the folder')", encoding="utf-8")
    assert command(*compare(tiny_folder("llama"), "--dry-run")).status == 0
