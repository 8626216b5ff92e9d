"""The documentation site as a reader has it: every link holds, and the game on the page is played in a real browser."""

import contextlib
import functools
import http.server
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from conftest import BROWSERS

from lapa_breakout.analysis import results_table
from lapa_breakout.core import Paths
from lapa_breakout.data import EpisodeStore, split_episodes
from lapa_breakout.export import PlayStep, pick_moments, play_steps, quiet_inputs
from lapa_breakout.pipeline import load_pretrained
from lapa_breakout.play import history_at

ROOT = Path(__file__).parents[1]
PAGES = {path.stem for path in (ROOT / "nbs").glob("[!_]*.*") if path.suffix in (".ipynb", ".qmd")}
ENOUGH = float(os.environ.get("LAPA_PICTURES_A_SECOND", "8"))  # other tests run beside it; alone, ask for the goal, 30
NO_CARD = "No available adapters."  # what Chromium itself remarks where there is no graphics card


def build(copy):
    shutil.copy(ROOT / "settings.ini", copy)
    for folder in ("nbs", "lapa_breakout"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_*"))
    plain = {key: value for key, value in os.environ.items() if key != "IN_TEST"}
    command = [sys.executable, ROOT / "tools" / "build_docs.py"]
    done = subprocess.run(command, cwd=copy, env=plain, capture_output=True, text=True)
    return "" if done.returncode == 0 else f"the site does not build\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="session")
def docs(once):
    "A site built from a copy of what nbdev reads."
    if shutil.which("npm") is None:
        pytest.skip("no npm: the site takes its formulas and the runtime of its game from there")
    folder, wrong = once("site", build)
    if wrong:
        pytest.fail(wrong, pytrace=False)
    return folder / "_docs"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address(docs):
    "Where the site is served."
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=docs))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def page(browser, address):
    "A page that must not complain, and must not ask anybody else."
    with contextlib.closing(browser.new_context()) as context:
        page, wrong = context.new_page(), []
        told = ("error", "warning")
        page.on("console", lambda said: wrong.append(said.text) if said.type in told and said.text != NO_CARD else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda asked: None if asked.url.startswith((address, "data:", "blob:")) else wrong.append(asked.url))
        yield page
        assert not wrong, wrong


def data(page, name):
    return page.locator(".lapa-game").get_attribute(f"data-{name}")


def play(page, address):
    "Open the page, and start the game at full speed."
    page.goto(f"{address}/play.html")
    page.locator(".rate").fill("60")
    page.get_by_role("button", name="▶ Play").click()
    page.wait_for_function("Number(document.querySelector('.lapa-game').dataset.steps) > 3", timeout=120_000)


def build_docs():
    spec = importlib.util.spec_from_file_location("build_docs", ROOT / "tools" / "build_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_built(docs):
    assert {page.stem for page in docs.glob("*.html")} == PAGES


def test_signatures_show_no_markup_of_links(docs):
    words = {page.stem: re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")) for page in docs.glob("*.html")}
    assert "of `make_env`; 0 to 12" in words["05_analysis"]  # the name stays
    assert not {name: found for name, text in words.items() if (found := re.findall(r"\[`[^`]+`\]\([^)]*\)", text))}


def test_check_of_links_finds_what_is_wrong(tmp_path):
    (tmp_path / "good.html").write_text('<h2 id="here">x</h2><a href="#here">x</a><a href="https://example.org">x</a>')
    assert list(build_docs().complaints(tmp_path)) == []
    (tmp_path / "bad.html").write_text(
        '<a href="good.html#there">x</a><a href="gone.html">x</a><a href="good.html#here">x</a>'
        '<script src="//cdn.example/x.js"></script>')
    (tmp_path / "bad.css").write_text('@import url("https://fonts.example/x"); a { background: url(gone.png) }')
    found = "\n".join(build_docs().complaints(tmp_path))
    assert found.count("\n") == 4
    for part in ("#there: there is no such place", "gone.html: there is no such file", "cdn.", "fonts.", "gone.png"):
        assert part in found


def test_results_page_shows_the_figures_that_lie_beside_the_weights():
    cells = json.loads((ROOT / "nbs" / "results.ipynb").read_text(encoding="utf-8"))["cells"]
    stored = "".join(line for cell in cells for out in cell.get("outputs", []) for line in out["data"]["text/markdown"])
    for path in sorted((ROOT / "data" / "pretrained").glob("*/figures.json")):
        for row in results_table(json.loads(path.read_text()), path.parent.name).reset_index().to_numpy():
            line = f"| {' | '.join(row)} |"
            assert line in stored, f"{line} is not on the results page: run `make notebooks NB=results.ipynb`"


def test_formulas_and_search(page, address):
    page.goto(f"{address}/03_predictor.html")
    page.wait_for_selector(".katex-html")
    page.locator(".navbar .smalldocs-search input").fill("perplexity")
    assert "perplexity" in page.wait_for_selector(".search-result").inner_text().lower()


def test_home_page_holds_the_game(page, address):
    page.goto(f"{address}/index.html")
    page.wait_for_function("document.querySelector('.lapa-game .start').options.length > 0")
    assert page.get_by_role("button", name="▶ Play").is_visible()


def after_six_steps(page):
    page.wait_for_function("document.querySelector('.lapa-game').game.steps >= 6", timeout=60_000)
    return int(data(page, "paddle"))


def test_keys_steer_the_paddle(page, address):
    play(page, address)
    ends = {}
    for key in ("ArrowRight", "ArrowLeft"):
        page.keyboard.press("r")
        page.keyboard.down(key)
        ends[key] = after_six_steps(page)
        page.keyboard.up(key)
    assert 0 <= ends["ArrowLeft"] < ends["ArrowRight"] - 10, ends


def test_touch_steers_too(page, address):
    play(page, address)
    ends = {}
    for side in ("RIGHT", "LEFT"):
        button = page.locator(f"[data-action={side}]")
        page.get_by_role("button", name="Start over").click()
        button.dispatch_event("pointerdown")
        ends[side] = after_six_steps(page)
        button.dispatch_event("pointerup")
    assert 0 <= ends["LEFT"] < ends["RIGHT"] - 10, ends


def test_speed(page, address):
    play(page, address)
    best = 0.0
    for _ in range(10):  # the best second of ten: other tests run beside this one
        page.wait_for_timeout(1000)
        best = max(best, float(data(page, "rate")))
        if best >= ENOUGH:
            break
    print(f"{best} pictures a second")
    assert best >= ENOUGH


CARD = """async ([greys, milliseconds]) => {  // a processor and a card that answer as told
    const game = document.querySelector('.lapa-game').game, size = game.about.rows * game.about.cols;
    const engine = (grey, wait) => ({ Tensor: class {}, session: { inputNames: [], run: async () => {
        await new Promise((done) => setTimeout(done, wait));
        if (grey < 0) throw new Error("lost");
        return { frame: { data: new Uint8Array(size).fill(grey) } };
    } } });
    Object.defineProperty(navigator, "gpu", { value: { requestAdapter: async () => ({}) }, configurable: true });
    game.processor = game.engine = engine(0, 20);
    const card = engine(greys, milliseconds);
    game.open = async () => card;
    const found = await game.tryGraphics().catch(() => "failed"), used = game.engine === card;
    if (used) card.session.run = async () => { throw new Error("lost"); };
    return [found, used, await game.step(0), game.engine === game.processor];
}"""


@pytest.mark.parametrize("card, found", [((0, 1), "used"), ((0, 60), "slower"), ((7, 1), "other pictures"), ((-1, 1), "failed")])
def test_a_graphics_card_plays_only_if_it_draws_the_same_sooner(page, address, card, found):
    page.goto(f"{address}/play.html")
    page.wait_for_function("document.querySelector('.lapa-game').game.history")
    used = found == "used"  # then it gets lost at the next step, which the processor makes instead
    assert page.evaluate(CARD, list(card)) == [found, used, True, True]


TRY_CARD = """async ([start, patience]) => {
    const root = document.querySelector('.lapa-game'), game = root.game, end = performance.now() + 1000 * patience;
    while ((root.dataset.graphics ?? "trying") === "trying" && performance.now() < end)
        await new Promise((done) => setTimeout(done, 100));
    const model = await (await fetch(new URL("game.onnx", game.from))).arrayBuffer();
    game.find(".start").value = start;
    game.restart();
    const hangs = new Promise((done) => setTimeout(done, end - performance.now(), "trying"));
    return [root.dataset.graphics, await Promise.race([game.tryGraphics(model), hangs])];
}"""


def test_a_graphics_card_draws_what_the_processor_draws(browser, address):
    "On a card that is only imitated, so it is slow, but it computes as WebGPU does; should it hang, on a new one."
    imitated = ["--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
    installed = next(filter(None, map(shutil.which, BROWSERS)), None)
    for patience in (150, 150, 240):  # seconds
        with contextlib.closing(browser.browser_type.launch(executable_path=installed, args=imitated)) as other:
            page = other.new_page()
            page.goto(f"{address}/play.html")
            if not page.evaluate("async () => Boolean(await navigator.gpu?.requestAdapter())"):
                pytest.skip("this browser cannot imitate a graphics card")
            page.get_by_role("button", name="▶ Play").click()
            page.get_by_role("button", name="Pause").click()  # a game that goes on takes half of the time
            found = page.evaluate(TRY_CARD, [5, patience])
        if "trying" not in found:
            break
    assert set(found) <= {"slower", "used"}, found


def test_same_seed_and_buttons_give_the_same_game(page, address):
    play(page, address)
    page.get_by_role("button", name="Pause").click()
    script = """async ([seed, temperature]) => {
        const game = document.querySelector('.lapa-game').game;
        document.querySelector('.seed').value = seed;
        document.querySelector('.temperature').value = temperature;
        await game.busy;
        game.restart();
        for (const action of [2, 2, 2, 3, 0, 1]) await game.step(action);
        return [...game.frame()].join();
    }"""
    again = [page.evaluate(script, [seed, heat]) for seed, heat in ((1, 2), (1, 2), (2, 2), (1, 0), (2, 0))]
    assert again[0] == again[1] and again[0] != again[2] and again[3] == again[4]


def test_page_plays_what_python_plays(page, address):
    run = load_pretrained("evening" if Paths().pretrained("evening").is_dir() else "laptop")
    store, length = EpisodeStore(Paths().sample), run.history
    test = split_episodes(store, run.preset.data.fractions)["test"]
    moment = pick_moments(store, test, length, run.context_mapper.cfg.memory)[0]
    begin = quiet_inputs(run) | {
        "history": torch.from_numpy(history_at(store, moment.start, length))[None],
        "past": torch.tensor([moment.past], dtype=torch.int32)}
    ours = [outputs[0].flatten().tolist() for _, outputs in play_steps(PlayStep(run), begin, [2, 2, 3, 0])]
    play(page, address)
    page.get_by_role("button", name="Pause").click()
    theirs = page.evaluate("""async () => {
        const game = document.querySelector('.lapa-game').game, frames = [];
        await game.busy;
        game.restart();
        for (const action of [2, 2, 3, 0]) { await game.step(action); frames.push([...game.frame()]); }
        return frames;
    }""")
    assert theirs == ours


def test_reality_check_counts(page, address):
    play(page, address)
    page.get_by_role("button", name="Reality check").click()
    page.wait_for_function("document.querySelector('.lapa-game').dataset.verdict", timeout=120_000)
    kept, seen, near = map(int, data(page, "verdict").split())
    assert 0 <= kept <= seen <= 90 and seen > 0 and 0 < near <= 90
    said = page.locator(".says").inner_text()
    assert f"{kept} of the {seen} steps" in said and re.search(r"within 4 px at \d+ of 90 steps", said)
    assert page.locator(".truth canvas").is_visible() and page.locator(".parts canvas").is_visible()


@pytest.mark.parametrize(
    "missing, says", [("game.onnx", "the models could not be loaded"), ("game.json", "the game could not be loaded")])
def test_what_is_missing_is_said_in_place(browser, address, missing, says):
    with contextlib.closing(browser.new_context()) as context:
        page = context.new_page()
        page.route(f"**/{missing}", lambda route: route.fulfill(status=404))
        page.goto(f"{address}/play.html")
        page.wait_for_timeout(500)
        if missing == "game.onnx":
            page.get_by_role("button", name="▶ Play").click()
        page.wait_for_selector(".says.wrong", timeout=60_000)
        assert says in page.locator(".says").inner_text()


def test_without_simd_the_page_says_so(browser, address):
    with contextlib.closing(browser.new_context()) as context:
        page = context.new_page()
        page.add_init_script("WebAssembly.validate = () => false")
        page.goto(f"{address}/play.html")
        page.wait_for_function("document.querySelector('.lapa-game .start').options.length > 0")
        page.get_by_role("button", name="▶ Play").click()
        page.wait_for_selector(".says.wrong")
        assert "WebAssembly SIMD" in page.locator(".says").inner_text()
