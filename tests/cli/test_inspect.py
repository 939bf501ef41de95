"""``channelwise inspect`` shows what can be pruned, as tables and as JSON, or what is wrong with its arguments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from channelwise.cli.main import app

OWN_MODEL = """
from torch import nn


class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.a = nn.Conv2d(3, width, 3)
        self.b = nn.Conv2d(width, width, 3)
        self.unused = nn.Conv2d(width, 5, 1)
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        x = self.b(self.a(x).relu()).relu()
        x = x[:, ::2].repeat_interleave(2, 1)
        return self.head(x.mean((2, 3)))


def text(**arguments):
    return "no model"


net = Net()
number = 3
"""


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["inspect", *arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's in the working folder."""
    name = "own_" + tmp_path.name.replace("-", "_")
    (tmp_path / f"{name}.py").write_text(OWN_MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_json_counts_channels_and_says_for_each_cause_what_to_do(own: str) -> None:
    code, out, _ = run(f"{own}:Net", "--input", "2,3,8,8", "--argument", "width=16", "--json")
    assert code == 0
    data = json.loads(out)
    assert data["prunable_outputs"] == 16
    assert [group["produced_by"] for group in data["groups"]] == [["a"]]
    assert data["frozen_outputs"] == 16 + 5 + 4
    causes = {row["cause"]: row for row in data["frozen"]}
    assert causes["fixed size"]["layers"] == {"b": 16}
    assert causes["unused"]["layers"] == {"unused": 5}
    assert causes["output"]["layers"] == {"head": 4}
    assert all(row["what_to_do"] for row in data["frozen"])
    assert data["macs"] > 0
    assert data["inputs"] == ["2,3,8,8"]


def test_tables_end_with_the_share_that_can_be_pruned(own: str) -> None:
    code, out, _ = run(f"{own}:net", "--input", "1,3,8,8")
    assert code == 0
    assert "unused (5 channels): give example inputs" in out
    assert "8 of 25 output channels can be pruned (32.0%)" in out


def test_excluded_layers_stay_for_that_reason(own: str) -> None:
    code, out, _ = run(f"{own}:Net", "--input", "1,3,8,8", "--exclude", "a", "--json")
    assert code == 0
    assert {row["cause"] for row in json.loads(out)["frozen"]} >= {"excluded"}


def test_models_of_libraries_are_found_by_name() -> None:
    code, out, _ = run("torchvision:squeezenet1_1", "--input", "1,3,64,64", "--json")
    assert code == 0
    assert json.loads(out)["model"] == "torchvision:squeezenet1_1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet18", "--input", "1,3,8,8"), "torchvision:NAME"),
        (("torchvision:resnet81", "--input", "1,3,8,8"), "did you mean"),
        (("nowhere.at.all:net", "--input", "1"), "no module nowhere.at.all"),
        (("OWN:missing", "--input", "1"), "has no missing"),
        (("OWN:number", "--input", "1"), "is a int"),
        (("OWN:text", "--input", "1"), "made a str"),
        (("OWN:net", "--input", "1,b"), "--input 1,b"),
        (("OWN:net", "--input", "1,3,8,8:float128"), "dtype"),
        (("OWN:Net", "--input", "1,3,8,8", "--argument", "width"), "NAME=VALUE"),
        (("OWN:net", "--input", "1,4,8,8"), "Net raised"),
    ],
)
def test_bad_arguments_get_one_line_that_names_them(own: str, arguments: tuple[str, ...], message: str) -> None:
    code, out, err = run(*(argument.replace("OWN", own) for argument in arguments))
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
