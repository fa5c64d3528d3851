"""Mixture of experts, where rows go: the gate of every token, its rows, and the experts of tiles of rows."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Config, Shape
from foretile.kernels.operators._moe import choose_experts

_GATE_THREADS = 256
_BLOCKS_AHEAD = 16  # blocks of the gate whose counts are summed in one step
_TABLE_TILES = 16  # tiles of rows whose expert is looked up in one step


def gate_tokens(shape: Shape, config: Config) -> TileProgram:
    """One block ``block_t`` tokens: their experts and weights, and how many of them each expert gets.

    A token's rank among the block's tokens of its expert is a running count over the one-hot choices;
    the counts of all blocks meet in ``Count`` by atomic addition.
    """
    tokens, experts, topk, block_t = shape["tokens"], shape["experts"], shape["topk"], config["block_t"]

    @T.prim_func
    def moe_gate(
        Logits: T.Tensor((tokens, experts), "float32"),
        Bias: T.Tensor((experts,), "float32"),
        Indices: T.Tensor((tokens, topk), "int32"),
        Weights: T.Tensor((tokens, topk), "float32"),
        Rank: T.Tensor((tokens, topk), "int32"),
        BlockCount: T.Tensor((T.ceildiv(tokens, block_t), experts), "int32"),
        Count: T.Tensor((experts,), "int32"),
    ) -> None:
        with T.Kernel(T.ceildiv(tokens, block_t), threads=_GATE_THREADS) as bx:
            running = T.alloc_shared((block_t, experts), "int32")
            rank = T.alloc_fragment((block_t, topk), "int32")
            t0 = bx * block_t
            index, weight, choice = choose_experts(Logits, Bias, t0, block_t, topk, 1, 1)
            for i, e in T.Parallel(block_t, experts):  # scores are above −1: what is far below was chosen
                running[i, e] = T.if_then_else((choice[i, e] < -2.0 and t0 + i < tokens), 1, 0)
            T.cumsum(running, dim=0)
            for i, j in T.Parallel(block_t, topk):
                rank[i, j] = running[i, index[i, j]] - 1
            T.copy(index, Indices[t0, 0])
            T.copy(weight, Weights[t0, 0])
            T.copy(rank, Rank[t0, 0])
            T.copy(running[block_t - 1, 0:experts], BlockCount[bx, 0:experts])
            T.atomic_add(Count[0:experts], running[block_t - 1, 0:experts])

    traced: TileProgram = moe_gate
    return traced


def place_rows(shape: Shape, config: Config) -> TileProgram:
    """One block ``block_t`` tokens: their rows; and its share of the tables of experts by tile.

    An expert's rows begin at the padded counts of those before it; within, at the counts of the blocks
    before this one.
    """
    tokens, experts, topk, block_t = shape["tokens"], shape["experts"], shape["topk"], config["block_t"]
    align, rows = shape["align"], shape["rows"]
    tiles, blocks = rows // align, T.ceildiv(tokens, block_t)

    @T.prim_func
    def moe_place(
        Indices: T.Tensor((tokens, topk), "int32"),
        Rank: T.Tensor((tokens, topk), "int32"),
        BlockCount: T.Tensor((blocks, experts), "int32"),
        Count: T.Tensor((experts,), "int32"),
        Rows: T.Tensor((tokens, topk), "int32"),
        TileExpert: T.Tensor((tiles,), "int32"),
        TileRows: T.Tensor((tiles,), "int32"),
    ) -> None:
        with T.Kernel(blocks, threads=_GATE_THREADS) as bx:
            count = T.alloc_shared((experts,), "int32")
            end = T.alloc_shared((experts,), "int32")  # first row behind the expert's padded ones
            start = T.alloc_shared((experts,), "int32")  # first row of this block's tokens
            part = T.alloc_shared((_BLOCKS_AHEAD, experts), "int32")
            earlier = T.alloc_fragment((_BLOCKS_AHEAD, experts), "int32")
            before = T.alloc_fragment((experts,), "int32")
            index = T.alloc_shared((block_t, topk), "int32")
            row = T.alloc_fragment((block_t, topk), "int32")
            passed = T.alloc_fragment((_TABLE_TILES, experts), "int32")
            filled = T.alloc_fragment((_TABLE_TILES, experts), "int32")
            tile_expert = T.alloc_fragment((_TABLE_TILES,), "int32")
            tile_rows = T.alloc_fragment((_TABLE_TILES,), "int32")

            T.copy(Count, count)
            for e in T.Parallel(experts):
                end[e] = T.ceildiv(count[e], align) * align
            T.cumsum(end, dim=0)

            T.clear(before)
            for b in T.Pipelined(T.ceildiv(bx, _BLOCKS_AHEAD), num_stages=2):
                T.copy(BlockCount[b * _BLOCKS_AHEAD, 0], part)
                for i, e in T.Parallel(_BLOCKS_AHEAD, experts):
                    earlier[i, e] = T.if_then_else(b * _BLOCKS_AHEAD + i < bx, part[i, e], 0)
                T.reduce_sum(earlier, before, dim=0, clear=False)
            for e in T.Parallel(experts):
                start[e] = end[e] - T.ceildiv(count[e], align) * align + before[e]
            T.copy(Indices[bx * block_t, 0], index)
            T.copy(Rank[bx * block_t, 0], row)
            for i, j in T.Parallel(block_t, topk):
                row[i, j] = start[index[i, j]] + row[i, j]
            T.copy(row, Rows[bx * block_t, 0])

            for s in T.serial(T.ceildiv(tiles, blocks * _TABLE_TILES)):
                tile0 = (s * blocks + bx) * _TABLE_TILES
                for i, e in T.Parallel(_TABLE_TILES, experts):
                    # Rows of the expert in front of the tile's end, as many as the tile can hold.
                    first = end[e] - T.ceildiv(count[e], align) * align
                    passed[i, e] = T.if_then_else(end[e] <= (tile0 + i) * align, 1, 0)
                    filled[i, e] = T.if_then_else(
                        (first <= (tile0 + i) * align and (tile0 + i) * align < end[e]),
                        T.min(first + count[e] - (tile0 + i) * align, align),
                        0,
                    )
                T.reduce_sum(passed, tile_expert, dim=1)
                T.reduce_sum(filled, tile_rows, dim=1)
                for i in T.Parallel(_TABLE_TILES):  # tiles behind the last expert's name it, and have no rows
                    tile_expert[i] = T.min(tile_expert[i], experts - 1)
                T.copy(tile_expert, TileExpert[tile0])
                T.copy(tile_rows, TileRows[tile0])

    traced: TileProgram = moe_place
    return traced
