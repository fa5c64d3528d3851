"""2:4 sparse products of users: compressed by PyTorch or by hand, metadata in the order of CUTLASS."""

from __future__ import annotations

import numpy as np
import pytest

from foretile.kernels.canonical import canonical
from foretile.kernels.tilelang import from_prim_func, from_tilelang
from foretile.kernels.tilelang.compile_worker import prim_func
from foretile.kernels.tilelang.export import source
from foretile.simulator.numerics.errors import NumericsError
from foretile.simulator.numerics.execute import execute
from foretile.simulator.numerics.layouts import places_in_memory

M, N, K = 256, 64, 256
RNG = np.random.default_rng(11)


def product(language, rows=M, arch="8.0", places=None, block_k=64):
    """C = A @ B in tiles of 128 × 64; ``places`` annotates the metadata, default: in CUTLASS's order."""
    from tilelang.layout import make_cutlass_metadata_layout

    T = language
    each, kept = (16, "int16") if arch == "8.0" else (8, "uint8")

    def cutlass(buffer):
        return make_cutlass_metadata_layout(buffer, mma_dtype="float16", block_k=block_k, arch=arch)

    annotated = places or cutlass

    @T.prim_func
    def sparse(
        A: T.Tensor((rows, K // 2), "float16"),
        E: T.Tensor((rows, K // each), kept),
        B: T.Tensor((K, N), "float16"),
        C: T.Tensor((rows, N), "float32"),
    ):
        with T.Kernel(1, T.ceildiv(rows, 128), threads=128) as (_, by):
            A_s = T.alloc_shared((128, block_k // 2), "float16")
            E_s = T.alloc_shared((128, block_k // each), kept)
            B_s = T.alloc_shared((block_k, N), "float16")
            C_f = T.alloc_fragment((128, N), "float32")
            T.annotate_layout({E: annotated(E), E_s: cutlass(E_s)})
            T.clear(C_f)
            for k in T.Pipelined(K // block_k, num_stages=2):
                T.copy(E[by * 128, k * block_k // each], E_s)
                T.copy(A[by * 128, k * block_k // 2], A_s)
                T.copy(B[k * block_k, 0], B_s)
                T.gemm_sp(A_s, E_s, B_s, C_f)
            T.copy(C_f, C[by * 128, 0])

    return sparse


@pytest.fixture(scope="module")
def operands():
    """A with two of four elements kept, and B."""
    kept = RNG.permuted(np.tile([True, True, False, False], (M, K // 4, 1)), axis=-1).reshape(M, K)
    dense = RNG.standard_normal((M, K)) * kept
    return dense.astype(np.float16), RNG.standard_normal((K, N)).astype(np.float16)


def compressed(a):
    """Elements kept and, by row, the places of the two of each group in four bits (PTX ISA, sparse wgmma)."""
    group = a.reshape(M, -1, 4)
    order = np.argsort(group == 0, axis=-1, kind="stable")[..., :2]
    order.sort(axis=-1)
    nibbles = order[..., 0] | order[..., 1] << 2
    places = (nibbles[:, ::2] | nibbles[:, 1::2] << 4).astype("u1")
    return np.take_along_axis(group, order, -1).reshape(M, -1), places


@pytest.mark.parametrize("symbolic", [False, True])
def test_what_pytorch_compresses_is_multiplied(tilelang_language, operands, symbolic) -> None:
    import torch
    from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

    a, b = operands
    values, metadata = sparse_semi_structured_from_dense_cutlass(torch.from_numpy(a))
    rows = tilelang_language.dynamic("m") if symbolic else M
    program = from_tilelang(product(tilelang_language, rows))
    given = {"A": values.numpy(), "E": metadata.numpy(), "B": b}
    found = execute(program, given).tensors
    np.testing.assert_allclose(found["C"], a.astype(float) @ b.astype(float), atol=1e-4)
    assert np.array_equal(found["E"], given["E"])  # as it lay in memory


def test_metadata_in_the_order_of_hoppers_compressor(tilelang_language, operands) -> None:
    """CUTLASS, sm90_sparse_config.inl: atoms of 64 rows, and the order of their dimensions."""
    a, b = operands
    values, metadata = compressed(a)
    i, k = np.indices(metadata.shape)
    strides = ((i % 8) * 8, (i // 8 % 2) * 2, (i // 16 % 4) * 128, i // 64 * 512)
    place = sum(strides) + k % 2 + (k // 2 % 2) * 64 + (k // 4 % 2) * 4 + k // 8 * (M * 8)
    lying = np.empty(metadata.size, "u1")
    lying[place] = metadata
    program = from_tilelang(product(tilelang_language, arch="9.0"))
    found = execute(program, {"A": values, "E": lying.reshape(metadata.shape), "B": b}).tensors["C"]
    np.testing.assert_allclose(found, a.astype(float) @ b.astype(float), atol=1e-4)


def test_a_layout_that_puts_two_elements_in_a_place_is_refused(tilelang_language, operands) -> None:
    a, b = operands
    values, metadata = compressed(a)

    def places(buffer):
        return tilelang_language.Layout(buffer.shape, lambda i, k: (i // 2, k))

    program = from_tilelang(product(tilelang_language, arch="9.0", places=places))
    with pytest.raises(NumericsError, match=r"layout of E .*two elements would share a place"):
        execute(program, {"A": values, "E": metadata, "B": b})


@pytest.mark.parametrize("symbolic", [False, True])
def test_layouts_survive_the_way_out_and_in(tilelang_language, symbolic) -> None:
    rows = tilelang_language.dynamic("m") if symbolic else M
    program = from_tilelang(product(tilelang_language, rows))
    back = from_prim_func(prim_func(source(program), program.name))
    # TVM folds an index once more each time it meets it, until nothing is left: the places stay.
    shapes = {"E": (M, K // 16), "E_s": (128, 4)}
    places, again = (places_in_memory(p, shapes, {"m": M}) for p in (program, back))
    assert places.keys() == again.keys() == shapes.keys()
    assert all(np.array_equal(places[name], again[name]) for name in shapes)
    assert canonical(from_prim_func(prim_func(source(back), back.name))) == canonical(back)
