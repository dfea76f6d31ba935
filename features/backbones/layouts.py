"""How a network lays out what its blocks end in, and the way from there to maps (B, C, H, W) and back.

CNNs give maps. Transformers give tokens (B, L, C): first those of no place (a class token, registers), then patches by
rows; or maps with their channels last. Images are square here, and so are maps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

TOKENS = "+tokens"  # after a block's name: its maps with rows above them that hold the tokens of no place
CLASS_TOKEN = "/cls"  # after a block's name: its class token (B, C), the first of the tokens


class Layout(NamedTuple):
    """What a block ends in: maps, maps with channels last, or tokens of which the first `prefix` have no place."""

    kind: str  # "maps", "channels last" or "tokens"
    side: int  # of the map
    prefix: int = 0

    @property
    def rows(self) -> int:
        """Return how many rows of a map's width hold the tokens of no place."""
        return -(-self.prefix // self.side)

    @property
    def has_class_token(self) -> bool:
        """Return whether the first token is one for the whole image."""
        return self.prefix > 0


def layout_of(shape: Sequence[int]) -> Layout | None:
    """Return the layout of a tensor of square images; None where it has no place for every patch."""
    if len(shape) == 4 and shape[2] == shape[3]:
        return Layout("maps", shape[2])
    if len(shape) == 4 and shape[1] == shape[2]:
        return Layout("channels last", shape[1])
    if len(shape) == 3:
        side = math.isqrt(shape[1])
        return Layout("tokens", side, shape[1] - side**2)
    return None


def maps_of(raw: Tensor, layout: Layout) -> Tensor:
    """Return what a block ends in as maps (B, C, H, W), without the tokens of no place."""
    if layout.kind == "maps":
        return raw
    if layout.kind == "channels last":
        return raw.permute(0, 3, 1, 2)
    return raw[:, layout.prefix :].transpose(1, 2).reshape(-1, raw.shape[2], layout.side, layout.side)


def class_token_of(raw: Tensor, layout: Layout) -> Tensor:
    """Return the class token, (B, C)."""
    return raw[:, 0]


def tokens_of(raw: Tensor, layout: Layout) -> Tensor:
    """Return all tokens as maps (B, C, rows + H, W): those of no place in rows of their own above the others."""
    empty = layout.rows * layout.side - layout.prefix
    first = pad(raw[:, : layout.prefix], (0, 0, 0, empty))
    every = torch.cat([first, raw[:, layout.prefix :]], 1)
    return every.transpose(1, 2).reshape(-1, raw.shape[2], layout.rows + layout.side, layout.side)


def raw_of(maps: Tensor, layout: Layout) -> Tensor:
    """Return what a block ended in from `maps_of`, or from `tokens_of` where some tokens have no place."""
    if layout.kind == "maps":
        return maps
    if layout.kind == "channels last":
        return maps.permute(0, 2, 3, 1)
    every = maps.flatten(2).transpose(1, 2)
    return torch.cat([every[:, : layout.prefix], every[:, layout.rows * layout.side :]], 1)
