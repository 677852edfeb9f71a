"""report.html in headless Chromium: it runs, asks for nothing, fits its window, and keeps hostile text inert."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from synthetic import HOSTILE, World, many

from prefopt.report import build

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
