"""Whom a report believes: broken models, blind judges, the judge that leads, reruns of a part, unseen pairs."""

from __future__ import annotations

import colorsys
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from synthetic import DEFAULT_VARIANTS, Planted, World

from prefopt.analysis import claims, leading
from prefopt.analysis.across import across
from prefopt.analysis.analyse import analyse
from prefopt.analysis.load import load
from prefopt.analysis.power import measured
from prefopt.errors import ClaimError, UsageError
from prefopt.report import build
from prefopt.report.figures.style import looks
from prefopt.report.glossary import first_terms, glossary
from prefopt.report.markdown import subtitle_bits
from prefopt.report.methods import methods
from prefopt.report.prose import CAPTIONS
from prefopt.report.tables.computed import build_tables, leaderboard, varied_settings
from prefopt.report.tables.table import Column, Table, to_latex, to_markdown
from prefopt.storage import formats
from prefopt.storage.results import ResultsFolder
from prefopt.storage.schema import PAIR_COLUMNS

SMALL: dict[str, Any] = {"prompts": 24, "pairs": 12}


def read(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return value


def analysed(root: Path, **more: bool) -> dict[str, Any]:
    """What results.json will hold, without the seconds that figures take."""
    value: dict[str, Any] = json.loads(json.dumps(analyse(load(root), **more), allow_nan=False))
    return value


def built(world: World, root: Path) -> dict[str, Any]:
    return analysed(world.write(root))


def titles(found: dict[str, Any]) -> list[str]:
    return [one["title"] for one in found["warnings"]]


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trust") / "broken"
    World(**SMALL, broken={"ipo": "empty", "simpo": "repeats", "cdpo": "far"}).write(root)
    build(root)
    return root


def test_broken_models_are_named_first_with_samples_and_beside_their_verdicts(broken: Path) -> None:
    found = read(broken)
    first = found["warnings"][0]
    assert (first["level"], first["title"]) == ("danger", "Broken models: cdpo, simpo and ipo")
    assert re.search(r"ipo: [78]\d % of its answers are empty", first["text"])
    for said in ("cdpo: it lies 3.0 nats a token", "simpo: it repeats itself"):
        assert said in first["text"]
    rows = {row["a"]: row for row in found["versus_reference"]}
    assert re.search(r"But ipo writes broken text \([78]\d % empty\)", rows["ipo"]["sentence"])
    assert "broken" not in rows["dpo"]["sentence"]
    assert {row["variant"] for row in found["leaderboard"] if row["broken"]} == {"ipo", "simpo", "cdpo"}
    pair = next(row for row in found["pairs"] if {row["a"], row["b"]} == {"dpo", "simpo"})
    assert "simpo writes broken text (repeats" in pair["sentence"]
    page = (broken / "report.html").read_text(encoding="utf-8")
    warning = page[page.index('id="warnings"') : page.index('id="leaderboard"')]
    assert warning.count("<q>great great great great great great</q>") == 3
    assert "<q>(empty)</q>" in warning
    assert "great great" not in (broken / "report.md").read_text(encoding="utf-8"), "published without text"
    assert "broken samples" in (broken / "tables" / "leaderboard.md").read_text(encoding="utf-8")


def test_what_is_empty_is_seen_without_the_text_too(tmp_path: Path) -> None:
    found = built(World(**SMALL, text=False, broken={"ipo": "empty"}), tmp_path)
    assert titles(found)[0] == "Broken models: ipo"
    sound = next(row for row in found["health"] if row["variant"] == "dpo")
    assert sound["problems"] == []
    assert sound["empty"]["value"] == 0


def test_one_broken_seed_is_named(tmp_path: Path) -> None:
    World(**SMALL).write(tmp_path)
    path = ResultsFolder(tmp_path).run("dpo", 1) / "scores.parquet"
    frame = pd.read_parquet(path)
    frame["kl"] = 2.0 * frame["n_tokens"]
    formats.write_frame(path, frame)
    assert "dpo at seed 1: it lies 2.0 nats a token" in analysed(tmp_path)["warnings"][0]["text"]


BLIND = {
    "kind": "pairwise", "position_consistency": 0.11, "first_position": 0.94, "invalid_share": 0.0,
    "controls": [{"control": "empty", "n": 16, "invalid": 0, "win_rate": 0.5, "low": 0.28, "high": 0.72,
                  "passed": True}],
    "problems": ["it names the same winner in both orders in only 11 % of comparisons"],
}  # fmt: skip


def test_a_judge_with_problems_gives_no_verdict(tmp_path: Path) -> None:
    found = built(World(**SMALL, judge="lm:blind", facts=BLIND), tmp_path)
    rows = [*found["versus_reference"], *found["pairs"]]
    assert {row["verdict"] for row in rows} == {"NO VERDICT"}
    assert all(row["p_holm"] is None and row["value"] is not None for row in rows)
    assert "nothing is claimed" in rows[0]["sentence"]
    assert found["answers"][0].startswith("No verdict: the judge lm:blind is not to be trusted")
    assert found["judges"][0]["controls_passed"] == "0 of 1", "half against an empty answer is not a loss"
    assert "its control “empty” wins 50 % and should lose" in found["judges"][0]["problems"]
    assert {row["rank"] for row in found["ratings"]} == {"–"}
    assert found["families"] == []
    with pytest.raises(ClaimError, match="the judge lm:blind is not to be trusted: it names the same winner"):
        claims.check(ResultsFolder(tmp_path), [claims.parse("dpo >= 0.5", ["dpo"])])
    assert not any(any(line) for line in found["matrix"]["settled"])


def test_a_judge_without_problems_is_believed(tmp_path: Path) -> None:
    good = {**BLIND, "position_consistency": 0.9, "problems": [],
            "controls": [{**BLIND["controls"][0], "win_rate": 0.0, "low": 0.0, "high": 0.2}]}  # fmt: skip
    found = built(World(**SMALL, judge="lm:good", facts=good), tmp_path)
    assert "NO VERDICT" not in {row["verdict"] for row in found["versus_reference"]}
    assert found["judges"][0]["controls_passed"] == "1 of 1"


def with_judges(root: Path, *judges: tuple[str, dict[str, Any]]) -> ResultsFolder:
    """The world's verdicts again by each of some judges."""
    World(**SMALL).write(root)
    frame = pd.read_parquet(root / "judgements.parquet")
    formats.write_frame(root / "judgements.parquet", pd.concat([frame.assign(judge=name) for name, _ in judges]))
    for i, (name, facts) in enumerate(judges):
        if facts:
            formats.write_json(root / "judge" / str(i) / "judge.json", {"judge": name, **facts})
    return ResultsFolder(root)


def test_the_best_judge_leads_and_another_can_be_chosen(tmp_path: Path) -> None:
    sound = {"kind": "pairwise", "problems": [], "position_consistency": 0.8}
    folder = with_judges(
        tmp_path,
        ("lm:blind", BLIND),
        ("openai:sound", sound),
        ("lm:a-little-less", {**sound, "position_consistency": 0.7}),
        ("file:people", {"kind": "pairwise", "problems": []}),
    )

    def order() -> list[str]:
        return leading.judges_in_order(folder, folder.judgements())

    assert order() == ["file:people", "openai:sound", "lm:a-little-less", "lm:blind"]
    assert analysed(tmp_path)["setup"]["judge"] == "file:people"
    leading.choose(folder, "openai:sound")
    assert analysed(tmp_path)["setup"]["judge"] == "openai:sound" == measured(tmp_path)[1].judge
    with pytest.raises(UsageError, match="did you mean openai:sound"):
        leading.choose(folder, "openai:soud")
    leading.choose(folder, None)
    assert order()[0] == "file:people"


def rerun_of_a_part(root: Path, *, seeds_known: bool) -> World:
    """Three variants at seeds 0 to 2, then one of them at 0 to 3."""
    variants = {name: DEFAULT_VARIANTS[name] for name in ("dpo", "simpo", "ipo")}
    world = World(**SMALL, seeds=4, variants=variants, missing=frozenset({("simpo", 3), ("ipo", 3)}))
    world.write(root)
    manifest = json.loads((root / "manifest.json").read_text(encoding="utf-8"))
    if seeds_known:
        for entry in manifest["variants"]:
            entry["seeds"] = [0, 1, 2, 3] if entry["variant"] == "dpo" else [0, 1, 2]
    else:  # as it was written before: only what the last command asked for
        manifest["variants"] = manifest["variants"][:1]
    formats.write_json(root / "manifest.json", manifest)
    return world


@pytest.mark.parametrize("seeds_known", [True, False])
def test_a_rerun_of_a_part_keeps_the_others_whole(tmp_path: Path, seeds_known: bool) -> None:
    rerun_of_a_part(tmp_path, seeds_known=seeds_known)
    found = analysed(tmp_path)
    board = {row["variant"]: row for row in found["leaderboard"]}
    assert {name: row["seeds"] for name, row in board.items()} == {"dpo": "4/4", "simpo": "3/3", "ipo": "3/3"}
    assert {row["loss"] for row in found["variants"]} == {"dpo", "simpo", "ipo"}
    assert all("beta=0.1" in row["hyperparameters"] for row in found["variants"])
    assert "INCOMPLETE" not in {row["verdict"] for row in (*found["versus_reference"], *found["pairs"])}
    assert {row["n_seeds"] for row in found["versus_reference"] if row["a"] == "dpo"} == {4}
    assert {row["n_seeds"] for row in found["pairs"]} == {3}, "of two variants their shared seeds count"
    assert len(found["matched_kl"]) == 3
    assert "Runs did not finish" not in titles(found)
    folder = ResultsFolder(tmp_path)
    if seeds_known:
        assert claims.check(folder, [claims.parse("ipo >= dpo - 0.9", ["ipo", "dpo"])])[0].holds


def test_no_interval_leaves_what_is_possible(tmp_path: Path) -> None:
    World(**SMALL, seeds=3).write(tmp_path)
    folder = ResultsFolder(tmp_path)
    for seed, factor in enumerate((0.02, 1.0, 9.0)):  # seeds that differ by orders of magnitude
        path = folder.run("dpo", seed) / "scores.parquet"
        frame = pd.read_parquet(path)
        frame["kl"] *= factor
        frame["n_tokens"] = np.maximum(1, (frame["n_tokens"] * factor / 3).astype(int))
        frame["finished"] = seed == 0
        formats.write_frame(path, frame)
    found = analysed(tmp_path)
    row = {key: next(row for row in found[key] if row["variant"] == "dpo") for key in ("kl", "text")}
    for value in (row["kl"]["kl"], row["kl"]["per_token"], row["text"]["ratio"], row["text"]["tokens"]):
        assert 0 < value["low"] < value["value"] < value["high"]
    finished = row["text"]["finished"]
    assert 0 <= finished["low"] <= finished["value"] <= finished["high"] <= 1
    noop = next(row for row in found["kl"] if row["variant"] == "noop")
    assert noop["kl"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_pairs_that_no_run_has_seen_are_counted(tmp_path: Path) -> None:
    world = World(**SMALL)
    world.write(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    manifest["data"].update(train_pairs=1231, dropped_rows=7)
    formats.write_json(tmp_path / "manifest.json", manifest)
    found = analysed(tmp_path)
    assert found["exposure"] == {
        "train_pairs": 1231, "seen": 480, "share": pytest.approx(0.39, abs=0.001),
        "epochs": pytest.approx(0.39, abs=0.001), "dropped_rows": 7,
    }  # fmt: skip
    warning = next(one for one in found["warnings"] if one["title"] == "Trained on 39 % of the pairs")
    assert warning["level"] == "warn"
    assert "480 of 1231 pairs trained on" in subtitle_bits(found)
    assert "480 of 1231 pairs, 0.39 epochs, after 7 rows that could not be used" in methods(found)[0]


def test_one_seed_never_speaks_of_seeds(tmp_path: Path) -> None:
    found = built(World(**SMALL, seeds=1), tmp_path)
    assert "Intervals are 95 %, over prompts alone." in leaderboard(found).note
    assert not [name for name, table in build_tables(found).items() if "over seeds and prompts" in table.note]
    assert not [text for text in CAPTIONS.values() if "over seeds and prompts" in text]


def test_words_say_what_the_numbers_are(tmp_path: Path) -> None:
    variants = {"dpo": Planted(gain=2.0, kl=3.0, margin=2.0), "noop": Planted()}
    found = built(World(variants=variants, prompts=96, pairs=12, seeds=3, seed_sd=0.0), tmp_path)
    assert "settled in four of five repetitions" in found["answers"][-1]
    assert "to be told from it" not in " ".join(found["answers"])
    assert not any("INCONCLUSIVE" in one["text"] for one in found["warnings"]), "nothing here is inconclusive"
    assert "| scoring, s |" in to_markdown(build_tables(found)["cost"])


def test_without_a_judge_held_out_pairs_are_compared_as_what_they_are(tmp_path: Path) -> None:
    found = built(World(prompts=12, pairs=240, seeds=3, gold=False), tmp_path)
    rows = {(row["a"], row["b"]): row for row in found["ranking"]}
    assert len(rows) == 5 + 10
    assert rows["dpo", "reference"]["outcome"] == "ranks better"
    noop = rows["noop", "reference"]
    assert noop["outcome"] == "not settled"
    assert noop["accuracy"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    shown = rows["dpo", "noop"]
    assert shown["p_accuracy"] < 0.05
    assert shown["accuracy"]["value"] == pytest.approx(rows["dpo", "reference"]["accuracy"]["value"])
    assert "not about writing" in " ".join(found["answers"])
    assert found["recommendation"][0].startswith("Recommendation: none, since no judge")
    assert {row["verdict"] for row in found["leaderboard"]} == {None}, "ranking is never a verdict"
    one = built(World(prompts=12, pairs=24, seeds=1, gold=False), tmp_path / "one")
    assert {row["outcome"] for row in one["ranking"]} == {"one seed"}


def test_the_ranking_is_paired_and_corrected(tmp_path: Path) -> None:
    """The same estimate by another way: differences of each pair, mean by prompt and seed; Holm over the family."""
    found = built(World(prompts=12, pairs=240, seeds=3, gold=False), tmp_path)
    pairs = ResultsFolder(tmp_path).frames("pairs.parquet", PAIR_COLUMNS)
    right = pairs.assign(
        right=pairs["logps_chosen"] - pairs["ref_logps_chosen"] > pairs["logps_rejected"] - pairs["ref_logps_rejected"]
    )
    wide = right.pivot(index=["seed", "pair_id", "prompt_id"], columns="variant", values="right").astype(float)
    gap = (wide["dpo"] - wide["ipo"]).groupby(level=["seed", "prompt_id"]).mean().unstack()
    row = next(row for row in found["ranking"] if (row["a"], row["b"]) == ("dpo", "ipo"))
    assert row["accuracy"]["value"] == pytest.approx(gap.to_numpy().mean())
    adjusted = sorted(row["p_accuracy"] for row in found["ranking"] if row["b"] != "reference")
    assert max(adjusted) == 1.0 or adjusted[-1] > adjusted[0]


def test_the_recommendation_takes_no_broken_model(tmp_path: Path, broken: Path) -> None:
    sound = built(World(seeds=5, prompts=96, pairs=12, seed_sd=0.05), tmp_path / "sound")
    assert sound["recommendation"] == [
        "Recommendation: dpo, or ipo and cdpo, which these runs cannot tell from it; all of them beat the reference. "
        "Of these, ipo stays nearest to the reference (KL 4.0 nats)."
    ]
    said = " ".join(read(broken)["recommendation"])
    assert not {"simpo", "ipo", "cdpo"} & set(said.replace(",", " ").split())
    one = built(World(**SMALL, seeds=1), tmp_path / "one")
    assert one["recommendation"][0].startswith("Recommendation: none between losses, since each was trained once.")


def test_a_comparison_under_way_is_reported_as_that(tmp_path: Path) -> None:
    World(**SMALL, missing=frozenset({("ipo", 2), ("simpo", 2)})).write(tmp_path)
    assert "Still running: 13 of 15 runs so far" in titles(analysed(tmp_path, running=True))
    assert "Runs did not finish" not in titles(analysed(tmp_path, running=True))
    assert "Runs did not finish" in titles(analysed(tmp_path))


def test_first_words_and_the_glossary_explain_what_is_used(broken: Path, tmp_path: Path) -> None:
    page = (broken / "report.html").read_text(encoding="utf-8")
    answer = page[page.index('id="answer"') : page.index('id="leaderboard"')]
    assert "The reference is the model that every variant starts from (here after a fine-tune of 40 steps)" in answer
    assert "noop is a control and no method" in answer
    words = dict(glossary(read(broken)))
    used = {row["verdict"] for row in (*read(broken)["versus_reference"], *read(broken)["pairs"])}
    assert ("INCONCLUSIVE" in words) == ("INCONCLUSIVE" in used)
    assert "INCOMPLETE" not in words
    unjudged = dict(glossary(built(World(**SMALL, gold=False, variants={"dpo": DEFAULT_VARIANTS["dpo"]}), tmp_path)))
    assert not {"win rate", "Holm", "reward gain", "rank"} & set(unjudged)
    assert not [text for text in first_terms(analysed(tmp_path)) if "noop" in text]


def test_one_seed_is_said_once_and_not_for_each_variant(tmp_path: Path) -> None:
    found = built(World(**SMALL, seeds=1), tmp_path)
    assert "verdict" not in {column.key for column in leaderboard(found).columns}
    said = [*found["answers"], *(row["sentence"] for row in (*found["versus_reference"], *found["pairs"]))]
    assert not [sentence for sentence in said if "once" in sentence or "not about the loss" in sentence]
    assert found["answers"][0].startswith("Against the reference, in one training run of each: dpo wins")


def test_every_table_is_there_for_latex(broken: Path) -> None:
    names = {path.stem for path in broken.glob("tables/*.csv")}
    assert {path.stem for path in broken.glob("tables/*.tex")} == names
    board = (broken / "tables" / "leaderboard.tex").read_text(encoding="utf-8")
    assert board.count(r"\\") == len(read(broken)["leaderboard"]) + 1
    for path in broken.glob("tables/*.tex"):
        text = path.read_text(encoding="utf-8")
        rows = text.splitlines()[3:]
        widths = {len(re.findall(r"(?<!\\)&", line)) for line in rows if line.endswith(r"\\")}
        assert len(widths) == 1, path.name
        body = "\n".join(line for line in rows if line.endswith(r"\\"))
        assert not re.search(r"(?<!\\)[%#_]", body), path.name
        assert not re.search("[−–√“”]", body), path.name


def test_latex_shows_hostile_text_as_text() -> None:
    row = {"variant": r"\input{/etc/passwd} $x_1^2$ ~ #1 & 50 % | <b>" + "\n\\end", "kl": -0.5}
    text = to_latex(Table("x", "X", (Column("variant", "a_b", "text"), Column("kl", "KL", "number", 1)), [row]))
    assert r"\textbackslash{}input\{/etc/passwd\} \$x\_1\textasciicircum{}2\$" in text
    assert r"\#1 \& 50 \%" in text
    assert r" \textbackslash{}end & $-$0.5 \\" in text


def test_variants_of_one_loss_share_a_hue() -> None:
    style = looks(["dpo", "simpo", "dpo[beta=1]", "dpo[beta=2]"], ["dpo", "simpo", "dpo", "dpo"])

    def hue(name: str) -> float:
        return colorsys.rgb_to_hsv(*to_rgb(style[name].colour))[0]

    assert hue("dpo") == pytest.approx(hue("dpo[beta=1]"), abs=0.01) == pytest.approx(hue("dpo[beta=2]"), abs=0.01)
    assert abs(hue("dpo") - hue("simpo")) > 0.1
    assert len({look.colour for look in style.values()}) == 4
    assert len({look.marker for look in style.values()}) == 4


def test_settings_that_variants_of_one_loss_differ_in_are_columns() -> None:
    def entry(loss: str, rate: float, **spec: float) -> dict[str, Any]:
        return {"loss": loss, "settings": {**spec, "learning rate": rate}}

    same = [entry("dpo", 1e-3, beta=0.1), entry("simpo", 1e-3, beta=2.0)]
    assert varied_settings(same) == []
    assert varied_settings([*same, entry("dpo", 1e-3, beta=0.5)]) == ["beta"]
    assert varied_settings([*same, entry("simpo", 5e-4, beta=2.0)]) == ["learning rate"]


def test_a_report_on_several_comparisons_names_blind_judges_and_broken_models(tmp_path: Path, broken: Path) -> None:
    blind = built(World(**SMALL, judge="lm:blind", facts=BLIND), tmp_path)
    cautions = across({"one": read(broken), "two": blind})["cautions"]
    assert cautions[0].startswith("Broken models in one: cdpo (3.0 nats/token), simpo (repeats (25.0x)), ipo (")
    assert cautions[1] == "The judge of two (lm:blind) is not to be trusted, nor are its win rates."
