"""The sizes on which a cipher's keys depend: blocks of an image and entries of a block."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The sizes on which a cipher's keys depend, and how many blocks and entries stay in place.

    Attributes:
        blocks: The number N of blocks of an image.
        channels: The number C of colour channels.
        block_size: The side p of a block in pixels.
        fixed_blocks: The number N_bs of blocks that block scrambling does not move (restricted
            random permutations, arXiv 2408.08529).
        fixed_entries: The number N_ps of entries of a block that pixel shuffling does not move.
        per_block: True if the steps that change the inside of blocks have a separate key for every
            block.
    """

    blocks: int
    channels: int
    block_size: int
    fixed_blocks: int = 0
    fixed_entries: int = 0
    per_block: bool = False

    @property
    def entries(self) -> int:
        """Returns the number of entries of a block, D = C·p²."""
        return self.channels * self.block_size**2

    @property
    def keys(self) -> int:
        """Returns how many keys a step inside blocks has: 1, or N if each block has its own key."""
        return self.blocks if self.per_block else 1

    @property
    def key_shape(self) -> tuple[int, ...]:
        """Returns the shape of a key of a step inside blocks: (D,), or (N, D) with `per_block`."""
        return (self.blocks, self.entries) if self.per_block else (self.entries,)
