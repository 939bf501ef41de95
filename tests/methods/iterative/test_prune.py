"""Pruning meets its target, spares what matters, repeats specs and nests when iterated."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from channelwise import trace
from channelwise.errors import InvalidArgumentError, NothingToPruneError, ResultsFileError, UnreachableTargetError
from channelwise.methods import IterativePruningRunner, get_pruning_runner
from tests.methods.small import INPUTS, closeness, distance, net

Runner = Callable[..., IterativePruningRunner]


class Wide(nn.Module):
    """Wide enough for 1 % of the MACs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, 48, 3), nn.BatchNorm2d(48), nn.ReLU()),
            *(nn.Conv2d(48, 64, 3), nn.BatchNorm2d(64), nn.ReLU()),
            *(nn.Conv2d(64, 32, 1), nn.BatchNorm2d(32), nn.ReLU()),
        )
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x).mean((2, 3)))


def wide() -> Wide:
    torch.manual_seed(0)
    return Wide().eval()


@torch.no_grad()
def wide_closeness(model: nn.Module) -> float:
    return 1.0 - float((model(INPUTS) - wide()(INPUTS)).abs().mean())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / ".vai"


@pytest.fixture
def runner(folder: Path) -> IterativePruningRunner:
    """Of the wide network, analysed."""
    made = IterativePruningRunner(wide(), INPUTS, folder=folder, quiet=True)
    made.ana(wide_closeness)
    return made


def macs(model: nn.Module) -> float:
    return trace(model, INPUTS).macs()


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_removal_ratio_is_met_within_1_percent(runner: IterativePruningRunner, ratio: float) -> None:
    kept = macs(runner.prune(ratio, mode="slim", channel_divisible=1)) / macs(wide())
    assert kept == pytest.approx(1 - ratio, rel=0.01)


def test_widths_are_multiples_of_the_divisor(runner: IterativePruningRunner) -> None:
    slim = runner.prune(0.5, mode="slim", channel_divisible=8)
    assert all(m.out_channels % 8 == 0 for m in slim.modules() if isinstance(m, nn.Conv2d))


def test_divisor_that_prevents_the_ratio_is_named(
    runner: IterativePruningRunner, caplog: pytest.LogCaptureFixture
) -> None:
    runner.prune(0.43, mode="slim", channel_divisible=32)
    assert "channel_divisible" in caplog.text


def test_sparse_and_slim_models_agree(runner: IterativePruningRunner) -> None:
    sparse, slim = runner.prune(0.5), runner.prune(0.5, mode="slim")
    assert {k: v.shape for k, v in sparse.state_dict().items()} == {k: v.shape for k, v in wide().state_dict().items()}
    torch.testing.assert_close(sparse(INPUTS), slim(INPUTS))
    for name, tensor in sparse.slim_state_dict().items():
        assert torch.equal(tensor, slim.state_dict()[name])
    wide().load_state_dict(slim.sparse_state_dict())


def test_model_is_not_changed(folder: Path) -> None:
    model = wide().train()
    before = copy.deepcopy(model.state_dict())
    made = IterativePruningRunner(model, INPUTS, folder=folder, quiet=True)
    made.ana(wide_closeness)
    made.prune(0.5)
    made.prune(0.5, mode="slim")
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(m.training and not m._forward_pre_hooks for m in model.modules())


def test_larger_threshold_removes_more(runner: IterativePruningRunner) -> None:
    kept = [macs(runner.prune(threshold=t, mode="slim")) for t in (0.001, 0.01, 0.1)]
    assert kept[0] > kept[1] > kept[2]


def test_threshold_bounds_the_loss_of_every_group(folder: Path) -> None:
    def score(model: Any) -> float:
        first, second = model.layers[0].out_channels, model.layers[3].out_channels
        # The second layer loses 0.019 a channel: 2.6 channels are tolerated, so 2 go.
        return 1.0 - 0.4 * (first < 40) - 0.019 * (64 - second)

    made = IterativePruningRunner(wide(), INPUTS, folder=folder, quiet=True)
    made.ana(score)
    slim = made.prune(threshold=0.05, mode="slim", channel_divisible=1)
    assert 38 < slim.layers[0].out_channels <= 43
    assert slim.layers[3].out_channels == 62
    assert slim.layers[6].out_channels == 4


def test_threshold_that_allows_nothing_is_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = IterativePruningRunner(net(), INPUTS, folder=folder, quiet=True)
    made.ana(
        lambda model: 1.0 - (sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in net().parameters()))
    )
    made.prune(threshold=1e-6)
    assert "Nothing is removed" in caplog.text


@pytest.mark.parametrize("score", [closeness, distance, lambda m: -distance(m), lambda m: 100 * closeness(m) - 500])
def test_direction_and_sign_of_the_score_do_not_matter(folder: Path, score: Callable[[nn.Module], float]) -> None:
    reference = IterativePruningRunner(net(), INPUTS, folder=folder / "a", quiet=True)
    reference.ana(closeness)
    made = IterativePruningRunner(net(), INPUTS, folder=folder / "b", quiet=True)
    made.ana(score)
    expected = [m.out_channels for m in reference.prune(0.4, mode="slim").modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in made.prune(0.4, mode="slim").modules() if isinstance(m, nn.Conv2d)] == expected


def removed(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor == 0 for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


def test_iterating_keeps_removed_channels_removed(runner: IterativePruningRunner, folder: Path) -> None:
    weights: dict[str, torch.Tensor] = wide().state_dict()
    gone: dict[str, torch.Tensor] = {}
    for ratio in (0.2, 0.4, 0.6):
        model = wide()
        model.load_state_dict(weights)
        again = IterativePruningRunner(model, INPUTS, folder=folder, quiet=True)
        again.ana(wide_closeness)
        sparse = again.prune(removal_ratio=ratio)
        for name, before in gone.items():
            assert (removed(sparse)[name] | ~before).all(), name
        optimizer = torch.optim.SGD(sparse.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
        sparse.train()
        for _ in range(3):
            sparse(INPUTS).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        sparse.eval()
        gone, weights = removed(sparse), sparse.state_dict()
        slim = again.prune(spec_path=folder / f"Wide_ratio_{ratio}.spec", mode="slim")
        assert macs(slim) / macs(wide()) == pytest.approx(1 - ratio, rel=0.01)


def test_ratio_smaller_than_what_is_removed_already_is_unreachable(
    runner: IterativePruningRunner, folder: Path
) -> None:
    model = wide()
    model.load_state_dict(runner.prune(0.6).state_dict())
    again = IterativePruningRunner(model, INPUTS, folder=folder, quiet=True)
    with pytest.raises(UnreachableTargetError, match=r"between 0\.6.* earlier pruning has removed 0\.6"):
        again.prune(0.3)


def test_unreachable_ratio_states_the_range(runner: IterativePruningRunner) -> None:
    with pytest.raises(
        UnreachableTargetError, match=r"removal_ratio=0.9 cannot be reached.*between 0\.000 and 0\.\d+ of"
    ):
        runner.prune(0.9, excludes=["layers.3"])


def test_excludes_of_prune_are_heeded(runner: IterativePruningRunner) -> None:
    assert runner.prune(0.3, mode="slim", excludes=[nn.BatchNorm2d, "layers.6"][1:]).layers[6].out_channels == 32


def test_everything_excluded_leaves_nothing_to_prune(runner: IterativePruningRunner) -> None:
    with pytest.raises(NothingToPruneError):
        runner.prune(0.3, excludes="*")


class Averaged(nn.Module):
    """The network itself takes a mean over the first layer's channels, which counts zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 32)
        self.second = nn.Linear(32, 32)
        self.last = nn.Linear(32, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.last(torch.relu(self.second(x / (1 + x.square().mean(-1, keepdim=True)))))


def test_inexact_groups_stay_full_in_sparse_mode_with_a_note(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    inputs = torch.randn(2, 8)
    made = IterativePruningRunner(Averaged(), inputs, folder=folder, quiet=True)
    made.ana(lambda model: 1.0)
    with caplog.at_level(logging.INFO):
        sparse = made.prune(0.3)
    assert "mode='sparse' leaves 1 group full" in caplog.text
    assert (sparse.first.weight != 0).all()
    assert made.prune(0.3, mode="slim").first.out_features < 32


def test_unreachable_ratio_names_the_groups_that_sparse_mode_leaves_full(folder: Path) -> None:
    made = IterativePruningRunner(Averaged(), torch.randn(2, 8), folder=folder, quiet=True)
    made.ana(lambda model: 1.0)
    with pytest.raises(UnreachableTargetError, match="leaves 1 group full that mode='slim' may prune: first"):
        made.prune(0.8)
    made.prune(0.8, mode="slim")


def test_unreachable_ratio_names_the_groups_that_ana_left_alone(folder: Path) -> None:
    made = IterativePruningRunner(wide(), INPUTS, folder=folder, quiet=True)
    made.ana(lambda model: 1.0, excludes=["layers.0", "layers.3"])
    with pytest.raises(UnreachableTargetError, match=r"ana left 2 groups alone: layers\.0, layers\.3"):
        made.prune(0.8)


class LayerNorm2d(nn.LayerNorm):
    """Over the channels of (N, C, H, W)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """A stem and two residual blocks, their channels normed in every one, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 2, 2), LayerNorm2d(24))
        self.depthwise = nn.ModuleList(nn.Conv2d(24, 24, 3, padding=1, groups=24) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(24) for _ in range(2))
        self.mlps = nn.ModuleList(nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24)) for _ in range(2))
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for depthwise, norm, mlp in zip(self.depthwise, self.norms, self.mlps, strict=True):
            x = x + mlp(norm(depthwise(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return self.head(x.mean((2, 3)))


def conv_next() -> nn.Module:
    torch.manual_seed(0)
    return ConvNeXt().eval().double()


def test_layer_norm_networks_are_pruned_sparsely_in_rounds(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = INPUTS.double()
    seen: list[float] = []

    @torch.no_grad()
    def closeness_to_dense(model: nn.Module) -> float:
        seen.append(1.0 - float((model(images) - conv_next()(images)).abs().mean()))
        return seen[-1]

    model = conv_next()
    for ratio in (0.3, 0.6):
        made = IterativePruningRunner(model, images, folder=folder, quiet=True)
        made.ana(closeness_to_dense, forced=True)
        with caplog.at_level(logging.INFO):
            sparse, slim = made.prune(ratio), made.prune(ratio, mode="slim")
        assert "full" not in caplog.text
        assert slim.stem[0].out_channels < 24
        torch.testing.assert_close(sparse(images), slim(images), rtol=1e-10, atol=1e-10)
        assert trace(slim, images).macs() / trace(conv_next(), images).macs() == pytest.approx(1 - ratio, rel=0.05)
        seen.clear()
        model = conv_next()
        model.load_state_dict(sparse.state_dict())
    # The zeros of the round before are no channels: what is evaluated without further pruning is the sparse model.
    IterativePruningRunner(model, images, folder=folder, quiet=True).ana(closeness_to_dense, forced=True)
    with torch.no_grad():
        assert seen[0] == pytest.approx(1.0 - float((sparse(images) - conv_next()(images)).abs().mean()), abs=1e-9)


def test_info_file_that_cannot_be_written_leaves_no_spec(runner: IterativePruningRunner, folder: Path) -> None:
    with pytest.raises(ResultsFileError, match="Cannot write"):
        runner.prune(0.5, pruning_info_path=folder)
    assert sorted(p.name for p in folder.iterdir()) == ["Wide.sens"]


def test_spec_file_holds_what_stays_and_what_it_costs(runner: IterativePruningRunner, folder: Path) -> None:
    slim = runner.prune(0.5, mode="slim")
    spec = json.loads((folder / "Wide_ratio_0.5.spec").read_text())
    assert spec["macs_after"] == macs(slim)
    assert spec["params_after"] == sum(p.numel() for p in slim.parameters())
    assert len(spec["groups"]["layers.0"]["kept"]) == slim.layers[0].out_channels
    assert spec["groups"]["layers.0"]["sparsity"] == 1 - slim.layers[0].out_channels / 48


def test_spec_is_repeated_without_an_analysis(runner: IterativePruningRunner, folder: Path) -> None:
    expected = runner.prune(0.5, mode="slim")
    (folder / "Wide.sens").unlink()
    again = runner.prune(spec_path=folder / "Wide_ratio_0.5.spec", mode="slim")
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in expected.state_dict().items())


def test_excludes_are_heeded_when_a_spec_is_repeated(runner: IterativePruningRunner, folder: Path) -> None:
    expected = runner.prune(0.5, mode="slim")
    again = runner.prune(spec_path=folder / "Wide_ratio_0.5.spec", mode="slim", excludes=["layers.3"])
    assert again.layers[3].out_channels == 64
    assert again.layers[0].out_channels == expected.layers[0].out_channels < 48


def test_spec_with_sparsities_alone_has_channels_chosen(runner: IterativePruningRunner, folder: Path) -> None:
    runner.prune(0.5)
    path = folder / "Wide_ratio_0.5.spec"
    spec = json.loads(path.read_text())
    spec["groups"] = {"layers.0": {"sparsity": 0.5}}
    path.write_text(json.dumps(spec))
    slim = runner.prune(spec_path=path, mode="slim")
    assert [m.out_channels for m in slim.modules() if isinstance(m, nn.Conv2d)] == [24, 64, 32]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"digest": "0"}, "another network"),
        ({"version": 9}, "format version 9"),
        ({"version": 9, "new_field": 1}, "format version 9"),
        ({"groups": {"nowhere": {"sparsity": 0.5}}}, "no group 'nowhere'"),
        ({"groups": {"layers.0": {"sparsity": 1.5}}}, r"1\.5 of group 'layers\.0' is not in \[0, 1\)"),
        ({"groups": {"layers.0": {"sparsity": 0.25, "kept": [0, 1]}}}, "keeps 2 of 48"),
        ({"groups": {"layers.6": {"sparsity": 0.9375, "kept": [1, 0]}}}, "ascend"),
        ({"groups": {"layers.6": {"sparsity": 0.9375, "kept": [1, 99]}}}, "99"),
        ({"groups": 3}, "groups"),
    ],
)
def test_edited_spec_is_refused_with_the_reason(
    runner: IterativePruningRunner, folder: Path, change: dict[str, Any], problem: str
) -> None:
    runner.prune(0.5)
    path = folder / "Wide_ratio_0.5.spec"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ResultsFileError, match=problem):
        runner.prune(spec_path=path)


@pytest.mark.parametrize("content", [None, "", "{", "\x80\x04K\x01."])
def test_missing_or_truncated_spec_is_refused(
    runner: IterativePruningRunner, tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "a.spec"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ResultsFileError, match=r"a\.spec"):
        runner.prune(spec_path=path)


def test_spec_of_another_network_with_the_same_name_is_set_aside(runner: IterativePruningRunner, folder: Path) -> None:
    runner.prune(0.5)
    path = folder / "Wide_ratio_0.5.spec"
    foreign = {**json.loads(path.read_text()), "digest": "0"}
    path.write_text(json.dumps(foreign))
    runner.prune(0.5)
    assert json.loads(path.with_name("Wide_ratio_0.5.spec.bak").read_text()) == foreign
    assert json.loads(path.read_text())["digest"] != "0"


@pytest.mark.parametrize("mode", ["sparse", "slim"])
def test_info_file_lists_channels_before_and_after(runner: IterativePruningRunner, tmp_path: Path, mode: str) -> None:
    path = tmp_path / "new" / "info.json"
    slim = runner.prune(0.5, mode="slim")
    runner.prune(0.5, mode=mode, pruning_info_path=str(path))
    layer = json.loads(path.read_text())["layers"]["layers.3"]
    assert layer["type"] == "Conv2d"
    assert layer["sizes"]["in_channels"] == {"before": 48, "after": slim.layers[3].in_channels}
    assert layer["sizes"]["out_channels"] == {"before": 64, "after": slim.layers[3].out_channels}


def test_table_is_printed_to_stdout(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = IterativePruningRunner(wide(), INPUTS, folder=folder)
    made.ana(wide_closeness)
    assert capsys.readouterr() == ("", "")
    made.prune(0.5)
    out = capsys.readouterr().out
    for word in ("Wide", "Baseline", "Pruned", "MACs", "Parameters"):
        assert word in out


def test_quiet_prints_nothing(runner: IterativePruningRunner, capsys: pytest.CaptureFixture[str]) -> None:
    runner.prune(0.5)
    assert capsys.readouterr() == ("", "")


def test_prune_before_ana_says_to_call_ana(folder: Path) -> None:
    made = IterativePruningRunner(wide(), INPUTS, folder=folder)
    for target in ({"removal_ratio": 0.5}, {"threshold": 0.1}):
        with pytest.raises(ResultsFileError, match=r"no analysis of Wide .*call runner\.ana\(eval_fn"):
            made.prune(**target)  # type: ignore[arg-type]


def test_prune_after_an_unfinished_ana_says_to_go_on(runner: IterativePruningRunner, folder: Path) -> None:
    lines = (folder / "Wide.sens").read_text().splitlines(keepends=True)
    (folder / "Wide.sens").write_text("".join(lines[:-2]))
    with pytest.raises(ResultsFileError, match="not finished, 2 evaluations missing: call"):
        runner.prune(0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of .* found none"),
        ({"removal_ratio": 0.5, "threshold": 0.1}, "found removal_ratio and threshold"),
        ({"removal_ratio": 0.5, "spec_path": "a"}, "found removal_ratio and spec_path"),
        ({"removal_ratio": 0.0}, "between 0 and 1"),
        ({"removal_ratio": 1.0}, "between 0 and 1"),
        ({"removal_ratio": 1}, "between 0 and 1"),
        ({"removal_ratio": -0.5}, "between 0 and 1"),
        ({"removal_ratio": 50}, r"For 50 % give 0\.5"),
        ({"removal_ratio": float("nan")}, "must be a number"),
        ({"removal_ratio": True}, "removal_ratio=True: must be a number"),
        ({"removal_ratio": "0.5"}, "removal_ratio='0.5': must be a number"),
        ({"removal_ratio": [0.5]}, "must be a number"),
        ({"threshold": 0}, "larger than 0"),
        ({"threshold": -0.1}, "larger than 0"),
        ({"threshold": "a"}, "must be a number"),
        ({"spec_path": 3}, "spec_path=3: must be a path"),
        ({"spec_path": ""}, "spec_path=.*: must be a path"),
        ({"removal_ratio": 0.5, "pruning_info_path": ""}, "pruning_info_path=.*: must be a path"),
        ({"removal_ratio": 0.5, "mode": "Slim"}, "mode='Slim': must be 'sparse' .* or 'slim'"),
        ({"removal_ratio": 0.5, "pruning_info_path": 3}, "pruning_info_path=3"),
        ({"removal_ratio": 0.5, "channel_divisible": 0}, "channel_divisible .*at least 1"),
        ({"removal_ratio": 0.5, "channel_divisible": 2.0}, "channel_divisible .*at least 1"),
        ({"removal_ratio": 0.5, "excludes": ["nowhere"]}, "matches no group"),
    ],
)
def test_bad_arguments_are_refused_with_what_would_be_right(
    runner: IterativePruningRunner, folder: Path, arguments: dict[str, Any], message: str
) -> None:
    before = sorted(folder.iterdir())
    with pytest.raises(InvalidArgumentError, match=message):
        runner.prune(**arguments)
    assert sorted(folder.iterdir()) == before


def test_search_names_the_runner_that_has_it(runner: IterativePruningRunner) -> None:
    with pytest.raises(InvalidArgumentError, match=r"OneStepPruningRunner\(model, inputs\)\.search"):
        runner.search(gpus=["0"], eval_fn=wide_closeness)


@pytest.mark.parametrize("method", ["ofa", None])
def test_what_is_no_method_of_a_runner_is_named(method: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="must be 'iterative' or 'one_step'"):
        get_pruning_runner(wide(), INPUTS, method)


def test_unknown_ranking_is_refused_at_once(folder: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="l1"):
        IterativePruningRunner(wide(), INPUTS, ranking="l3")


def test_ranking_decides_which_channels_stay(folder: Path) -> None:
    last_first = IterativePruningRunner(
        wide(), INPUTS, folder=folder, quiet=True, ranking=lambda group, tensors: range(group.size)
    )
    last_first.ana(wide_closeness)
    slim = last_first.prune(0.5, mode="slim")
    kept = slim.layers[0].out_channels
    assert torch.equal(slim.layers[0].weight, wide().layers[0].weight[-kept:])


def test_a_ratio_that_is_missed_is_named_as_the_user_did(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runner = IterativePruningRunner(net(), INPUTS, folder=tmp_path, quiet=True)
    runner.ana(closeness)
    runner.prune(removal_ratio=0.2, channel_divisible=4)
    assert "removal_ratio=0.2: the nearest selection keeps 0." in caplog.text
    assert "macs=" not in caplog.text
