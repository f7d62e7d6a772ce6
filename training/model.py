"""The model in PyTorch: the architecture of BitNet b1.58 2B4T, small, with quantisation-aware linears.

Module names are those of transformers' BitNetForCausalLM, so a state dict is a checkpoint.
Axes: B rows, T positions, H hidden, I intermediate, D head dimension, V vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """The shape of a model; the defaults are the shipped one."""

    vocab: int = 4096
    hidden: int = 256
    intermediate: int = 1024
    layers: int = 8
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    context: int = 512
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    ternary: bool = True  # False: the full-precision twin


class TernaryWeight(torch.autograd.Function):
    """W -> clamp(round(W * s), -1, 1) / s, s = 1 / max(mean|W|, 1e-5); straight-through gradient."""

    @staticmethod
    def forward(ctx, weight: Tensor) -> Tensor:
        codes, scale = ternary_codes(weight)
        return codes / scale

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


class Int8Activation(torch.autograd.Function):
    """Each token's vector rounded to int8 by its absmax, scaled back; straight-through gradient."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        scale = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        return (x * scale).round() / scale  # |x * scale| <= 127: no clamp needed

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


class StoredF16(torch.autograd.Function):
    """Round to float16 values, as in the exported embedding; straight-through gradient."""

    @staticmethod
    def forward(ctx, weight: Tensor) -> Tensor:
        return weight.half().float()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


def ternary_codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(codes in {-1, 0, 1} as floats, scale); the forward pass uses codes / scale."""
    scale = 1 / weight.abs().mean().clamp(min=1e-5)
    return (weight * scale).round().clamp(-1, 1), scale


class BitLinear(nn.Linear):
    """A linear without bias whose weight is ternary in the forward pass; `BitNorm` has quantised its input."""

    def __init__(self, inputs: int, outputs: int, shape: Shape) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.ternary = shape.ternary

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, TernaryWeight.apply(self.weight) if self.ternary else self.weight)


class Norm(nn.Module):
    """RMSNorm with a learned weight."""

    def __init__(self, size: int, shape: Shape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = shape.norm_eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps))


class BitNorm(Norm):
    """RMSNorm, then int8 rounding: the input of every BitLinear."""

    def __init__(self, size: int, shape: Shape) -> None:
        super().__init__(size, shape)
        self.ternary = shape.ternary

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return Int8Activation.apply(x) if self.ternary else x


class Attention(nn.Module):
    """Grouped-query attention with half-rotation RoPE and a norm before the output projection."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        q_size, kv_size = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = BitLinear(shape.hidden, q_size, shape)
        self.k_proj = BitLinear(shape.hidden, kv_size, shape)
        self.v_proj = BitLinear(shape.hidden, kv_size, shape)
        self.attn_sub_norm = BitNorm(q_size, shape)
        self.o_proj = BitLinear(q_size, shape.hidden, shape)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """x [B, T, H] quantised; rope: cos and sin, each [T, D]; mask [B, 1, T, T], added to the scores."""
        batch, length, _ = x.shape

        def split(y: Tensor) -> Tensor:  # [B, heads, T, D]
            return y.view(batch, length, -1, self.shape.head_dim).transpose(1, 2)

        q = rotate(split(self.q_proj(x)), *rope)
        k = rotate(split(self.k_proj(x)), *rope)
        v = split(self.v_proj(x))
        group = self.shape.heads // self.shape.kv_heads  # query head j uses kv head j // group
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(self.attn_sub_norm(y.transpose(1, 2).reshape(batch, length, -1)))


class FeedForward(nn.Module):
    """down(norm(relu(gate)^2 * up))."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = BitLinear(shape.hidden, shape.intermediate, shape)
        self.up_proj = BitLinear(shape.hidden, shape.intermediate, shape)
        self.ffn_sub_norm = BitNorm(shape.intermediate, shape)
        self.down_proj = BitLinear(shape.intermediate, shape.hidden, shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.ffn_sub_norm(F.relu(self.gate_proj(x)).square() * self.up_proj(x)))


class Layer(nn.Module):
    """x + attention(norm(x)), then x + ffn(norm(x))."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = BitNorm(shape.hidden, shape)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = BitNorm(shape.hidden, shape)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Backbone(nn.Module):
    """Embedding, layers and the last norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.hidden, shape)


class BitNet(nn.Module):
    """The language model; the head is the embedding, transposed."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Backbone(shape)
        cos, sin = rope_tables(shape)
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                deep = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * shape.layers) ** 0.5 if deep else 0.02)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Logits [B, T, V] of tokens [B, T]; mask [B, 1, T, T] as `story_mask` makes it."""
        length = tokens.shape[1]
        rope = self.rope_cos[:length], self.rope_sin[:length]
        embedding = StoredF16.apply(self.model.embed_tokens.weight)
        x = F.embedding(tokens, embedding)
        for layer in self.model.layers:
            x = layer(x, rope, mask)
        return F.linear(self.model.norm(x), embedding)

    def matrices(self) -> list[nn.Parameter]:
        """The weights of the linears, which are ternary."""
        return [m.weight for m in self.modules() if isinstance(m, BitLinear)]


def rope_tables(shape: Shape) -> tuple[Tensor, Tensor]:
    """cos and sin of position * theta^(-2i/D), each [context, D], the second half repeating the first."""
    i = torch.arange(0, shape.head_dim, 2, dtype=torch.float32)
    angles = torch.outer(torch.arange(shape.context).float(), shape.rope_theta ** (-i / shape.head_dim))
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on x [B, heads, T, D]: component i pairs with i + D/2."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-high, low], dim=-1) * sin


def story_mask(story: Tensor) -> Tensor:
    """Mask [B, 1, T, T], added to the scores: 0 where a position attends (its story, not ahead), -inf where masked."""
    length = story.shape[1]
    allowed = (story[:, :, None] == story[:, None, :]) & torch.ones(length, length, dtype=torch.bool).tril()
    return torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf"))[:, None]


def token_loss(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Cross entropy in nats of logits [B, T, V] against targets [B, T], padding ignored."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction=reduction)
