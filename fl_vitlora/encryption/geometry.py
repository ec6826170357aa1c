"""The sizes that a cipher's keys depend on: blocks of an image and entries of a block."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Shape and restrictions of a cipher's keys.

    Attributes:
        blocks: The number N of blocks of an image.
        channels: The number C of colour channels.
        block_size: The side p of a block in pixels.
        fixed_blocks: The number of blocks that keep their place, N_bs of the restricted random
            permutations of arXiv 2408.08529.
        fixed_entries: The number N_ps of entries of a block that keep their place.
        per_block: True if the steps within blocks have a separate key for every block.
    """

    blocks: int
    channels: int
    block_size: int
    fixed_blocks: int = 0
    fixed_entries: int = 0
    per_block: bool = False

    @property
    def entries(self) -> int:
        """Counts the entries of a block, D = C·p²."""
        return self.channels * self.block_size**2

    @property
    def keys(self) -> int:
        """Counts the keys of a step within blocks: one, or N if every block has its own key."""
        return self.blocks if self.per_block else 1

    @property
    def key_shape(self) -> tuple[int, ...]:
        """Returns the shape of a key with one number for each entry: (D,) or (N, D)."""
        return (self.blocks, self.entries) if self.per_block else (self.entries,)
