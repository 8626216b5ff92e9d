"""Training outlives a kill at any moment and a full disk, what trackers were told can be read back, and `paper` trains."""

import errno
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from lapa_breakout.core import LapaError, TrainConfig, get_preset, load_artifact
from lapa_breakout.lam import LAMConfig, LatentActionModel
from lapa_breakout.training import fit

ROOT = Path(__file__).parents[1]
CFG = TrainConfig(steps=20, batch_size=8, lr=0.05, log_every=2, eval_every=6, checkpoint_every=5)

# One process imports everything and computes nothing; each life of the training is a fork of it, and really killed.
LIVES = """
import io, json, os, signal, sys, time
from dataclasses import replace
from pathlib import Path
import lapa_breakout.core as core, lapa_breakout.pipeline as pipeline, lapa_breakout.training as training
from lapa_breakout.core import Paths, get_preset

smoke = get_preset("smoke")
preset = replace(smoke, lam=replace(smoke.lam, warmup=4, reset_every=3, reset_stop=12), lam_train=replace(
    smoke.lam_train, steps=14, batch_size=4, checkpoint_every=4, log_every=1, eval_every=5))
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)


def at_call(number, function):
    "The same function, but the process dies at the start of that call of it"
    calls = iter(range(1, 10**9))
    return lambda *args, **options: kill() if next(calls) == number else function(*args, **options)


def arm(moment):
    "Arrange for a death in this process"
    if moment == "first step": training._step = at_call(1, training._step)
    if moment == "between checkpoints": training._step = at_call(7, training._step)
    if moment == "checkpoint half written": half_of(".resume", 2)
    if moment == "checkpoint not renamed": os.replace = at_call(3, os.replace)  # the log's is the first
    if moment == "row half written": training._line = half_a_line(10)
    if moment == "last evaluation": training._look = at_call(3, training._look)
    if moment == "model half written": half_of(".pt", 1)
    if moment == "model written": training._remove_state = at_call(1, training._remove_state)


def half_of(ending, number):
    whole, calls = training.write_bytes, iter(range(1, 10**9))
    def write(path, data):
        if str(path).endswith(ending) and next(calls) == number:
            Path(f"{path}.{os.getpid()}.tmp").write_bytes(data[: len(data) // 2])
            kill()
        return whole(path, data)
    training.write_bytes = core.write_bytes = write


def half_a_line(number):
    line, calls = training._line, iter(range(1, 10**9))
    log = Path(folder) / "results" / "lam.jsonl"
    def write(row):
        text = line(row)
        if next(calls) == number:
            with open(log, "a") as file: file.write(text[:20])
            kill()
        return text
    return write


def live(moment):
    "One life; gives the number of the signal that ended it, or 0"
    child = os.fork()
    if child == 0:
        arm(moment)
        pipeline.train_lam(preset, Paths(folder), 0)
        os._exit(0)
    if isinstance(moment, int):
        log = Path(folder) / "results" / "lam.jsonl"
        while not (log.exists() and log.read_text().count(chr(10)) >= moment): time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


for folder, moments in json.loads(sys.argv[1]):
    print(json.dumps([[live(moment) for moment in moments], live("")]), flush=True)
"""
MOMENTS = [  # each list is one training, killed so many times
    ["first step", "between checkpoints", "row half written", "model half written"],
    ["checkpoint half written", "last evaluation"],
    ["checkpoint not renamed", "model written"],
    [3],  # from outside, as soon as the log has so many rows
]



def rows_of(folder):
    rows = [json.loads(line) for line in (folder / "results" / "lam.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def weights_of(folder):
    return load_artifact(folder / "checkpoints" / "latent_action" / "lam.pt", "lam", LAMConfig).state


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither fork nor SIGKILL")
def test_killed_at_any_moment_the_model_is_the_same_to_the_bit(tmp_path):
    folders = [tmp_path / str(number) for number in range(len(MOMENTS) + 1)]
    for folder in folders:
        (folder / "episodes").mkdir(parents=True)
        for kind in ("fair", "random"):
            for file in sorted((ROOT / "data" / "sample").glob(f"{kind}-*.npz"))[:3]:
                (folder / "episodes" / file.name).write_bytes(file.read_bytes())
    plan = [[str(folder), moments] for folder, moments in zip(folders, [[], *MOMENTS], strict=True)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", LIVES, json.dumps(plan)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line, (_, moments) in zip(done.stdout.splitlines(), plan, strict=True):
        assert json.loads(line) == [[signal.SIGKILL] * len(moments), 0], done.stderr
    rows, weights = rows_of(folders[0]), weights_of(folders[0])
    assert [row["step"] for row in rows] == list(range(1, 15)) and sum("val_psnr" in row for row in rows) == 3
    for folder in folders[1:]:
        assert rows_of(folder) == rows
        assert all(torch.equal(value, weights[name]) for name, value in weights_of(folder).items())
        assert [file.name for file in (folder / "checkpoints" / "latent_action").iterdir()] == ["lam.pt"]


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.linear, self.dropout = nn.Linear(2, 1), nn.Dropout(0.1)

    def loss(self, batch):
        error = (self.linear(self.dropout(batch)) - batch.sum(1, keepdim=True)).pow(2).mean()
        return error, {"rmse": error.detach().sqrt()}


def points(step):
    return torch.randn(8, 2, generator=torch.Generator().manual_seed(step))


def cut_at(step):
    def batches(now):
        if now == step:
            raise InterruptedError
        return points(now)

    return batches


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_log_that_cannot_grow_is_one_line(tmp_path):
    log = tmp_path / "line.jsonl"

    def fills_up(step):
        if step == 7:
            log.unlink()
            log.symlink_to("/dev/full")
        return points(step)

    with pytest.raises(LapaError, match=r"line.jsonl could not be written, the disk is full") as caught:
        fit(Line(), fills_up, CFG, checkpoint=tmp_path / "line.resume", log=log)
    assert "\n" not in str(caught.value)
    log.unlink()  # room again
    assert fit(Line(), points, CFG, checkpoint=tmp_path / "line.resume", log=log).resumed_at == 5
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(2, 21, 2))


def test_a_checkpoint_that_cannot_be_written_is_one_line_and_the_last_one_stays(tmp_path, monkeypatch):
    path, sync = tmp_path / "line.resume", os.fsync

    def fills_up(step):
        if step == 7:
            monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        return points(step)

    with pytest.raises(LapaError, match=r"line.resume could not be written, the disk is full") as caught:
        fit(Line(), fills_up, CFG, checkpoint=path)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == [path]
    monkeypatch.setattr(os, "fsync", sync)
    assert fit(Line(), points, CFG, checkpoint=path).resumed_at == 5


@pytest.mark.parametrize("what", ["log", "checkpoint"])
def test_a_folder_that_is_none_is_one_line(what, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LapaError, match="could not be written") as caught:
        fit(Line(), points, CFG, **{what: tmp_path / "file" / "line"})
    assert "\n" not in str(caught.value)


def test_nothing_heavy_is_imported_unless_asked():
    code = "import sys, lapa_breakout.training; print([m for m in ('accelerate', 'wandb', 'tensorboard') if m in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stdout == "[]\n"


def followed(tracker, folder):
    "Interrupted at step 13, after a checkpoint at 10 and rows up to 12; then to the end"
    options = dict(trackers=[tracker], tracker_dir=folder, name="line", checkpoint=folder / "line.resume")
    with pytest.raises(InterruptedError):
        fit(Line(), cut_at(13), CFG, **options)
    time.sleep(1.1)  # both trackers name what they write by the second
    model = Line()
    rows = fit(model, points, CFG, **options).rows
    alone = Line()
    fit(alone, points, CFG)
    assert torch.equal(model.linear.weight, alone.linear.weight)  # watching changes nothing
    return rows


def test_tensorboard_shows_each_row_once(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    rows = followed("tensorboard", tmp_path)
    seen = events.EventAccumulator(str(tmp_path / "line")).Reload()
    assert set(seen.Tags()["scalars"]) == set(rows[0]) - {"step"}
    for key in ("loss", "rmse"):
        points_ = [(event.step, event.value) for event in seen.Scalars(key)]
        assert [step for step, _ in points_] == [row["step"] for row in rows]
        assert [value for _, value in points_] == pytest.approx([row[key] for row in rows], rel=1e-6)


def wandb_records(path):
    "What an offline run holds: a LevelDB log, whose blocks of 32 KiB start with a header of 7 bytes in the first"
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no header fits: padding
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def test_wandb_offline_holds_each_row_and_asks_nobody(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    calls = []
    with socket.create_server(("127.0.0.1", 0)) as listener:  # whatever wants to go out must come by here

        def listen():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                calls.append(connection.recv(200))
                connection.close()

        threading.Thread(target=listen, daemon=True).start()
        proxy = f"http://127.0.0.1:{listener.getsockname()[1]}"
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
            monkeypatch.setenv(name, proxy)
        monkeypatch.setenv("WANDB_MODE", "offline")
        monkeypatch.setenv("WANDB_SILENT", "true")
        monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
        rows = followed("wandb", tmp_path)
    assert not calls
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime)
    lives = []
    for file in files:
        history = [record.history for record in wandb_records(file) if record.WhichOneof("record_type") == "history"]
        keyed = [{(i.key or ".".join(i.nested_key)): json.loads(i.value_json) for i in row.item} for row in history]
        lives.append({row["_step"]: row["loss"] for row in keyed})
    assert [list(life) for life in lives] == [[2, 4, 6, 8, 10, 12], [12, 14, 16, 18, 20]]
    assert len({file.name for file in files}) == 1  # both under the name of one run
    assert (lives[0] | lives[1]) == {row["step"]: row["loss"] for row in rows}


def test_paper_is_the_specification_and_takes_steps():
    paper = get_preset("paper")
    model = LatentActionModel(paper.lam)
    widths = (2, 64, 128, 256, 512)  # two frames come in
    kernels = [weights for weights in model.pair_encoder.parameters() if weights.dim() == 4]
    assert [tuple(weights.shape) for weights in kernels] == [(o, i, 4, 4) for i, o in zip(widths, widths[1:], strict=False)]
    assert [tuple(f.shape[1:]) for f in model.pair_encoder(torch.zeros(1, 2, 112, 80))] == [
        (64, 56, 40), (128, 28, 20), (256, 14, 10), (512, 7, 5)]
    assert model.quantizer.codebook.shape == (256, 64)
    assert sum(weights.numel() for weights in model.parameters()) == 12_072_897
    before = model.pair_encoder.stages[0][0].weight.detach().clone()
    frames = torch.randint(256, (2, 4, 1, 105, 80), dtype=torch.uint8)
    fit(model, lambda step: (frames[0], frames[1]), TrainConfig(steps=2, batch_size=4, lr=paper.lam_train.lr), name="paper")
    after = model.pair_encoder.stages[0][0].weight
    assert after.isfinite().all() and not torch.equal(before, after)
    assert model.encode(*torch.rand(2, 3, 1, 105, 80)).shape == (3, 35)
