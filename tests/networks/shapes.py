"""Views, permutations, expansions and index arithmetic on activations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.networks.layers import Between, BetweenLinear
from tests.networks.registry import add, network


def pixels(x: Tensor) -> Tensor:
    """(n, c, h, w) -> (n, h w, c)."""
    return x.flatten(2).transpose(1, 2)


def best(x: Tensor) -> Tensor:
    """Places (n, 5, 1) of the pixels of the largest sum, as detection transformers choose their queries."""
    return pixels(x).square().sum(2).topk(5, 1).indices.unsqueeze(-1)


# name: (operation, width that the head sees, may the first convolution stay?)
KEEP_IMAGE = {
    "permute_there_and_back": (lambda x: x.permute(0, 2, 3, 1).relu().permute(0, 3, 1, 2), 8, 8),
    "transpose_twice": (lambda x: x.transpose(1, 3).relu().transpose(3, 1), 8, 8),
    "movedim": (lambda x: x.movedim(1, -1).movedim(-1, 1), 8, 8),
    "swapaxes": (lambda x: x.swapaxes(2, 3), 8, 8),
    "squeeze_unsqueeze": (lambda x: x.unsqueeze(2).squeeze(2)[:, None].squeeze(1), 8, 8),
    "flatten_unflatten": (lambda x: x.flatten(2).unflatten(2, (8, 8)), 8, 8),
    "flatten_unflatten_channels": (lambda x: x.flatten(1).unflatten(1, (-1, 8, 8)), 8, 8),
    "view_as_seen": (lambda x: x.view(x.size(0), x.size(1), -1).view(x.shape), 8, 8),
    "view_by_minus_one": (lambda x: x.reshape(2, -1, 64).reshape(2, -1, 8, 8), 8, 8),
    "view_by_numbers": (lambda x: x.reshape(2, 8, 64).reshape(2, 8, 8, 8), 8, 0),
    "merge_batch": (lambda x: x.reshape(-1, 8, 8).view(2, -1, 8, 8), 8, 8),
    "flip_space": (lambda x: x.flip(2, 3), 8, 8),
    "roll_space": (lambda x: x.roll((1, 2), (2, 3)), 8, 8),
    "rot90": (lambda x: torch.rot90(x, 1, (2, 3)), 8, 8),
    "flip_channels": (lambda x: x + x.flip(1), 8, 8),
    "roll_channels": (lambda x: x.roll(3, 1), 8, 0),
    "roll_channels_added": (lambda x: x + x.roll(1, 1), 8, 0),
    "slice_space": (lambda x: x[:, :, 1:-1, ::2], 8, 8),
    "narrow_space": (lambda x: x.narrow(2, 1, 4), 8, 8),
    "select_row": (lambda x: x[:, :, 3:4] * x.select(2, 0)[:, :, None], 8, 8),
    "index_space": (lambda x: x[:, :, torch.tensor([0, 2, 4])], 8, 8),
    "index_select_space": (lambda x: x.index_select(3, torch.tensor([1, 1, 5])), 8, 8),
    "index_both_space_axes": (lambda x: x[:, :, torch.arange(4)[:, None], torch.arange(1, 7)], 8, 8),
    "index_batch_and_row": (lambda x: x[torch.tensor([1, 0]), :, torch.tensor([2, 5])][..., None], 8, 8),
    "mask_rows": (lambda x: x[:, :, torch.arange(8) > 2], 8, 8),
    "gather_space": (lambda x: x.gather(3, torch.zeros(2, x.shape[1], 8, 2, dtype=torch.long)), 8, 8),
    "gather_sorted": (lambda x: x.gather(3, x.argsort(3)), 8, 8),
    "gather_most_pixels": (lambda x: pixels(x).gather(1, best(x).expand(-1, -1, x.shape[1])).mT[..., None], 8, 8),
    "gather_by_fixed_size": (lambda x: x.gather(3, torch.zeros(2, 8, 8, 2, dtype=torch.long)), 8, 0),
    "gather_some_channels": (lambda x: x.gather(3, torch.zeros(2, 6, 8, 2, dtype=torch.long)), 6, 0),
    "gather_channels": (lambda x: x.gather(1, x.argsort(1)), 8, 0),
    "strided_channels": (lambda x: x[:, ::2], 4, 0),
    "slice_half_constant": (lambda x: x[:, :4], 4, 4),
    "slice_half_of_shape": (lambda x: x[:, : x.shape[1] // 2] * x[:, x.shape[1] // 2 :], 4, 8),
    "slice_last": (lambda x: x[:, -3:], 3, 5),
    "narrow_channels": (lambda x: x.narrow(1, 2, 3), 3, 0),
    "select_channel": (lambda x: x.select(1, 2)[:, None], 1, 0),
    "index_channels": (lambda x: x[:, [0, 3, 5]], 3, 0),
    "index_all_channels": (lambda x: x[:, torch.tensor([7, 6, 5, 4, 3, 2, 1, 0])], 8, 0),
    "index_select_channels": (lambda x: x.index_select(1, torch.tensor([0, 2, 2, 4])), 4, 0),
    "take_and_cat": (lambda x: torch.cat([x[:, :2], x[:, 2:]], 1), 8, 0),
    "reorder_slices": (lambda x: torch.cat([x[:, 4:], x[:, :4]], 1), 8, 0),
    "stack_flatten": (lambda x: torch.stack([x, x.relu()], 1).flatten(1, 2), 16, 8),
    "stack_last_flatten": (lambda x: torch.stack([x, x.relu()], 2).flatten(1, 2), 16, 8),
    "cat": (lambda x: torch.cat([x, x.relu(), x.sigmoid()], 1), 24, 8),
    "cat_space": (lambda x: torch.cat([x, x.relu()], 2), 8, 8),
    "cat_batch": (lambda x: sum(torch.cat([x, x.relu()], 0).chunk(2, 0)), 8, 8),
    "concat_negative_axis": (lambda x: torch.cat([x, x.relu()], -3), 16, 8),
    "unbind_space": (lambda x: torch.stack(x.unbind(2), 2), 8, 8),
    "split_space": (lambda x: torch.cat([p.relu() for p in x.split(3, 3)], 3), 8, 8),
    "rearranged_heads": (lambda x: x.view(2, 2, 4, 8, 8).transpose(1, 2).reshape(2, 8, 8, 8), 8, 0),
    "tile": (lambda x: x.tile(1, 2, 1, 1), 16, 8),
    "diagonal": (lambda x: x.diagonal(dim1=2, dim2=3)[..., None], 8, 0),
    "tril": (lambda x: x.tril(), 8, 0),
    "as_strided": (lambda x: x.contiguous().as_strided((2, 8, 8, 8), (512, 64, 8, 1)), 8, 0),
    "meshgrid": (lambda x: x + torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")[0].to(x), 8, 8),
}
for name, (function, after, prunable) in KEEP_IMAGE.items():
    # Of these only channels that nothing reads can be removed.
    telling = name not in ("slice_half_constant", "slice_last")
    add(
        f"shape_{name}",
        "shapes",
        lambda f=function, n=after: Between(f, after=n),
        partly={"first": prunable},
        telling=telling,
    )

TO_VECTOR = {
    "flatten": (lambda x: x.flatten(1), 512, 8),
    "view_of_size": (lambda x: x.view(x.size(0), -1), 512, 8),
    "view_by_numbers": (lambda x: x.view(-1, 8 * 8 * 8), 512, 0),
    "channels_last": (lambda x: x.permute(0, 2, 3, 1).flatten(1), 512, 8),
    "permuted_axes": (lambda x: x.permute(0, 2, 1, 3).reshape(x.size(0), -1), 512, 8),
    "squeeze": (lambda x: x.mean((2, 3), keepdim=True).squeeze(), 8, 8),
    "pooled_flatten": (lambda x: nn.functional.adaptive_avg_pool2d(x, 2).flatten(1), 32, 8),
    "masked_pixels": (lambda x: x.permute(0, 2, 3, 1)[torch.arange(128).view(2, 8, 8) % 5 > 1], 8, 8),
    "no_pixels": (lambda x: torch.cat([x.permute(0, 2, 3, 1)[torch.zeros(2, 8, 8) > 0], x[:, :, 1, 1]]), 8, 8),
    "tokens": (lambda x: x.flatten(2).transpose(1, 2), 8, 8),
    "last_axis_is_space": (lambda x: x.mean(3), 8, 8),
    "rows_and_channels": (lambda x: x.permute(0, 3, 1, 2).flatten(2), 64, 8),
    "space_first": (lambda x: x.reshape(2, -1, 16), 16, 8),
}
for name, (function, after, prunable) in TO_VECTOR.items():
    # A head on a space axis sees the channels as rows: they reach the output.
    to_output = name in ("last_axis_is_space", "space_first")
    add(
        f"vector_{name}",
        "shapes",
        lambda f=function, n=after: BetweenLinear(f, n),
        partly={"first": 0 if to_output else prunable},
    )


@network("shapes")
class StackOfBranches(nn.Module):
    """Branches stacked on a new axis, weighted, summed (selective kernels)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 5, padding=2)
        self.squeeze, self.excite = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 16, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        branches = torch.stack([self.a(x), self.b(x)], 1)
        weights = self.excite(self.squeeze(branches.sum(1).mean((2, 3), keepdim=True)).relu())
        weights = weights.view(weights.size(0), 2, -1, 1, 1).softmax(1)
        return self.head((branches * weights).sum(1))


@network("shapes", shapes=((2, 3, 5, 8, 8),), kept=("head",))
class FramesAsBatch(nn.Module):
    """Frames of a video folded into the batch and unfolded for a temporal convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.frame, self.time, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv1d(8, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        n, _, t = x.shape[:3]
        x = self.frame(x.transpose(1, 2).flatten(0, 1)).relu().mean((2, 3))
        return self.head(self.time(x.view(n, t, -1).transpose(1, 2)).mean(2))
