"""Compensation of a candidate from the dense model's Gram matrices alone: no image is looked at again."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from channelwise.recovery.least_squares import RIDGE, improved
from channelwise.recovery.slim_matrix import origins, slim_product
from channelwise.selection import Selection
from channelwise.statistics.grams import Grams, LayerGram
from channelwise.structure import Structure
from channelwise.surgery.cuts import Cut, cut_tensors
from channelwise.surgery.slim import own_parameters
from channelwise.tensors import named_tensors


def compensate_from_grams(
    slim: nn.Module, model: nn.Module, structure: Structure, selection: Selection, grams: Grams, ridge: float = RIDGE
) -> nn.Module:
    """Re-fit every layer of ``slim`` that lost input channels so that its output stays what it was.

    The remaining channels are taken to be what they are in the dense ``model``, which makes it one equation (the
    least squares of one layer: He et al. 2017, arXiv:1707.06168). Batch norms that follow are not adapted:
    re-estimate them afterwards. ``slim`` is changed in place and returned; ``model`` is not touched, even where the
    two share parameters.
    """
    cuts = cut_tensors(structure, selection).tensors
    affected = [layer for name, layer in grams.layers.items() if name in cuts]
    own_parameters(slim, model, {n for g in affected for n in (g.product.weight, g.product.bias) if n is not None})
    small = named_tensors(slim)
    dense = {name: t.detach() for name, t in named_tensors(model).items()}
    with torch.no_grad():
        for layer in affected:
            _refit(layer, cuts[layer.product.weight], small, dense, ridge)
    return slim


def _refit(layer: LayerGram, cut: Cut, slim: Mapping[str, Tensor], dense: Mapping[str, Tensor], ridge: float) -> None:
    product, weight = layer.product, slim[layer.product.weight]
    smaller = slim_product(product, cut)
    # The matrices are solved where they are: in host memory, in double precision.
    wide = product.matrix(dense[product.weight].cpu().double())
    narrow = smaller.matrix(weight.cpu().double())
    parts, shifts = [], []
    for origin, start in zip(origins(product, smaller, cut), narrow, strict=True):
        before, fitted = wide[origin.part][:, origin.outputs], start
        if len(origin.features) < len(before):
            gram = layer.gram(origin.part)[origin.features]
            lost = torch.ones(len(before), dtype=torch.bool)
            lost[origin.features] = False
            fitted = improved(start, gram[:, origin.features], gram[:, lost] @ before[lost], ridge)
        mean = layer.mean[origin.part].double()
        parts.append(fitted)
        shifts.append(mean @ before - mean[origin.features] @ fitted)
    weight.copy_(smaller.weight_of(torch.stack(parts), weight.shape))
    if product.bias is not None:
        bias = slim[product.bias]
        bias.copy_(bias.cpu().double() + torch.cat(shifts))
