"""The operators of ``rwkv-tl`` at small sizes, beside plain torch: the package has no reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

Triple = tuple[torch.Tensor, torch.Tensor, float]
Case = Callable[[], Iterator[Triple]]

HALF = 2e-2
C = 256  # channels: the layer norm's blocks have 256 threads


def _half(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape) * scale).to(torch.float16)


def layernorm() -> Iterator[Triple]:
    from rwkv_tl.kernel import ln_kernel, ln_per_row_kernel

    x, w, b = _half(5, C), _half(C), _half(C)
    want = F.layer_norm(x.float(), (C,), w.float(), b.float(), 1e-5)
    yield ln_kernel(C, "float16", w, b)(x[0].clone()).float(), want[0], HALF
    yield ln_per_row_kernel(5, C, "float16", w, b)(x).float(), want, HALF


def gemv() -> Iterator[Triple]:
    from rwkv_tl.kernel import gemv_batch_kernel, gemv_kernel

    x, w = _half(3, C), _half(3, C, 128, scale=C**-0.5)
    want = torch.bmm(x.float()[:, None], w.float())[:, 0]
    yield gemv_kernel(128, C, "float16", w[0].clone())(x[0].clone()).float(), want[0], HALF
    yield gemv_batch_kernel(128, C, 3, "float16", w)(x).float(), want, HALF


def _cmix_weights() -> dict[str, torch.Tensor]:
    return {
        "ln_preW": _half(C),
        "ln_preB": _half(C),
        "x_k": torch.rand(C).to(torch.float16),
        "kWt": _half(C, 4 * C, scale=C**-0.5),
        "vWt": _half(4 * C, C, scale=(4 * C) ** -0.5),
    }


def _cmix(x: torch.Tensor, before: torch.Tensor, w: dict[str, torch.Tensor]) -> torch.Tensor:
    """Rows in order: layer norm, a mix with the row before, and a feed-forward of squared ReLU."""
    f = {k: v.float() for k, v in w.items()}
    normed = F.layer_norm(x.float(), (C,), f["ln_preW"], f["ln_preB"], 1e-5)
    shifted = torch.cat([before.float()[None], normed[:-1]])
    mixed = normed + (shifted - normed) * f["x_k"]
    return x.float() + torch.relu(mixed @ f["kWt"]).square() @ f["vWt"]


def cmix_decode() -> Iterator[Triple]:
    from rwkv_tl.kernel import cmix_decode_kernel

    w, x, before = _cmix_weights(), _half(C), _half(C)
    want = _cmix(x[None], before, w)[0]
    yield cmix_decode_kernel(C, "float16", **w)(x, before).float(), want, HALF


def cmix_prefill() -> Iterator[Triple]:
    from rwkv_tl.kernel import cmix_prefill_kernel

    w, x, before = _cmix_weights(), _half(32, C), _half(C)
    want = _cmix(x, before, w)
    yield cmix_prefill_kernel(C, "float16", 16, **w)(x, before).float(), want, HALF


def _tmix() -> tuple[dict[str, torch.Tensor], tuple[int, ...]]:
    heads, rank = C // 64, 32
    s = C**-0.5
    weights = {
        "ln_preW": _half(C), "ln_preB": _half(C), "x_rkvwag": torch.rand(6, C).half(),
        "rkvWt": _half(3, C, C, scale=s), "v1t": _half(rank, C, scale=s), "w1t": _half(rank, C, scale=s),
        "a1t": _half(rank, C, scale=s), "g1t": _half(rank, C, scale=s), "v2t": _half(C, rank, scale=0.2),
        "w2t": _half(C, rank, scale=0.2), "a2t": _half(C, rank, scale=0.2), "g2t": _half(C, rank, scale=0.2),
        "v0": _half(C), "w0": _half(C), "a0": _half(C), "k_k": _half(C), "k_a": _half(C),
        "r_k": _half(heads, 64), "ln_xW": _half(C), "ln_xB": _half(C), "oWt": _half(C, C, scale=s),
    }  # fmt: skip
    return weights, (C, heads, rank)


def tmix_decode_and_prefill() -> Iterator[Triple]:
    """Token by token and all at once are the same function: each is the other's reference."""
    from rwkv_tl.kernel import tmix_decode_kernel, tmix_prefill_kernel

    w, (_, heads, rank) = _tmix()
    ranks = (heads, rank, rank, rank, rank)
    x, state, first_v = _half(4, C), torch.randn(heads, 64, 64) * 0.1, _half(4, C)
    one = tmix_decode_kernel(C, "float16", *ranks, **w)
    before, memory, values = torch.zeros(C).half(), state.clone(), first_v.clone()
    rows = [one(x[i].clone(), before, memory, values[i], 1) for i in range(4)]
    all_at_once = tmix_prefill_kernel(4, C, "float16", *ranks, **w)
    before, again, values = torch.zeros(C).half(), state.clone(), first_v.clone()
    yield all_at_once(x, before, again, values, 1).float(), torch.stack(rows).float(), 3e-2
    yield again, memory, 3e-2


CASES: dict[str, Case] = {
    "layernorm": layernorm,
    "gemv": gemv,
    "cmix_decode": cmix_decode,
    "cmix_prefill": cmix_prefill,
    "tmix_decode_and_prefill": tmix_decode_and_prefill,
}
