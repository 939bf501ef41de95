"""Excludes find groups by names, globs, modules and types, and say what they did not find."""

import dataclasses

import pytest
from torch import nn

from channelwise.errors import InvalidArgumentError
from channelwise.select.excludes import match_excludes
from channelwise.structure import Group, TensorInfo
from tests.handmade import chain, single, slots


class Block(nn.Sequential):
    pass


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(*(self.block(i, o) for i, o in [(3, 8), (8, 16), (16, 4)]))
        self.head = nn.Linear(4, 10)

    @staticmethod
    def block(i, o):
        block = Block()
        block.conv = nn.Conv2d(i, o, 3, bias=False)
        block.bn = nn.BatchNorm2d(o)
        return block


NET = chain([8, 16, 4])
ALL = {"net.0.conv", "net.1.conv", "net.2.conv"}


@pytest.mark.parametrize(
    ("excludes", "expected"),
    [
        (None, set()),
        ((), set()),
        ("net.1.conv", {"net.1.conv"}),
        (["net.1.conv", "net.2.conv"], {"net.1.conv", "net.2.conv"}),
        ("net.1.bn", {"net.1.conv"}),
        ("net.1", {"net.1.conv"}),
        ("net", ALL),
        ("net.1.conv.weight", {"net.1.conv"}),
        ("*.conv", ALL),
        ("net.[02].*", {"net.0.conv", "net.2.conv"}),
        ("head", set()),
        ({"net.0.conv"}, {"net.0.conv"}),
    ],
)
def test_strings_name_groups_layers_containers_and_globs(excludes, expected):
    assert match_excludes(NET, excludes) == expected


def test_a_name_is_no_prefix():
    assert match_excludes(chain([4] * 11), "net.1") == {"net.1.conv"}


def test_a_layer_that_only_reads_a_group_does_not_keep_it():
    assert "net.0.conv" not in match_excludes(NET, "net.1.conv")


def test_every_layer_of_a_group_stands_for_it():
    entries = (slots("a.weight", 0, range(4), "output"), slots("deep.b.weight", 0, range(4), "output"))
    infos = [TensorInfo(n, (4, 2), True, n.rpartition(".")[0]) for n in ("a.weight", "deep.b.weight")]
    structure = single(Group("a", 4, entries), infos)
    assert match_excludes(structure, "deep") == {"a"}


def test_a_computed_weight_is_found_by_the_module_that_holds_it():
    name = "up.conv.parametrizations.weight.original0"
    structure = single(
        Group("g", 4, (slots(name, 0, range(4), "output"),)), [TensorInfo(name, (4, 2), True, "up.conv")]
    )
    assert match_excludes(structure, "up.conv") == {"g"}


def test_a_shared_tensor_is_found_by_its_other_name():
    structure = dataclasses.replace(NET, aliases={"twin.weight": "net.1.conv.weight"})
    assert match_excludes(structure, "twin") == {"net.1.conv"}


def test_modules_of_the_model_are_found_and_containers_hold_all_inside():
    model = Net()
    assert match_excludes(NET, model.net[1].conv, model) == {"net.1.conv"}
    assert match_excludes(NET, [model.net[0], model.net[2].bn], model) == {"net.0.conv", "net.2.conv"}
    assert match_excludes(NET, model, model) == ALL


def test_types_match_all_their_modules():
    model = Net()
    assert match_excludes(NET, nn.BatchNorm2d, model) == ALL
    assert match_excludes(NET, [nn.Linear], model) == set()
    assert match_excludes(NET, Block, model) == ALL


@pytest.mark.parametrize("pattern", ["net.1.cnov", "layer*", ""])
def test_a_pattern_that_matches_nothing_is_an_error(pattern):
    with pytest.raises(InvalidArgumentError, match="matches no group"):
        match_excludes(NET, ["net.0.conv", pattern])


def test_the_error_lists_near_names():
    with pytest.raises(InvalidArgumentError, match=r"Near names: .*net\.1\.conv"):
        match_excludes(NET, "net.1.cnov")


def test_a_module_of_another_model_is_an_error():
    with pytest.raises(InvalidArgumentError, match="not a module of the traced model"):
        match_excludes(NET, Net().head, Net())


def test_a_type_the_model_lacks_is_an_error_that_names_those_it_has():
    with pytest.raises(InvalidArgumentError, match=r"Conv3d.* has .*Conv2d"):
        match_excludes(NET, nn.Conv3d, Net())


@pytest.mark.parametrize("item", [nn.Conv2d, nn.Linear(2, 2)])
def test_modules_and_types_need_the_model(item):
    with pytest.raises(InvalidArgumentError, match="needs the model"):
        match_excludes(NET, item)


@pytest.mark.parametrize("excludes", [3, [3], {"net": 1}, [None], [int]])
def test_anything_else_is_an_error(excludes):
    with pytest.raises(InvalidArgumentError, match="names, patterns, modules or module types"):
        match_excludes(NET, excludes, Net())
