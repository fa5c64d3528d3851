"""``flash-qla`` (Qwen): the chunked gated delta rule, beside the recurrence it stands for, in torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

Triple = tuple[torch.Tensor, torch.Tensor, float]
Case = Callable[[], Iterator[Triple]]


def _given(tokens: int, heads: int = 1, value_heads: int = 2, depth: int = 128) -> tuple[torch.Tensor, ...]:
    return (
        F.normalize(torch.randn(1, tokens, heads, depth), dim=-1).bfloat16(),
        F.normalize(torch.randn(1, tokens, heads, depth), dim=-1).bfloat16(),
        torch.randn(1, tokens, value_heads, depth).bfloat16(),
        F.logsigmoid(torch.randn(1, tokens, value_heads)),
        torch.rand(1, tokens, value_heads),
    )


def _recurrence(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gated delta rule a token at a time (Yang et al., 2024), in float32; state (B, heads, K, V)."""
    repeat = v.shape[2] // q.shape[2]
    q, k = (t.float().repeat_interleave(repeat, dim=2) for t in (q, k))
    v, g, beta, state = v.float(), g.float(), beta.float(), state.float()
    out = []
    for t in range(q.shape[1]):
        state = state * g[:, t].exp()[..., None, None]
        found = torch.einsum("bhk,bhkv->bhv", k[:, t], state)
        change = beta[:, t][..., None] * (v[:, t] - found)
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, t], change)
        out.append(torch.einsum("bhk,bhkv->bhv", q[:, t] * q.shape[-1] ** -0.5, state))
    return torch.stack(out, dim=1), state


def forward() -> Iterator[Triple]:
    from flash_qla import chunk_gated_delta_rule

    given = _given(128)
    state = torch.randn(1, 2, 128, 128) * 0.1
    with torch.no_grad():
        got, last = chunk_gated_delta_rule(
            *given, initial_state=state, output_final_state=True, auto_cp=False
        )
        want, want_last = _recurrence(*given, state)
    yield got.float(), want, 3e-2
    yield last.float(), want_last, 3e-2


def forward_of_unequal_sequences() -> Iterator[Triple]:
    from flash_qla import chunk_gated_delta_rule

    given = _given(160)
    state = torch.zeros(2, 2, 128, 128)
    lengths = torch.tensor([0, 90, 160], dtype=torch.int64)
    with torch.no_grad():
        got, _ = chunk_gated_delta_rule(
            *given, initial_state=state, output_final_state=True, cu_seqlens=lengths, auto_cp=False
        )
        parts = [_recurrence(*(t[:, a:b] for t in given), state[:1])[0] for a, b in ((0, 90), (90, 160))]
    yield got.float(), torch.cat(parts, dim=1), 3e-2


def backward() -> Iterator[Triple]:
    from flash_qla import chunk_gated_delta_rule

    mine = [t.clone().requires_grad_() for t in _given(128)]
    theirs = [t.detach().clone().requires_grad_() for t in mine]
    state = torch.randn(1, 2, 128, 128) * 0.1
    got, _ = chunk_gated_delta_rule(*mine, initial_state=state, output_final_state=True, auto_cp=False)
    want, _ = _recurrence(*theirs, state)
    direction = torch.randn(want.shape)
    (got.float() * direction).sum().backward()
    (want * direction).sum().backward()
    for a, b in zip(mine, theirs, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        yield a.grad.float(), b.grad.float(), 6e-2


CASES: dict[str, Case] = {
    "forward": forward,
    "forward_of_unequal_sequences": forward_of_unequal_sequences,
    "backward": backward,
}
