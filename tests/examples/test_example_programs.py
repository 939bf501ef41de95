"""The example programs run from beginning to end on little data and leave what they promise."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import channelwise as cw


def test_digits_demo_ends_with_a_reloadable_model_of_half_the_macs(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    import digits_demo

    out = tmp_path / "out"
    quick = ["--epochs", "1", "--retrain-epochs", "1", "--ofa-epochs", "1", "--num-subnet", "3", "--tolerance", "100"]
    code = digits_demo.main(["--output", str(out), *quick])
    assert code == 0
    dense, *pruned = json.loads((out / "summary.json").read_text())["rows"]
    assert [row["model"] for row in pruned] == ["iterative, reloaded", "one-step", "once-for-all"]
    for slim in pruned:
        # Widths of once-for-all are multiples of eight, and after one epoch a small subnet may be the most accurate.
        if slim["model"] == "once-for-all":
            assert 0.1 * dense["macs"] < slim["macs"] <= dense["macs"] / 2
        else:
            assert slim["macs"] == pytest.approx(dense["macs"] / 2, rel=0.02)
        assert slim["params"] < dense["params"]
    assert (out / "model.safetensors").exists()
    assert list(out.glob("*.spec"))
    assert (out / "sensitivity.png").exists()
    assert (out / "front.json").exists()


def test_cifar_example_prunes_in_two_rounds_and_prints_a_markdown_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pack: Callable[[Path, np.ndarray], None]
) -> None:
    import cifar10_iterative

    noise = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    pack(tmp_path / "train.npz", noise)
    pack(tmp_path / "test.npz", noise[:20])
    torch.manual_seed(0)
    torch.save(cifar10_iterative.resnet20().state_dict(), tmp_path / "resnet20.th")
    arguments = (
        f"--data {tmp_path} --checkpoint {tmp_path / 'resnet20.th'} --analysis-images 10 --output out --device cpu"
    )
    assert cifar10_iterative.main(arguments.split()) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    macs = [float(row[1].split()[0]) for row in rows]
    assert [row[0].strip() for row in rows] == ["dense", "30% removed", "50% removed"]
    assert macs[1] == pytest.approx(0.7 * macs[0], rel=0.02)
    assert macs[2] == pytest.approx(0.5 * macs[0], rel=0.02)
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_cifar_example_of_one_step_prunes_to_the_target_and_retrains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pack: Callable[[Path, np.ndarray], None]
) -> None:
    import cifar10_one_step

    noise = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    pack(tmp_path / "train.npz", noise)
    pack(tmp_path / "test.npz", noise[:20])
    torch.manual_seed(0)
    torch.save(cifar10_one_step.ARCHITECTURES["resnet20"]().state_dict(), tmp_path / "resnet20.th")
    arguments = (
        f"--data {tmp_path} --checkpoint {tmp_path / 'resnet20.th'} --score-images 10 --calibration-images 20 "
        f"--num-subnet 2 --output {tmp_path / 'out'} --device cpu"
    )
    assert cifar10_one_step.main(arguments.split()) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    macs = [float(row[1].split()[0]) for row in rows]
    assert len(rows) == 3
    assert macs[1] == macs[2] == pytest.approx(0.5 * macs[0], rel=0.01)
    assert (tmp_path / "out" / "one_step.safetensors").exists()


def test_a_row_of_published_compute_is_met_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zoo_targets

    small = zoo_targets.Network(zoo_targets.NETWORKS["mobilenet_v2"].build, 64, 32)
    monkeypatch.setitem(zoo_targets.NETWORKS, "mobilenet_v2", small)
    model = zoo_targets.NETWORKS["mobilenet_v2"].build()
    zoo_targets.untrained_but_alive(model, 32)
    model.eval()
    dense = cw.trace(model, torch.randn(1, 3, 64, 64), verify=False).macs()
    row = zoo_targets.Row("mobilenet_v2", "one_step", 0.76, 0.76 * dense)
    options = argparse.Namespace(output=tmp_path, num_subnet=1)
    line, met = zoo_targets.check(row, model, options)
    assert met, line
