"""Build the documentation site in _docs/: nbdev prepares the notebooks, smalldocs draws the pages (no Quarto), npm brings
what the browser needs, and at the end every link is tried."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

from nbdev.config import get_config
from nbdev.doclinks import _nbpath2html
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs
from smalldocs import layout, site

from lapa_breakout.core import Paths

HERE = Path(__file__).resolve().parent / "site"  # package.json and its lock file
LOADS = {"link": "href", "script": "src", "img": "src", "source": "src", "video": "src", "audio": "src", "iframe": "src"}
CSS_URL = re.compile(r"""(?:url\(|@import\s+(?!url))["']?(?!data:)([^"')\s;]+)""")
PRIVATE = re.compile(r"\[(`_\w+`)\]\([^)]*\)")  # nbdev links these names too, but shows no documentation of them
FENCED, LINK = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE), re.compile(r"\[(`[^`]+`)\]\([^)]*\)")
FONT_IMPORT = re.compile(r"@import url\([^)]*\);?")


def npm_packages() -> Path:
    "Folder of the packages that package-lock.json names, installed if need be."
    lock, done = HERE / "package-lock.json", HERE / "node_modules" / ".package-lock.json"
    if not done.exists() or done.stat().st_mtime < lock.stat().st_mtime:
        npm = shutil.which("npm")
        if npm is None:
            sys.exit("npm is missing, which brings KaTeX and ONNX Runtime. On Debian or Ubuntu: sudo apt-get install npm")
        subprocess.run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"], cwd=HERE, check=True)
        done.touch()
    return done.parent


def without_links_in_code(notebook: str) -> str:  # JSON
    "nbdev links names in signatures too; these are code, which would show the link's markup"
    content = json.loads(notebook)
    for output in (output for cell in content["cells"] for output in cell.get("outputs", ())):
        if "text/markdown" in output.get("data", {}):
            text = "".join(output["data"]["text/markdown"])
            output["data"]["text/markdown"] = FENCED.sub(lambda code: LINK.sub(r"\1", code[0]), text)
    return json.dumps(content)


def prepare() -> Path:
    "The folder of prepared notebooks, with links that hold in the site made here."
    cfg = get_config()
    refresh_quarto_yml()
    prepared = proc_nbs(n_workers=2, force=True)

    # nbdev links names to core.html on the public site; the page made here is 00_core.html
    public, notebooks = cfg.doc_host + cfg.doc_baseurl, list(prepared.glob("*.ipynb"))
    links = {f"{public}/{_nbpath2html(nb).name}": f"{nb.stem}.html" for nb in notebooks}
    links |= {f"](../{name}.md)": f"]({cfg.git_url}/blob/{cfg.branch}/{name}.md)"
              for name in ("CONTRIBUTING", "CHANGELOG", "EXPERIMENTS", "README")}
    for nb in notebooks:
        text = nb.read_text(encoding="utf-8")
        for old, new in links.items():
            text = text.replace(old, new)
        nb.write_text(without_links_in_code(PRIVATE.sub(r"\1", text)), encoding="utf-8")
    return prepared


def draw(prepared: Path) -> Path:
    "The pages, with formulas and styles from this folder alone."
    cfg, npm = get_config(), npm_packages()
    layout.KATEX = "site_libs/katex"
    for warning in site.build(prepared).warnings:
        if not re.search("output-file|commonmark|keep-md", warning):  # what nbdev wants of Quarto
            print("warning:", warning)
    shutil.rmtree(cfg.doc_path, ignore_errors=True)
    shutil.move(prepared / cfg.doc_path.name, cfg.doc_path)

    libs = cfg.doc_path / "site_libs"
    for part in ("katex.min.css", "katex.min.js", "contrib/auto-render.min.js"):
        (libs / "katex" / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(npm / "katex" / "dist" / part, libs / "katex" / part)
    shutil.copytree(npm / "katex" / "dist" / "fonts", libs / "katex" / "fonts")
    for theme in (libs / "themes").glob("*.css"):
        theme.write_text(FONT_IMPORT.sub("", theme.read_text(encoding="utf-8")), encoding="utf-8")
    return cfg.doc_path


def add_game(docs: Path) -> None:
    "The game: its models, moments to start from, and the runtime that plays them."
    from lapa_breakout.export import export_game

    runtime = npm_packages() / "onnxruntime-web" / "dist"
    (docs / "play" / "ort").mkdir(parents=True, exist_ok=True)
    names = [f"ort-wasm-simd-threaded{kind}" for kind in ("", ".jsep")]  # for the processor, and for graphics cards
    for part in ("ort.wasm.min.mjs", "ort.all.min.mjs", *(f"{name}.{end}" for name in names for end in ("mjs", "wasm"))):
        shutil.copy(runtime / part, docs / "play" / "ort" / part)
    export_game("evening" if Paths().pretrained("evening").is_dir() else "laptop", docs / "play")

    # on top of the home page as well, which is also README.md and so cannot hold it itself
    home, words = docs / "index.html", (get_config().nbs_path / "play.qmd").read_text(encoding="utf-8")
    game = words.split("```{=html}\n")[1].split("```")[0]
    above, title_end, below = home.read_text(encoding="utf-8").partition("</header><!-- WARNING: THIS FILE")
    assert title_end, "index.html has no title to put the game under"
    home.write_text(f"{above}</header>{game}{below.partition('-->')[2]}", encoding="utf-8")


class Links(HTMLParser):
    "What a page links to, what it loads, and the places in it."

    def __init__(self, text: str):
        super().__init__()
        self.places: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = {name: value or "" for name, value in attrs}
        self.places |= {own[name] for name in ("id", "name") if name in own}
        if "href" in own and tag == "a":
            self.links.append(own["href"])
        if (address := own.get(LOADS.get(tag, ""))) and own.get("rel") != "canonical":
            self.loads.append(address)


def complaints(docs: Path) -> Iterator[str]:
    "One line for each link without an end, and for each thing that would be loaded from another host."
    pages = {page: Links(page.read_text(encoding="utf-8")) for page in sorted(docs.rglob("*.html"))}
    places = {page.resolve(): found.places for page, found in pages.items()}
    home = get_config().doc_host + get_config().doc_baseurl
    loads = [(page, address) for page, found in pages.items() for address in found.loads]
    for sheet in docs.rglob("*.css"):
        loads += [(sheet, address) for address in CSS_URL.findall(sheet.read_text(encoding="utf-8"))]

    for source, address in loads:
        if urlsplit(address).netloc:
            yield f"{source.name} loads {address} from another host"
    local = loads + [(page, address) for page, found in pages.items() for address in found.links]
    for source, address in local:
        if address.startswith(home):
            yield f"{source.name} links to {address}: link to the page in this site"
        if urlsplit(address).scheme or urlsplit(address).netloc or address in ("", "#"):
            continue
        path, place = urldefrag(address)
        target = (source.parent / unquote(urlsplit(path).path)).resolve() if path else source.resolve()
        target = target / "index.html" if target.is_dir() else target
        if not target.is_file():
            yield f"{source.name} links to {address}: there is no such file"
        elif place and target in places and unquote(place) not in places[target]:
            yield f"{source.name} links to {address}: there is no such place on that page"


if __name__ == "__main__":
    docs = draw(prepare())
    add_game(docs)
    if wrong := sorted(set(complaints(docs))):
        sys.exit("\n".join([*wrong, f"{len(wrong)} links do not hold"]))
    print(f"open {docs / 'index.html'}")
