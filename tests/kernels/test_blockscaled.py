"""Products with scales for groups of the depth: traced, printed, stored, and refused."""

from typing import Any

import pytest

from foretile.kernels import language as T
from foretile.kernels.ir import Gemm, TileProgram, walk_stmts
from foretile.kernels.load import from_script


def scaled(
    element: str = "float4_e2m1",
    scale: str = "float8_e4m3",
    groups: tuple[int, int] = (4, 2),
    rows: int = 32,
    transposed: bool = False,
    accumulator: str = "fragment",
    where: str = "shared",
) -> TileProgram:
    """A block that multiplies tiles of 32 × 64 and 48 × 64."""

    @T.prim_func
    def kernel(
        A: T.Tensor((32, 64), element),  # type: ignore[valid-type]
        SA: T.Tensor((32, 64), scale),  # type: ignore[valid-type]
        C: T.Tensor((32, 48), "float32"),  # type: ignore[valid-type]
    ) -> None:
        with T.Kernel(1, threads=128):
            a = T.alloc_shared((64, 32) if transposed else (32, 64), element)
            b = T.alloc_shared((64, 48) if transposed else (48, 64), element)
            sa = T.alloc_shared((rows, groups[0]), scale)
            sb = T.alloc_shared((48, groups[1]), scale)
            c = T.alloc_fragment((32, 48), "float32")
            if accumulator == "shared":
                c = T.alloc_shared((32, 48), "float32")
            left: Any = SA[0:32, 0:4] if where == "global" else sa
            T.gemm_blockscaled(
                a, b, c, left, sb, transpose_A=transposed, transpose_B=not transposed, clear_accum=True
            )
            T.copy(c, C)

    program: TileProgram = kernel
    return program


def product(program: TileProgram) -> Gemm:
    (found,) = (s for s in walk_stmts(program.body) if isinstance(s, Gemm))
    return found


@pytest.mark.parametrize("transposed", [False, True])
def test_a_scaled_product_is_a_product_with_scales(transposed: bool) -> None:
    program = scaled(transposed=transposed)
    found = product(program)
    assert (found.trans_a, found.trans_b, found.clear_accum) == (transposed, not transposed, True)
    assert found.a_scale is not None
    assert found.b_scale is not None
    assert (found.a_scale.buffer, found.b_scale.buffer) == ("sa", "sb")
    flags = "transpose_A=True, " if transposed else "transpose_B=True, "
    assert f"T.gemm_blockscaled(a, b, c, sa, sb, {flags}clear_accum=True)" in str(program)


def test_text_and_data_give_the_same_program() -> None:
    program = scaled()
    assert from_script(str(program)) == program
    assert TileProgram.from_json(program.to_json()) == program
    assert product(TileProgram.from_json(program.to_json())).b_scale == product(program).b_scale


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"element": "bfloat16"}, "A of T.gemm_blockscaled, a, is bfloat16; needed is float8_e4m3 or"),
        ({"scale": "float32"}, "SFA of T.gemm_blockscaled is float32; scales are float8_e4m3 or float8_e8m0"),
        ({"groups": (3, 4)}, "SFA of T.gemm_blockscaled, sa .*32, 3.*does not go with 32 rows of 64"),
        ({"groups": (4, 8)}, "SFB of T.gemm_blockscaled, sb .*48, 8.*a multiple of 16"),
        ({"rows": 16}, "SFA of T.gemm_blockscaled, sa .*16, 4.*does not go with 32 rows"),
        ({"accumulator": "shared"}, "C of T.gemm_blockscaled must be a fragment"),
        ({"where": "global"}, "SFA of T.gemm_blockscaled is the global buffer SA"),
    ],
)
def test_refusals(given: dict[str, Any], message: str) -> None:
    with pytest.raises(T.TraceError, match=message):
        scaled(**given)


def test_indices_of_scales_must_be_in_scope() -> None:
    def out_of_scope() -> TileProgram:
        @T.prim_func
        def kernel(C: T.Tensor((32, 48), "float32")) -> None:  # type: ignore[valid-type]
            with T.Kernel(4, threads=128) as bx:
                a = T.alloc_shared((32, 64), "float4_e2m1")
                b = T.alloc_shared((48, 64), "float4_e2m1")
                s = T.alloc_shared((4, 48, 4), "float8_e4m3")
                c = T.alloc_fragment((32, 48), "float32")
                T.gemm_blockscaled(a, b, c, s[bx, 0:32, 0:4], s[bx, 0:48, 0:4], transpose_B=True)
                T.copy(c, C)

        program: TileProgram = kernel
        return program

    found = product(out_of_scope())
    assert found.a_scale is not None
    assert "bx" in str(out_of_scope()).split("gemm_blockscaled")[1].splitlines()[0]
    assert [str(e) for e in found.a_scale.extents] != []
