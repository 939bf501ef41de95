"""OFAPruner: sampling, settings, extraction, and what it says when something is wrong."""

from __future__ import annotations

import copy
import json
import logging
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

import channelwise as cw
from channelwise.errors import ChannelwiseError, InvalidArgumentError, NothingToPruneError, UnsupportedModelError
from channelwise.methods.ofa import OFAPruner
from channelwise.methods.ofa.space import SpaceFile
from channelwise.recovery import recalibrate
from channelwise.testing import check_modules
from tests.methods.ofa.supernets import INPUTS, outputs, small, supernet


def settings(pruner: OFAPruner, model: nn.Module, count: int = 8, **options: Any) -> list[Any]:
    return [pruner.sample_subnet(model, "random", **options)[1] for _ in range(count)]


class TestSampling:
    def test_random_subnets_follow_pythons_random(self) -> None:
        pruner, model = supernet()
        random.seed(3)
        first = settings(pruner, model)
        random.seed(3)
        assert settings(pruner, model) == first
        assert any(a != first[0] for a in first)

    def test_a_seed_decides_alone_and_leaves_the_random_state(self) -> None:
        pruner, model = supernet()
        state = random.getstate()
        assert settings(pruner, model, seed=5) == [pruner.sample_subnet(model, seed=5)[1]] * 8
        assert random.getstate() == state
        assert len({json.dumps(pruner.sample_subnet(model, seed=i)[1]) for i in range(20)}) > 10

    def test_max_and_min_are_the_ends(self) -> None:
        pruner, model = supernet()
        space = pruner.search_space
        assert space.values(pruner.sample_subnet(model, "max")[1]).tolist() == space.maximum.tolist()
        assert space.values(pruner.sample_subnet(model, "min")[1]).tolist() == space.minimum.tolist()

    def test_the_model_given_comes_back(self) -> None:
        pruner, model = supernet()
        wrapped = nn.DataParallel(model)
        assert pruner.sample_subnet(model)[0] is model
        assert pruner.sample_subnet(wrapped)[0] is wrapped
        assert pruner.set_subnet(wrapped, pruner.sample_subnet(model)[1]) is wrapped

    @pytest.mark.parametrize("mode", ["maximum", "", None, 3])
    def test_another_mode_is_refused(self, mode: Any) -> None:
        pruner, model = supernet()
        with pytest.raises(InvalidArgumentError, match="mode"):
            pruner.sample_subnet(model, mode)

    @pytest.mark.parametrize(
        "wrap",
        [
            nn.DataParallel, AveragedModel, lambda m: torch.compile(m, backend="eager"),
            lambda m: torch.compile(nn.DataParallel(m), backend="eager"),
            lambda m: nn.DataParallel(torch.compile(m, backend="eager")),
        ],
        ids=["parallel", "averaged", "compiled", "compiled-parallel", "parallel-compiled"],
    )  # fmt: skip
    def test_wrapped_supernets(self, wrap: Any) -> None:
        pruner, model = supernet()
        wrapped = wrap(model)
        _, setting = pruner.sample_subnet(wrapped, "min")
        pruner.set_subnet(wrapped, setting)
        static = pruner.get_static_subnet(wrapped, setting)[0]
        assert type(static) is type(small())
        assert torch.equal(outputs(wrapped), outputs(static))

    @pytest.mark.parametrize("other", [None, 3, "model", small, small(), nn.DataParallel(small())])
    def test_what_is_no_supernet_is_refused(self, other: Any) -> None:
        pruner, _ = supernet()
        for call in (
            pruner.sample_subnet,
            lambda m: pruner.set_subnet(m, []),
            lambda m: pruner.get_static_subnet(m, []),
        ):
            with pytest.raises(InvalidArgumentError, match=r"ofa_model|supernet"):
                call(other)

    def test_the_supernet_of_another_pruner_is_refused(self) -> None:
        pruner, _ = supernet()
        _, other = supernet(expand_ratio=[0.75, 1])
        with pytest.raises(InvalidArgumentError, match="not a supernet of this pruner"):
            pruner.sample_subnet(other)

    def test_before_there_is_a_supernet(self) -> None:
        pruner = OFAPruner(small(), INPUTS, quiet=True)
        for call in (lambda: pruner.search_space, lambda: pruner.sample_subnet(small())):
            with pytest.raises(InvalidArgumentError, match=r"call ofa_model\(\) first"):
                call()


class TestExtraction:
    def test_the_supernet_runs_what_it_ran_and_shares_nothing(self) -> None:
        pruner, model = supernet()
        pruner.sample_subnet(model, "max")
        before = outputs(model)
        static, _, macs, params = pruner.get_static_subnet(model, setting_of(pruner, model, "min"))
        assert 0 < macs < pruner.search_space.macs(pruner.search_space.maximum) / 1e6
        pruner.sample_subnet(model, "max")
        with torch.no_grad():
            for tensor in [*static.parameters(), *static.buffers()]:
                tensor.zero_()
        assert torch.equal(outputs(model), before)
        assert params == sum(p.numel() for p in static.parameters()) / 1e6

    def test_training_mode_and_frozen_parameters_come_along(self) -> None:
        pruner, model = supernet()
        model.train()
        model.second[1].eval()
        model.head.weight.requires_grad_(False)
        static = pruner.get_static_subnet(model, setting_of(pruner, model, "min"))[0]
        assert static.training
        assert not static.second[1].training
        assert not static.head.weight.requires_grad
        assert static.head.bias.requires_grad

    def test_a_static_subnet_is_pruned_saved_and_loaded_as_any_model(self, tmp_path: Path) -> None:
        pruner, model = supernet()
        static = pruner.get_static_subnet(model, setting_of(pruner, model, "min"))[0].eval()
        check_modules(small(), static)
        assert cw.trace(static, INPUTS).groups
        cw.save(static, tmp_path / "subnet.safetensors")
        again = cw.load(small(), tmp_path / "subnet.safetensors")
        assert again.depthwise[0].kernel_size == (3, 3)
        assert torch.equal(outputs(again), outputs(static))
        assert torch.equal(outputs(cw.load(small(), static.state_dict())), outputs(static))

    def test_hooks_of_the_user_come_along(self) -> None:
        seen: list[int] = []
        net = small()
        net.first[0].register_forward_hook(lambda m, args, out: seen.append(out.shape[1]))
        pruner, model = supernet(net)
        seen.clear()
        static = pruner.get_static_subnet(model, setting_of(pruner, model, "min"))[0]
        pruner.sample_subnet(model, "min")
        outputs(model)
        outputs(static)
        assert len(seen) == 2
        assert seen[0] == seen[1] < 24


def setting_of(pruner: OFAPruner, model: nn.Module, mode: Any) -> Any:
    return pruner.sample_subnet(model, mode)[1]


class TestSeveralSupernets:
    def test_both_keep_working(self) -> None:
        pruner = OFAPruner(small(), INPUTS, quiet=True)
        one, two = pruner.ofa_model([0.5, 1], 4), pruner.ofa_model([0.25, 1], 4)
        narrow = [setting_of(pruner, model, "min") for model in (one, two)]
        assert narrow[0] != narrow[1]
        for model, setting in zip((one, two), narrow, strict=True):
            static = pruner.get_static_subnet(model, setting)[0]
            assert torch.equal(outputs(model), outputs(static))
        assert (
            pruner.search_space.macs(pruner.search_space.minimum) / 1e6 == pruner.get_static_subnet(two, narrow[1])[2]
        )
        with pytest.raises(InvalidArgumentError):
            pruner.set_subnet(one, narrow[1])

    def test_two_of_the_same_space_are_independent(self) -> None:
        pruner = OFAPruner(small(), INPUTS, quiet=True)
        one, two = pruner.ofa_model([0.5, 1], 4), pruner.ofa_model([0.5, 1], 4)
        full = outputs(two)
        pruner.sample_subnet(one, "min")
        assert torch.equal(outputs(two), full)
        assert not torch.equal(outputs(one), full)

    def test_a_deep_copy_is_independent(self) -> None:
        pruner, model = supernet()
        twin = copy.deepcopy(model)
        pruner.sample_subnet(twin, "min")
        assert not torch.equal(outputs(twin), outputs(model))
        assert model.first[0].out_channels == 24

    def test_a_supernet_is_no_model_to_start_from(self) -> None:
        _, model = supernet()
        with pytest.raises(UnsupportedModelError, match="supernet"):
            OFAPruner(model, INPUTS)


class TestModelsGiven:
    @pytest.mark.parametrize(
        "wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")], ids=["parallel", "compiled"]
    )
    def test_wrappers_are_taken_off(self, wrap: Any) -> None:
        _, model = supernet(wrap(small()))
        assert type(model) is type(small())
        torch.testing.assert_close(outputs(model), outputs(small()))

    def test_without_batch_norm(self, caplog: pytest.LogCaptureFixture) -> None:
        pruner, model = supernet(small(norm=False))
        setting = setting_of(pruner, model, "min")
        assert torch.equal(outputs(model), outputs(pruner.get_static_subnet(model, setting)[0]))
        with caplog.at_level(logging.INFO):
            pruner.reset_bn_running_stats_for_calibration(model)
        assert "nothing to re-estimate" in caplog.text

    def test_in_train_mode_it_stays_in_train_mode(self) -> None:
        model = small().train()
        assert supernet(model)[1].training
        assert model.training

    def test_nothing_to_choose(self) -> None:
        with pytest.raises(NothingToPruneError, match="width can change"):
            supernet(nn.Conv2d(3, 4, 3))

    @pytest.mark.parametrize(
        "arguments",
        [
            {"expand_ratio": [2, 1]}, {"expand_ratio": []}, {"channel_divisible": 0}, {"excludes": "nowhere"},
            {"expand_ratio": [1], "elastic_kernel": False}, {"excludes": nn.Module},
        ],
        ids=str,
    )  # fmt: skip
    def test_the_users_model_is_untouched_after_every_failure(self, arguments: dict[str, Any]) -> None:
        model, twin = small(), small()
        with pytest.raises(ChannelwiseError):
            supernet(model, **arguments)
        check_modules(twin, model)
        assert all(
            torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True)
        )
        assert vars(model).keys() == vars(twin).keys()

    @pytest.mark.parametrize("inputs", [None, "x", torch.randn(1, 7, 8, 8), []], ids=["none", "text", "shape", "empty"])
    def test_inputs_that_do_not_fit(self, inputs: Any) -> None:
        with pytest.raises(ChannelwiseError):
            OFAPruner(small(), inputs, quiet=True)

    def test_an_unknown_ranking(self) -> None:
        with pytest.raises(InvalidArgumentError, match="nonsense"):
            OFAPruner(small(), INPUTS, ranking="nonsense")


class ReachesAround(nn.Module):
    """Uses the weight of a layer without calling it; another pair of layers is as usual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.usual, self.head = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = F.conv2d(x, self.conv.weight, self.conv.bias).relu()
        return self.head(self.usual(x).relu())


def test_code_that_reaches_around_layers_keeps_their_width_with_the_reason() -> None:
    model = ReachesAround()
    pruner, net = supernet(model, auto_add_excludes=False)
    fixed = {c.name: c.fixed for c in pruner.search_space.choices if c.fixed}
    assert set(fixed) == {"stem", "conv"}
    assert all("does not adapt" in why for why in fixed.values())
    assert "does not adapt" in str(pruner.search_space)
    torch.testing.assert_close(outputs(net), outputs(model))
    setting = setting_of(pruner, net, "min")
    static = pruner.get_static_subnet(net, setting)[0]
    assert static.usual.out_channels == 4
    assert torch.equal(outputs(net), outputs(static))


class TestFiles:
    def test_the_search_space_is_written_on_request_only(self, tmp_path: Path) -> None:
        pruner = OFAPruner(small(), INPUTS, folder=tmp_path / "a" / "b", quiet=True)
        pruner.ofa_model()
        assert not list(tmp_path.rglob("*"))
        model = pruner.ofa_model(save_search_space=True)
        path = tmp_path / "a" / "b" / "Small.space.json"
        file = SpaceFile.model_validate_json(path.read_text())
        assert file.version == 1
        assert file.choices == setting_of(pruner, model, "max")
        pruner.set_subnet(model, json.loads(path.read_text())["choices"])
        pruner.reset_search_space(file.choices)

    def test_a_folder_that_is_no_path(self) -> None:
        with pytest.raises(InvalidArgumentError, match="folder"):
            OFAPruner(small(), INPUTS, folder=3)  # type: ignore[arg-type]


class TestCalibration:
    def test_statistics_become_the_mean_over_batches(self) -> None:
        pruner, model = supernet()
        setting = setting_of(pruner, model, "min")
        static = pruner.get_static_subnet(model, setting)[0].eval()
        pruner.reset_bn_running_stats_for_calibration(static)
        assert not static.training
        norms = [m for m in static.modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms
        assert all(m.training for m in norms)
        seen = []
        static.stem[1].register_forward_pre_hook(lambda m, args: seen.append(args[0].detach()))
        with torch.no_grad():
            for i in range(3):
                static(INPUTS + i)
        static.eval()
        expected = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
        torch.testing.assert_close(static.stem[1].running_mean, expected)

    @pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel], ids=["plain", "parallel"])
    @pytest.mark.parametrize("mode", ["min", "max", "random"])
    def test_recalibrating_a_supernet_is_recalibrating_its_subnet(self, mode: Any, wrap: Any) -> None:
        pruner, model = supernet()
        setting = pruner.sample_subnet(model, mode, seed=1)[1]
        static = pruner.get_static_subnet(model, setting)[0]
        before = copy.deepcopy(model.state_dict())
        loader = [INPUTS, INPUTS + 1]
        recalibrate(wrap(model), loader)
        recalibrate(static, loader)
        torch.testing.assert_close(outputs(model), outputs(static))
        again = pruner.get_static_subnet(model, setting)[0]
        for (name, a), b in zip(again.state_dict().items(), static.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, msg=name)
        n = model.first[0].out_channels
        for name in ("first.1.running_mean", "first.1.running_var"):
            assert torch.equal(model.state_dict()[name][n:], before[name][n:])
            assert not torch.equal(model.state_dict()[name][:n], before[name][:n])

    def test_behind_a_concatenation_too(self) -> None:
        class Joined(nn.Module):
            def __init__(self, norm: type[nn.Module]) -> None:
                super().__init__()
                self.a, self.b, self.norm = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), norm(16)
                self.head = nn.Conv2d(16, 4, 1)

            def forward(self, x: Tensor) -> Tensor:
                return self.head(self.norm(torch.cat([self.a(x), self.b(x)], 1)))

        for norm in (nn.BatchNorm2d, nn.SyncBatchNorm):
            pruner, model = supernet(Joined(norm), auto_add_excludes=False)
            setting = setting_of(pruner, model, "min")
            static = recalibrate(pruner.get_static_subnet(model, setting)[0], [INPUTS])
            torch.testing.assert_close(outputs(recalibrate(model, [INPUTS])), outputs(static))

    def test_a_failed_recalibration_leaves_the_statistics(self) -> None:
        pruner, model = supernet()
        pruner.sample_subnet(model, "min")
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ChannelwiseError):
            recalibrate(model, [INPUTS, INPUTS * float("nan")])
        assert all(torch.equal(a, before[name]) for name, a in model.state_dict().items())
