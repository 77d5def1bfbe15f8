"""The networks that are trained: small, of random weights, on random data. Only their cost matters."""

import torch
from torch import nn
from torch.nn import functional

Values = dict[str, torch.Tensor]
Batch = tuple[torch.Tensor, torch.Tensor]


class Mlp(nn.Module):
    """Two hidden layers of 256; its values to log are the mean activations of as many units.

    Args:
        scalars: How many values to log, at most 256.
    """

    def __init__(self, scalars: int):
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU())
        self.head = nn.Linear(256, 10)
        self.scalars = scalars

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, Values]:
        hidden = self.hidden(inputs)
        means = hidden.detach()[:, : self.scalars].mean(0)
        values = {f"unit/{index}": mean for index, mean in enumerate(means.unbind())}
        return functional.cross_entropy(self.head(hidden), targets), values

    @staticmethod
    def batch(device: str, size: int = 64) -> Batch:
        return torch.randn(size, 256, device=device), torch.randint(0, 10, (size,), device=device)


class Block(nn.Module):
    """One layer of a transformer.

    Args:
        width: Size of the embedding.
        heads: Number of attention heads.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attention_in, self.attention_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        parts = self.attention_in(self.norms[0](x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind()
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.feed_forward(self.norms[1](x))


class Gpt(nn.Module):
    """A decoder with tied embeddings; its ten values to log are loss, logits and residual norms.

    Args:
        vocabulary: Number of tokens.
        width: Size of the embedding.
        layers: Number of blocks, at least 5.
        heads: Number of attention heads.
        context: Longest sequence.
    """

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, context: int):
        super().__init__()
        self.vocabulary = vocabulary
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, Values]:
        values: Values = {}
        x = self.tokens(inputs) + self.positions.weight[: inputs.shape[1]]
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index < 5:
                values[f"residual/{index}"] = x.detach().float().square().mean()
        logits = functional.linear(self.norm(x), self.tokens.weight).float()
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        plain = logits.detach()
        values |= {"loss": loss.detach(), "logits/mean": plain.mean(), "logits/square": plain.square().mean()}
        return loss, values | {"logits/max": plain.amax(), "logits/min": plain.amin()}

    def batch(self, device: str, size: int, length: int) -> Batch:
        tokens = torch.randint(0, self.vocabulary, (size, length + 1), device=device)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
