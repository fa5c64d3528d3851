"""The adapter for aiconfigurator's tables, on a small tree of the same layout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from foretile.calibration.measurements import MeasurementError, validate_table
from foretile.calibration.sources import _aic_moe, aiconfigurator
from foretile.calibration.sources.comparable import RULES, reasons

Rows = Sequence[Mapping[str, Any]]


def write(root: Path, place: str, table: str, rows: Rows, device: str = "h200_sxm") -> None:
    folder = root / "systems" / "data" / device / place
    folder.mkdir(parents=True, exist_ok=True)
    common = {"framework": "X", "version": "1", "device": "NVIDIA", "op_name": table}
    pd.DataFrame([{**common, **row} for row in rows]).to_parquet(folder / f"{table}_perf.parquet")


def gemm(dtype: str, m: int, n: int, k: int, ms: float, source: str = "k") -> dict[str, Any]:
    return {"kernel_source": source, "gemm_dtype": dtype, "m": m, "n": n, "k": k, "latency": ms}


def load(root: Path, **kwargs: Any) -> pd.DataFrame:
    frame = aiconfigurator.load("h200-sxm", path=root, **kwargs)
    validate_table(frame, "adapter")
    return frame


def shape(frame: pd.DataFrame, row: int = 0) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(frame["shape"].iloc[row])
    return parsed


def test_gemm_of_three_frameworks(tmp_path: Path) -> None:
    for place in ("gemm/trtllm/1.3.0rc20", "gemm/vllm/0.24.0", "gemm/sglang/0.5.14"):
        write(tmp_path, place, "gemm", [gemm("bfloat16", 16, 4096, 4096, 0.012)])
    frame = load(tmp_path)
    assert set(frame["framework"]) == {"trtllm", "vllm", "sglang"}
    assert frame["latency_s"].tolist() == [12e-6] * 3
    assert shape(frame)["trans_b"] is True
    copies = dict(zip(frame["framework"], frame["copies"], strict=True))
    assert copies == {"trtllm": '{"B":2}', "vllm": '{"B":6}', "sglang": '{"A":6,"B":6}'}
    assert frame["source"].str.contains("gemm/vllm/0.24.0/gemm_perf.parquet").sum() == 1
    assert set(frame["licence"]) == {"Apache-2.0"}


@pytest.mark.parametrize(("n", "copies"), [(256, 5), (4096, 2), (8192, 1)])
def test_trtllm_rotates_until_the_weights_exceed_the_l2(tmp_path: Path, n: int, copies: int) -> None:
    write(tmp_path, "gemm/trtllm/1.3.0rc20", "gemm", [gemm("bfloat16", 16, n, 4096, 0.02)])
    assert load(tmp_path)["copies"].tolist() == [f'{{"B":{copies}}}']


def test_types_families_and_launches(tmp_path: Path) -> None:
    rows = [gemm("fp8", 64, 4096, 4096, 0.02), gemm("fp8_block", 64, 4096, 4096, 0.3)]
    write(tmp_path, "gemm/vllm/0.24.0", "gemm", rows)
    frame = load(tmp_path).set_index("family")
    assert frame["launch"].to_dict() == {"gemm.fp8": "graph", "gemm_fp8_block": "eager"}
    assert frame["comparable"]["gemm.fp8"] == ""
    assert "eager" in frame["comparable"]["gemm_fp8_block"]
    assert frame["copies"]["gemm_fp8_block"] == "{}"
    assert all(json.loads(text)["quantize_a"] for text in frame["shape"])


def test_repeated_keys_are_averaged(tmp_path: Path) -> None:
    rows = [gemm("bfloat16", 64, 4096, 4096, ms) for ms in (0.010, 0.012)]
    write(tmp_path, "gemm/trtllm/1.3.0rc20", "gemm", [*rows, gemm("bfloat16", 65, 4096, 4096, 0.01)])
    frame = load(tmp_path)
    assert frame["latency_s"].tolist() == pytest.approx([11e-6, 10e-6])
    assert frame["runs"].tolist() == [2, 1]
    assert frame["spread"].iloc[0] == pytest.approx(0.2)
    assert np.isnan(frame["spread"].iloc[1])


def test_what_cannot_be_mapped_is_said(tmp_path: Path) -> None:
    rows = [gemm("sq", 64, 4096, 4096, 0.01), gemm("bfloat16", 64, 4096, 4096, 0.0)]
    write(tmp_path, "gemm/trtllm/1.0.0", "gemm", [*rows, gemm("bfloat16", 64, 4096, 4096, 0.01)])
    write(tmp_path, "comm/nccl/2.23", "nccl", [{"latency": 1.0}] * 3)
    write(tmp_path, "new/x/1", "brand_new", [{"latency": 1.0}])
    said = aiconfigurator.refused("h200-sxm", tmp_path).set_index(["table", "what"])
    assert said["rows"].to_dict() == {
        ("gemm", "gemm_dtype=sq"): 1,
        ("gemm", "latency"): 1,
        ("nccl", "all"): 3,
        ("brand_new", "all"): 1,
    }
    assert said["reason"].str.len().min() > 10
    assert len(load(tmp_path)) == 1


def test_every_table_is_mapped_or_explained() -> None:
    assert not set(aiconfigurator._MAPPERS) & set(aiconfigurator.unmapped())
    assert all(len(reason) > 10 for reason in aiconfigurator.unmapped().values())


ATTENTION = {"num_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "beam_width": 1}


def attention(**given: Any) -> dict[str, Any]:
    return ATTENTION | {
        **{"kernel_source": "fa3", "attn_dtype": "bfloat16", "kv_cache_dtype": "bfloat16"},
        **{"window_size": 0, "batch_size": 4},
        **given,
    }


def test_prefill_and_decode(tmp_path: Path) -> None:
    write(tmp_path, "a/sglang/0.5.14", "context_attention", [attention(isl=2048, step=0, latency=0.5)])
    write(tmp_path, "a/sglang/0.5.14", "generation_attention", [attention(isl=1, step=4095, latency=0.05)])
    frame = load(tmp_path).set_index("operator")
    prefill, decode = (json.loads(frame["shape"][f"attention_{name}"]) for name in ("prefill", "decode"))
    assert prefill["seq"] == 2048
    assert prefill["causal"] is True
    assert prefill["prefix"] == 0
    assert decode["kv_len"] == 4096
    assert decode["kv_heads"] == 8
    assert set(frame["comparable"]) == {""}


def test_an_fp8_cache_decides_the_products_of_some_kernels(tmp_path: Path) -> None:
    fp8 = [
        attention(kernel_source=kernel, kv_cache_dtype="fp8", isl=1, step=4095, latency=0.05)
        for kernel in ("fa3", "triton", "flashinfer")
    ]
    write(tmp_path, "a/sglang/0.5.14", "generation_attention", fp8)
    frame = load(tmp_path)
    dtypes = {k: json.loads(s)["dtype"] for k, s in zip(frame["kernel_source"], frame["shape"], strict=True)}
    assert dtypes == {"fa3/kv_fp8": "fp8", "triton": "bf16", "flashinfer": "bf16"}


def test_fallbacks_are_named(tmp_path: Path) -> None:
    rows = [
        attention(
            num_heads=heads, num_key_value_heads=1, kernel_source="torch_flow", isl=1, step=999, latency=0.02
        )
        for heads in (32, 64)
    ]
    write(tmp_path, "a/trtllm/1.3.0rc20", "generation_attention", rows)
    write(tmp_path, "a/trtllm/1.0.0", "generation_attention", rows)
    frame = load(tmp_path)
    assert dict(zip((shape(frame, i)["heads"] for i in (0, 1)), frame["comparable"] != "", strict=True)) == {
        **{32: False, 64: True}
    }
    assert aiconfigurator.refused("h200-sxm", tmp_path)["reason"].str.contains("SELFKONLY").sum() == 1


def test_an_encoder_head_that_no_operator_takes_is_refused(tmp_path: Path) -> None:
    rows = [
        {"kernel_source": "fa3", "batch_size": 1, "isl": 576, "num_heads": 16, "attn_dtype": "bfloat16"}
        | {"head_dim": head_dim, "latency": 0.02}
        for head_dim in (64, 72)
    ]
    write(tmp_path, "e/vllm/0.24.0", "encoder_attention", rows)
    assert load(tmp_path)["family"].tolist() == ["attention_encoder"]
    said = aiconfigurator.refused("h200-sxm", tmp_path)
    assert said["rows"].tolist() == [1]
    assert "head_dim=72" in said["reason"].iloc[0]


def test_latent_attention(tmp_path: Path) -> None:
    both = {"mla_dtype": "bfloat16", "num_heads": 16, "batch_size": 2, "tp_size": 8, "latency": 0.2}
    rows = [
        both | {"kernel_source": "default", "kv_cache_dtype": t, "isl": 1024, "step": 0}
        for t in ("bfloat16", "fp8")
    ]
    absorbed = rows[0] | {"kernel_source": "flash_attention"}
    write(tmp_path, "mla/trtllm/1.3.0rc20", "context_mla", [*rows, absorbed])
    rows = [
        both | {"kernel_source": "default", "kv_cache_dtype": t, "isl": 1, "step": 1023}
        for t in ("bfloat16", "fp8")
    ]
    write(tmp_path, "mla/trtllm/1.3.0rc20", "generation_mla", rows)
    frame = load(tmp_path)
    assert frame["operator"].value_counts().to_dict() == {"mla_prefill": 1, "mla_decode": 2}
    decode = frame[frame["operator"] == "mla_decode"]
    fp8 = decode["shape"].str.contains('"kv_dtype":"fp8"')
    assert (decode["comparable"] != "").tolist() == fp8.tolist()
    assert {json.loads(s)["kv_len"] for s in decode["shape"]} == {1024}


def moe(**given: Any) -> dict[str, Any]:
    return {
        **{"kernel_source": "triton", "moe_dtype": "bfloat16", "num_tokens": 4096, "hidden_size": 7168},
        **{"inter_size": 2048, "topk": 8, "num_experts": 256, "moe_tp_size": 1, "moe_ep_size": 1},
        **{"distribution": "balanced", "latency": 5.0},
        **given,
    }


def test_a_rank_of_experts(tmp_path: Path) -> None:
    rows = [
        moe(moe_tp_size=4),
        moe(moe_ep_size=4),
        moe(moe_ep_size=32),
        moe(distribution="power_law_1.2"),
        moe(distribution="power_law_1.2", moe_ep_size=4),
        moe(moe_dtype="int4_wo"),
        moe(kernel_source="moe_torch_flow_nongated"),
    ]
    write(tmp_path, "moe/vllm/0.24.0", "moe", rows)
    frame = load(tmp_path)
    names = ("tokens", "topk", "experts", "inter")
    found = {
        tuple(shape(frame, i)[name] for name in names): (shape(frame, i)["distribution"], row)
        for i, row in enumerate(frame["kernel_source"])
    }
    whole, part = "triton", "triton/ranks"  # Triton's kernels pass over what falls on other ranks
    assert found[4096, 8, 256, 512] == (0, whole)
    assert found[4096, 2, 64, 2048] == found[1024, 1, 8, 2048] == (0, part)
    assert found[4096, 8, 256, 2048] == (120, whole)
    assert set(frame["comparable"].astype(str)[frame["kernel_source"] == whole]) == {""}
    assert "" not in set(frame["comparable"].astype(str)[frame["kernel_source"] == part])
    assert aiconfigurator.refused("h200-sxm", tmp_path)["rows"].sum() == 3


@pytest.mark.parametrize("tokens", [1, 3, 16, 100, 4096])
@pytest.mark.parametrize(("experts", "topk"), [(256, 8), (128, 8), (8, 2), (160, 6)])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_the_ranks_of_an_even_routing_share_its_rows(
    tokens: int, experts: int, topk: int, ranks: int
) -> None:
    """The rank's rows are those of its experts when every token's choices are written out."""
    stride = -(-experts // topk)
    chosen = [
        int((t if tokens >= stride else t * stride / tokens) + j * stride) % experts
        for t in range(tokens)
        for j in range(topk)
    ]
    here = sum(expert < experts // ranks for expert in chosen)
    share = _aic_moe._balanced(tokens, experts, topk, ranks)
    if isinstance(share, str):
        per_token = [
            sum(e < experts // ranks for e in chosen[t * topk : (t + 1) * topk]) for t in range(tokens)
        ]
        assert len(set(per_token)) > 1
        assert max(per_token) > 1
    else:
        assert share[0] * share[1] == here


def test_sparse_and_linear_attention(tmp_path: Path) -> None:
    glm = {"kernel_source": "k", "num_heads": 64, "batch_size": 2, "tp_size": 1, "compress_ratio": 1}
    place = "sparse_attention/sglang/0.5.14"
    write(tmp_path, place, "glm5_mqa_logits_module", [glm | {"isl": 512, "step": 1536, "latency": 0.05}])
    write(tmp_path, place, "glm5_dsa_attn_module", [glm | {"isl": 512, "step": 1536, "latency": 0.6}])
    scores = [
        glm | {"isl": 1, "step": s, "score_mode": "top_last", "latency": t}
        for s, t in ((8191, 0.02), (9, 0.0))
    ]
    long = glm | {"isl": 4096, "step": 4096, "score_mode": "flat", "latency": 2.0}
    write(tmp_path, place, "glm5_topk_module", [*scores, long])
    delta = {"phase": "context", "batch_size": 2, "seq_len": 1024, "num_k_heads": 16, "num_v_heads": 32}
    delta |= {"head_k_dim": 128, "head_v_dim": 128, "latency": 0.1}
    kernels = ("chunk_gated_delta_rule", "causal_conv1d_fn")
    write(tmp_path, "l/sglang/0.5.14", "gdn", [delta | {"kernel_source": k} for k in kernels])
    frame = load(tmp_path).set_index("operator")
    parsed = {operator: json.loads(text) for operator, text in frame["shape"].items()}
    assert set(parsed) == {"indexer_logits", "sparse_mla", "topk_select", "linear_attention"}
    assert parsed["indexer_logits"]["heads"] == 32
    assert parsed["indexer_logits"]["kv_len"] == 2048
    assert parsed["sparse_mla"]["topk"] == 2048
    assert parsed["sparse_mla"]["heads"] == 64
    assert parsed["sparse_mla"]["kv_len"] == 2048
    assert parsed["topk_select"] == {"rows": 2, "cols": 8192, "k": 2048}
    assert parsed["linear_attention"]["heads"] == 32
    assert aiconfigurator.refused("h200-sxm", tmp_path)["rows"].sum() == 3


def test_padded_heads_of_sparse_attention(tmp_path: Path) -> None:
    """From Blackwell on the collector pads the heads to 128; keys past the named ones are not touched."""
    row = {"kernel_source": "k", "num_heads": 64, "batch_size": 2, "tp_size": 1, "isl": 4, "latency": 0.6}
    rows = [row | {"step": s} for s in (60, 8188, 100000)]
    for device, chip, heads in (("b200_sxm", "b200-sxm", 128), ("h200_sxm", "h200-sxm", 64)):
        write(tmp_path, "sparse_attention/sglang/0.5.14", "glm5_dsa_attn_module", rows, device=device)
        frame = aiconfigurator.load(chip, path=tmp_path)
        shapes = [json.loads(text) for text in frame["shape"]]
        assert {s["heads"] for s in shapes} == {heads}
        assert [s["kv_len"] for s in shapes] == [64, 2048]
        assert list(frame["runs"]) == [1, 2]


def test_devices_and_paths(tmp_path: Path) -> None:
    write(tmp_path, "gemm/vllm/0.24.0", "gemm", [gemm("bfloat16", 1, 512, 512, 0.01)], device="l40s")
    write(tmp_path, "gemm/vllm/0.24.0", "gemm", [gemm("bfloat16", 1, 512, 512, 0.01)], device="b60")
    assert aiconfigurator.devices(tmp_path) == ("l40s",)
    assert aiconfigurator.available(tmp_path) == tmp_path / "systems" / "data"
    with pytest.raises(MeasurementError, match="there are: l40s"):
        aiconfigurator.load("h200-sxm", path=tmp_path)
    with pytest.raises(FileNotFoundError, match="no tables"):
        aiconfigurator.available(tmp_path / "systems" / "data" / "l40s")


def test_one_operator_or_family_alone(tmp_path: Path) -> None:
    rows = [gemm(t, 64, 4096, 4096, 0.02) for t in ("bfloat16", "fp8", "fp8_block")]
    write(tmp_path, "gemm/trtllm/1.3.0rc20", "gemm", rows)
    assert load(tmp_path, family="gemm.fp8")["family"].tolist() == ["gemm.fp8"]
    assert load(tmp_path, operator="gemm_fp8_block")["operator"].tolist() == ["gemm_fp8_block"]


def test_rules_speak_of_shapes_and_kernels_only() -> None:
    """A rule sees parameters, kernel source and launch: no time can enter."""
    rows = pd.DataFrame({"heads": [64], "kv_heads": [1], "batch": [1], "kv_len": [9], "head_dim": [128]})
    rows = rows.assign(
        seq=1, kv_dtype="bf16", causal=True, window=0, kernel_source="torch_flow", launch="graph"
    )
    rows = rows.assign(engine="wgmma")
    rows = rows.assign(hidden=4096, inter=1024, experts=8)
    assert "latency_s" not in rows
    for operator in ("attention_decode", "attention_prefill", "mla_decode", "gemm", "moe"):
        reasons(operator, rows)
    assert len({rule.reason for rule in RULES}) == len(RULES)


def test_decode_without_grouped_queries_is_another_kernel_before_blackwell() -> None:
    columns = {
        "heads": [8, 8, 8, 8],
        "kv_heads": [8, 2, 2, 2],
        "kv_len": [512, 512, 512, 64],
        "window": [0, 0, 128, 128],
    }
    rows = pd.DataFrame(columns).assign(batch=1, head_dim=128, kernel_source="torch_flow", launch="graph")

    def kept(engine: str, kv_dtype: str) -> list[bool]:
        found = reasons("attention_decode", rows.assign(engine=engine, kv_dtype=kv_dtype))
        return [not reason for reason in found]

    assert kept("mma_sync", "fp8") == [False, True, False, True]
    assert kept("wgmma", "bf16") == [False, True, False, True]
    assert kept("wgmma", "fp8") == [False, True, True, True], "its kernel has windows"
    assert kept("tcgen05", "bf16") == [True] * 4


def test_experts_behind_limited_groups_are_left_out_whatever_the_rank_holds() -> None:
    rows = pd.DataFrame(
        {
            "hidden": [7168, 7168, 7168, 7168, 4096],
            "inter": [2048, 256, 2048, 3072, 2048],
            "experts": [256, 32, 384, 256, 256],
        }
    ).assign(kernel_source="vllm_fp8moe_triton_tritonexperts", launch="graph")
    assert [bool(r) for r in reasons("moe", rows)] == [True, True, False, False, False]
    assert not any(reasons("moe", rows.assign(kernel_source="moe_torch_flow_cutlass")))


def test_a_kernel_that_multiplies_all_choices_has_the_same_rows_on_every_rank(tmp_path: Path) -> None:
    ours = {"kernel_source": "moe_torch_flow_triton_fp8_block", "moe_dtype": "fp8_block"}
    write(tmp_path, "moe/trtllm/1.3.0", "moe", [moe(**ours, moe_ep_size=n) for n in (1, 4, 64)])
    found = load(tmp_path)
    shapes = [json.loads(s) for s in found["shape"]]
    assert {s["tokens"] * s["topk"] for s in shapes} == {4096 * 8}
    assert sorted(s["experts"] for s in shapes) == [4, 64, 256]
    assert set(found["comparable"]) == {""}


def test_without_the_package_the_way_to_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiconfigurator, "PACKAGE", "no_such_package_of_tables")
    assert aiconfigurator.available() is None
    with pytest.raises(FileNotFoundError, match=r"foretile\[data\]"):
        aiconfigurator.load("h200-sxm")
