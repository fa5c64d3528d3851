"""What a call of a function of the CUDA Math API by its name costs a thread."""

from __future__ import annotations

ROUNDINGS = ("rn", "rz", "rd", "ru")

DEVICE_COSTS: dict[str, dict[str, float]] = {
    # One instruction each, at the rate of conversions; so are reversed bits (CUDA C++ Programming Guide,
    # "Throughput of native arithmetic instructions").
    **{
        f"__{a}2{b}_{how}": {"convert": 1}
        for how in ROUNDINGS
        for a, b in (
            ("float", "half"),
            ("float", "bfloat16"),
            ("double", "float"),
            *((word, "float") for word in ("int", "uint")),
            *((a, word) for word in ("int", "uint") for a in ("float", "double", "half", "bfloat16")),
        )
    },
    **{key: {"convert": 1} for key in ("__float2half", "__float2bfloat16", "__brev")},
    # Widening is a shift or a permute; the bits of a number, or a hint for the caches, are no instruction.
    **{key: {"alu": 1} for key in ("__half2float", "__bfloat162float")},
    **{key: {} for key in ("__float_as_int", "__float_as_uint", "__int_as_float", "__uint_as_float")},
    **{key: {} for key in ("__ldg", "__ldca", "__ldcg", "__ldcs", "__ldcv", "__ldlu")},
    # Every rounding is a variant of the same instruction.
    **{f"__{name}_{how}": {"fp32": 1} for how in ROUNDINGS for name in ("fadd", "fsub", "fmul", "fmaf")},
    **{key: {"fp32": 1} for key in ("__hadd", "__hsub", "__hmul", "__hfma", "__saturatef")},
    # As a quotient, a root and a power in an expression are counted.
    **{
        f"__{name}_{how}": {"special": 1, "fp32": 1}
        for how in ROUNDINGS
        for name in ("fdiv", "frcp", "fsqrt")
    },
    **{key: {"special": 1, "fp32": 1} for key in ("__fdividef", "__hdiv", "__frsqrt_rn")},
    "__powf": {"special": 2, "fp32": 1},
    **{key: {"alu": 1} for key in ("__byte_perm", "__mulhi", "__umulhi")},
    **{f"__funnelshift_{side}{end}": {"alu": 1} for side in "lr" for end in ("", "c")},
    **{key: {"alu": 3} for key in ("__mul24", "__umul24")},  # of which chips have no instruction any more
}
"""Instructions by pipe."""

DEVICE_NAMES = {f"__{fn}f": fn for fn in ("exp", "exp10", "log", "log2", "log10", "sin", "cos", "tan")}
"""Fast approximations, which cost what the function costs in an expression."""
