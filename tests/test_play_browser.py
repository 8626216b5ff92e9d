"""The game in a real JupyterLab, in a real browser: keys steer, the notebook keeps its hands off, how fast it is.

LAPA_PICTURES_A_SECOND=30 asks for the goal, on a machine that does nothing else; LAPA_SCREENSHOTS=folder keeps pictures.
"""

import contextlib
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import numpy as np
import pytest

from lapa_breakout.core import H, W, to_float
from lapa_breakout.metrics import locate_paddle
from lapa_breakout.play import in_colour

ROOT = Path(__file__).parents[1]
START = 2000  # a frame of the sample with the paddle away from both walls
WAIT = 300_000  # milliseconds: a busy machine is slow, not wrong
ENOUGH = float(os.environ.get("LAPA_PICTURES_A_SECOND", "3"))  # other tests run beside it, and share the two cores
CELLS = (
    "from lapa_breakout.play import PlayWidget",
    f"game = PlayWidget(start={START}, real=True, fps=15)\ngame",
    "'the last cell'",
)

PAIRS = """
one, kept = game._answer, []
def both(question):
    kept.append(question)
    if len(kept) == 2:
        with game.hold_sync():
            while kept:
                one(kept.pop(0))
game._answer = both
"""


@contextlib.contextmanager
def served(folder, answers, *command):
    "The command with a free port, once it answers there."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = {name: str(folder / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTERLAB_SETTINGS_DIR", "IPYTHONDIR")}
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    env = {**os.environ, **home, **paths, "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces")}
    log = folder / "log"
    with open(log, "w") as out:
        full = [sys.executable, "-m", *(str(part).format(port=port) for part in command)]
        server = subprocess.Popen(full, cwd=folder, env=env, stdout=out, stderr=out)
    try:
        wait_for(f"http://127.0.0.1:{port}{answers}", server, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()  # it ends its kernels first
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


def wait_for(url, server, log):
    end = time.monotonic() + WAIT / 1000
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(url, timeout=10).close()
            return
        except urllib.error.HTTPError:
            return  # it is there, and has no such page
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            assert server.poll() is None, log.read_text()
            time.sleep(0.3)
    pytest.fail(f"nothing answers at {url}:\n{log.read_text()}", pytrace=False)


@pytest.fixture
def page(browser):
    with contextlib.closing(browser.new_context(viewport={"width": 1440, "height": 1000})) as context:
        context.set_default_timeout(WAIT)
        yield context.new_page()


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    "Address and token of a JupyterLab with a notebook that holds the widget."
    folder, token = tmp_path_factory.mktemp("lab"), secrets.token_hex(16)
    kernel = {"name": "python3", "display_name": "python3"}  # without it JupyterLab asks which one
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), folder / "game.ipynb")
    options = {"port": "{port}", "token": token, "root_dir": folder, "open_browser": False, "port_retries": 0}
    flags = [f"--ServerApp.{name}={value}" for name, value in options.items()]
    flags += ["--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None", "--allow-root"]
    with served(folder, f"/api?token={token}", "jupyter", "lab", *flags) as address:
        yield address, token


def run_notebook(page, lab, shown):
    "Open the notebook, run all of it, wait for something."
    address, token = lab
    page.goto(f"{address}/lab/tree/game.ipynb?reset&token={token}")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.wait_for_function("window.jupyterapp?.shell.currentWidget?.sessionContext?.isReady")
    command(page, "notebook:run-all-cells")
    page.wait_for_selector(shown)


def command(page, name, **options):
    page.evaluate("([name, options]) => window.jupyterapp.commands.execute(name, options)", [name, options])


def steps(page):
    return int(page.locator(".lapa-play").get_attribute("data-count"))


def paddle(page, canvas):
    "Column of the paddle, from the pixels on the page."
    pixels = "it => [...it.getContext('2d').getImageData(0, 0, it.width, it.height).data]"
    data = page.locator(f".lapa-play canvas.{canvas}").evaluate(pixels)
    shown = np.array(data, np.uint8).reshape(H, W, 4)[..., :3]
    colours = in_colour(np.arange(256, dtype=np.uint8)[None])[0]
    levels = [(shown == colours[grey]).all(-1) * grey for grey in (85, 110, 124, 127, 129, 131, 142, 148)]
    return float(locate_paddle(to_float(np.sum(levels, 0).astype(np.uint8)[None])).col[0])


def until(page, count):
    page.wait_for_function(f"Number(document.querySelector('.lapa-play').dataset.count) >= {count}")


def status(page, text):
    page.wait_for_function(f"document.querySelector('.lapa-play .status').textContent.includes('{text}')")


def settle(page):
    "Wait for the answer under way."
    page.wait_for_function("document.querySelector('.lapa-play').dataset.waiting === '0'")


def pause(page):
    page.keyboard.press("p")
    status(page, "paused")
    settle(page)


def hold(page, key, count=4):
    "From the start frame hold a key for some steps; how far the paddles of the model and of the game went."
    pause(page)
    at = steps(page)
    page.keyboard.press("r")
    until(page, at + 1)
    before = [paddle(page, canvas) for canvas in ("frame", "truth")]
    page.keyboard.down(key)
    page.keyboard.press("p")
    until(page, at + 1 + count)
    pause(page)
    page.keyboard.up(key)
    after = [paddle(page, canvas) for canvas in ("frame", "truth")]
    page.keyboard.press("p")
    return [column - was for column, was in zip(after, before, strict=True)]


def steers(page):
    "Click, and the page plays and obeys."
    status(page, "click here")
    still = steps(page)
    page.locator(".lapa-play .frame").click()
    status(page, "playing")
    until(page, still + 2)  # the page drives
    obeys(page)


def obeys(page):
    "Whether the paddles of both games follow the arrow keys."
    right, left = hold(page, "ArrowRight"), hold(page, "ArrowLeft")
    assert min(right) > 3 and max(left) < -3, f"columns moved by RIGHT {right} and LEFT {left}, in model and game"


def set_speed(page, pictures):
    page.locator(".lapa-play .fps").evaluate(
        "(it, value) => { it.value = value; it.dispatchEvent(new Event('input')); }", pictures)


def notebook(page):
    "Kinds of the notebook's cells, and which is the active one."
    cells = "[...document.querySelectorAll('.jp-Notebook .jp-Cell')]"
    kind = "it.className.match(/jp-(Code|Raw|Markdown)Cell/)[1] + it.matches('.jp-mod-active')"
    return page.evaluate(f"{cells}.map(it => {kind})")


def keep(page, name, what="body"):
    "A picture of it, if pictures are asked for."
    if folder := os.environ.get("LAPA_SCREENSHOTS"):
        page.locator(what).first.screenshot(path=Path(folder) / f"{name}.png")


def brightness(page):
    "Of the widget's own background, 0 to 255."
    colour = page.evaluate("getComputedStyle(document.querySelector('.jp-Notebook .lapa-play')).backgroundColor")
    return np.mean([int(part) for part in re.findall(r"\d+", colour)[:3]])


def test_play_in_jupyterlab(page, lab):
    run_notebook(page, lab, ".lapa-play .frame")
    assert not page.locator(".lapa-play-buttons").is_visible(), "the plain buttons are for pages without the widget"
    steers(page)

    before = notebook(page)
    for key in ("ArrowDown", "ArrowUp", "r", "m", "a", "d", "d", "Enter", "Shift+Enter", " "):
        page.keyboard.press(key)
    assert notebook(page) == before, "keys pressed in the game reached the notebook"

    keep(page, "play_light", ".jp-Notebook .lapa-play")
    light = brightness(page)
    page.locator(".jp-Notebook .jp-CodeCell").last.locator(".cm-content").click()
    status(page, "click here")
    settle(page)
    at = steps(page)
    page.wait_for_timeout(700)
    assert steps(page) == at, "it goes on without the focus"

    command(page, "apputils:change-theme", theme="JupyterLab Dark")
    page.wait_for_selector("body[data-jp-theme-light=false]", state="attached")
    page.wait_for_function("getComputedStyle(document.querySelector('.lapa-play')).backgroundColor !== 'rgb(255, 255, 255)'")
    keep(page, "play_dark", ".jp-Notebook .lapa-play")
    assert light > 200 and brightness(page) < 80, "the widget does not follow the theme"


def test_frame_rate_in_jupyterlab(page, lab, capsys):
    run_notebook(page, lab, ".lapa-play .frame")
    page.locator(".lapa-play .frame").click()
    set_speed(page, 5)
    status(page, "playing")
    until(page, steps(page) + 3)
    at, began = steps(page), time.perf_counter()
    page.wait_for_timeout(2000)
    made = steps(page) - at
    allowed = 5 * (time.perf_counter() - began) + 3
    assert 0 < made <= allowed, f"{made} steps where the speed allows {allowed:.0f}"

    set_speed(page, 60)
    best, counts, parts = 0.0, [], []
    for _ in range(8):  # the best second of eight: other tests run beside this one
        at, began = steps(page), time.perf_counter()
        page.wait_for_timeout(1000)
        counts.append((steps(page) - at) / (time.perf_counter() - began))
        best = max(best, counts[-1])
        parts.append(page.locator(".lapa-play .rate").get_attribute("title"))
        if len(counts) > 3 and best >= ENOUGH:
            break
    with capsys.disabled():
        print(f"\n{best:.1f} frames/s in the best second in JupyterLab, {np.median(counts):.1f} in the median; {parts[-1]}")
    assert best >= ENOUGH


def test_two_answers_that_arrive_as_one_event(page, lab):
    run_notebook(page, lab, ".lapa-play .frame")
    kernel = "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel"
    page.evaluate(f"async (code) => {{ await {kernel}.requestExecute({{ code }}).done; }}", PAIRS)
    page.locator(".lapa-play .frame").click()
    until(page, steps(page) + 8)


def test_lost_kernel_is_said(page, lab):
    run_notebook(page, lab, ".lapa-play .frame")
    page.locator(".lapa-play .frame").click()
    status(page, "playing")
    until(page, steps(page) + 2)
    number = page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.id")
    address, token = lab
    asked = urllib.request.Request(f"{address}/api/kernels/{number}?token={token}", method="DELETE")
    urllib.request.urlopen(asked, timeout=WAIT / 1000)
    status(page, "run this cell again")
    assert page.locator(".lapa-play .frame").is_visible() and paddle(page, "frame") > 0, "the last picture is gone"


def test_buttons_where_the_widget_cannot_load(page, lab):
    page.route("**/anywidget/**", lambda asked: asked.abort())
    run_notebook(page, lab, ".lapa-play-buttons")
    assert not page.locator(".lapa-play .frame").is_visible()
    shown, source = page.locator(".lapa-play-buttons img"), "document.querySelector('.lapa-play-buttons img').src"
    for button in ("RIGHT", "LEFT", "reset"):
        before = shown.get_attribute("src")
        page.locator(".lapa-play-buttons").get_by_role("button", name=button).click()
        page.wait_for_function(f"{source} !== '{before}'")
        keep(page, f"buttons_{button}", ".jp-OutputArea-output:has(.lapa-play-buttons)")


def test_play_as_an_app(page, tmp_path):
    flags = ("--port={port}", "--no-browser", "--show_tracebacks=True", "--Voila.ip=127.0.0.1")
    with served(tmp_path, "/voila/static/voila.js", "voila", *flags, ROOT / "tools" / "play_app.ipynb") as address:
        page.goto(address)
        page.locator(".lapa-play .start").select_option("168")  # on offer, and away from both walls
        status(page, "playing")
        obeys(page)
        keep(page, "app")
