"""Machines whose programs place their data themselves: the sections ``davinci`` and ``mlu``."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from foretile.hwmodels.quantity import Count, Frozen, NonNegative, Positive


class Davinci(Frozen):
    """The cube and vector cores of an Ascend AI core, their buffers and copy queues.

    Bandwidths are bytes a cycle and core. ``handoff``: how accumulators reach the vector cores: ``l2``
    (out by the fix-pipe, back by the vector cores' copies), ``direct`` (L0C to UB and UB to L1 by paths of
    their own) or ``fused`` (one core: the vector unit moves them, one copy queue and one scalar unit serve
    both, and there is no fix-pipe). ``l0c_to_ub_bytes_per_cycle`` and ``ub_to_l1_bytes_per_cycle`` are
    needed where it is ``fused``; where it is ``direct`` and they are absent, as fast as out to global memory.
    ``gm_burst_bytes``: what a row of a tile takes of a copy from or to global memory at least, and in
    multiples of which it moves. ``l1_copy_cycles``, ``l1_row_cycles``: fixed cycles of a copy from global
    memory into L1, and of each row in it (its way into fractals). ``l0_issue_cycles``: of one from L1 to L0.
    ``scalar_issue_cycles``: cycles of the scalar unit an instruction. ``gm_line_cycles``: how long a
    burst of one core keeps its line from other cores that read it at the same time. ``unit_flag``: whether
    the fix-pipe and the cube can hand over parts of L0C, so that a result leaves while the next one is
    computed where it lies.
    """

    vector_cores_per_cube: Count
    l1_bytes: Count
    l0a_bytes: Count
    l0b_bytes: Count
    l0c_bytes: Count
    ub_bytes: Count
    l1_to_l0a_bytes_per_cycle: Positive
    l1_to_l0b_bytes_per_cycle: Positive
    gm_to_l1_bytes_per_cycle: Positive
    l0c_to_gm_bytes_per_cycle: Positive | None = None
    gm_to_ub_bytes_per_cycle: Positive
    ub_to_gm_bytes_per_cycle: Positive
    vector_bytes_per_cycle: Positive
    vector_issue_cycles: Positive
    cube_issue_cycles: Positive
    handoff: Literal["l2", "direct", "fused"]
    handoff_cycles: Positive
    l0c_to_ub_bytes_per_cycle: Positive | None = None
    ub_to_l1_bytes_per_cycle: Positive | None = None
    gm_burst_bytes: Count | None = None
    l1_copy_cycles: NonNegative | None = None
    l1_row_cycles: NonNegative | None = None
    l0_issue_cycles: NonNegative | None = None
    scalar_issue_cycles: NonNegative | None = None
    gm_line_cycles: NonNegative | None = None
    unit_flag: bool = False

    @model_validator(mode="after")
    def _has_its_paths(self) -> Davinci:
        needed = {
            "l2": ("l0c_to_gm_bytes_per_cycle",),
            "direct": ("l0c_to_gm_bytes_per_cycle",),
            "fused": ("l0c_to_ub_bytes_per_cycle", "ub_to_l1_bytes_per_cycle"),
        }[self.handoff]
        missing = [name for name in needed if getattr(self, name) is None]
        if missing:
            raise ValueError(f"handoff {self.handoff} needs {', '.join(missing)}")
        return self


class Mlu(Frozen):
    """Clusters of cores with memories of their own and a memory core that owns one they share.

    NRAM holds operands and results of a core, WRAM the weights that stay while operands stream past,
    SRAM what the memory core brings for its cluster: a tile that several of its cores need is read once.
    Rates are bytes a cycle and core: of the DMA between global memory and NRAM or WRAM, of copies
    from SRAM, of vector instructions, which work from NRAM to NRAM.
    """

    cores_per_cluster: Count
    nram_bytes: Count
    wram_bytes: Count
    sram_bytes: Count
    dma_bytes_per_cycle: Positive
    sram_bytes_per_cycle: Positive
    vector_bytes_per_cycle: Positive
