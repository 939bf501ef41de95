"""Weights divided by a norm of themselves: what a slim or sparse model has of them is a slice of what it was."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import channelwise as cw
from channelwise.surgery import masked_model, slim_state_dict, sparse_state_dict


def old_weight_norm(module, dim=0):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(module, dim=dim)


WAYS = {
    "weight norm, old": old_weight_norm,
    "weight norm, old, of all": lambda module: old_weight_norm(module, None),
    "weight norm": parametrizations.weight_norm,
    "weight norm over inputs": lambda module: parametrizations.weight_norm(module, dim=1),
    "weight norm of all": lambda module: parametrizations.weight_norm(module, dim=None),
    "spectral norm, old": nn.utils.spectral_norm,
    "spectral norm": parametrizations.spectral_norm,
    "spectral norm over inputs": lambda module: parametrizations.spectral_norm(module, dim=1),
}

LAYERS = {
    "convolution": lambda: nn.Conv1d(12, 8, 3, padding=1),
    "grouped": lambda: nn.Conv1d(12, 8, 3, padding=1, groups=2),
    "transposed": lambda: nn.ConvTranspose1d(12, 8, 3, padding=1),
}

X = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(0))


def network(way, layer="convolution"):
    torch.manual_seed(0)
    normed = WAYS[way](LAYERS[layer]())
    return nn.Sequential(nn.Conv1d(4, 12, 3, padding=1), nn.ReLU(), normed, nn.ReLU(), nn.Conv1d(8, 3, 1)).eval()


def weight(model):
    """The weight that the normed layer computes with."""
    with torch.no_grad():
        model(X)
    return model[2].weight.detach()


def half(graph):
    return graph.select(sparsity=0.5, ranking=lambda group, tensors: torch.arange(group.size).numpy() * 7 % group.size)


def sliced(model, selection, layer):
    """The slice of the weight that it has in a network without norms."""
    full = weight(model)
    (first, second) = (torch.from_numpy(kept) for kept in selection.kept.values())
    rows, columns = (first, second) if layer == "transposed" else (second, first)
    if layer != "grouped":
        return full[rows][:, columns]
    blocks = [full[rows[rows // 4 == b]][:, columns[columns // 6 == b] - 6 * b] for b in range(2)]
    return torch.cat(blocks)


@pytest.mark.parametrize(
    ("way", "layer"),
    # With other norms the blocks of a grouped convolution go together.
    [
        (way, layer)
        for way in WAYS
        for layer in LAYERS
        if layer != "grouped" or way in ("weight norm", "weight norm, old")
    ],
)
def test_what_a_slim_model_keeps_of_a_weight_is_a_slice_of_it(way, layer):
    model = network(way, layer)
    graph = cw.trace(model, X)
    assert [group.size for group in graph.groups] == [12, 8]
    selection = half(graph)
    expected = sliced(model, selection, layer)
    torch.testing.assert_close(weight(graph.slim(selection)), expected)
    masked = masked_model(model, graph.structure, selection)
    torch.testing.assert_close(sliced(masked, selection, layer), expected)
    assert weight(masked).count_nonzero() == expected.count_nonzero()


@pytest.mark.parametrize("way", WAYS)
def test_grouped_convolutions_are_right_under_every_norm(way):
    model = network(way, "grouped")
    graph = cw.trace(model, X)
    assert "2" in [group.name for group in graph.groups]
    assert not any("failed" in reason.text for frozen in graph.structure.frozen for reason in frozen.reasons)
    selection = half(graph)
    slim, masked = graph.slim(selection), masked_model(model, graph.structure, selection)
    torch.testing.assert_close(slim(X), masked(X))


@pytest.mark.parametrize("way", WAYS)
def test_state_dicts_are_those_of_the_same_weights(way, tmp_path):
    model = network(way)
    graph = cw.trace(model, X)
    selection = half(graph)
    slim = graph.slim(selection)
    expected = slim(X)
    from_dense = slim_state_dict(model.state_dict(), graph.structure, selection)
    assert all(torch.equal(value, from_dense[name]) for name, value in slim.state_dict().items())
    wide = network(way)
    wide.load_state_dict(sparse_state_dict(slim.state_dict(), graph.structure, selection))
    torch.testing.assert_close(wide(X), expected)
    cw.save(slim, tmp_path / "slim.safetensors")
    torch.testing.assert_close(cw.load(network(way), tmp_path / "slim.safetensors")(X), expected)


@pytest.mark.parametrize("way", WAYS)
def test_a_sparse_model_agrees_with_the_slim_one_before_and_after_training(way):
    model = network(way)
    graph = cw.trace(model, X)
    selection = half(graph)
    assert all(group.exact for group in graph.groups)
    sparse, slim = graph.sparse(selection), graph.slim(selection)
    torch.testing.assert_close(sparse(X), slim(X))
    sparse.load_state_dict(model.state_dict())
    torch.testing.assert_close(sparse(X), slim(X))
    optimizer = torch.optim.SGD(sparse.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        sparse.train()(X).square().mean().backward()
        optimizer.step()
    sparse.eval()
    trained = cw.load(network(way), sparse.slim_state_dict())
    torch.testing.assert_close(trained(X), sparse(X))
    assert not torch.allclose(trained(X), slim(X))


@pytest.mark.parametrize("made", ["slim", "sparse"])
def test_folding_a_copy_leaves_the_original_as_it_is(made):
    model = nn.Sequential(parametrizations.weight_norm(nn.Conv1d(4, 16, 3)), nn.ReLU(), nn.Conv1d(16, 4, 1)).eval()
    x = torch.randn(2, 4, 8)
    graph = cw.trace(model, x)
    before = model(x)
    copy = getattr(graph, made)(graph.select(sparsity=0.5))
    expected = copy(x)
    nn.utils.parametrize.remove_parametrizations(copy[0], "weight")
    assert torch.allclose(copy(x), expected, atol=1e-6)
    assert torch.equal(model(x), before)
