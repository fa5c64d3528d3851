"""The vendor's step-by-step optimisation of one matrix product on Ascend, as tile programs.

Times, partition over cores and tiles: mirror-cann/asc-devkit, examples/01_simd_cpp_api/
05_best_practices/01_matrix_compute/matmul_high_performance/README.md (Task Duration; 910B1 and 950PR).
8192 x 8192 x 8192, fp16, B stored transposed, C in fp16. A core walks its part of C down the rows, then
along the columns (SetTraverse's default, FIRSTM), and the last tile of its columns is as wide as what is
left. The unit flag is on in the Norm template (GetNormalConfig), which steps 0 to 3 use, and off in MDL.
Up to step 6 the kernel is given its tiling as numbers at run time, from step 7 on it is compiled with them.
"""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from __future__ import annotations

from dataclasses import dataclass

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram

SIDE = 8192


@dataclass(frozen=True)
class Step:
    """One step of the ladder: its tile program's parameters and what silicon took.

    ``cores`` along (N, M), ``single`` the columns a core is dealt, ``depth`` the K of a copy from global
    memory, ``halves`` the parts of M that are walked one after the other for the sake of the L2.
    """

    name: str
    measured_us: float
    cores: tuple[int, int]
    single: int
    tile: tuple[int, int]
    depth: int
    stages: int
    halves: int = 1
    unit_flag: bool = True
    constant: bool = False

    @property
    def rows(self) -> int:
        """Tiles of a core along M, in each of the halves."""
        return SIDE // self.cores[1] // self.halves // self.tile[0]

    @property
    def columns(self) -> int:
        """Whole tiles of a core along N; what is left of its columns is a tile of its own."""
        return self.single // self.tile[1]

    @property
    def tiling(self) -> dict[str, int]:
        """The numbers that say how the product is dealt to cores and walked."""
        return {"cores_m": self.cores[1], "halves": self.halves, "rows": self.rows, "columns": self.columns}

    @property
    def given(self) -> dict[str, int]:
        """What the kernel is given at run time."""
        return {} if self.constant else self.tiling


LADDER_910B1 = (
    Step("0 one core, 64 x 64", 759363.98, (1, 1), 8192, (64, 64), 64, 1),
    Step("1 one core, 128 x 256", 249467.08, (1, 1), 8192, (128, 256), 64, 1),
    Step("2 24 cores, 12 x 2", 12541.22, (12, 2), 683, (128, 256), 64, 1),
    Step("3 24 cores, 6 x 4", 12283.84, (6, 4), 1536, (128, 256), 64, 1),
    Step("4 double buffers, 256-byte rows", 5039.86, (6, 4), 1536, (128, 256), 128, 2, 1, False),
    Step("5 L1 filled, 512-byte rows", 4156.76, (6, 4), 1536, (128, 256), 256, 2, 1, False),
    Step("6 L2 split", 4088.36, (6, 4), 1536, (128, 256), 256, 2, 2, False),
    Step("7 constant tiling", 4053.44, (6, 4), 1536, (128, 256), 256, 2, 2, False, True),
    Step("8 unit flag", 4012.44, (6, 4), 1536, (128, 256), 256, 2, 2, True, True),
)
LADDER_950PR = (
    Step("0 one core, 64 x 64", 1096626.431, (1, 1), 8192, (64, 64), 64, 1),
    Step("1 one core, 256 x 256", 130560.475, (1, 1), 8192, (256, 256), 64, 1),
    Step("3 32 cores, 8 x 4", 4332.557, (8, 4), 1024, (256, 256), 64, 1),
    Step("4 double buffers, 256-byte rows", 2668.224, (8, 4), 1024, (256, 256), 128, 2, 1, False),
    Step("5 L1 filled, 512-byte rows", 2591.366, (8, 4), 1024, (256, 256), 256, 2, 1, False),
    Step("6 L2 split", 2589.888, (8, 4), 1024, (256, 256), 256, 2, 2, False),
    Step("7 constant tiling", 2589.09, (8, 4), 1024, (256, 256), 256, 2, 2, False, True),
    Step("8 unit flag", 2558.155, (8, 4), 1024, (256, 256), 256, 2, 2, True, True),
)


def ladder(step: Step) -> TileProgram:
    """The tile program of one step: every core walks its own part of C, tile by tile."""
    block_m, block_n = step.tile
    depth, single, flag = step.depth, step.single, step.unit_flag
    whole, rest = divmod(single, block_n)

    @T.prim_func
    def ladder(
        A: T.Tensor((SIDE, SIDE), "float16"),
        B: T.Tensor((SIDE, SIDE), "float16"),
        C: T.Tensor((SIDE, SIDE), "float16"),
        cores_m: T.int32,
        halves: T.int32,
        rows: T.int32,
        columns: T.int32,
    ) -> None:
        with T.Kernel(*step.cores, threads=128) as (bx, by):
            A_shared = T.alloc_shared((block_m, depth), "float16")
            B_shared = T.alloc_shared((block_n, depth), "float16")
            C_local = T.alloc_fragment((block_m, block_n), "float32")

            for half in T.serial(halves):
                # Columns of a core start at whole tiles, or anywhere.
                first = bx * single if rest else bx * columns * block_n
                for j in T.serial(T.min(columns, T.ceildiv(SIDE - bx * single, block_n))):
                    for i in T.serial(rows):
                        row = ((half * cores_m + by) * rows + i) * block_m
                        column = first + j * block_n
                        T.clear(C_local)
                        for ko in T.Pipelined(SIDE // depth, num_stages=step.stages):
                            T.copy(A[row, ko * depth], A_shared)
                            T.copy(B[column, ko * depth], B_shared)
                            T.gemm(A_shared, B_shared, C_local, transpose_B=True, unit_flag=flag)
                        T.copy(C_local, C[row, column])
                if rest:
                    for i in T.serial(rows):
                        row = ((half * cores_m + by) * rows + i) * block_m
                        column = first + whole * block_n
                        B_rest, C_rest = B_shared[0:rest, :], C_local[:, 0:rest]
                        T.clear(C_rest)
                        for ko in T.Pipelined(SIDE // depth, num_stages=step.stages):
                            T.copy(A[row, ko * depth], A_shared)
                            T.copy(B[column, ko * depth], B_rest)
                            T.gemm(A_shared, B_rest, C_rest, transpose_B=True, unit_flag=flag)
                        T.copy(C_rest, C[row, column])

    traced: TileProgram = ladder
    return traced.bind(**step.tiling) if step.constant else traced
