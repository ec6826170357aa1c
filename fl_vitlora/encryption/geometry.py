"""What a cipher must know of the images: how many blocks, how many entries a block."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Shape and restrictions of a cipher's keys.

    Attributes:
        blocks: N, of an image.
        channels: C.
        block_size: p, pixels a side.
        fixed_blocks: How many blocks keep their place, N_bs of the restricted random permutations
            of arXiv 2408.08529.
        fixed_entries: How many entries of a block keep theirs, N_ps.
    """

    blocks: int
    channels: int
    block_size: int
    fixed_blocks: int = 0
    fixed_entries: int = 0

    @property
    def entries(self) -> int:
        """Counts the entries of a block, D = C·p²."""
        return self.channels * self.block_size**2
