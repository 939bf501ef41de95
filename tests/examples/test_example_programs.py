"""The example programs run from beginning to end on little data and leave what they promise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch


def test_digits_demo_ends_with_a_reloadable_model_of_half_the_macs(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    import digits_demo

    out = tmp_path / "out"
    code = digits_demo.main(["--output", str(out), "--epochs", "1", "--retrain-epochs", "1", "--tolerance", "100"])
    assert code == 0
    dense, slim = json.loads((out / "summary.json").read_text())["rows"]
    assert slim["macs"] == pytest.approx(dense["macs"] / 2, rel=0.02)
    assert slim["params"] < dense["params"]
    assert (out / "model.safetensors").exists()
    assert list(out.glob("*.spec"))
    assert (out / "sensitivity.png").exists()


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
