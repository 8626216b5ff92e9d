"""Build the documentation site in _docs/: nbdev prepares the notebooks, smalldocs draws the pages (no Quarto)."""

import shutil

from nbdev.config import get_config
from nbdev.doclinks import _nbpath2html
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs
from smalldocs.site import build

if __name__ == "__main__":
    cfg = get_config()
    refresh_quarto_yml()
    prepared = proc_nbs(n_workers=2, force=True)

    # nbdev links names to core.html on the public site; the page made here is 00_core.html
    site, notebooks = cfg.doc_host + cfg.doc_baseurl, list(prepared.glob("*.ipynb"))
    pages = {f"{site}/{_nbpath2html(nb).name}": f"{nb.stem}.html" for nb in notebooks}
    for nb in notebooks:
        text = nb.read_text(encoding="utf-8")
        for public, local in pages.items():
            text = text.replace(public, local)
        nb.write_text(text, encoding="utf-8")

    for warning in build(prepared).warnings:
        print("warning:", warning)
    shutil.rmtree(cfg.doc_path, ignore_errors=True)
    shutil.move(prepared / cfg.doc_path.name, cfg.doc_path)
    print(f"open {cfg.doc_path / 'index.html'}")
