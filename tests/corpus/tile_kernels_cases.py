"""The functions of ``tile-kernels`` (DeepSeek) at small sizes, beside the package's torch references.

Every case yields triples of what the kernels gave, what is right, and how far apart the two may be (a
relative and absolute tolerance as for ``torch.testing.assert_close``; 0 asks for equal bits).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

Triple = tuple[torch.Tensor, torch.Tensor, float]
Case = Callable[[], Iterator[Triple]]

EXACT = 0.0
BF16 = 2e-2
FP32 = 1e-4


def _routing(tokens: int = 24, topk: int = 4, experts: int = 8) -> torch.Tensor:
    """Expert numbers of every token; a few places are not used."""
    index = torch.rand(tokens, experts).topk(topk, dim=-1).indices.to(torch.int64)
    index[torch.rand(tokens, topk) < 0.2] = -1
    return index


def _mapping(index: torch.Tensor, experts: int = 8, alignment: int = 8) -> dict[str, torch.Tensor]:
    """Where every (token, choice) goes when tokens are sorted by expert, each expert's part padded."""
    tokens, topk = index.shape
    to_pos = torch.full((tokens, topk), -1, dtype=torch.int32)
    to_expert, to_choice = [], []
    for expert in range(experts):
        chosen = (index == expert).nonzero()
        for token, choice in chosen.tolist():
            to_pos[token, choice] = len(to_expert)
            to_expert.append(expert)
            to_choice.append(token * topk + choice)
        while len(to_expert) % alignment:
            to_expert.append(-1)
            to_choice.append(-1)
    choice_of = torch.tensor(to_choice, dtype=torch.int32)
    return {
        "token_topk_to_pos": to_pos,
        "pos_to_expert": torch.tensor(to_expert, dtype=torch.int32),
        "pos_to_token_topk": choice_of,
        "pos_to_token": torch.where(choice_of < 0, choice_of, choice_of // topk),
    }


def topk_gate() -> Iterator[Triple]:
    from tile_kernels.moe import topk_gate
    from tile_kernels.torch.topk import stable_topk

    scores = torch.randn(17, 72)
    yield topk_gate(scores, 6), stable_topk(scores, 6), EXACT


def topk_sum_and_topk_group_idx() -> Iterator[Triple]:
    from tile_kernels.moe import topk_sum_and_topk_group_idx
    from tile_kernels.torch.topk import topk_sum_and_topk_group_idx as reference

    scores = torch.randn(17, 8, 32)
    yield topk_sum_and_topk_group_idx(scores, 2, 4), reference(scores, 2, 4), EXACT


def top2_sum_gate() -> Iterator[Triple]:
    from tile_kernels.moe import top2_sum_gate
    from tile_kernels.torch.topk import top2_sum_gate as reference

    logits, bias = torch.randn(17, 256), torch.randn(256) * 0.1
    for scoring in ("sigmoid", "sqrtsoftplus", "softmax"):
        given = (logits, bias, 8, 4, 8, False, 0, 2.5, 0, 1, 0, 1, scoring)
        got, want = top2_sum_gate(*given), reference(*given)
        yield got[0], want[0], EXACT
        yield got[1], want[1], FP32


def group_count() -> Iterator[Triple]:
    from tile_kernels.moe import group_count
    from tile_kernels.torch.moe import group_count as reference

    index = _routing()
    yield group_count(index, 8), reference(index, 8), EXACT


def aux_fi() -> Iterator[Triple]:
    from tile_kernels.moe import aux_fi
    from tile_kernels.torch.moe import aux_fi as reference

    index = _routing()
    yield aux_fi(index, 8, 4), reference(index, 8, 4), FP32


def mask_indices_by_tp() -> Iterator[Triple]:
    from tile_kernels.moe import mask_indices_by_tp
    from tile_kernels.torch.moe import mask_indices_by_tp as reference

    index = _routing(experts=16)
    yield mask_indices_by_tp(index, 16, 2, 1, 4), reference(index, 16, 2, 1, 4), EXACT


def normalize_weight() -> Iterator[Triple]:
    from tile_kernels.moe import normalize_weight
    from tile_kernels.torch.moe import normalize_weight as reference

    weights = torch.rand(17, 8)
    for got, want in zip(normalize_weight(weights), reference(weights), strict=True):
        yield got, want, FP32


def inplace_unique_group_indices() -> Iterator[Triple]:
    from tile_kernels.moe import inplace_unique_group_indices
    from tile_kernels.torch.moe import inplace_unique_group_indices as reference

    got = _routing(experts=8) // 2
    want = got.clone()
    inplace_unique_group_indices(got, 4)
    reference(want, 4)
    yield got, want, EXACT


def get_fused_mapping() -> Iterator[Triple]:
    from tile_kernels.moe import get_fused_mapping

    index = _routing()
    found = get_fused_mapping(index, 8, 0, 8)
    counts = torch.bincount(index[index >= 0], minlength=8)
    yield found[6], ((counts + 7) // 8 * 8).to(torch.int32), EXACT
    position = found[3]
    yield (position >= 0), (index >= 0), EXACT
    used = position[position >= 0].long()
    yield found[0][used].long(), index[index >= 0], EXACT
    flat = torch.arange(index.numel(), dtype=torch.int32).reshape(index.shape)
    yield found[2][used], flat[index >= 0], EXACT


def expand_to_fused() -> Iterator[Triple]:
    from tile_kernels.moe import expand_to_fused
    from tile_kernels.torch.expand_to_fused import expand_to_fused as reference

    m = _mapping(_routing())
    x = torch.randn(24, 512, dtype=torch.bfloat16)
    where = (m["token_topk_to_pos"], m["pos_to_expert"])
    used = m["pos_to_expert"] >= 0
    yield expand_to_fused(x, *where)[used], reference(x, *where)[used], EXACT


def expand_to_fused_with_sf() -> Iterator[Triple]:
    from tile_kernels.moe import expand_to_fused_with_sf
    from tile_kernels.torch.expand_to_fused import expand_to_fused_with_sf as reference

    m = _mapping(_routing())
    x = (torch.randn(24, 512).to(torch.float8_e4m3fn), torch.rand(24, 4))
    given = (x, 128, m["token_topk_to_pos"], m["pos_to_expert"])
    used = m["pos_to_expert"] >= 0
    for got, want in zip(expand_to_fused_with_sf(*given), reference(*given), strict=True):
        yield got[used].float(), want[used].float(), EXACT


def reduce_fused() -> Iterator[Triple]:
    from tile_kernels.moe import reduce_fused
    from tile_kernels.torch.reduce_fused import reduce_fused as reference

    index = _routing()
    m = _mapping(index)
    x = torch.randn(m["pos_to_expert"].shape[0], 512, dtype=torch.bfloat16)
    weights = torch.rand(*index.shape)
    given = (x, weights, m["token_topk_to_pos"])
    yield reduce_fused(*given), reference(*given), BF16


def _casts() -> Iterator[tuple[torch.Tensor, str]]:
    for fmt in ("e4m3", "e2m1"):
        yield torch.randn(24, 512, dtype=torch.bfloat16), fmt


def per_token_cast() -> Iterator[Triple]:
    from tile_kernels.quant import per_token_cast
    from tile_kernels.torch.cast import cast

    for x, fmt in _casts():
        for got, want in zip(per_token_cast(x, fmt, 128), cast(x, fmt, (1, 128)), strict=True):
            yield got.float(), want.float(), EXACT
    x = torch.randn(24, 512)
    for got, want in zip(
        per_token_cast(
            x, "e4m3", 128, use_tma_aligned_col_major_sf=True, round_sf=True, use_packed_ue8m0=True
        ),
        cast(x, "e4m3", (1, 128), use_tma_aligned_col_major_sf=True, round_sf=True, use_packed_ue8m0=True),
        strict=True,
    ):
        yield got.float(), want.float(), EXACT


def per_block_cast() -> Iterator[Triple]:
    from tile_kernels.quant import per_block_cast
    from tile_kernels.torch.cast import cast

    for x, fmt in _casts():
        x = torch.cat([x] * 6)[:128]
        for got, want in zip(per_block_cast(x, fmt, (128, 128)), cast(x, fmt, (128, 128)), strict=True):
            yield got.float(), want.float(), EXACT


def per_channel_cast() -> Iterator[Triple]:
    from tile_kernels.quant import per_channel_cast
    from tile_kernels.torch.cast import cast

    x = torch.randn(256, 512, dtype=torch.bfloat16)
    for got, want in zip(per_channel_cast(x, "e4m3", 128), cast(x, "e4m3", (128, 1)), strict=True):
        yield got.float(), want.float(), EXACT


def per_channel_cast_and_transpose() -> Iterator[Triple]:
    from tile_kernels.quant import per_channel_cast_and_transpose
    from tile_kernels.torch.cast import cast

    x = torch.randn(256, 512, dtype=torch.bfloat16)
    got = per_channel_cast_and_transpose(x, "e4m3", 128)
    want = cast(x, "e4m3", (128, 1))
    yield got[0].float(), want[0].float().T, EXACT
    yield got[1].float(), want[1].float(), EXACT


def per_channel_cast_fused() -> Iterator[Triple]:
    from tile_kernels.quant import per_channel_cast_fused
    from tile_kernels.torch.per_channel_cast_fused import per_channel_cast_fused as reference

    x = torch.randn(256, 512, dtype=torch.bfloat16)
    for got, want in zip(
        per_channel_cast_fused(x, "e4m3", 128), reference(x, 128, None, False, None), strict=True
    ):
        yield got.float(), want.float(), EXACT


def per_block_cast_lossless() -> Iterator[Triple]:
    from tile_kernels.quant import per_block_cast_lossless, per_token_cast
    from tile_kernels.torch.cast import cast, cast_back

    x = torch.randn(128, 512, dtype=torch.bfloat16)
    narrow = cast(x, "e2m1", (1, 32), round_sf=True)
    got = per_block_cast_lossless(narrow, "e4m3", (1, 32), (128, 128), round_sf=True)
    yield (
        cast_back(got, "fp32", (128, 128)),
        cast_back(narrow, "fp32", (1, 32)),
        BF16,
    )
    assert per_token_cast is not None


def cast_back() -> Iterator[Triple]:
    from tile_kernels.quant import cast_back
    from tile_kernels.torch.cast import cast
    from tile_kernels.torch.cast import cast_back as reference

    for x, fmt in _casts():
        narrow = cast(x, fmt, (1, 128))
        yield cast_back(narrow, "bf16", (1, 128)), reference(narrow, "bf16", (1, 128)), EXACT


def cast_e5m6() -> Iterator[Triple]:
    from tile_kernels.quant import cast_back
    from tile_kernels.quant.per_token_cast_to_e5m6_kernel import per_token_cast_to_e5m6
    from tile_kernels.torch.cast_e5m6 import cast_back_from_e5m6, cast_to_e5m6

    x = torch.randn(24, 512, dtype=torch.bfloat16)
    got, want = per_token_cast_to_e5m6(x, 512), cast_to_e5m6(x, 512)
    yield got[0], want[0], EXACT
    yield got[1], want[1], EXACT
    yield (
        cast_back(want, "bf16", (1, 512), x_special_fmt="e5m6"),
        cast_back_from_e5m6(want, "bf16", (1, 512)),
        EXACT,
    )


def swiglu_forward_and_per_token_cast() -> Iterator[Triple]:
    from tile_kernels.quant import swiglu_forward_and_per_token_cast
    from tile_kernels.torch.cast import cast, cast_back
    from tile_kernels.torch.swiglu import swiglu_forward

    index = _routing()
    m = _mapping(index)
    x = torch.randn(m["pos_to_expert"].shape[0], 512, dtype=torch.bfloat16)
    plain = swiglu_forward_and_per_token_cast(x, "e4m3", 128)
    want = cast(swiglu_forward(x), "e4m3", (1, 128))
    yield cast_back(plain, "fp32", (1, 128)), cast_back(want, "fp32", (1, 128)), 0.13
    weights = torch.rand(*index.shape)
    chosen = (m["pos_to_token_topk"], weights)
    counts = torch.zeros(3, dtype=torch.int64)
    counted = torch.zeros(3, dtype=torch.int64)
    got = swiglu_forward_and_per_token_cast(
        x, "e4m3", 128, *chosen, m["pos_to_expert"], swiglu_clamp_value=1.0, clamped_count=counts
    )
    want = cast(swiglu_forward(x, *chosen, 1.0, counted), "e4m3", (1, 128))
    used = m["pos_to_expert"] >= 0
    yield cast_back(got, "fp32", (1, 128))[used], cast_back(want, "fp32", (1, 128))[used], 0.13


def swiglu_forward_and_per_channel_cast_and_transpose() -> Iterator[Triple]:
    from tile_kernels.quant import swiglu_forward_and_per_channel_cast_and_transpose
    from tile_kernels.torch.cast import cast, cast_back
    from tile_kernels.torch.swiglu import swiglu_forward

    x = torch.randn(256, 512, dtype=torch.bfloat16)
    got = swiglu_forward_and_per_channel_cast_and_transpose(x, "e4m3", 128, without_transpose=True)
    want = cast(swiglu_forward(x), "e4m3", (128, 1))
    yield cast_back(got, "fp32", (128, 1)), cast_back(want, "fp32", (128, 1)), 0.13


def swiglu_backward_and_per_token_cast() -> Iterator[Triple]:
    from tile_kernels.quant import swiglu_backward_and_per_token_cast
    from tile_kernels.torch.cast import cast
    from tile_kernels.torch.swiglu import swiglu_backward

    index = _routing()
    m = _mapping(index)
    rows = m["pos_to_expert"].shape[0]
    x = cast(torch.randn(rows, 1024, dtype=torch.bfloat16), "e4m3", (1, 128))
    grad = torch.randn(rows, 512, dtype=torch.bfloat16)
    given = (x, grad, torch.rand(*index.shape), m["pos_to_token_topk"], m["token_topk_to_pos"], 128)
    got, want = swiglu_backward_and_per_token_cast(*given), swiglu_backward(*given)
    used = m["pos_to_expert"] >= 0
    yield got[0][used].float(), want[0][used].float(), BF16
    yield got[2][used].float(), want[1][used].float(), BF16
    yield got[3], want[2], BF16


def transpose() -> Iterator[Triple]:
    from tile_kernels.transpose import batched_transpose, transpose

    x = torch.randn(192, 256).to(torch.bfloat16)
    yield transpose(x), x.T.contiguous(), EXACT
    y = torch.randn(2, 256, 128).to(torch.float8_e4m3fn)
    yield batched_transpose(y).float(), y.float().transpose(1, 2).contiguous(), EXACT


def engram_hash() -> Iterator[Triple]:
    from tile_kernels.engram import engram_hash
    from tile_kernels.torch.engram import engram_hash_ref, make_offsets

    tokens = torch.randint(0, 1000, (33, 3), dtype=torch.int32)
    multipliers = torch.randint(1, 1 << 40, (2, 3), dtype=torch.int64)
    sizes = torch.randint(100, 1000, (2, 2, 8), dtype=torch.int32)
    given = (tokens, multipliers, sizes, make_offsets(sizes))
    yield engram_hash(*given), engram_hash_ref(*given), EXACT


def _engram() -> tuple[torch.Tensor, ...]:
    hidden = 1024
    return (
        torch.randn(6, 4, hidden, dtype=torch.bfloat16),
        torch.randn(6, 4, hidden, dtype=torch.bfloat16),
        torch.randn(6, hidden, dtype=torch.bfloat16),
        torch.rand(4, hidden, dtype=torch.bfloat16),
        torch.rand(4, hidden, dtype=torch.bfloat16),
    )


def engram_gate() -> Iterator[Triple]:
    from tile_kernels.modeling.engram.engram_gate import engram_gate
    from tile_kernels.torch.engram import engram_gate_ref

    mine = [t.clone().requires_grad_() for t in _engram()]
    theirs = [t.detach().clone().float().requires_grad_() for t in mine]
    got = engram_gate(*mine, 1e-6, 1e-6)
    want = engram_gate_ref(*theirs, 1e-6, 1e-6)
    yield got.float(), want.float(), BF16
    direction = torch.randn(want.shape).bfloat16()
    got.backward(direction)
    want.backward(direction)
    for a, b in zip(mine, theirs, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        yield a.grad.float(), b.grad.float(), 0.1


def _with_gradients(
    ours: Callable[..., Any], reference: Callable[..., Any], given: tuple[torch.Tensor, ...], near: float
) -> Iterator[Triple]:
    mine = [t.clone().requires_grad_() for t in given]
    theirs = [t.clone().requires_grad_() for t in given]
    got, want = ours(*mine), reference(*theirs)
    got = got if isinstance(got, tuple) else (got,)
    want = want if isinstance(want, tuple) else (want,)
    total_got, total_want = torch.zeros(()), torch.zeros(())
    for a, b in zip(got, want, strict=True):
        yield a.float(), b.float(), near
        direction = torch.randn(b.shape)
        total_got = total_got + (a.float() * direction).sum()
        total_want = total_want + (b.float() * direction).sum()
    total_got.backward()
    total_want.backward()
    for a, b in zip(mine, theirs, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        yield a.grad.float(), b.grad.float(), near * 2


def mhc_expand() -> Iterator[Triple]:
    from tile_kernels.modeling.mhc.ops.expand import expand_to_mhc
    from tile_kernels.torch.mhc import expand_to_mhc_ref

    x = torch.randn(2, 5, 1024, dtype=torch.bfloat16)
    yield from _with_gradients(lambda t: expand_to_mhc(t, 4), lambda t: expand_to_mhc_ref(t, 4), (x,), BF16)


def mhc_sinkhorn() -> Iterator[Triple]:
    from tile_kernels.modeling.mhc.ops.sinkhorn import sinkhorn_normalize
    from tile_kernels.torch.mhc import sinkhorn_normalize_ref

    yield from _with_gradients(sinkhorn_normalize, sinkhorn_normalize_ref, (torch.randn(2, 5, 4, 4),), 1e-3)


def mhc_head_compute_mix() -> Iterator[Triple]:
    from tile_kernels.modeling.mhc.ops.head_compute_mix import mhc_head_compute_mix
    from tile_kernels.torch.mhc import mhc_head_compute_mix_ref

    yield from _with_gradients(
        lambda x, s, b: mhc_head_compute_mix(x, s, b, 1e-6),
        lambda x, s, b: mhc_head_compute_mix_ref(x, s, b, 1e-6),
        (torch.randn(2, 5, 4), torch.rand(1), torch.randn(4)),
        1e-3,
    )


def mhc_pre_split_mixes() -> Iterator[Triple]:
    from tile_kernels.modeling.mhc.ops.pre_split_mixes import mhc_pre_split_mixes
    from tile_kernels.torch.mhc import mhc_pre_split_mixes_ref

    yield from _with_gradients(
        lambda x, s, b: mhc_pre_split_mixes(x, s, b, 4, 2.0, 1e-6),
        lambda x, s, b: mhc_pre_split_mixes_ref(x, s, b, 4, 2.0, 1e-6),
        (torch.randn(2, 5, 24), torch.rand(3), torch.randn(24)),
        1e-3,
    )


def mhc_pre_apply_mix() -> Iterator[Triple]:
    from tile_kernels.modeling.mhc.ops.pre_apply_mix import mhc_pre_apply_mix
    from tile_kernels.torch.mhc import mhc_pre_apply_mix_ref

    x = torch.randn(1, 5, 4, 1024, dtype=torch.bfloat16)
    mix = torch.rand(1, 5, 4, 1)
    yield from _with_gradients(mhc_pre_apply_mix, mhc_pre_apply_mix_ref, (x, mix), BF16)


def mhc_post() -> Iterator[Triple]:
    from tile_kernels.modeling.mhc.ops.post import mhc_post
    from tile_kernels.torch.mhc import mhc_post_ref

    given = (
        torch.randn(1, 5, 1024, dtype=torch.bfloat16),
        torch.randn(1, 5, 4, 1024, dtype=torch.bfloat16),
        torch.rand(1, 5, 4, 1),
        torch.rand(1, 5, 4, 4),
    )
    with torch.no_grad():
        yield mhc_post(*given), mhc_post_ref(*given), BF16


def mhc_post_backward() -> Iterator[Triple]:
    from tile_kernels.mhc.post_kernel import mhc_post_bwd
    from tile_kernels.torch.mhc import mhc_post_ref

    given = [
        torch.randn(1, 5, 1024, dtype=torch.bfloat16),
        torch.randn(1, 5, 4, 1024, dtype=torch.bfloat16),
        torch.rand(1, 5, 4, 1),
        torch.rand(1, 5, 4, 4),
    ]
    direction = torch.randn(1, 5, 4, 1024, dtype=torch.bfloat16)
    got = mhc_post_bwd(*given, direction, fuse_grad_acc=False)
    theirs = [t.clone().requires_grad_() for t in given]
    mhc_post_ref(*theirs).backward(direction)
    for a, b in zip(got, theirs, strict=True):
        assert b.grad is not None
        yield a.float(), b.grad.float(), 0.05


def mhc_pre_norm_fn() -> Iterator[Triple]:
    from tile_kernels.modeling.mhc.ops.norm_fn import mhc_pre_norm_fn
    from tile_kernels.torch.mhc import mhc_pre_norm_fn_ref

    given = (
        torch.randn(1, 5, 4, 1024, dtype=torch.bfloat16),
        torch.randn(24, 4096) / 64,
        torch.rand(4096) + 0.5,
    )
    yield from _with_gradients(
        lambda r, f, w: mhc_pre_norm_fn(r, f, w, 1e-6, fuse_grad_acc=False),
        lambda r, f, w: mhc_pre_norm_fn_ref(r, f, w, 1e-6),
        given,
        0.05,
    )


def mhc_pre_big_fuse() -> Iterator[Triple]:
    from tile_kernels.modeling.mhc.functional import mhc_pre
    from tile_kernels.torch.mhc import (
        mhc_pre_apply_mix_ref,
        mhc_pre_norm_fn_ref,
        mhc_pre_split_mixes_ref,
        sinkhorn_normalize_ref,
    )

    residual = torch.randn(1, 5, 4, 1280, dtype=torch.bfloat16)
    fn, scale, base = torch.randn(24, 5120) / 64, torch.rand(3), torch.randn(24)
    with torch.no_grad():
        got, (post, comb) = mhc_pre(residual, fn, scale, base)
        mixes = mhc_pre_norm_fn_ref(residual, fn, None, 1e-6)
        pre, want_post, want_comb = mhc_pre_split_mixes_ref(mixes, scale, base, 4, 1.0, 1e-6)
        yield post, want_post, 0.02
        yield comb, sinkhorn_normalize_ref(want_comb), 0.02
        yield got.float(), mhc_pre_apply_mix_ref(residual, pre).float(), 0.05


CASES: dict[str, Case] = {
    name: made
    for name, made in list(globals().items())
    if callable(made) and getattr(made, "__module__", "") == __name__ and not name.startswith("_")
}
