"""Write README.md from nbs/index.ipynb (`--check`: only compare). Plays the part of `nbdev_readme`, without Quarto."""

import posixpath
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
HIDDEN = re.compile(r"^#\|\s*(hide|export|exporti|default_exp|include:\s*false)\b", re.M)
NO_CODE = re.compile(r"^#\|\s*echo:\s*false\b", re.M)
LINK = re.compile(r"""(?<=\]\()[^)\s#]+|(?<=src=")[^"]+|(?<=href=")[^"#]+""")


def from_root(text: str) -> str:
    "Rewrite links that are relative to nbs/ so that they hold from the repository's root."

    def fix(match: re.Match) -> str:
        return posixpath.normpath("nbs/" + match[0]) if (ROOT / "nbs" / match[0]).exists() else match[0]

    return LINK.sub(fix, text)


def render() -> dict[Path, bytes]:
    "README.md and the pictures in its outputs, by path."
    nb = nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4)
    nb.cells = [cell for cell in nb.cells if not (cell.cell_type == "code" and HIDDEN.search(cell.source))]
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = from_root(cell.source)
            continue
        if NO_CODE.search(cell.source):
            cell.metadata["transient"] = {"remove_source": True}
        cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M)

    nb.metadata["language_info"] = {"name": "python"}

    exporter = MarkdownExporter()
    exporter.display_data_priority = ["text/markdown", "text/html", "image/svg+xml", "image/png", "text/plain"]
    body, resources = exporter.from_notebook_node(nb, {"unique_key": "index", "output_files_dir": "index_files"})
    body = re.sub(r"<style.*?</style>\n?", "", body, flags=re.S)  # a data frame's, which hosts do not render
    body = re.sub(r"\n(?:[ \t]*\n){2,}", "\n\n", body)
    text = f"<!-- Written from nbs/index.ipynb by `make readme`: edit the notebook. -->\n\n{body.strip()}\n"
    pictures = {ROOT / name: data for name, data in resources["outputs"].items()}
    return {ROOT / "README.md": text.encode(), **pictures}


if __name__ == "__main__":
    files = render()
    if "--check" in sys.argv:
        stale = [path.name for path, data in files.items() if not path.exists() or path.read_bytes() != data]
        sys.exit(f"out of date: {', '.join(stale)}: run `make readme`" if stale else 0)
    for path, data in files.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
