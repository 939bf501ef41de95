"""Gradient rankings score a channel by the exact gradient of the loss with respect to a gate on it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import channelwise as cw
from channelwise.errors import EvaluationError, InvalidArgumentError
from channelwise.ranking import Fisher, Taylor, bind, scores
from channelwise.select.channels import choose, select

IMAGES = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.randint(0, 5, (12,), generator=torch.Generator().manual_seed(2))
LOADER = [(IMAGES[:8], LABELS[:8]), (IMAGES[8:], LABELS[8:])]


class Gate(nn.Module):
    """Multiplies the channels, in blocks of ``repeat`` features, by factors that a test can differentiate."""

    def __init__(self, channels, repeat=1):
        super().__init__()
        self.repeat = repeat
        self.factors = None
        self.channels = channels

    def forward(self, x):
        if self.factors is None:
            return x
        return x * self.factors.repeat_interleave(self.repeat).reshape(-1, *[1] * (x.dim() - 2))


def norm(width):
    bn = nn.BatchNorm2d(width)
    with torch.no_grad():
        bn.running_mean.normal_(0, 0.1)
        bn.running_var.uniform_(0.5, 2)
        bn.weight.uniform_(0.5, 1.5)
        bn.bias.normal_(0, 0.5)
    return bn


class Residual(nn.Module):
    """The gated channels are read by a convolution and by the head, behind an addition."""

    def __init__(self):
        super().__init__()
        self.stem, self.n1 = nn.Conv2d(3, 6, 3, padding=1), norm(6)
        self.gate = Gate(6)
        self.block, self.n2 = nn.Conv2d(6, 6, 3, padding=1), norm(6)
        self.after = Gate(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        y = F.relu(self.n1(self.stem(x)))
        y = y + F.relu(self.n2(self.block(self.gate(y))))
        return self.head(self.after(y.mean((2, 3))))


def flattened():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), norm(6), nn.ReLU(), nn.MaxPool2d(3), nn.Flatten(), Gate(6, 4), nn.Linear(24, 5)
    )


def grouped():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), norm(8), nn.ReLU(), Gate(8), nn.Conv2d(8, 6, 3, groups=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip


def depthwise():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), norm(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), norm(8), nn.ReLU(), Gate(8),
        nn.Conv2d(8, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip


def transposed():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), Gate(8), nn.ConvTranspose2d(8, 6, 3, groups=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip


class Twice(nn.Module):
    """One convolution reads its own output as well: a shared module whose channels are gated at both readings."""

    def __init__(self):
        super().__init__()
        self.stem, self.shared, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 5)
        self.gate = Gate(6)

    def forward(self, x):
        x = F.relu(self.stem(x))
        for _ in range(2):
            x = x + F.relu(self.shared(self.gate(x)))
        return self.head(self.gate(x).mean((2, 3)))


MODELS = {
    "residual": (Residual, "stem"), "flattened": (flattened, "0"), "grouped": (grouped, "0"),
    "depthwise": (depthwise, "0"), "transposed": (transposed, "0"), "shared module": (Twice, "stem"),
}  # fmt: skip


def gate_gradients(model, size):
    """(micro-batches, channels), from gates in the model's code."""
    model = copy.deepcopy(model).eval()
    gates = [m for m in model.modules() if isinstance(m, Gate)]
    found = []
    for images, labels in LOADER:
        for x, y in zip(images.split(size), labels.split(size), strict=True):
            factors = torch.ones(gates[0].channels, requires_grad=True)
            for gate in gates:
                gate.factors = factors
            found.append(torch.autograd.grad(F.cross_entropy(model(x), y), factors)[0].double().numpy())
    return np.stack(found)


def traced(build):
    model = build()
    return model, cw.trace(model, IMAGES[:1])


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_statistics_of_the_gradient_of_a_gate_on_every_reading(name):
    build, layer = MODELS[name]
    model, graph = traced(build)
    group = next(g for g in graph.groups if layer in g.layers)
    expected = gate_gradients(model, 3)
    taylor, fisher = (c(F.cross_entropy, LOADER, micro_batch=3).bind(model, graph.structure) for c in (Taylor, Fisher))
    np.testing.assert_allclose(scores(taylor, group, {}), np.abs(expected).mean(axis=0) ** 2, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(scores(fisher, group, {}), np.square(expected).mean(axis=0), rtol=1e-4, atol=1e-9)


def test_parameters_that_are_frozen_for_training_are_ranked_all_the_same():
    model, graph = traced(Residual)
    expected = scores(bind(Fisher(F.cross_entropy, LOADER), model, graph.structure), graph.groups[0], {})
    model.requires_grad_(False)
    again = scores(bind(Fisher(F.cross_entropy, LOADER), model, graph.structure), graph.groups[0], {})
    np.testing.assert_array_equal(again, expected)
    assert not any(p.requires_grad for p in model.parameters())
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            inside = scores(bind(Fisher(F.cross_entropy, LOADER), model, graph.structure), graph.groups[0], {})
        np.testing.assert_array_equal(inside, expected)


def test_nothing_of_the_users_is_changed():
    model, graph = traced(Residual)
    model.train()
    model.stem.eval()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    flags = [m.training for m in model.modules()]
    shuffled = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(IMAGES, LABELS), 4, shuffle=True)
    state = torch.get_rng_state()
    bind(Taylor(F.cross_entropy, shuffled), model, graph.structure)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == flags
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(torch.equal(p.grad, torch.ones_like(p)) and p.requires_grad for p in model.parameters())


def test_it_is_measured_once_for_many_selections_and_again_when_the_weights_change():
    model, graph = traced(Residual)
    calls = []

    def loss(outputs, labels):
        calls.append(1)
        return F.cross_entropy(outputs, labels)

    ranking = Taylor(loss, LOADER, micro_batch=None)
    for share in (0.4, 0.6, 0.8):
        graph.select(macs=share, ranking=ranking)
    assert len(calls) == 2
    with torch.no_grad():
        model.head.weight[0, 0] += 1
    graph.select(macs=0.6, ranking=ranking)
    assert len(calls) == 4


def test_batches_bound_what_is_read():
    model, graph = traced(Residual)
    seen = []
    ranking = Fisher(lambda out, y: seen.append(len(y)) or F.cross_entropy(out, y), LOADER, 1, micro_batch=6)
    ranking.bind(model, graph.structure)
    assert seen == [6, 2]


def test_a_stream_of_unknown_length_is_read():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return zip(IMAGES, LABELS, strict=True)

    model, graph = traced(Residual)
    stream = torch.utils.data.DataLoader(Stream(), 8)
    expected = Fisher(F.cross_entropy, LOADER).bind(model, graph.structure)
    for batches in (None, 2):
        got = Fisher(F.cross_entropy, stream, batches).bind(model, graph.structure)
        np.testing.assert_allclose(scores(got, graph.groups[0], {}), scores(expected, graph.groups[0], {}), rtol=1e-5)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv1d(24, 6, 1), nn.ReLU(), nn.Conv1d(6, 8, 3))
        self.head = nn.Linear(6, 5)
        self.lstm = nn.LSTM(8, 6, num_layers=2, dropout=0.5, batch_first=True)

    def forward(self, x):
        return self.head(self.lstm(F.relu(self.conv(x.flatten(1, 2))).transpose(1, 2))[0][:, -1])


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
        ),
    ],
)
def test_recurrent_layers_are_passed_without_their_dropout(device):
    model = Recurrent().to(device)
    graph = cw.trace(model, IMAGES[:1].to(device))
    first = Taylor(F.cross_entropy, LOADER).bind(model, graph.structure)
    torch.rand(1)
    again = Taylor(F.cross_entropy, LOADER).bind(model, graph.structure)
    assert graph.groups
    for group in graph.groups:
        np.testing.assert_allclose(scores(first, group, {}), scores(again, group, {}), rtol=1e-4, atol=1e-9)


def test_batches_without_labels_give_the_loss_the_outputs_alone_and_dicts_the_batch():
    model, graph = traced(Residual)
    for batch in (IMAGES, (IMAGES,), [IMAGES]):
        Taylor(lambda outputs: outputs.square().mean(), [batch]).bind(model, graph.structure)
    seen = []
    loss = lambda outputs, batch: seen.append(sorted(batch)) or outputs.square().mean()  # noqa: E731
    Taylor(loss, [{"x": IMAGES}]).bind(model, graph.structure)
    assert seen == [["x"]]


def test_a_forward_function_may_read_the_batch_its_own_way():
    model, graph = traced(Residual)
    turned = [(LABELS, IMAGES)]
    loss = lambda outputs, _: F.cross_entropy(*outputs)  # noqa: E731
    ranking = Taylor(loss, turned, forward_fn=lambda m, batch: (m(batch[1]), batch[0]), micro_batch=None)
    expected = Taylor(F.cross_entropy, [(IMAGES, LABELS)], micro_batch=None).bind(model, graph.structure)
    for group in graph.groups:
        np.testing.assert_allclose(
            scores(ranking.bind(model, graph.structure), group, {}), scores(expected, group, {}), rtol=1e-5
        )


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_half_precision_models_lose_no_gradient_to_underflow(dtype, rtol):
    model = grouped()
    graph = cw.trace(model, IMAGES[:1])
    tiny = lambda outputs, labels: 1e-5 * F.cross_entropy(outputs.float(), labels)  # noqa: E731
    expected = Taylor(tiny, LOADER).bind(model, graph.structure)
    model.to(dtype)
    loader = [(x.to(dtype), y) for x, y in LOADER]
    got = Taylor(tiny, loader).bind(model, graph.structure)
    for group in graph.groups:
        reference = scores(expected, group, {})
        np.testing.assert_allclose(scores(got, group, {}), reference, rtol=rtol, atol=rtol * reference.max())


def test_a_scaled_loss_that_overflows_in_half_precision_is_scaled_less():
    model = grouped().half()
    graph = cw.trace(model, IMAGES[:1].half())
    loader = [(x.half(), y) for x, y in LOADER]
    large = lambda outputs, labels: 100 * F.cross_entropy(outputs.float(), labels)  # noqa: E731
    values = scores(Taylor(large, loader).bind(model, graph.structure), graph.groups[0], {})
    assert (values > 0).any()


class Auxiliary(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)
        self.aux = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5))

    def forward(self, x):
        x = F.relu(self.body(x)).mean((2, 3))
        return (self.head(x), self.aux(x)) if self.training else self.head(x)


def test_groups_without_a_gradient_are_ranked_by_weights_below_all_others_and_named(caplog):
    model, graph = traced(Auxiliary)
    bound = Fisher(F.cross_entropy, LOADER).bind(model, graph.structure)
    body, aux = (next(scores(bound, g, {}) for g in graph.groups if layer in g.layers) for layer in ("body", "aux.0"))
    assert 0 < aux.min() < aux.max() < body.max()
    norms = model.aux[1].weight.detach().norm(dim=0).numpy()
    np.testing.assert_array_equal(np.argsort(aux), np.argsort(norms))
    assert "reaches aux.0 in eval mode" in caplog.text


def test_a_loss_that_depends_on_no_weight_is_refused():
    model, graph = traced(Residual)
    with pytest.raises(EvaluationError, match="does not depend on the model's weights"):
        Taylor(lambda outputs, y: F.cross_entropy(outputs.detach(), y), LOADER).bind(model, graph.structure)


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (lambda outputs, y: F.cross_entropy(outputs, y, reduction="none"), r"one element.*shape \(8,\)"),
        (lambda outputs, y: F.cross_entropy(outputs, y).item(), "one element"),
        (lambda outputs: outputs.mean(), r"loss\(outputs, target\)"),
        (lambda outputs, y: outputs.mean() * float("nan"), "finite"),
        (lambda outputs, y: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_an_unusable_loss_is_an_error_that_says_what_it_must_be(loss, text):
    model, graph = traced(Residual)
    with pytest.raises(EvaluationError, match=text):
        Taylor(loss, LOADER).bind(model, graph.structure)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Taylor("cross_entropy", LOADER), "loss must be a function"),
        (lambda: Taylor(F.cross_entropy, None), "loader must yield batches"),
        (lambda: Taylor(F.cross_entropy, LOADER, 0), "batches=0"),
        (lambda: Fisher(F.cross_entropy, LOADER, micro_batch=0), "micro_batch"),
    ],
)
def test_unusable_arguments_are_refused_at_once(make, text):
    with pytest.raises(InvalidArgumentError, match=text):
        make()


def test_a_model_without_groups_has_nothing_to_measure():
    model, graph = traced(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5)))
    assert not graph.groups
    Fisher(F.cross_entropy, LOADER).bind(model, graph.structure)


def test_an_empty_loader_is_refused():
    model, graph = traced(Residual)
    with pytest.raises(InvalidArgumentError, match="yields nothing"):
        Taylor(F.cross_entropy, []).bind(model, graph.structure)


def test_without_the_model_there_is_an_error_that_says_how_to_give_it():
    _, graph = traced(Residual)
    ranking = Taylor(F.cross_entropy, LOADER)
    with pytest.raises(InvalidArgumentError, match=r"graph\.select"):
        select(graph.structure, graph.tensors(), macs=0.5, ranking=ranking)
    with pytest.raises(InvalidArgumentError, match="bind"):
        choose(graph.structure, graph.tensors(), {graph.groups[0].name: 1}, ranking)


def test_scores_of_another_model_are_refused():
    model, graph = traced(Residual)
    bound = Taylor(F.cross_entropy, LOADER).bind(model, graph.structure)
    _, other = traced(flattened)
    with pytest.raises(InvalidArgumentError, match="another model"):
        scores(bound, other.groups[0], {})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_on_a_gpu_is_ranked_there_and_equal():
    model, graph = traced(Residual)
    expected = Taylor(F.cross_entropy, LOADER).bind(model, graph.structure)
    got = Taylor(F.cross_entropy, LOADER).bind(model.cuda(), graph.structure)
    for group in graph.groups:
        np.testing.assert_allclose(scores(got, group, {}), scores(expected, group, {}), rtol=1e-2, atol=1e-5)
