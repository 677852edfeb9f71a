"""report.html in headless Chromium: it runs, asks for nothing, fits its window, and keeps hostile text inert."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from synthetic import HOSTILE, Planted, World, many

from prefopt.report import build
from prefopt.storage import formats

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

# The page sits in a frame of a given width, so that its own viewport is that wide, and is asked from outside.
WRAPPER = """<!doctype html><body style="margin:0">
<iframe id="f" style="border:0;width:%(width)dpx;height:900px"></iframe>
<pre id="out">waiting</pre><script>
const frame = document.getElementById("f");
frame.onload = () => {
  const page = frame.contentDocument, view = frame.contentWindow;
  let answer;
  try { answer = (() => { %(script)s })(); } catch (error) { answer = { error: String(error) }; }
  document.getElementById("out").textContent = JSON.stringify(answer);
};
frame.src = "report.html";
</script>"""


def ask(folder: Path, script: str, *, width: int = 1280) -> tuple[Any, list[str]]:
    """What a script says about the page (``page``: document, ``view``: window), and the console's lines."""
    wrapper = folder / "wrapper.html"
    wrapper.write_text(WRAPPER % {"width": width, "script": script}, encoding="utf-8")
    profile = folder / "profile"
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--host-resolver-rules=MAP * ~NOTFOUND", "--allow-file-access-from-files", "--enable-logging=stderr",
            f"--user-data-dir={profile}", "--window-size=1400,1000", "--virtual-time-budget=5000", "--dump-dom",
            wrapper.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    shutil.rmtree(profile, ignore_errors=True)
    wrapper.unlink()
    shown = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.DOTALL)
    assert shown is not None, done.stderr[-2000:]
    text = shown[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    answer = json.loads(text)
    assert not isinstance(answer, dict) or "error" not in answer, answer
    return answer, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("browser") / "hostile"
    manifest = {"name": "a-rather-long-name-" * 5, "command": HOSTILE[0] + "x" * 3000, "model": {"name": HOSTILE[1]}}
    World(seeds=3, prompts=30, pairs=12, responses=[*HOSTILE, "w" * 900], manifest=manifest).write(root)
    build(root)
    return root


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("browser") / "wide"
    World(variants=many(14), seeds=2, prompts=8, samples=1, pairs=12).write(root)
    build(root)
    return root


def test_no_console_message_no_request_and_no_injected_element(folder: Path) -> None:
    script = """
    const loaded = view.performance.getEntriesByType("resource").map((one) => one.name);
    const all = [...page.querySelectorAll("*")];
    return {
      requests: loaded.filter((name) => !name.startsWith("data:")),
      scripts: page.scripts.length,
      title: page.title,
      strange: page.querySelectorAll("base, iframe, object, embed, link, form, #prompts img, #prompts svg").length,
      handlers: all.filter((one) => one.getAttributeNames().some((name) => name.startsWith("on"))).length,
      refresh: page.querySelectorAll("meta[http-equiv=refresh]").length,
      pictures: [...page.images].map((image) => image.naturalWidth > 0),
      texts: [...page.querySelectorAll(".sample .text")].map((one) => one.textContent),
    };"""
    answer, console = ask(folder, script)
    assert console == []
    assert answer["requests"] == []
    assert answer["scripts"] == 1
    assert "owned" not in answer["title"]
    assert (answer["strange"], answer["handlers"], answer["refresh"]) == (0, 0, 0)
    assert len(answer["pictures"]) == 9
    assert all(answer["pictures"])
    assert set(HOSTILE) <= set(answer["texts"])


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("which", ["folder", "wide"])
def test_no_sideways_scroll(which: str, width: int, request: pytest.FixtureRequest) -> None:
    script = """
    page.querySelectorAll("details").forEach((one) => { one.open = true; });
    const root = page.documentElement;
    return { width: view.innerWidth, needs: Math.max(root.scrollWidth, page.body.scrollWidth) };"""
    answer, _ = ask(request.getfixturevalue(which), script, width=width)
    assert answer["width"] == width
    assert answer["needs"] <= width


def test_a_table_sorts_both_ways(folder: Path) -> None:
    script = """
    const table = page.querySelector("#cost table");
    const values = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[1].dataset.v));
    const button = table.tHead.rows[0].cells[1].querySelector("button");
    button.click();
    const down = values(), said = table.tHead.rows[0].cells[1].getAttribute("aria-sort");
    button.click();
    return { down, said, up: values() };"""
    answer, _ = ask(folder, script)
    assert answer["said"] == "descending"
    assert answer["down"] == sorted(answer["down"], reverse=True)
    assert answer["up"] == sorted(answer["up"])
    assert len(set(answer["up"])) > 1


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Variants of one loss with hyperparameters of their own."""
    root = tmp_path_factory.mktemp("browser") / "families"
    names = ("dpo[beta=0.05]", "dpo[beta=0.5]", "simpo", "noop")
    variants = {name: Planted(gain=0.3 * i, kl=2.0 + i, margin=2.0, drop=1.0) for i, name in enumerate(names)}
    World(variants=variants, seeds=3, prompts=12, pairs=12).write(root)
    manifest = json.loads((root / "manifest.json").read_text(encoding="utf-8"))
    for entry, beta in zip(manifest["variants"], (0.05, 0.5, 0.1, 0.1), strict=True):
        entry["spec"]["beta"] = beta
    formats.write_json(root / "manifest.json", manifest)
    build(root)
    return root


def test_the_leaderboard_shows_what_counts_without_scrolling(families: Path) -> None:
    script = """
    const board = page.querySelector("#leaderboard .scroll"), edge = board.getBoundingClientRect();
    const heads = [...board.querySelectorAll("thead tr:first-child th")];
    const shown = heads.filter((one) => one.getBoundingClientRect().right <= edge.right + 1);
    return shown.map((one) => one.textContent.trim());"""
    answer, _ = ask(families, script)
    for label in ("verdict", "win rate, %", "reward gain", "KL, nats", "pair accuracy, %", "beta"):
        assert label in answer, answer


def test_the_leaderboard_is_filtered_by_column(families: Path) -> None:
    script = """
    const table = page.querySelector("#leaderboard table");
    page.getElementById("filter").click();
    const inputs = [...table.querySelectorAll(".sieve input")];
    const set = (label, text) => {
      const input = inputs.find((one) => one.getAttribute("aria-label") === `filter by ${label}`);
      input.value = text;
      input.dispatchEvent(new view.Event("input"));
    };
    const names = () => [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[0].textContent);
    set("beta", ">= 0.1");
    const large = names();
    set("variant", "DPO");
    const both = names();
    page.getElementById("filter").click();
    return { large, both, all: names().length };"""
    answer, _ = ask(families, script)
    assert set(answer["large"]) == {"dpo[beta=0.5]", "simpo", "noop"}
    assert answer["both"] == ["dpo[beta=0.5]"]
    assert answer["all"] == 4


def test_a_mailed_page_has_its_tables_and_figures(families: Path) -> None:
    script = """
    const links = [...page.querySelectorAll("main a[href]")].map((one) => one.getAttribute("href"));
    const csv = page.querySelector('#leaderboard a[download="leaderboard.csv"]').getAttribute("href");
    const svg = page.querySelector("a.save");
    const text = decodeURIComponent(csv.split(",").slice(1).join(","));
    return { dead: links.filter((one) => !/^(#|data:)/.test(one)), csv: text,
             svg: svg.hidden ? "" : svg.href.slice(0, 18) };"""
    answer, _ = ask(families, script)
    assert answer["dead"] == []
    assert answer["csv"].splitlines()[0].startswith("variant,verdict,win_rate")
    assert len(answer["csv"].splitlines()) == 5
    assert answer["svg"].startswith("data:image/svg+xml")


def test_folded_notes_are_open_on_paper(families: Path) -> None:
    script = """
    const folded = () => page.querySelectorAll("details:not([open])").length;
    const before = folded();
    view.dispatchEvent(new view.Event("beforeprint"));
    return { before, after: folded() };"""
    answer, _ = ask(families, script)
    assert answer["before"] > 0
    assert answer["after"] == 0


def test_marks_of_a_narrow_page_stay_inside(families: Path) -> None:
    script = """
    const outside = [];
    page.querySelectorAll("svg.strip").forEach((strip) => {
      const edge = strip.closest("td").getBoundingClientRect();
      strip.querySelectorAll("line, circle").forEach((mark) => {
        const own = mark.getBoundingClientRect();
        if (own.left < edge.left - 1 || own.right > edge.right + 1) outside.push(mark.tagName);
      });
    });
    const card = page.querySelector("#figure-winrate_forest .card").getBoundingClientRect();
    const forest = page.querySelector("#figure-winrate_forest img").getBoundingClientRect();
    return { outside, forest: forest.left >= card.left && forest.right <= card.right };"""
    answer, _ = ask(families, script, width=390)
    assert answer == {"outside": [], "forest": True}


def test_samples_are_searched_and_filtered(folder: Path) -> None:
    script = """
    const set = (id, value) => {
      const control = page.getElementById(id);
      control.value = value;
      control.dispatchEvent(new view.Event("input"));
    };
    const cards = () => [...page.querySelectorAll(".prompt:not([hidden]) .sample:not([hidden])")];
    const prompts = () => page.querySelectorAll(".prompt:not([hidden])").length;
    const first = prompts();
    page.getElementById("more").click();
    const more = prompts();
    set("who", "simpo"); set("what", "lost");
    const lost = cards().map((card) => [card.dataset.variant, card.dataset.outcome]);
    set("who", ""); set("what", ""); set("find", "onerror");
    const texts = [...page.querySelectorAll(".prompt:not([hidden])")].map((one) => one.textContent);
    set("find", "nowhere to be found");
    return { first, more, lost, texts, none: prompts(), count: page.getElementById("count").textContent };"""
    answer, _ = ask(folder, script)
    assert (answer["first"], answer["more"]) == (10, 20)
    assert {tuple(card) for card in answer["lost"]} == {("reference", "reference"), ("simpo", "lost")}
    assert answer["texts"]
    assert all("onerror" in text for text in answer["texts"])
    assert answer["none"] == 0
    assert answer["count"].startswith("0 of 0")
