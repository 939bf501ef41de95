"""The once-for-all example trains, is interrupted, goes on, searches and leaves what it promises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

import channelwise as cw
from tests.examples.conftest import EXAMPLES

TRAINING = "--epochs 2 --batch 10 --expand-ratio 0.5 1 --score-images 10 --limit-train 40 --device cpu"
SEARCH = "--population 8 --iterations 0 --calibration-images 20 --finetune 1 --budgets 0.6 0.8"
# Forty images in batches of ten, twice.
STEPS = 8


@pytest.fixture
def arguments(tmp_path: Path, pack: Callable[[Path, np.ndarray], None]) -> str:
    """What every call gets: data and a dense network."""
    import cifar10_ofa

    noise = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    pack(tmp_path / "train.npz", noise)
    pack(tmp_path / "test.npz", noise[:20])
    torch.manual_seed(0)
    torch.save(cifar10_ofa.ARCHITECTURES["resnet20"]().state_dict(), tmp_path / "resnet20.th")
    return f"--data {tmp_path} --checkpoint {tmp_path / 'resnet20.th'} {TRAINING}"


def call(text: str) -> int:
    import cifar10_ofa

    return cifar10_ofa.main(text.split())


def checkpoint(folder: str) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(Path(folder) / "training.pt", weights_only=True)
    return state


def assert_same(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(arguments: str) -> None:
    assert call(f"{arguments} --only train --output whole") == 0
    # Once within an epoch, once between two, in neither case at a checkpoint of --save-every.
    for stop in (3, 4):
        assert call(f"{arguments} --only train --output parts --resume --steps {stop}") == 0
        assert checkpoint("parts")["step"] == stop
    torch.manual_seed(99)
    assert call(f"{arguments} --only train --output parts --resume") == 0
    whole, parts = checkpoint("whole"), checkpoint("parts")
    assert whole["step"] == parts["step"] == STEPS
    assert_same(parts["net"], whole["net"])
    assert_same(parts["optimizer"]["state"], whole["optimizer"]["state"])
    # Trained to the end: nothing is left to do.
    assert call(f"{arguments} --only train --output parts --resume") == 0
    assert_same(checkpoint("parts")["net"], whole["net"])


def test_an_unfinished_training_is_not_evaluated(arguments: str) -> None:
    assert call(f"{arguments} --output out --steps 2") == 0
    assert {path.name for path in Path("out").iterdir()} == {"training.pt"}


def test_the_front_and_finetuned_budgets_are_printed_and_written(
    arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(f"{arguments} --only train --output out") == 0
    assert call(f"{arguments} {SEARCH} --only evaluate --output out") == 0
    summary = json.loads(Path("out/summary.json").read_text())
    dense, *rows = summary["rows"]
    names = [row["model"] for row in rows]
    assert names[:5] == ["subnet, max", "subnet, min", *["subnet, random"] * 3]
    assert names[5:] == ["searched, 60% of the MACs", "searched, 80% of the MACs"]
    assert rows[0]["macs"] == dense["macs"]
    for row, budget in zip(rows[5:], (0.6, 0.8), strict=True):
        assert row["macs"] <= budget * dense["macs"]
        assert 0 <= row["finetuned"] <= 100
        assert Path(f"out/subnet_{budget:.2f}.pt").exists()
    assert [subnet["macs"] for subnet in summary["front"]] == sorted(subnet["macs"] for subnet in summary["front"])
    table = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [cells[0].strip() for cells in table if len(cells) == 5][1:] == ["dense", *names]


def test_another_training_does_not_go_on_from_a_checkpoint(arguments: str) -> None:
    assert call(f"{arguments} --only train --output out --steps 1") == 0
    for flag in ("--lr 0.1", "--expand-ratio 0.75 1", "--batch 20"):
        with pytest.raises(SystemExit, match=flag.split()[0]):
            call(f"{arguments} --only train --output out --resume {flag}")
    with pytest.raises(SystemExit, match="no checkpoint"):
        call(f"{arguments} --only evaluate --output elsewhere")


@pytest.mark.parametrize("soft", ["teacher", "max"])
def test_smaller_subnets_learn_from_either_network_in_bfloat16(arguments: str, soft: str) -> None:
    assert call(f"{arguments} --only train --output out --soft {soft} --amp --steps 1") == 0
    assert all(torch.isfinite(value).all() for value in checkpoint("out")["net"].values())


def test_mobilenet_is_trained_first_where_there_is_no_checkpoint_of_it(arguments: str) -> None:
    without = arguments.replace("--checkpoint", "--dense-epochs 1 --arch mobilenet_v2 --output out --only train #")
    words = without.split()
    del words[words.index("#") : words.index("#") + 2]
    assert call(f"{' '.join(words)} --steps 1") == 0
    dense = torch.load("out/mobilenet_v2.pt", weights_only=True)
    assert call(f"{' '.join(words)} --steps 2 --resume") == 0
    assert_same(torch.load("out/mobilenet_v2.pt", weights_only=True), dense)
    assert checkpoint("out")["step"] == 2


def test_cifar_mobilenet_has_the_size_its_docstring_says() -> None:
    import cifar_mobilenet

    model = cifar_mobilenet.mobilenet_v2().eval()
    assert sum(p.numel() for p in model.parameters()) == 2_236_682
    assert cw.trace(model, torch.zeros(1, 3, 32, 32), verify=False).macs() == pytest.approx(88e6, rel=0.001)


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")
def test_two_processes_train_together_and_one_goes_on(arguments: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    program = [str(EXAMPLES / "cifar10_ofa.py"), *f"{arguments} --only train --output out".split()]

    def together(*more: str) -> None:
        done = subprocess.run(
            [*launcher, *program, *more], env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]

    together("--steps", "3")
    assert checkpoint("out")["step"] == 3
    assert not any(name.startswith("module.") for name in checkpoint("out")["net"])
    together("--resume", "--steps", "5")
    assert checkpoint("out")["step"] == 5
    assert call(f"{arguments} {SEARCH} --output out --resume --finetune 0") == 0
    assert checkpoint("out")["step"] == STEPS
    assert len(json.loads(Path("out/summary.json").read_text())["rows"]) == 8
