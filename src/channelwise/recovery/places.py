"""Which entries of a dense layer's matrix a slim layer's matrix consists of."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from channelwise.statistics.products import Product
from channelwise.surgery.slicing import Cut, take


@dataclass(frozen=True, eq=False)
class Place:
    """For one part of a slim product: the dense part it comes from, and which features and outputs of it are left."""

    part: int
    features: Tensor
    outputs: Tensor


def slim_product(dense: Product, cut: Cut) -> Product:
    """The product of the slim layer: a grouped convolution may have lost groups."""
    if dense.groups == 1:
        return dense
    rows = cut.info.shape[0] // dense.groups
    return replace(dense, groups=len(np.unique(cut.rows // rows)))


def places(dense: Product, slim: Product, cut: Cut) -> list[Place]:
    """A place for every part of the slim product."""
    if dense.groups == 1:
        return [_whole(dense, cut)]
    # Slimming the positions of the dense weight's elements tells where the elements of the slim weight were.
    count = int(torch.Size(cut.info.shape).numel())
    positions = torch.arange(count).reshape(cut.info.shape)
    matrix = dense.matrix(positions)
    _, features, outputs = matrix.shape
    where = torch.empty(count, dtype=torch.long)
    where[matrix.flatten()] = torch.arange(count)
    return [
        Place(int(part[0, 0]) // (features * outputs), part[:, 0] // outputs % features, part[0] % outputs)
        for part in where[slim.matrix(take(positions, cut))]
    ]


def _whole(product: Product, cut: Cut) -> Place:
    shape = cut.info.shape
    inputs, outputs = (0, 1) if product.transposed else (1, 0)
    channels = torch.as_tensor(cut.kept.get(inputs, np.arange(shape[inputs])))
    kernel = int(torch.Size(shape[2:]).numel())
    features = (channels[:, None] * kernel + torch.arange(kernel)).flatten()
    return Place(0, features, torch.as_tensor(cut.kept.get(outputs, np.arange(shape[outputs]))))
