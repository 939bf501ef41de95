"""The search among subnets: inside the window, never twice, going on after an interruption, and what it returns."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from channelwise.errors import EvaluationError, InvalidArgumentError, ResultsFileError, UnreachableTargetError
from channelwise.methods.ofa import OFAPruner
from channelwise.methods.ofa.evolution import FrontEvolution
from channelwise.methods.ofa.front import Front
from channelwise.methods.ofa.window import WindowSpace, buckets
from channelwise.search import Known, Request

NUMBERS = (
    "flops_step", "max_flops", "min_flops", "iteration", "mutate_size", "crossover_size", "mutate_prob",
    "parent_popu_size",
)  # fmt: skip
IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def network(width: int = 16) -> nn.Module:
    """Six layers of one choice each; Sequential, so worker processes can import it."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i in range(6):
        layers += [nn.Conv2d(width if i else 3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5)).eval()


def widths(model: nn.Module) -> float:
    """A score without any images: wide first layers are good."""
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    return float(sum(m.out_channels / (1 + i) for i, m in enumerate(convolutions)))


class Recorded:
    """Scores like `widths` and remembers of which subnets; raises at one of them."""

    def __init__(self, interrupt_at: int = 0) -> None:
        self.seen: list[tuple[int, ...]] = []
        self._interrupt_at = interrupt_at

    def __call__(self, model: nn.Module) -> float:
        if self._interrupt_at == len(self.seen) + 1:
            raise KeyboardInterrupt
        self.seen.append(tuple(m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)))
        return widths(model)


@pytest.fixture
def pruner(tmp_path: Path) -> OFAPruner:
    return OFAPruner(network(), IMAGES, folder=tmp_path, quiet=True)


@pytest.fixture
def supernet(pruner: OFAPruner) -> nn.Module:
    return pruner.ofa_model([0.25, 0.5, 0.75, 1], 4)


def share(pruner: OFAPruner, of: float) -> float:
    """MACs in millions."""
    return of * float(pruner.search_space.macs(pruner.search_space.maximum)) / 1e6


def search(pruner: OFAPruner, supernet: nn.Module, eval_fn: Any = widths, **given: Any) -> Any:
    arguments: dict[str, Any] = {
        "min_flops": share(pruner, 0.4), "max_flops": share(pruner, 0.7), "flops_step": share(pruner, 0.05),
        "parent_popu_size": 6, "iteration": 3, "mutate_size": 3, "crossover_size": 2, "loader": [IMAGES],
    }  # fmt: skip
    return pruner.run_evolutionary_search(supernet, eval_fn=eval_fn, **{**arguments, **given})


def test_every_subnet_is_in_the_window_and_none_is_evaluated_twice(pruner: OFAPruner, supernet: nn.Module) -> None:
    recorded = Recorded()
    found = search(pruner, supernet, recorded)
    assert len(recorded.seen) == len(set(recorded.seen)) == 6 + 3 * 5
    for name, subnet in found.items():
        assert share(pruner, 0.4) <= subnet["macs"] <= share(pruner, 0.7)
        static, setting, macs, params = pruner.get_static_subnet(supernet, subnet["subnet_setting"])
        assert (macs, params, setting) == (subnet["macs"], subnet["params"], subnet["subnet_setting"])
        assert subnet["acc1"] == widths(static)
        assert subnet["mode"] == "evaluate"
        assert abs(float(name) - macs) <= share(pruner, 0.025) * 1.001


def test_the_front_is_better_than_random_subnets(tmp_path: Path) -> None:
    pruner = OFAPruner(network(), IMAGES, folder=tmp_path, quiet=True)
    supernet = pruner.ofa_model([n / 16 for n in range(4, 17)], 1, auto_add_excludes=False)

    def mean(**given: Any) -> float:
        found = search(pruner, supernet, iteration=12, loader=None, **given)
        return float(np.mean([subnet["acc1"] for subnet in found.values()]))

    assert mean() > mean(strategy="random", storage=tmp_path / "random.ofa") + 0.5


def test_an_interrupted_search_goes_on(pruner: OFAPruner, supernet: nn.Module, tmp_path: Path) -> None:
    whole = Recorded()
    expected = search(pruner, supernet, whole, storage=tmp_path / "whole.ofa")
    first, second = Recorded(interrupt_at=9), Recorded()
    with pytest.raises(KeyboardInterrupt):
        search(pruner, supernet, first)
    found = search(pruner, supernet, second)
    assert first.seen + second.seen == whole.seen
    assert found == expected
    third = Recorded()
    assert search(pruner, supernet, third) == expected
    assert not third.seen


def test_more_generations_add_to_a_search(pruner: OFAPruner, supernet: nn.Module) -> None:
    first, second = Recorded(), Recorded()
    search(pruner, supernet, first)
    search(pruner, supernet, second, iteration=4)
    assert len(second.seen) == 5
    assert not set(first.seen) & set(second.seen)


def test_a_supernet_trained_on_is_searched_anew(pruner: OFAPruner, supernet: nn.Module) -> None:
    search(pruner, supernet)
    with torch.no_grad():
        next(supernet.parameters()).add_(0.1)
    again = Recorded()
    search(pruner, supernet, again)
    assert again.seen


def test_workers_find_what_one_process_finds(pruner: OFAPruner, supernet: nn.Module, tmp_path: Path) -> None:
    alone = search(pruner, supernet, iteration=0, storage=tmp_path / "alone.ofa")
    together = search(pruner, supernet, iteration=0, storage=tmp_path / "together.ofa", workers=2)
    assert alone == together


def test_the_supernet_and_its_statistics_stay(pruner: OFAPruner, supernet: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    pruner.sample_subnet(supernet, "min")
    output = supernet.eval()(IMAGES)

    def spoil(model: nn.Module) -> None:
        with torch.no_grad():
            for tensor in [*model.parameters(), *model.buffers()]:
                tensor.zero_()

    search(pruner, supernet, calibration_fn=spoil, loader=None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())
    assert torch.equal(supernet(IMAGES), output)


def test_calibration_re_estimates_every_subnet(pruner: OFAPruner, supernet: nn.Module) -> None:
    counts: list[float] = []

    def mean_of_first_norm(model: nn.Module) -> float:
        norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
        counts.append(float(norm.running_mean.abs().sum()))  # type: ignore[union-attr]
        return counts[-1]

    search(pruner, supernet, mean_of_first_norm, iteration=0)
    assert all(count > 0 for count in counts)


def test_narrower_search_spaces_hold(pruner: OFAPruner, supernet: nn.Module) -> None:
    name = next(c.name for c in pruner.search_space.choices if len(c.candidates) > 1)
    pruner.reset_search_space({name: [8]})
    found = search(pruner, supernet)
    position = pruner.search_space.position[name]
    assert {subnet["subnet_setting"][position]["active_out_channel"] for subnet in found.values()} == {8}


class TestFiles:
    def test_what_was_saved_is_loaded(self, pruner: OFAPruner, supernet: nn.Module, tmp_path: Path) -> None:
        found = search(pruner, supernet)
        pruner.save_subnet_config(found, tmp_path / "front.json")
        assert pruner.load_subnet_config(tmp_path / "front.json") == json.loads(json.dumps(found))
        assert json.loads((tmp_path / "front.json").read_text())["version"] == 1

    def test_another_networks_file_is_refused(self, pruner: OFAPruner, supernet: nn.Module, tmp_path: Path) -> None:
        pruner.save_subnet_config(search(pruner, supernet), tmp_path / "front.json")
        other = OFAPruner(network(32), IMAGES, folder=tmp_path / "other")
        other.ofa_model()
        with pytest.raises(ResultsFileError, match="does not fit this supernet"):
            other.load_subnet_config(tmp_path / "front.json")

    @pytest.mark.parametrize(
        "text",
        ["", "{", "[]", '{"format": "channelwise-subnets", "version": 2, "subnets": {"1": {}}}', '{"subnets": {}}'],
    )
    def test_damaged_files_are_refused(self, pruner: OFAPruner, tmp_path: Path, text: str) -> None:
        (tmp_path / "front.json").write_text(text)
        with pytest.raises(
            ResultsFileError, match=r"front\.json (is damaged or not a subnet config|is damaged:|holds)"
        ):
            pruner.load_subnet_config(tmp_path / "front.json")

    def test_a_changed_value_is_told_and_an_edit_on_purpose_is_taken(
        self, pruner: OFAPruner, supernet: nn.Module, tmp_path: Path
    ) -> None:
        path = tmp_path / "front.json"
        pruner.save_subnet_config(search(pruner, supernet), path)
        file = json.loads(path.read_text())
        next(iter(file["subnets"].values()))["acc1"] += 1
        path.write_text(json.dumps(file))
        with pytest.raises(ResultsFileError, match=r"front\.json was edited or damaged.*remove its 'check'"):
            pruner.load_subnet_config(path)
        del file["check"]
        path.write_text(json.dumps(file))
        assert pruner.load_subnet_config(path) == file["subnets"]

    @pytest.mark.parametrize("wrong", [None, {}, {"230": 1}, {"230": {"acc1": 1.0}}])
    def test_only_results_are_saved(self, pruner: OFAPruner, tmp_path: Path, wrong: Any) -> None:
        with pytest.raises(InvalidArgumentError, match="run_evolutionary_search"):
            pruner.save_subnet_config(wrong, tmp_path / "front.json")
        assert not (tmp_path / "front.json").exists()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"min_flops": 5.0, "max_flops": 4.0}, "min_flops"),
        ({"min_flops": -1}, "min_flops"),
        ({"max_flops": "many"}, "max_flops"),
        ({"flops_step": 0}, "flops_step"),
        *(({name: value}, name) for name in NUMBERS for value in (math.nan, math.inf, -math.inf)),
        ({"min_flops": None, "min_macs": -1}, "min_macs=-1"),
        ({"min_flops": None, "min_macs": 5.0, "max_flops": None, "max_macs": 4}, "min_macs=5 is above max_macs=4"),
        ({"flops_step": None, "macs_step": 1e-300}, "macs_step=1e-300: is less than one MAC"),
        ({"flops_step": None, "macs_step": "wide"}, "macs_step='wide'"),
        ({"min_macs": 1.0}, "min_macs"),
        ({"min_or_max_metric": "maximum"}, "min_or_max_metric"),
        ({"evaluation_metric": 3}, "evaluation_metric"),
        ({"evaluation_metric": "macs"}, "evaluation_metric"),
        ({"eval_fn": None}, "eval_fn"),
        ({"eval_fn": 0.5}, "eval_fn"),
        ({"parent_popu_size": 0}, "parent_popu_size"),
        ({"iteration": -1}, "iteration"),
        ({"mutate_size": 1.5}, "mutate_size"),
        ({"mutate_prob": 2}, "mutate_prob"),
        ({"crossover_size": None}, "crossover_size"),
        ({"calib_args": 3}, "calib_args"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(
    pruner: OFAPruner, supernet: nn.Module, given: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgumentError, match=named):
        search(pruner, supernet, **given)
    assert not list(tmp_path.glob("*.ofa"))


def test_an_empty_window_says_what_can_be_reached(pruner: OFAPruner, supernet: nn.Module) -> None:
    with pytest.raises(UnreachableTargetError, match="subnets have"):
        search(pruner, supernet, min_flops=share(pruner, 2), max_flops=share(pruner, 3))
    low, high = share(pruner, 2), share(pruner, 3)
    with pytest.raises(UnreachableTargetError, match=r"min_macs=.* max_macs="):
        search(pruner, supernet, min_flops=None, min_macs=low, max_flops=None, max_macs=high)


def test_an_evaluation_without_a_result_is_an_error(pruner: OFAPruner, supernet: nn.Module) -> None:
    with pytest.raises(EvaluationError, match="None"):
        search(pruner, supernet, lambda model: None)


def test_any_vector_is_moved_into_a_narrow_window(pruner: OFAPruner, supernet: nn.Module) -> None:
    full = float(pruner.search_space.macs(pruner.search_space.maximum))
    window = WindowSpace(pruner.search_space, 0.49 * full, 0.51 * full)
    rng = np.random.default_rng(0)
    for vector in [*rng.random((50, window.dims)), np.zeros(window.dims), np.ones(window.dims)]:
        values = window.project(vector)
        assert window.contains(values)
        assert pruner.search_space.contains(values)
        assert np.array_equal(window.project(window.encode(values)), values)


def test_a_subnet_is_found_in_a_very_narrow_window(tmp_path: Path) -> None:
    pruner = OFAPruner(network(), IMAGES, folder=tmp_path, quiet=True)
    pruner.ofa_model([n / 16 for n in range(4, 17)], 1, auto_add_excludes=False)
    full = float(pruner.search_space.macs(pruner.search_space.maximum))
    for middle in (0.31, 0.47, 0.62):
        window = WindowSpace(pruner.search_space, (middle - 5e-4) * full, (middle + 5e-4) * full)
        assert window.contains(window.project(np.full(window.dims, 0.9)))


def test_proposals_depend_on_nothing_but_the_request(pruner: OFAPruner, supernet: nn.Module) -> None:
    full = float(pruner.search_space.macs(pruner.search_space.maximum))
    window: Any = WindowSpace(pruner.search_space, 0.3 * full, 0.8 * full)
    rng = np.random.default_rng(0)
    known = tuple(Known(i, window.encode(window.project(rng.random(window.dims))), float(i)) for i in range(20))
    strategy = FrontEvolution(population=4)
    for number in range(20, 40):
        request = Request(window, known, (), np.empty((0, window.dims)), number, seed=1)
        assert np.array_equal(strategy(request), strategy(request))
    assert [strategy.mode(n) for n in (3, 4, 11, 12, 15, 16)] == [
        "random", "mutate", "mutate", "crossover", "crossover", "mutate",
    ]  # fmt: skip


def test_parents_are_kept_up_to_date_as_if_they_were_found_anew(pruner: OFAPruner, supernet: nn.Module) -> None:
    full = float(pruner.search_space.macs(pruner.search_space.maximum))
    window: Any = WindowSpace(pruner.search_space, 0.3 * full, 0.8 * full)
    rng, step = np.random.default_rng(0), share(pruner, 0.05)
    finished = [
        # Merits that repeat, as accuracies on few images do.
        Known(n, window.encode(window.project(rng.random(window.dims))), float(rng.integers(12)))
        for n in range(120)
    ]
    front = Front(window, step)
    for n, known in enumerate(rng.permutation(np.array(finished, object))):
        front.add(known)
        missing = set(front.not_added(finished))
        seen = [k for k in finished if k not in missing]
        assert len(seen) == n + 1
        macs = {k.number: float(window.space.macs(window.snapped(k.vector[None])[0])) for k in seen}
        unbeaten = {k.number for k in seen if not any(_beats(other, k, macs) for other in seen)}
        best: dict[int, Known] = {}
        for k in seen:
            bucket = int(buckets(macs[k.number], step))
            best[bucket] = k if bucket not in best or k.merit > best[bucket].merit else best[bucket]
        assert front.parents() == sorted(unbeaten | {k.number for k in best.values()})


def _beats(one: Known, other: Known, macs: dict[int, float]) -> bool:
    assert one.merit is not None
    assert other.merit is not None
    return one.merit > other.merit and macs[one.number] <= macs[other.number]


def test_another_search_in_the_same_space_has_parents_of_its_own(pruner: OFAPruner, supernet: nn.Module) -> None:
    full = float(pruner.search_space.macs(pruner.search_space.maximum))
    window: Any = WindowSpace(pruner.search_space, 0.3 * full, 0.8 * full)
    rng = np.random.default_rng(0)

    def request(numbers: range, merit: float) -> Request:
        vectors = (window.encode(window.project(rng.random(window.dims))) for _ in numbers)
        known = tuple(Known(n, vector, merit * n) for n, vector in zip(numbers, vectors, strict=True))
        return Request(window, known, (), np.empty((0, window.dims)), 30, seed=1)

    strategy = FrontEvolution(population=4)
    one, other = request(range(20), 1.0), request(range(20), -1.0)
    first = strategy(one)
    strategy(other)
    assert np.array_equal(strategy(one), first)
