"""Which entries of a dense layer's matrix make up the matrix of the slim layer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from channelwise.statistics.products import Product
from channelwise.surgery.cuts import Cut
from channelwise.surgery.slicing import take


@dataclass(frozen=True, eq=False)
class Origin:
    """Where one part of a slim product comes from: the dense part, and its features and outputs that are left."""

    part: int
    features: Tensor
    outputs: Tensor


def slim_product(dense: Product, cut: Cut) -> Product:
    """The product of the slim layer: a grouped convolution may have lost groups."""
    if dense.groups == 1:
        return dense
    rows = cut.info.shape[0] // dense.groups
    return replace(dense, groups=len(np.unique(cut.rows // rows)))


def origins(dense: Product, slim: Product, cut: Cut) -> list[Origin]:
    """The origin of every part of the slim product."""
    if dense.groups == 1:
        return [_whole(dense, cut)]
    # Where each element of the slim weight was: the positions in the dense weight, cut like the weight itself.
    count = int(torch.Size(cut.info.shape).numel())
    positions = torch.arange(count).reshape(cut.info.shape)
    matrix = dense.matrix(positions)
    _, features, outputs = matrix.shape
    where = torch.empty(count, dtype=torch.long)
    where[matrix.flatten()] = torch.arange(count)
    return [
        Origin(int(part[0, 0]) // (features * outputs), part[:, 0] // outputs % features, part[0] % outputs)
        for part in where[slim.matrix(take(positions, cut))]
    ]


def _whole(product: Product, cut: Cut) -> Origin:
    shape = cut.info.shape
    inputs, outputs = (0, 1) if product.transposed else (1, 0)
    channels = torch.as_tensor(cut.kept.get(inputs, np.arange(shape[inputs])))
    kernel = int(torch.Size(shape[2:]).numel())
    features = (channels[:, None] * kernel + torch.arange(kernel)).flatten()
    return Origin(0, features, torch.as_tensor(cut.kept.get(outputs, np.arange(shape[outputs]))))
