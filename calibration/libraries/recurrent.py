"""Libraries of linear attention: which of two algorithms a kernel source is."""

from __future__ import annotations

from foretile.calibration.libraries.library import Library, always

# FlashInfer's is one kernel, a block a sequence and head; flash-linear-attention's Triton kernels prepare
# all chunks side by side and pass U and W through memory.
RECURRENT: tuple[Library, ...] = (
    Library("linear_attention", "*_flashinfer *_flashinfer/*", choices=((always, {"variant": "fused"}),)),
    Library("linear_attention", "*", choices=((always, {"variant": "chunked"}),)),
)
