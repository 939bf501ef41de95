"""Attention, batched matrix products and einsum."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from channelwise.structure import Cause
from tests.networks.registry import network

TOKENS = ((2, 6, 8),)


class Attention(nn.Module):
    """Self-attention as in ViT, by matrix products, heads by hard-coded views."""

    def __init__(self, width: int = 8, heads: int = 2):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(self.attend(q, k, v).transpose(1, 2).reshape(n, t, c))


class FusedAttention(Attention):
    """The same by scaled_dot_product_attention."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class TorchAttention(nn.Module):
    """nn.MultiheadAttention."""

    def __init__(self, width: int = 8, heads: int = 2):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Block(nn.Module):
    """A pre-norm transformer block whose MLP must be prunable."""

    kind: type[nn.Module] = Attention

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm1, self.norm2 = nn.Linear(8, 8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention = self.kind()
        self.up, self.down, self.head = nn.Linear(8, 32), nn.Linear(32, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.attention(self.norm1(x))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x)


STREAM = ("embed", "down", "attention.qkv", "attention.proj")


@network("attention", shapes=TOKENS, counted=STREAM, smaller=("attention.qkv.weight", "attention.proj.weight"))
class TransformerBlock(Block):
    """Heads are together as wide as the input: they go with parts of the residual stream."""


@network("attention", shapes=TOKENS, counted=STREAM, smaller=("attention.qkv.weight", "attention.proj.weight"))
class FusedTransformerBlock(Block):
    kind = FusedAttention


TORCH_STREAM = ("embed", "down", "attention.attention", "attention.attention.out_proj")


@network("attention", shapes=TOKENS, counted=TORCH_STREAM, smaller=("attention.attention.in_proj_weight",))
class TorchTransformerBlock(Block):
    kind = TorchAttention


@network("attention", shapes=((1, 6, 8),), counted=TORCH_STREAM, smaller=("attention.attention.in_proj_weight",))
class TorchTransformerBlockOfOneSample(Block):
    kind = TorchAttention


@network(
    "attention",
    shapes=TOKENS,
    counted=("embed", "layer.self_attn", "layer.self_attn.out_proj", "layer.linear2"),
    smaller=("layer.self_attn.in_proj_weight",),
)
class EncoderLayer(nn.Module):
    """nn.TransformerEncoderLayer, which takes a fused path in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layer = nn.Linear(8, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x)))


@network(
    "attention",
    shapes=((6, 2, 16), (5, 2, 10)),
    inexact=("embed", "attention", "attention.out_proj"),
    smaller=("attention.q_proj_weight", "attention.k_proj_weight", "attention.bias_k"),
)
class CrossAttention(nn.Module):
    """Queries and keys of different widths, sequence first, attention maps averaged over heads, an extra key."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.memory = nn.Linear(16, 16), nn.Linear(10, 12)
        self.attention = nn.MultiheadAttention(16, 4, kdim=12, vdim=12, add_bias_kv=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        x, memory = self.embed(x), self.memory(memory)
        y, weights = self.attention(x, memory, memory)
        return self.head(x + y), weights


class HeadsInAttributes(Attention):
    """As in timm: whole heads can go, as numbers of heads and of their channels are kept in attributes."""

    def __init__(self, width: int = 12, heads: int = 3):
        super().__init__(width, heads)
        self.num_heads, self.head_dim, self.attn_dim = heads, width // heads, width
        self.q_norm = nn.LayerNorm(self.head_dim)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        qkv = self.qkv(x).reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = self.attend(self.q_norm(q), k, v)
        return self.proj(y.transpose(1, 2).reshape(n, t, self.attn_dim))


class FusedHeads(HeadsInAttributes):
    """With scaled_dot_product_attention and a bias for every head, looked up in a table as in Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(11, 3))
        self.register_buffer("index", torch.arange(6)[:, None] - torch.arange(6)[None] + 5)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        bias = self.table[self.index.flatten()].view(6, 6, -1).permute(2, 0, 1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


class FourHeads(HeadsInAttributes):
    """Four heads of three channels each."""

    def __init__(self) -> None:
        super().__init__(12, 4)


class HeadsNet(nn.Module):
    """Attention on a residual stream that stays."""

    kind: type[nn.Module] = HeadsInAttributes

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = self.kind(), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.attention(x))


WIDE_TOKENS = ((2, 6, 12),)


@network("attention", shapes=WIDE_TOKENS, kept=("head", "attention.proj"))
class AsManyHeadsAsParts(HeadsNet):
    """Three heads, and three parts: queries, keys and values."""


@network("attention", shapes=WIDE_TOKENS, kept=("head", "attention.proj"))
class FourHeadsNet(HeadsNet):
    kind = FourHeads


@network("attention", shapes=WIDE_TOKENS, kept=("head", "attention.proj"), smaller=("attention.table",))
class FusedHeadsNet(HeadsNet):
    kind = FusedHeads


@network("attention", shapes=((2, 2, 6, 8),), kept=("head", "q", "k"), because={"q": (Cause.FIXED, "")})
class WindowedAttention(nn.Module):
    """Hiera: with an axis of windows the fused function is made of products, which do not show its scale."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(8, 10)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x)[:, :, None], self.k(x)[:, :, None], self.v(x)[:, :, None]
        return self.head(F.scaled_dot_product_attention(q, k, v)[:, :, 0].relu())


@network("attention", kept=("head",))
class NonLocal(nn.Module):
    """Self-attention over space with 1x1 convolutions and bmm; the value path is prunable in principle."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.query, self.key, self.value = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 8, 1)
        self.gamma, self.head = nn.Parameter(torch.zeros(1)), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        n, _, h, w = x.shape
        energy = torch.bmm(self.query(x).flatten(2).transpose(1, 2), self.key(x).flatten(2)).softmax(-1)
        y = torch.bmm(self.value(x).flatten(2), energy.transpose(1, 2)).view(n, -1, h, w)
        return self.head(x + self.gamma * y)


@network("attention", kept=("head", "q", "k", "v"), shapes=TOKENS)
class HardCodedHeads(nn.Module):
    """Heads by fixed numbers, cross-attention to a learned query."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.out, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        q = self.q(self.token.expand(n, -1, -1)).view(n, -1, 2, 4).transpose(1, 2)
        k, v = self.k(x).view(n, -1, 2, 4).transpose(1, 2), self.v(x).view(n, -1, 2, 4).transpose(1, 2)
        y = ((q @ k.transpose(2, 3)) * 0.5).softmax(-1) @ v
        return self.head(self.out(y.transpose(1, 2).reshape(n, -1, 8)).relu())


@network("attention", shapes=TOKENS)
class Einsum(nn.Module):
    """einsum of two features, and of one with a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.mix = nn.Linear(8, 6), nn.Linear(8, 6), nn.Parameter(torch.randn(6, 5))
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x).relu(), self.b(x)
        y = torch.einsum("ntc,ndc->ntd", a, b)
        return self.head(torch.einsum("ntc,cd,nt->ntd", b, self.mix, y.mean(-1)).relu())


@network("attention", shapes=TOKENS, kept=("head",), smaller=("mix",))
class EinsumLinear(nn.Module):
    """einsum used as a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.mix, self.head = nn.Linear(8, 6), nn.Parameter(torch.randn(5, 6)), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.einsum("btc,dc->btd", self.a(x).relu(), self.mix).relu())


@network("attention", shapes=TOKENS, kept=("head", "tokens2"), counted=("embed",))
class Mixer(nn.Module):
    """MLP-Mixer: one MLP over tokens, one over channels; the hidden layers are prunable."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm1, self.norm2 = nn.Linear(8, 8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.tokens1, self.tokens2 = nn.Linear(6, 12), nn.Linear(12, 6)
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.tokens2(self.tokens1(self.norm1(x).transpose(1, 2)).relu()).transpose(1, 2)
        x = x + self.down(self.up(self.norm2(x)).relu())
        return self.head(x.mean(1))


@network("attention", kept=("head", "scores"))
class ContextBlock(nn.Module):
    """GCNet: a softmax over places from one channel, a matrix product with the features."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.scores = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 1, 1)
        self.squeeze, self.excite, self.head = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        weights = self.scores(x).flatten(2).softmax(-1)
        context = torch.matmul(x.flatten(2), weights.transpose(1, 2)).unsqueeze(-1)
        return self.head(x + self.excite(self.squeeze(context).relu()))


class TalkingHeads(nn.Module):
    """EfficientFormerV2: heads are mixed before and after the softmax; values have another width and a way past it."""

    def __init__(self, heads: int, points: int, key: int = 3, each: int = 6):
        super().__init__()
        self.num_heads, self.hidden = heads, heads * each
        self.q, self.k, self.v = (nn.Conv2d(12, wide, 1) for wide in (heads * key, heads * key, self.hidden))
        self.local = nn.Conv2d(self.hidden, self.hidden, 3, padding=1, groups=self.hidden)
        self.before, self.after = nn.Conv2d(heads, heads, 1), nn.Conv2d(heads, heads, 1)
        self.bias = nn.Parameter(torch.randn(heads, points, points))
        self.proj = nn.Conv2d(self.hidden, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        values = self.v(x)
        q, k, v = (y.reshape(n, self.num_heads, -1, h * w) for y in (self.q(x), self.k(x), values))
        weights = self.after(self.before(q.transpose(2, 3) @ k + self.bias).softmax(-1))
        y = (weights @ v.transpose(2, 3)).transpose(2, 3).reshape(n, self.hidden, h, w)
        return self.proj(y + self.local(values))


@network("attention", shapes=((2, 3, 5, 5),), kept=("head",), smaller=("attention.bias", "attention.q.weight"))
class TalkingHeadsNet(nn.Module):
    """The number of all values follows only once the heads of queries and values go together."""

    heads, points = 6, 25

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 16, 1), nn.ReLU(), nn.Conv2d(16, 12, 1))
        self.attention, self.head = TalkingHeads(self.heads, self.points), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.attention(x))


@network("attention", shapes=((2, 3, 4, 4),), kept=("head",), smaller=("attention.bias", "attention.q.weight"))
class AsManyHeadsAsRows(TalkingHeadsNet):
    """Four heads, and four rows of pixels, which cannot go."""

    heads, points = 4, 16


class ReducedAttention(nn.Module):
    """Twins: keys and values of fewer positions; the width of the input says how wide heads are, which has to stay."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.num_heads = heads
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.reduce, self.norm = nn.Conv2d(width, width, 2, 2), nn.LayerNorm(width)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        n, points, c = x.shape
        q = self.q(x).reshape(n, points, self.num_heads, c // self.num_heads).permute(0, 2, 1, 3)
        x = self.reduce(x.permute(0, 2, 1).reshape(n, c, *size)).reshape(n, c, -1).permute(0, 2, 1)
        kv = self.kv(self.norm(x)).reshape(n, -1, 2, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        k, v = kv.unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, points, c))


class ReducedAttentionStage(nn.Module):
    def __init__(self, into: int, width: int, heads: int):
        super().__init__()
        self.embed, self.blocks = nn.Conv2d(into, width, 2, 2), nn.ModuleList()
        for _ in range(2):
            self.blocks.append(ReducedAttention(width, heads))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        size = (x.shape[2], x.shape[3])
        tokens = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = tokens + block(tokens, size)
        return tokens.transpose(1, 2).reshape(x.shape[0], -1, *size)


@network(
    "attention",
    shapes=((2, 3, 16, 16),),
    kept=(
        "head",
        "stages.0.embed",
        "stages.0.blocks.0.q",
        "stages.0.blocks.0.kv",
        "stages.0.blocks.0.proj",
        "stages.0.blocks.0.reduce",
        "stages.0.blocks.1.q",
        "stages.0.blocks.1.kv",
        "stages.0.blocks.1.proj",
        "stages.0.blocks.1.reduce",
    ),
    counted=("stages.1.embed",),
    smaller=("stages.1.embed.weight", "stages.1.blocks.0.q.weight", "stages.1.blocks.1.reduce.weight"),
)
class OneHeadThenTwo(nn.Module):
    """A stage of one head, all of which stays, and one of two heads, of which one goes with its part of the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(ReducedAttentionStage(3, 8, 1), ReducedAttentionStage(8, 16, 2))
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(x))


class GroupedQueries(nn.Module):
    """Every head of keys and values serves several heads of queries, which go with it."""

    heads, kv = 6, 3

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = self.heads, self.kv, 4
        self.q, self.proj = nn.Linear(12, self.heads * 4), nn.Linear(self.heads * 4, 12)
        self.k, self.v = nn.Linear(12, self.kv * 4), nn.Linear(12, self.kv * 4)
        self.embed, self.head = nn.Linear(8, 12), nn.Linear(12, 4)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        n, t, _ = x.shape
        q = self.q(x).view(n, t, self.num_heads, self.head_dim)
        k, v = (y.view(n, t, self.num_kv_heads, self.head_dim) for y in (self.k(x), self.v(x)))
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.proj(self.attend(*self.split(x)).transpose(1, 2).flatten(2)))


@network("attention", shapes=TOKENS)
class GroupedQueriesFused(GroupedQueries):
    """The fused function repeats heads by itself."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


@network("attention", shapes=TOKENS)
class GroupedQueriesUnflattened(GroupedQueriesFused):
    """The number of heads is what is left over."""

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        q, k, v = (y(x).unflatten(2, (-1, 4)).transpose(1, 2) for y in (self.q, self.k, self.v))
        return q, k, v


@network("attention", shapes=TOKENS)
class GroupedQueriesRepeated(GroupedQueries):
    """Heads of keys and values are repeated by a quotient."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        times = self.num_heads // self.num_kv_heads
        return GroupedQueries.attend(self, q, k.repeat_interleave(times, 1), v.repeat_interleave(times, 1))


@network("attention", shapes=TOKENS)
class GroupedQueriesExpanded(GroupedQueries):
    """As in Hugging Face's models: expanded by a number in an attribute, then merged."""

    def __init__(self) -> None:
        super().__init__()
        self.num_key_value_groups = self.num_heads // self.num_kv_heads

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        def repeated(x: Tensor) -> Tensor:
            n, heads, t, width = x.shape
            x = x[:, :, None].expand(n, heads, self.num_key_value_groups, t, width)
            return x.reshape(n, heads * self.num_key_value_groups, t, width)

        return F.scaled_dot_product_attention(q, repeated(k), repeated(v))


@network("attention", shapes=TOKENS)
class GroupedQueriesSplit(GroupedQueries):
    """The heads of queries are split into those of every key, by the size of the keys."""

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        n, t, _ = x.shape
        q, k, v = (y(x).view(n, t, -1, self.head_dim).transpose(1, 2) for y in (self.q, self.k, self.v))
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = q.reshape(q.shape[0], k.shape[1], -1, *q.shape[2:])
        return super().attend(q, k[:, :, None], v[:, :, None]).flatten(1, 2)


class OneKeyHead(GroupedQueries):
    kv = 1


@network("attention", shapes=TOKENS, kept=("head", "k", "v"))
class MultiQuery(OneKeyHead):
    """All heads of queries share one of keys and values, broadcast by a matrix product: any of them can go."""


@network("attention", shapes=TOKENS, kept=("head", "k", "v"))
class MultiQueryFused(OneKeyHead):
    attend = GroupedQueriesFused.attend


@network("attention", shapes=TOKENS, kept=("head", "k", "v"))
class MultiQueryRepeated(OneKeyHead):
    attend = GroupedQueriesRepeated.attend
