"""Shapes at which the CUDA versions are run on the CPU: every operator in every type, and its variants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from foretile.kernels.cuda.recipe import CudaProgram
from foretile.kernels.cuda.registry import cuda_operators, cuda_program
from foretile.kernels.operator import Operator, Shape, load_operator

# Beside the example in every type. Sizes divide no tile.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "attention_decode": [
        {"window": 100},
        {"kv_dtype": "fp8"},
        {"head_dim": 48, "heads": 36, "kv_heads": 2, "kv_len": 70},
    ],
    "attention_prefill": [
        {"window": 40, "prefix": 30},
        {"causal": False},
        {"head_dim": 144, "seq": 33, "heads": 2},
        {"kv_dtype": "fp8", "dtype": "fp16"},
    ],
    "conv2d": [{"stride": 2, "padding": 0}],
    "gelu": [{"tanh": True}],
    "gemm": [
        {"trans_a": True, "trans_b": True, "batch": 3, "m": 70, "n": 33, "k": 65},
        {"trans_b": True, "out_dtype": "fp32", "m": 40},
        {"dtype": "fp8", "out_dtype": "fp8", "m": 40},
        {"dtype": "int8", "out_dtype": "bf16", "m": 40, "trans_a": True},
    ],
    "gemm_dequant": [{"wdtype": "fp4", "group": 32, "k": 100}],
    "gemm_fp8": [
        {"per_row": True},
        {"quantize_a": True},
        {"quantize_a": True, "per_row": True},
        {"quantize_a": True, "find_scale": True, "out_dtype": "fp32"},
    ],
    "gemm_fp8_block": [
        {"quantize_a": True},
        {"scale_dtype": "fp8_e8m0", "k": 700},
        {"scale_dtype": "fp8_e8m0", "quantize_a": True, "out_dtype": "fp16"},
    ],
    "gemm_nvfp4": [{"quantize_a": True}],
    "grouped_gemm": [
        {"masked": True},
        {"masked": True, "dtype": "fp8"},
        {"masked": True, "dtype": "fp8_block", "skew": 50},
        {"dtype": "fp16", "out_dtype": "fp32", "masked": True},
    ],
    "indexer_logits": [{"causal": False, "heads": 72}],
    "linear_attention": [{"head_dim": 32, "value_dim": 48}],
    "mla_decode": [{"kv_dtype": "fp8"}, {"kv_dtype": "fp8", "dtype": "fp16"}],
    "moe": [{"align": 16}],
    "moe_route": [{"experts": 32, "groups": 8, "topk_groups": 4, "topk": 6}],
    "moe_permute": [{"dtype": "fp8", "hidden": 33}],
    "quantize": [{"group": 0}, {"round_scale": True, "group": 64}],
    "quantize_weight": [{"round_scale": True}],
    "rope": [{"interleaved": False}],
}


@dataclass(frozen=True)
class Case:
    """An operator at a shape; ``every_kind`` of its inputs, or only random ones."""

    operator: Operator
    shape: Shape
    every_kind: bool
    name: str

    def program(self) -> CudaProgram:
        return cuda_program(self.operator.name, self.shape)


def all_cases() -> list[Case]:
    return [case for name in cuda_operators() for case in _of(load_operator(name))]


def _of(operator: Operator) -> Iterator[Case]:
    def case(given: dict[str, Any], every_kind: bool) -> Case:
        words = [operator.name, *(f"{k}={v}" for k, v in given.items())]
        return Case(operator, operator.shape(**{**operator.example, **given}), every_kind, " ".join(words))

    yield case({}, True)
    types = next((p.choices for p in operator.params if p.name == "dtype"), ())
    default = operator.shape(**operator.example).get("dtype")
    yield from (case({"dtype": kind}, False) for kind in types if kind != default)
    yield from (case(given, False) for given in VARIANTS.get(operator.name, ()))
