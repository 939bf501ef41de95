"""Every built-in criterion scores channels by the slots it promises to look at."""

import numpy as np
import pytest
import torch

from channelwise.errors import InvalidArgumentError
from channelwise.ranking import Random, Weights, scores
from channelwise.structure import Group, TensorInfo
from tests.handmade import chain, random_tensors, single, slots


def conv(name, *shape, blocks=1, is_parameter=True):
    return TensorInfo(name, shape, is_parameter, name.rpartition(".")[0], blocks)


def score(ranking, group, infos, tensors):
    return scores(ranking, group, Weights.of(tensors, single(group, infos)))


TWO = Group(
    "g",
    3,
    (
        slots("a.weight", 0, [2, 0, 1], "output"),
        slots("b.weight", 0, [[0, 3], [1, 4], [2, 5]], "output"),
        slots("c.weight", 1, [0, 1, 2], "input"),
        slots("n.weight", 0, [0, 1, 2], "scale"),
    ),
)
TWO_INFOS = [conv("a.weight", 3, 2, 3, 3), conv("b.weight", 6, 5), conv("c.weight", 4, 3, 1, 1), conv("n.weight", 3)]


def filters(tensors):
    """(3, elements): per channel the concatenation of its rows of a and b."""
    a, b = tensors["a.weight"].flatten(1).double(), tensors["b.weight"].double()
    return torch.cat([a[[2, 0, 1]], b[:3], b[3:]], dim=1)


@pytest.fixture
def tensors():
    return random_tensors(single(TWO, TWO_INFOS))


def test_l1_sums_absolute_weights_over_all_output_slots_of_a_channel(tensors):
    expected = filters(tensors).abs().sum(dim=1).numpy()
    np.testing.assert_allclose(score("l1", TWO, TWO_INFOS, tensors), expected, rtol=1e-6)


def test_l2_is_the_norm_over_all_output_slots_of_a_channel(tensors):
    expected = filters(tensors).norm(dim=1).numpy()
    np.testing.assert_allclose(score("l2", TWO, TWO_INFOS, tensors), expected, rtol=1e-6)


def test_fpgm_sums_distances_to_all_other_filters_of_the_group(tensors):
    rows = filters(tensors)
    expected = (rows[:, None] - rows[None]).norm(dim=2).sum(dim=1).numpy()
    np.testing.assert_allclose(score("fpgm", TWO, TWO_INFOS, tensors), expected, rtol=1e-6)


def test_fpgm_gives_equal_filters_equal_scores():
    group = Group("g", 4, (slots("a.weight", 0, range(4), "output"),))
    weight = torch.randn(4, 64, 3, 3, generator=torch.Generator().manual_seed(0)) + 10
    weight[3] = weight[1]
    result = score("fpgm", group, [conv("a.weight", 4, 64, 3, 3)], {"a.weight": weight})
    distance = (weight[1] - weight[:, None]).flatten(2).double().norm(dim=2).sum()
    assert result[1] == pytest.approx(result[3], rel=1e-12)
    assert result[1] == pytest.approx(float(distance), rel=1e-6)


def test_bn_scale_takes_the_magnitude_of_norm_scales(tensors):
    tensors["n.weight"] = torch.tensor([-2.0, 0.5, 1.0])
    assert score("bn_scale", TWO, TWO_INFOS, tensors).tolist() == [2.0, 0.5, 1.0]


def test_bn_scale_does_not_take_running_statistics_for_scales():
    group = Group("g", 2, (slots("n.running_var", 0, [0, 1], "scale"),))
    with pytest.raises(InvalidArgumentError, match="'g' has none"):
        score("bn_scale", group, [conv("n.running_var", 2, is_parameter=False)], {"n.running_var": torch.ones(2)})


def test_bn_scale_without_a_norm_names_the_group_and_its_layers():
    group = Group("stem", 2, (slots("a.weight", 0, [0, 1], "output"),))
    with pytest.raises(InvalidArgumentError, match=r"'stem' has none \(layers: a\)"):
        score("bn_scale", group, [conv("a.weight", 2, 3)], {"a.weight": torch.ones(2, 3)})


def test_outputs_on_a_blocked_axis_are_gathered_block_by_block():
    """A transposed convolution of two groups: 4 channels in, 6 out, block b holding rows 2b and 2b + 1."""
    weight = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    group = Group("up", 6, (slots("up.weight", 1, range(6), "output"),), np.repeat([0, 1], 3))
    infos = [conv("up.weight", 4, 3, 2, 2, blocks=2)]
    rows = torch.stack([weight[2 * (c // 3) : 2 * (c // 3) + 2, c % 3].flatten() for c in range(6)]).double()
    l1, fpgm = (score(name, group, infos, {"up.weight": weight}) for name in ("l1", "fpgm"))
    np.testing.assert_allclose(l1, rows.abs().sum(dim=1).numpy(), rtol=1e-6)
    np.testing.assert_allclose(fpgm, (rows[:, None] - rows[None]).norm(dim=2).sum(dim=1).numpy(), rtol=1e-6)


def test_a_group_without_output_slots_is_ranked_by_its_float_parameters():
    group = Group(
        "g",
        2,
        (
            slots("scale", 0, [0, 1], "scale"),
            slots("c.weight", 1, [0, 1], "input"),
            slots("n.running_mean", 0, [0, 1], "other"),
        ),
    )
    infos = [conv("scale", 2), conv("c.weight", 1, 2), conv("n.running_mean", 2, is_parameter=False)]
    values = {"scale": torch.tensor([1.0, -2.0]), "c.weight": torch.tensor([[4.0, 8.0]])}
    values["n.running_mean"] = torch.tensor([100.0, 0.0])
    assert score("l1", group, infos, values).tolist() == [5.0, 10.0]


@pytest.mark.parametrize("ranking", ["l1", "l2", "bn_scale", "fpgm", "random"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_criterion_takes_every_float_type(tensors, ranking, dtype):
    rounded = {name: t.to(dtype) for name, t in tensors.items()}
    exact = {name: t.double() for name, t in rounded.items()}
    expected = score(ranking, TWO, TWO_INFOS, exact)
    np.testing.assert_allclose(score(ranking, TWO, TWO_INFOS, rounded), expected, rtol=1e-6)


def test_half_precision_sums_tell_nearly_equal_wide_filters_apart():
    weight = torch.ones(2, 4096, dtype=torch.bfloat16)
    weight[1, 0] = 2
    group = Group("g", 2, (slots("a.weight", 0, [0, 1], "output"),))
    assert score("l1", group, [conv("a.weight", 2, 4096)], {"a.weight": weight}).tolist() == [4096, 4097]


def test_memory_format_does_not_matter(tensors):
    other = tensors | {"a.weight": tensors["a.weight"].to(memory_format=torch.channels_last)}
    for ranking in ("l1", "fpgm"):
        expected = score(ranking, TWO, TWO_INFOS, tensors)
        np.testing.assert_allclose(score(ranking, TWO, TWO_INFOS, other), expected, rtol=1e-6)


def test_random_scores_repeat_and_differ_by_group_and_seed():
    first, second = (chain([8, 8]).group(f"net.{i}.conv") for i in range(2))
    assert scores("random", first, {}).tolist() == scores("random", first, {}).tolist()
    assert scores("random", first, {}).tolist() != scores("random", second, {}).tolist()
    assert scores("random", first, {}).tolist() != scores(Random(1), first, {}).tolist()


def test_no_criterion_changes_or_tracks_the_weights(tensors):
    live = {name: torch.nn.Parameter(t.clone()) for name, t in tensors.items()}
    for ranking in ("l1", "l2", "bn_scale", "fpgm"):
        score(ranking, TWO, TWO_INFOS, live)
    assert all(torch.equal(live[name], t) and live[name].grad is None for name, t in tensors.items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("ranking", ["l1", "l2", "bn_scale", "fpgm"])
def test_scores_on_a_gpu_equal_those_on_the_host(tensors, ranking):
    on_gpu = {name: t.cuda() for name, t in tensors.items()}
    expected = score(ranking, TWO, TWO_INFOS, tensors)
    np.testing.assert_allclose(score(ranking, TWO, TWO_INFOS, on_gpu), expected, rtol=1e-5)
