"""The console script from outside: what it prints, where, with which exit status, and what it leaves alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from lapa_breakout.cli import _judge, app
from lapa_breakout.core import get_preset
from lapa_breakout.data import EpisodeStore
from lapa_breakout.lam import LatentActionModel
from lapa_breakout.pipeline import PRETRAINED, _load
from lapa_breakout.predictor import NextFramePredictor

ROOT = Path(__file__).parents[1]
SCRIPT = [sys.executable, "-c", "from lapa_breakout.cli import main; main()"]
STAGES = "collect train-lam extract train-predictor train-mapper".split()
KEYS = """
    lam.psnr lam.psnr_copy lam.psnr_changed lam.codes_used lam.perplexity lam.ball_recall predictor.psnr
    mapper.mlp_accuracy mapper.action_table_accuracy mapper.majority_accuracy mapper.context_accuracy
    play.paddle_right time.collect time.train_lam time.extract time.train_predictor time.train_mapper
""".split()


def environment():
    plain = {key: value for key, value in os.environ.items() if "COLOR" not in key and key != "IN_TEST"}
    return plain | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"}


def call(*arguments):
    command = [*SCRIPT, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=200)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def complaint(*arguments):
    "The last line on standard error of a command that must fail politely; in this process, to be quick."
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit), done.exception
    assert not done.stdout and "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def smoke_run(folder):
    done = call("run", "--preset", "smoke", "--data-dir", folder / "runs")
    return done.stdout if done.returncode == 0 else f"FAILED\n{done.stderr}"


@pytest.fixture(scope="session")
def finished(once):
    "A data folder in which the whole pipeline has run at smoke size, not to be written to, and what that printed."
    folder, printed = once("finished", smoke_run)
    if printed.startswith("FAILED"):
        pytest.fail(printed, pytrace=False)
    return folder / "runs", printed


@pytest.fixture
def run_folder(finished, tmp_path):
    "A copy to write to, or to damage."
    return Path(shutil.copytree(finished[0], tmp_path / "runs"))


def test_help_reads_well_and_comes_quickly():
    begin = os.times().children_user
    shown = call("--help").stdout
    assert os.times().children_user - begin < 1  # seconds of work: torch alone takes longer
    assert all(command in shown for command in (*STAGES, "analyse", "play", "run"))
    for command in (*STAGES, "analyse", "play", "run"):
        options = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "120"}).stdout
        assert all(option in options for option in ("--preset", "--data-dir", "--seed"))


def test_few_labels_goes_on_where_it_was(run_folder):
    given = "few-labels", "--preset", "smoke", "--data-dir", run_folder, "--seeds", 1
    file = run_folder / "results" / "few_labels.json"
    first = call(*given, "--labels", 20)
    assert first.returncode == 0, first.stderr
    assert "2 trainings" in first.stdout and len(first.stdout.splitlines()) == 1
    before = json.loads(file.read_text())["rows"]
    assert {row["labels"] for row in before} == {20} and {row["way"] for row in before} == {"video and labels", "labels alone"}
    assert call(*given, "--labels", 20, "--labels", 40).returncode == 0
    after = json.loads(file.read_text())["rows"]
    assert after[:2] == before and len(after) == 4  # what was there is neither measured again nor lost
    file.write_text(file.read_text().replace('"identity": "', '"identity": "x'))
    assert "another --output" in complaint(*given, "--labels", 20)


def test_wrong_command_line_is_a_usage_error():
    done = call("trian-lam")
    assert done.returncode == 2 and "trian-lam" in done.stderr and not done.stdout


def test_a_failure_is_one_line_and_no_traceback(tmp_path):
    done = call("collect", "--preset", "latop", "--data-dir", tmp_path)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr == "lapa_breakout: there is no preset 'latop': choose one of smoke, laptop, evening, paper\n"


@pytest.mark.parametrize("command", [*STAGES, "run", "analyse", "play", "save-pretrained"])
def test_unknown_preset(command, tmp_path):
    line = complaint(command, "--preset", "latop", "--data-dir", tmp_path)
    assert "latop" in line and "laptop" in line and not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [*STAGES[1:], "analyse", "play"])
def test_nothing_recorded(command, tmp_path):
    line = complaint(command, "--preset", "smoke", "--data-dir", tmp_path)
    assert "collect" in line and not contents(tmp_path)


def test_run_prints_results_and_a_film(finished):
    folder, printed = finished
    film = folder / "results" / "side_by_side.gif"
    assert str(film) in printed and film.read_bytes()[:6] == b"GIF89a"
    assert film.stat().st_size < 1_500_000
    assert "PSNR" in printed


def test_second_run_skips_everything(run_folder):
    weights = contents(run_folder / "checkpoints")
    done = call("run", "--preset", "smoke", "--data-dir", run_folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("skipped") == len(STAGES) + 1
    assert contents(run_folder / "checkpoints") == weights


def test_analyse_prints_flat_json_and_nothing_else(run_folder):
    done = call("analyse", "--preset", "smoke", "--data-dir", run_folder, "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    missing = [key for key in KEYS if key not in figures]
    assert not missing
    assert all(value is None or isinstance(value, int | float) for value in figures.values())
    assert figures == json.loads((run_folder / "results" / "figures.json").read_text())


def test_validation_episodes_for_choosing_leave_no_trace(run_folder):
    before = contents(run_folder)
    done = call("analyse", "--preset", "smoke", "--data-dir", run_folder, "--json", "--validation")
    assert done.returncode == 0 and contents(run_folder) == before, done.stderr
    chosen, test = json.loads(done.stdout), json.loads((run_folder / "results" / "figures.json").read_text())
    assert chosen["lam.perplexity"] == test["lam.perplexity"]  # judged on validation episodes in either case
    assert chosen["lam.psnr_copy"] != test["lam.psnr_copy"]  # other episodes


def test_play_starts_where_it_is_told(finished, tmp_path):
    folder, _ = finished
    film = tmp_path / "films" / "mine.gif"
    where = ["--preset", "smoke", "--data-dir", folder, "--start", 3, "--steps", 4, "--output", film]
    done = call("play", *where, "--player", "expert", "--temperature", 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(film) and film.exists()
    assert "no start frame 99999999" in complaint("play", *where, "--start", 99_999_999)
    assert "nobody" in complaint("play", *where, "--player", "nobody")
    assert "temperature" in complaint("play", *where, "--temperature", -1)


def test_truncated_recording(run_folder):
    victim = sorted((run_folder / "episodes").glob("*.npz"))[0]
    victim.write_bytes(victim.read_bytes()[:1000])
    before = contents(run_folder)
    for command in ("collect", "train-lam", "analyse", "run"):
        assert victim.name in complaint(command, "--preset", "smoke", "--data-dir", run_folder)
    assert contents(run_folder) == before


def test_missing_output_of_a_stage(run_folder):
    (run_folder / "checkpoints" / "latent_action" / "lam.pt").unlink()
    before = contents(run_folder)
    for command in ("extract", "analyse", "play"):
        assert "lam" in complaint(command, "--preset", "smoke", "--data-dir", run_folder)
    shutil.rmtree(run_folder / "latents")
    assert "extract" in complaint("train-predictor", "--preset", "smoke", "--data-dir", run_folder)
    assert before.items() >= contents(run_folder).items()


def test_a_folder_belongs_to_one_preset_and_seed(run_folder):
    before = contents(run_folder)
    for command in (*STAGES, "run"):
        for other in (["--preset", "laptop"], ["--preset", "smoke", "--seed", 1]):
            line = complaint(command, *other, "--data-dir", run_folder)
            assert "--preset smoke --seed 0" in line and "--data-dir" in line
    assert contents(run_folder) == before


def test_checkpoint_of_another_configuration(run_folder):
    (run_folder / "run.json").unlink()  # as if it had been copied here
    before = contents(run_folder)
    line = complaint("train-lam", "--preset", "smoke", "--seed", 1, "--data-dir", run_folder)
    assert "lam.pt" in line and "--data-dir" in line
    assert "preset" in complaint("analyse", "--preset", "paper", "--data-dir", run_folder)
    assert contents(run_folder) == before


def test_truncated_checkpoint(run_folder):
    victim = run_folder / "checkpoints" / "latent_action" / "predictor.pt"
    victim.write_bytes(victim.read_bytes()[:5000])
    before = contents(run_folder)
    for command in ("train-predictor", "play", "analyse"):
        assert "predictor.pt" in complaint(command, "--preset", "smoke", "--data-dir", run_folder)
    assert contents(run_folder) == before


def test_save_pretrained_keeps_half_the_bytes_and_the_same_model(finished, tmp_path):
    folder, _ = finished
    done = call("save-pretrained", "--preset", "smoke", "--data-dir", folder, "--folder", tmp_path)
    assert done.returncode == 0, done.stderr
    names = {"lam.pt", "predictor.pt", "mapper.pt", "context_mapper.pt", "figures.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    trained = folder / "checkpoints" / "latent_action"
    assert (tmp_path / "predictor.pt").stat().st_size < 0.6 * (trained / "predictor.pt").stat().st_size
    for name, model, rounding in (("lam.pt", LatentActionModel, torch.float), ("predictor.pt", NextFramePredictor, torch.half)):
        kept, exact = (model.load(path / name).state_dict() for path in (tmp_path, trained))
        weights = {key: value for key, value in exact.items() if value.is_floating_point()}
        assert all(torch.equal(kept[key], value.to(rounding).float()) for key, value in weights.items())
    figures, preset = json.loads((tmp_path / "figures.json").read_text()), get_preset("smoke")
    assert set(KEYS) <= figures.keys()
    kept, store = _load(tmp_path, PRETRAINED, preset, "as kept", tmp_path / "none"), EpisodeStore(folder / "episodes")
    again = _judge(kept, store, preset, 0)
    assert all(figures[name] == value or value != value for name, value in again.items() if name != "play.steps_per_second")


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to a child")
def test_ctrl_c_ends_in_one_line_and_the_same_command_goes_on(tmp_path):
    arguments = ["run", "--preset", "smoke", "--data-dir", str(tmp_path)]
    process = subprocess.Popen(
        [*SCRIPT, *arguments], cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("collect:"):  # the next stage has begun
            break
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(60) == 130 and "Traceback" not in rest
    assert "lapa_breakout run --preset smoke" in rest.strip().splitlines()[-1]
    assert "skipped" in call("collect", *arguments[1:]).stderr
