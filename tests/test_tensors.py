"""Tensors of a model by name."""

from torch import nn

from channelwise.tensors import named_tensors


def test_parameters_come_before_buffers_and_shared_tensors_under_each_name() -> None:
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2), nn.Linear(2, 2))
    net[2].weight = net[1].weight

    found = named_tensors(net)

    assert list(found) == [
        "0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias",
        "0.running_mean", "0.running_var", "0.num_batches_tracked",
    ]  # fmt: skip
    assert found["2.weight"] is found["1.weight"]
