"""The report of synthetic results with known effects: what it says, refuses, and writes."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import time
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
import pytest
from synthetic import DEFAULT_VARIANTS, HOSTILE, Planted, World, many

from prefopt.analysis.analyse import analyse
from prefopt.analysis.load import load
from prefopt.errors import UnequalConditions, UsageError
from prefopt.report import build
from prefopt.report.tables.table import markdown_safe, spreadsheet_safe
from prefopt.storage import formats, results


def read(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return value


def verdicts(analysed: dict[str, Any]) -> dict[str, str]:
    return {row["a"]: row["verdict"] for row in analysed["versus_reference"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five seeds, so that the planted effects are seen."""
    root = tmp_path_factory.mktemp("report") / "planted"
    World(seeds=5, prompts=96, pairs=48, seed_sd=0.05).write(root)
    build(root)
    return root


def test_planted_effects_are_found_and_nothing_else(folder: Path) -> None:
    analysed = read(folder)
    assert verdicts(analysed) == {
        "dpo": "BETTER", "cdpo": "BETTER", "ipo": "BETTER", "simpo": "BETTER", "noop": "EQUIVALENT",
    }  # fmt: skip
    better = {(row["a"], row["b"]) for row in analysed["pairs"] if row["verdict"] == "BETTER"}
    gain = {name: planted.gain for name, planted in DEFAULT_VARIANTS.items()}
    assert {(a, b) for a, b in better if b == "noop"} == {(name, "noop") for name in ("dpo", "cdpo", "ipo", "simpo")}
    assert ("dpo", "simpo") in better
    assert all(gain[a] > gain[b] for a, b in better)


def test_win_rate_and_reward_come_near_their_planted_values(folder: Path) -> None:
    analysed = read(folder)
    row = next(row for row in analysed["versus_reference"] if row["a"] == "dpo")
    # The mean over pairs of samples of one prompt: own pairs share noise (correlation 1/2), others are independent.
    normal = NormalDist().cdf
    expected = 0.5 * normal(0.9 / 1.0) + 0.5 * normal(0.9 / np.sqrt(2))
    assert row["value"] == pytest.approx(expected, abs=0.03)
    assert row["low"] < expected < row["high"]
    gain = next(row for row in analysed["rewards"] if row["variant"] == "dpo")["gain"]
    assert gain["low"] < 0.9 < gain["high"]


def test_the_first_screen_answers(folder: Path) -> None:
    analysed = read(folder)
    assert analysed["answers"][0] == "dpo, ipo, cdpo and simpo beat the reference; noop equals the reference."
    assert "settled" in analysed["answers"][1]
    assert "points" in analysed["answers"][2]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.index('id="answer"') < page.index('id="leaderboard"') < page.index('id="verdicts"')


def test_the_null_variant_passes_its_checks(folder: Path) -> None:
    checks = {check["name"]: check["passed"] for check in read(folder)["checks"]}
    assert checks == {
        "equal conditions": True,
        "every run starts at the reference": True,
        "noop stays at the reference": True,
        "noop wins half": True,
    }


def test_a_wrong_reference_is_caught_at_step_0(tmp_path: Path) -> None:
    World(seeds=2, prompts=8, samples=1, pairs=12).write(tmp_path)
    path = results.ResultsFolder(tmp_path).run("dpo", 1) / "history.csv"
    history = pd.read_csv(path)
    history.loc[(history.step == 0) & (history.split == "heldout"), "logratio/margins"] = 0.4
    formats.write_frame(path, history)
    build(tmp_path)
    assert "Check failed: every run starts at the reference" in [one["title"] for one in read(tmp_path)["warnings"]]


def test_a_cost_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    World(seeds=2, prompts=8, samples=1, pairs=12).write(tmp_path)
    path = results.ResultsFolder(tmp_path).run("dpo", 1) / "run.json"
    formats.write_json(path, {**json.loads(path.read_text(encoding="utf-8")), "cost": {}})
    analysed = analyse(load(tmp_path))
    (told,) = [one["text"] for one in analysed["warnings"] if one["title"] == "Cost unknown"]
    assert told == "cost.json is gone from 1 run of dpo; means are over the others."


def test_the_same_folder_gives_the_same_bytes(folder: Path) -> None:
    def everything() -> dict[str, bytes]:
        files = [*folder.glob("tables/*"), *folder.glob("figures/*"), *folder.glob("re*.*")]
        return {path.name: path.read_bytes() for path in files}

    before = everything()
    build(folder)
    assert everything() == before
    assert {"results.json", "report.md", "report.html", "leaderboard.csv", "reward_kl.svg", "reward_kl.png"} <= set(
        before
    )


def test_everything_is_written(folder: Path) -> None:
    figures = {path.stem for path in folder.glob("figures/*.svg")}
    assert figures == {path.stem for path in folder.glob("figures/*.png")}
    assert figures == {
        "winrate_forest", "head_to_head", "length_control", "learning_curves", "logps", "calibration", "reward_kl",
        "cost", "power",
    }  # fmt: skip
    tables = {path.stem for path in folder.glob("tables/*.csv")}
    assert tables == {path.stem for path in folder.glob("tables/*.md")}
    assert {"leaderboard", "versus_reference", "pairs", "matrix", "margins", "kl", "cost", "power", "seeds"} <= tables
    text = (folder / "report.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(((?:tables|figures)/[^)]+)\)", text):
        assert (folder / link).is_file(), link


def test_tables_in_csv_keep_numbers_as_numbers(folder: Path) -> None:
    board = pd.read_csv(folder / "tables" / "leaderboard.csv")
    assert list(board["variant"])[-1] == "noop"
    assert board["win_rate"].between(board["win_rate_low"], board["win_rate_high"]).all()
    displacement = pd.read_csv(folder / "tables" / "displacement.csv").set_index("variant")
    assert displacement.loc["dpo", "chosen"] == pytest.approx(-4.0, abs=0.3)


def test_the_matrix_is_complementary(folder: Path) -> None:
    win = np.array(
        [[np.nan if v is None else v for v in row] for row in read(folder)["matrix"]["win_rate"]], dtype=float
    )
    off = ~np.eye(len(win), dtype=bool)
    assert np.isnan(np.diag(win)).all()
    assert (win + win.T)[off] == pytest.approx(1.0)


def test_conditions_that_differ_are_refused_by_name(tmp_path: Path) -> None:
    World(seeds=2, prompts=4, samples=1, pairs=6).write(tmp_path)
    path = results.ResultsFolder(tmp_path).run("simpo", 1) / "run.json"
    run = json.loads(path.read_text(encoding="utf-8"))
    expected = run["conditions"]["pair_order"]
    run["conditions"]["pair_order"] = "41aa"
    formats.write_json(path, run)
    with pytest.raises(UnequalConditions) as caught:
        build(tmp_path)
    for part in ("seed 1", "'simpo'", "pair_order", "41aa", expected):
        assert part in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_runs_that_did_not_finish_are_listed_and_not_ranked(tmp_path: Path) -> None:
    World(prompts=32, pairs=12, missing=frozenset({("ipo", 2)}), diverged=frozenset({("simpo", 1)})).write(tmp_path)
    build(tmp_path)
    analysed = read(tmp_path)
    board = {row["variant"]: row for row in analysed["leaderboard"]}
    assert board["ipo"]["seeds"] == board["simpo"]["seeds"] == "n = 2/3 INCOMPLETE"
    assert verdicts(analysed)["ipo"] == verdicts(analysed)["simpo"] == "INCOMPLETE"
    assert [row["variant"] for row in analysed["leaderboard"]][-2:] == ["ipo", "simpo"] or board["ipo"]["rank"] is None
    assert not {"ipo", "simpo"} & {row["variant"] for row in analysed["ratings"]}
    assert all(row["p_holm"] is None for row in analysed["pairs"] if {"ipo", "simpo"} & {row["a"], row["b"]})
    warning = next(one for one in analysed["warnings"] if one["title"] == "Runs did not finish")
    assert "ipo seed 2 missing" in warning["text"]
    assert "simpo seed 1 diverged at step 25" in warning["text"]


def test_failed_runs_are_shown_with_their_reason_and_not_ranked(tmp_path: Path) -> None:
    failed = {("ipo", 2): f"out of memory\n{HOSTILE[1]} | " + "x" * 500}
    World(prompts=32, pairs=12, failed=failed, diverged=frozenset({("simpo", 1)})).write(tmp_path)
    page = build(tmp_path).read_text(encoding="utf-8")
    analysed = read(tmp_path)
    outcomes = {(row["variant"], row["seed"]): row["status"] for row in analysed["seed_table"]}
    assert outcomes["simpo", "1"] == "diverged at step 25"
    assert outcomes["ipo", "2"].startswith("failed: out of memory <img")
    assert len(outcomes["ipo", "2"]) < 200
    board = {row["variant"]: row for row in analysed["leaderboard"]}
    assert board["ipo"]["seeds"] == "n = 2/3 INCOMPLETE"
    assert board["ipo"]["rank"] is board["ipo"]["controlled"] is None or board["ipo"]["verdict"] == "INCOMPLETE"
    assert [row["variant"] for row in analysed["leaderboard"]][-2:] == ["ipo", "simpo"]
    warning = next(one for one in analysed["warnings"] if one["title"] == "Runs did not finish")
    assert "ipo seed 2 failed: out of memory" in warning["text"]
    assert "<img src=x" not in page
    assert "<img" not in re.sub(r"`[^`]*`", "", (tmp_path / "report.md").read_text(encoding="utf-8")).replace("\\<", "")


def test_the_command_can_be_pasted(folder: Path) -> None:
    line = f"prefopt compare --name {folder.name} --losses 'dpo,simpo[beta=2.5]'"
    assert f"Run it again: `{line}`" in (folder / "report.md").read_text(encoding="utf-8")
    assert line.replace("'", "&#39;") in (folder / "report.html").read_text(encoding="utf-8")


def test_what_the_manifest_says_about_determinism_is_shown(tmp_path: Path) -> None:
    World(seeds=2, prompts=4, pairs=6, manifest={"determinism": {"tier": "A", "probe": "verified"}}).write(tmp_path)
    assert "probe verified · tier A" in build(tmp_path).read_text(encoding="utf-8")


def _controls(**values: float | None) -> list[dict[str, Any]]:
    band = {"question": "how often?", "low": 0.0, "high": 0.07, "detail": HOSTILE[0]}
    return [
        {"name": name, **band, "value": value, "passed": value is not None and value < 0.07}
        for name, value in values.items()
    ]


def test_the_self_test_is_in_the_report_or_the_command_that_runs_it(tmp_path: Path) -> None:
    World(seeds=2, prompts=4, pairs=6).write(tmp_path)
    page = build(tmp_path).read_text(encoding="utf-8")
    for shown in (page, (tmp_path / "report.md").read_text(encoding="utf-8").replace("\\", "")):
        assert f"prefopt selftest --out results/{tmp_path.name}" in shown
    assert "self-test not run" in page
    rates = {"false-positives/a": 0.031, "false-positives/b": 0.046, "family-wise/pairs/a": 0.02, "coverage/a": 0.951}
    controls = [*_controls(**rates, **{"family-wise/single-t": 0.196})]
    for control in controls:
        control["passed"] = True
    facts = {"levels": [0], "seed": 4, "prefopt_version": "0.1.0", "controls": controls}
    formats.write_json(tmp_path / "selftest.json", facts)
    page = build(tmp_path).read_text(encoding="utf-8")
    assert "self-test 5 / 5" in page
    assert "better in 3.1 to 4.6 % of simulated comparisons" in page
    assert "in 19.6 % of simulated families" in page, "the methods give the number that was measured"
    assert "<script>document" not in page
    table = pd.read_csv(tmp_path / "tables" / "selftest.csv")
    assert table["found"].tolist() == [0.031, 0.046, 0.02, 0.951, 0.196]
    formats.write_json(tmp_path / "selftest.json", {**facts, "controls": _controls(good=0.05, bad=0.3, none=None)})
    build(tmp_path)
    warning = read(tmp_path)["warnings"][0]
    assert warning["title"] == "Self-test failed"
    assert "bad: 0.3, must lie in 0 to 0.07 and none: not a number" in warning["text"]
    formats.write_json(tmp_path / "selftest.json", {"controls": [{"name": "x"}]})
    with pytest.raises(UsageError, match=r"selftest\.json is damaged"):
        build(tmp_path)


def test_one_seed_gives_a_banner_and_no_verdict(tmp_path: Path) -> None:
    World(seeds=1, prompts=32, pairs=12).write(tmp_path)
    build(tmp_path)
    analysed = read(tmp_path)
    assert set(verdicts(analysed).values()) == {"ONE SEED"}
    assert analysed["warnings"][0]["title"] == "One seed"
    assert {row["rank"] for row in analysed["ratings"]} == {"–"}


def test_without_a_judge_the_rest_is_shown(tmp_path: Path) -> None:
    World(seeds=2, prompts=8, gold=False, text=False).write(tmp_path)
    build(tmp_path)
    analysed = read(tmp_path)
    assert analysed["setup"]["judge"] is None
    assert any(one["title"] == "No judge" for one in analysed["warnings"])
    present = {path.stem for path in tmp_path.glob("tables/*.csv")}
    assert {"leaderboard", "margins", "calibration", "kl", "text", "cost", "conditions"} <= present
    assert not {"versus_reference", "pairs", "matrix", "ratings", "length_control", "power", "rewards"} & present
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'id="samples"' not in page
    assert 'id="likelihoods"' in page


def test_tables_of_an_earlier_report_do_not_stay(tmp_path: Path) -> None:
    World(seeds=2, prompts=8, pairs=12).write(tmp_path)
    build(tmp_path)
    (tmp_path / "judgements.parquet").unlink()
    mine = tmp_path / "figures" / "my own.svg"
    mine.write_text("<svg/>", encoding="utf-8")
    build(tmp_path)
    assert not (tmp_path / "tables" / "pairs.csv").exists()
    assert not (tmp_path / "figures" / "winrate_forest.svg").exists()
    assert mine.exists()


@pytest.mark.parametrize(
    "world",
    [
        World(seeds=1, prompts=1, samples=1, pairs=1, variants={"noop": Planted()}),
        World(seeds=2, prompts=2, samples=1, pairs=2),
        World(seeds=2, prompts=4, variants={"dpo": DEFAULT_VARIANTS["dpo"]}),
        World(seeds=2, prompts=4, missing=frozenset({("dpo", 0), ("dpo", 1)})),
    ],
    ids=["one of everything", "tiny", "one variant", "a variant without runs"],
)
def test_small_results_make_a_report(tmp_path: Path, world: World) -> None:
    world.write(tmp_path)
    assert build(tmp_path).is_file()


def test_no_finished_run_is_one_clear_line(tmp_path: Path) -> None:
    World(seeds=1, variants={"dpo": DEFAULT_VARIANTS["dpo"]}, diverged=frozenset({("dpo", 0)})).write(tmp_path)
    with pytest.raises(UsageError, match="no run has finished"):
        build(tmp_path)
    with pytest.raises(UsageError, match="results folder"):
        build(tmp_path / "nowhere")


def test_invalid_verdicts_are_bounded(tmp_path: Path) -> None:
    World(seeds=3, prompts=32, pairs=12).write(tmp_path)
    path = tmp_path / "judgements.parquet"
    frame = pd.read_parquet(path)
    frame["judge"] = "openai:<b>model</b>"
    frame["invalid"] = 1
    formats.write_frame(path, frame)
    build(tmp_path)
    analysed = read(tmp_path)
    assert analysed["judges"][0]["invalid_share"] == pytest.approx(0.2)  # 1 beside 4 usable ones
    row = next(row for row in analysed["judge_bounds"] if row["variant"] == "dpo")
    assert row["all_lost"] == pytest.approx(0.8 * row["win_rate"])
    assert row["all_won"] == pytest.approx(0.8 * row["win_rate"] + 0.2)
    assert any("unusable" in one["title"] for one in analysed["warnings"])
    assert "openai:<b>" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_verdict_holds_whichever_way_the_unusable_comparisons_had_gone(tmp_path: Path) -> None:
    World(seeds=5, prompts=96, pairs=12, seed_sd=0.05).write(tmp_path)
    build(tmp_path)
    before = {row["a"]: row for row in read(tmp_path)["versus_reference"]}
    assert verdicts(read(tmp_path)) == {
        "dpo": "BETTER", "ipo": "BETTER", "cdpo": "BETTER", "simpo": "BETTER", "noop": "EQUIVALENT",
    }  # fmt: skip
    assert all(row["worst_case"] is None for row in before.values())
    path = tmp_path / "judgements.parquet"
    frame = pd.read_parquet(path)
    frame["invalid"] = (frame["prompt_id"].str.slice(1).astype(int) % 3 == 0).astype(int)  # 1 of 13 comparisons
    formats.write_frame(path, frame)
    build(tmp_path)
    analysed = read(tmp_path)
    rows = {row["a"]: row for row in analysed["versus_reference"]}
    assert {name: row["verdict"] for name, row in rows.items()} == {
        "dpo": "BETTER", "ipo": "BETTER", "cdpo": "BETTER", "simpo": "BETTER", "noop": "INCONCLUSIVE",
    }  # fmt: skip
    assert rows["noop"]["worst_case"]["left_out"] == "EQUIVALENT"
    assert rows["noop"]["worst_case"]["high"] - rows["noop"]["worst_case"]["low"] == pytest.approx(1 / 13, abs=0.01)
    assert all(rows[name]["p_holm"] > before[name]["p_holm"] for name in ("dpo", "simpo"))
    assert rows["dpo"]["win_rate"] == before["dpo"]["win_rate"], "the estimate leaves them out"
    warning = next(one for one in analysed["warnings"] if "unusable" in one["title"])
    assert "takes the verdict from noop against reference" in warning["text"]
    assert "without them it would be EQUIVALENT" in rows["noop"]["sentence"]
    assert "unusable" in (tmp_path / "tables" / "versus_reference.md").read_text(encoding="utf-8")


def test_a_hundredth_of_unusable_comparisons_is_left_out(tmp_path: Path) -> None:
    World(seeds=5, prompts=96, pairs=12, seed_sd=0.05).write(tmp_path)
    path = tmp_path / "judgements.parquet"
    frame = pd.read_parquet(path)
    frame["invalid"] = (frame["prompt_id"] == "p00000").astype(int)  # 1 of 385 comparisons
    formats.write_frame(path, frame)
    build(tmp_path)
    assert all(row["worst_case"] is None for row in read(tmp_path)["versus_reference"])


def test_what_a_judges_own_run_found_is_shown(tmp_path: Path) -> None:
    World(seeds=3, prompts=32, pairs=12).write(tmp_path)
    control = {"control": "constant", "n": 16, "invalid": 0, "win_rate": 0.9, "low": 0.7, "high": 0.97, "passed": False}
    facts = {
        "judge": "oracle",
        "position_consistency": 0.55,
        "first_position": 0.7,
        "controls": [
            control,
            {**control, "control": "empty", "win_rate": 0.0, "low": 0.0, "high": 0.2, "passed": True},
        ],
        "problems": [f"the judge fails the control with a constant answer {HOSTILE[0]}"],
    }
    formats.write_json(tmp_path / "judge" / "oracle" / "judge.json", facts)
    page = build(tmp_path).read_text(encoding="utf-8")
    analysed = read(tmp_path)
    (row,) = analysed["judges"]
    assert (row["position_consistency"], row["first_position"], row["controls_passed"]) == (0.55, 0.7, "1 of 2")
    assert analysed["warnings"][0]["title"] == "Judge oracle is not to be trusted"
    assert "a constant answer" in analysed["warnings"][0]["text"]
    table = pd.read_csv(tmp_path / "tables" / "judge_controls.csv")
    assert table[["control", "win_rate", "verdict"]].to_numpy().tolist() == [
        ["constant", 0.9, "NO"],
        ["empty", 0.0, "yes"],
    ]
    assert "<script>document" not in page


def test_the_references_own_text_is_described(folder: Path) -> None:
    text = {row["variant"]: row for row in read(folder)["text"]}
    assert text["reference"]["distinct2"] == pytest.approx(0.81)
    assert text["reference"]["compression"] == pytest.approx(2.4)


def test_reversed_judgements_say_the_same(tmp_path: Path) -> None:
    World(seeds=3, prompts=32, pairs=12).write(tmp_path)
    build(tmp_path)
    before = {row["a"]: row["value"] for row in read(tmp_path)["versus_reference"]}
    path = tmp_path / "judgements.parquet"
    frame = pd.read_parquet(path)
    frame["variant"], frame["opponent"] = frame["opponent"].copy(), frame["variant"].copy()
    frame["score"] = 1 - frame["score"]
    formats.write_frame(path, frame)
    build(tmp_path)
    assert {row["a"]: row["value"] for row in read(tmp_path)["versus_reference"]} == pytest.approx(before)


class Elements(HTMLParser):
    """Counts what a browser would make elements of, with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[str, ...]] = Counter()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs if name not in ("data-disputed", "data-v")]
        self.found[tag, *names] += 1


def elements(path: Path) -> Counter[tuple[str, ...]]:
    parser = Elements()
    parser.feed(path.read_text(encoding="utf-8"))
    return parser.found


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    pages = []
    for name, responses in (("hostile", HOSTILE), ("benign", ["words"] * len(HOSTILE))):
        evil = name == "hostile"
        manifest = {
            "name": HOSTILE[0] if evil else "name",
            "command": HOSTILE[2] if evil else "command",
            "model": {"name": HOSTILE[1] if evil else "model"},
        }
        World(seeds=2, prompts=12, pairs=12, responses=responses, manifest=manifest).write(tmp_path / name)
        pages.append(build(tmp_path / name))
    assert elements(pages[0]) == elements(pages[1])
    page = pages[0].read_text(encoding="utf-8")
    assert "{{ 7 * 7 }} {% raw %}" in page  # not taken for a template
    markdown = re.sub(r"`[^`]*`", "", (tmp_path / "hostile" / "report.md").read_text(encoding="utf-8"))
    assert not re.search(r"(?<!\\)<(script|img|svg|base)", markdown)


def test_the_page_loads_nothing_and_declares_so(folder: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src &#39;none&#39;; style-src &#39;sha256-")
    assert "unsafe" not in policy[1]
    assert set(re.findall(r'src="(\w+:)', page)) == {"data:"}
    assert not re.findall(r'(?:src|href|action)="(?:https?:)?//', page)
    assert " style=" not in re.sub(r'src="data:[^"]*"', "", page)


def test_samples_are_not_in_the_files_that_are_published(folder: Path) -> None:
    phrase = "A quiet film with one fine performance"
    assert phrase in (folder / "report.html").read_text(encoding="utf-8")
    for path in [folder / "results.json", folder / "report.md", *folder.glob("tables/*")]:
        assert phrase not in path.read_text(encoding="utf-8"), path.name


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\tx", "\rx"])
def test_spreadsheet_cells_are_no_formulas(text: str) -> None:
    assert spreadsheet_safe(text) == f"'{text}"
    assert spreadsheet_safe("dpo[beta=0.1]") == "dpo[beta=0.1]"


def test_a_summary_that_is_a_formula_is_defused(tmp_path: Path) -> None:
    World(seeds=2, prompts=4, pairs=6).write(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    manifest["variants"][0]["summary"] = '=HYPERLINK("http://evil.invalid")'
    formats.write_json(tmp_path / "manifest.json", manifest)
    build(tmp_path)
    with (tmp_path / "tables" / "variants.csv").open(encoding="utf-8") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell[:1] in ("=", "@")]


def test_markdown_is_escaped() -> None:
    shown = markdown_safe("![x](http://evil.invalid) | `a` <b> @me\n# head")
    for mark in ("![", "<b>", " | ", "`a`", " @me", "\n", "http:"):
        assert mark not in shown


def test_names_that_matplotlib_would_swallow_are_drawn(tmp_path: Path) -> None:
    """A label in a legend is dropped where it starts with an underscore, and mathtext eats dollars; ours may not be."""
    World(seeds=2, prompts=4, pairs=6, manifest={"name": "a$b$_c"}).write(tmp_path)
    build(tmp_path)
    assert "a$b$_c" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_report_needs_no_torch(folder: Path) -> None:
    program = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "peft", "datasets", "safetensors"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from pathlib import Path
from prefopt.report import build
build(Path(sys.argv[1]))
"""
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True, timeout=120)


@pytest.mark.slow
def test_a_large_comparison_is_reported_in_seconds_and_stays_small(tmp_path: Path) -> None:
    World(variants=many(12), seeds=5, prompts=256, samples=4, pairs=256).write(tmp_path)
    start = time.process_time()
    path = build(tmp_path)
    assert time.process_time() - start < 20
    assert path.stat().st_size < 3e6


@pytest.mark.slow
def test_forty_variants_still_fit(tmp_path: Path) -> None:
    World(variants=many(40), seeds=3, prompts=48, samples=2, pairs=60).write(tmp_path)
    assert build(tmp_path).stat().st_size < 4e6, "a page that can be mailed, its tables as CSV and LaTeX in it"
