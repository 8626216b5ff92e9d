"""The repository keeps its own rules: notebooks, package and README agree, and modules depend downwards only."""

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("[!_]*.ipynb"))
MODULES = sorted((ROOT / "lapa_breakout").glob("[!_]*.py"))

EXPORTED = re.compile(r"^#\|\s*export", re.M)

# Each module may import only from those before it.
ORDER = "core metrics training data lam predictor mapper plot pipeline analysis play export policy cli".split()
MODELS = {"lam", "predictor", "mapper", "policy"}
PICTURES = {"matplotlib", "seaborn"}
NOT_IN_MODELS = {"ale_py", "gymnasium", "lapa_breakout.plot", "lapa_breakout.training"} | PICTURES

# The names that each module promises.
PUBLIC = {
    "core": "Preset presets Paths set_seed default_device save_artifact load_artifact",
    "data": "make_env collect_episodes Episode EpisodeStore split_episodes TransitionDataset",
    "lam": "VectorQuantizer LatentActionModel LAMConfig extract_latents",
    "predictor": "NextFramePredictor PredictorConfig rollout",
    "mapper": "ActionToLatentMLP ActionLatentPairDataset get_action_latent_dataloaders ContextMapper",
    "analysis": "action_code_table code_mutual_information action_probe controllability rollout_errors",
    "play": "WorldModelEnv PlayWidget record_rollout",
    "pipeline": "load_pretrained load_run",
    "training": "TrainConfig fit",
    "metrics": "psnr ssim codebook_usage perplexity locate_ball locate_paddle",
    "cli": "main",
}


def run(*command, cwd=ROOT):
    "Run a tool outside of nbdev's test mode; its output becomes the failure's text."
    env = {key: value for key, value in os.environ.items() if key != "IN_TEST"}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"{' '.join(str(part) for part in command)}\n{done.stdout}\n{done.stderr}", pytrace=False)


def contents(folder, pattern):
    return {path.name: path.read_bytes() for path in folder.glob(pattern)}


def is_import(node):
    return isinstance(node, ast.Import | ast.ImportFrom)


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@pytest.fixture
def copy(tmp_path):
    "A copy of what nbdev reads and writes."
    shutil.copy(ROOT / "settings.ini", tmp_path)
    for folder in ("nbs", "lapa_breakout"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_*"))
    return tmp_path


def test_package_is_what_the_notebooks_export(copy):
    shutil.rmtree(copy / "lapa_breakout")
    run(BIN / "nbdev_export", cwd=copy)
    fresh, kept = contents(copy / "lapa_breakout", "*.py"), contents(ROOT / "lapa_breakout", "*.py")
    changed = sorted(name for name in fresh | kept if fresh.get(name) != kept.get(name))
    assert not changed, f"not what nbs/ exports: {changed}: edit the notebook, then run `make export`"


def test_notebooks_are_clean(copy):
    run(BIN / "nbdev_clean", cwd=copy)
    fresh, kept = contents(copy / "nbs", "*.ipynb"), contents(ROOT / "nbs", "*.ipynb")
    changed = sorted(name for name in kept if fresh[name] != kept[name])
    assert not changed, f"not clean: {changed}: run `make export`"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_form(path):
    assert path.stat().st_size < 3_000_000, f"{path.name} is over 3 MB: store fewer or smaller pictures"
    title = "".join(cells(path)[0]["source"]).split("\n")
    form = [line[:2] for line in title if line.strip()]
    assert form == ["# ", "> "], f"{path.name}: nbdev's docs drop all of the first cell but title and promise"
    errors = [out["ename"] for cell in cells(path) for out in cell.get("outputs", []) if out["output_type"] == "error"]
    assert not errors, f"{path.name} stores failed cells: {errors}"
    said = [out["text"] for cell in cells(path) for out in cell.get("outputs", []) if out.get("name") == "stderr"]
    assert not said, f"{path.name} stores warnings or progress bars, which teach nothing: {said}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_imports_have_cells_of_their_own(path):
    "The docs build executes every cell that has an import, so such a cell must hold nothing else."
    to_python = TransformerManager().transform_cell
    for cell in cells(path):
        if cell["cell_type"] != "code":
            continue
        source = "".join(cell["source"])
        tree = ast.parse(to_python(source))
        # in exported code an import within a function is fine: nbdev executes those cells anyway
        places = tree.body if EXPORTED.search(source) else list(ast.walk(tree))
        mixed = any(map(is_import, places)) and not all(map(is_import, tree.body))
        assert not mixed, f"imports among other code in {path.name}:\n{source}"


def test_readme_is_what_the_index_says():
    run(sys.executable, "tools/make_readme.py", "--check")


def test_ruff():
    run(BIN / "ruff", "check", "--no-cache", "lapa_breakout", "tests", "tools")


def test_mypy():
    run(sys.executable, "-m", "mypy")


def imported(path):
    "Every module, and every name taken from one, that the file imports anywhere in it."
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = ".".join(filter(None, ["lapa_breakout" if node.level else None, node.module]))
            yield from (module, *(f"{module}.{alias.name}" for alias in node.names))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_dependencies_point_downwards(path):
    name, names = path.stem, set(imported(path))
    assert name in ORDER, f"{name} has no place in ORDER yet"
    later = {f"lapa_breakout.{module}" for module in ORDER[ORDER.index(name) :]}
    assert not (found := names & later), f"{name} imports {found}: not above it in ORDER"
    outside = names | {full.split(".")[0] for full in names}
    if name in MODELS:
        assert not (found := outside & NOT_IN_MODELS), f"{name} is a model and imports {found}"
    if name != "plot":
        assert not (found := outside & PICTURES), f"{name} draws with {found}: figures belong in plot"


@pytest.mark.parametrize("name", PUBLIC)
def test_promised_names_exist(name):
    module = importlib.import_module(f"lapa_breakout.{name}")
    missing = [public for public in PUBLIC[name].split() if public not in module.__all__]
    assert not missing, f"lapa_breakout.{name} lacks {missing}"


def test_onnx_runtime_reports_to_nobody():
    code = (
        "import os, sys\n"
        "from lapa_breakout.core import LapaError\n"
        "from lapa_breakout.export import OnnxStep\n"
        "assert 'onnxruntime' not in sys.modules, 'imported before it is told to be silent'\n"
        "try: OnnxStep('none.onnx')\n"
        "except LapaError: pass\n"
        "assert 'onnxruntime' in sys.modules and os.environ['ORT_DISABLE_TELEMETRY'] == '1'\n")
    unset = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    subprocess.run([sys.executable, "-c", code], check=True, env=unset, cwd=ROOT)
