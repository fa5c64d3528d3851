"""Every misuse fails while tracing, at the kernel's own line, and says what would be right."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

from foretile.kernels import language as T
from foretile.kernels.errors import TraceError

# Each case: a kernel's body with the offending line marked `# <-`, and what the message says.
CASES: dict[str, tuple[str, str]] = {
    "gemm shapes": (
        """
        a = T.alloc_shared((64, 32), "float16")
        b = T.alloc_shared((64, 64), "float16")
        o = T.alloc_fragment((64, 64), "float32")
        T.gemm(a, b, o, transpose_A=True)  # <-
        """,
        r"a \(64, 32\) transposed @ b \(64, 64\) -> o \(64, 64\) \(transpose_A=True, transpose_B=False\)"
        r".*\(K, M\) @ \(K, N\) -> \(M, N\)",
    ),
    "gemm of a tensor": (
        """
        o = T.alloc_fragment((64, 64), "float32")
        T.gemm(A, A, o)  # <-
        """,
        "A of T.gemm is the global buffer A; copy it to a shared or fragment tile first",
    ),
    "gemm into shared": (
        """
        a = T.alloc_shared((32, 32), "float16")
        T.gemm(a, a, a)  # <-
        """,
        "C of T.gemm must be a fragment .*, a is in scope shared",
    ),
    "gemm of a vector": (
        """
        a = T.alloc_shared((32,), "float16")
        T.gemm(a, a, a)  # <-
        """,
        r"A of T.gemm must be a matrix, a is \(32,\)",
    ),
    "gemm of an element": (
        """
        a = T.alloc_shared((32, 32), "float16")
        T.gemm(a[0, 0], a, a)  # <-
        """,
        "A of T.gemm is one element of a; give the buffer or a slice",
    ),
    "gemm policy": (
        """
        a = T.alloc_fragment((32, 32), "float16")
        T.gemm(a, a, a, policy="rows")  # <-
        """,
        "policy 'rows' of T.gemm; use T.GemmWarpPolicy.Square, FullRow or FullCol",
    ),
    "copy extents": (
        """
        a = T.alloc_shared((64, 16), "float32")
        T.copy(A, a)  # <-
        """,
        r"T.copy with different extents: A \(64, 32\) and a \(64, 16\)",
    ),
    "copy of a number": (
        """
        a = T.alloc_shared((64, 16), "float32")
        T.copy(3, a)  # <-
        """,
        "source of T.copy must be a buffer, buffer.* got 3",
    ),
    "copy rank": (
        """
        a = T.alloc_shared((2, 4, 8, 4), "float32")
        T.copy(a, A[0, 0])  # <-
        """,
        "have more dimensions than A",
    ),
    "rank of an index": ("A[bx] = 0  # <-", r"A has 2 dimensions \(64, 32\) but is indexed with 1"),
    "rank of a read": ("A[0, 0] = A[0, 0, 0]  # <-", "A has 2 dimensions .* but is indexed with 3"),
    "index out of bounds": (
        """
        a = T.alloc_fragment((8,), "float32")
        a[8] = 0  # <-
        """,
        r"index 8 is out of bounds for dimension 0 of a\(8,\); valid are 0 to 7",
    ),
    "slice out of bounds": (
        """
        a = T.alloc_fragment((8,), "float32")
        T.clear(a[4:12])  # <-
        """,
        r"slice 4:12 is out of bounds for dimension 0 of a\(8,\)",
    ),
    "empty slice": ("T.fill(A[4:4, :], 0)  # <-", "slice 4:4 of dimension 0 of A is empty"),
    "strided slice": ("T.fill(A[0:4:2, :], 0)  # <-", "slice step 2 of A: only contiguous slices"),
    "store of a slice": ("A[0:2, 0] = 1  # <-", "stores one element; for a slice use T.copy or T.fill"),
    "store of a buffer": ("A[0, 0] = A  # <-", "a whole buffer cannot be stored to one element of A"),
    "float index": ("A[1.5, 0] = 1  # <-", "index 0 of A must be a whole number, got float32 1.5"),
    "unknown dtype": (
        'a = T.alloc_shared((8,), "bloat16")  # <-',
        "unknown dtype 'bloat16'; did you mean bfloat16",
    ),
    "unknown name": ("T.redcue_max(A, A)  # <-", r"T.redcue_max is not part .* did you mean T.reduce_max"),
    "refused name": ("T.ptx_mma(0)  # <-", "T.ptx_mma is refused: it is not traced here"),
    "symbolic shape": (
        'a = T.alloc_shared((bx, 8), "float32")  # <-',
        "T.alloc_shared with the symbolic extent bx; on-chip shapes must be constants",
    ),
    "zero shape": (
        'a = T.alloc_shared((0, 8), "float32")  # <-',
        "extent 0 must be a whole number of at least 1",
    ),
    "second kernel": (
        """
        with T.Kernel(4) as by:  # <-
            A[by, 0] = 0
        """,
        "a second T.Kernel block; a tile program has exactly one",
    ),
    "assigning the block index": ("bx = 3  # <-", "`bx` is a block index and cannot be assigned"),
    "changing the block index": ("bx += 1  # <-", "`bx` is a block index and cannot be assigned"),
    "assigning a loop index": (
        """
        for i in T.serial(4):
            i = i + 1  # <-
        """,
        "`i` is a loop index and cannot be assigned",
    ),
    "negative stages": (
        """
        for k in T.Pipelined(4, num_stages=-1):  # <-
            A[k, 0] = 0
        """,
        "num_stages=-1 of T.Pipelined must be a whole number of at least 0",
    ),
    "negative extent": (
        """
        for k in T.Parallel(-4):  # <-
            A[k, 0] = 0
        """,
        "T.Parallel with the negative extent -4",
    ),
    "loop without extent": (
        """
        for k in T.Parallel():  # <-
            A[k, 0] = 0
        """,
        "T.Parallel needs at least one extent",
    ),
    "zero step": (
        """
        for k in T.serial(0, 4, 0):  # <-
            A[k, 0] = 0
        """,
        "the step of T.serial must be a constant other than 0",
    ),
    "too many loop names": (
        """
        for i, j in T.Parallel(4):  # <-
            A[i, j] = 0
        """,
        r"T.Parallel\(4,\) gives 1 index, but the loop names 2: i, j",
    ),
    "unpacking a value": ("i, j = bx  # <-", "TypeError"),
    "reduce shape": (
        """
        a = T.alloc_fragment((8, 4), "float32")
        b = T.alloc_fragment((8,), "float32")
        T.reduce_sum(a, b, dim=0)  # <-
        """,
        r"T.reduce_sum of a \(8, 4\) along dim 0 gives \(4,\) or \(1, 4\), but b is \(8,\)",
    ),
    "reduce dim": (
        """
        a = T.alloc_fragment((8, 4), "float32")
        T.reduce_max(a, a, dim=2)  # <-
        """,
        "dim=2 of T.reduce_max: a has 2 dimensions; valid are -2 to 1",
    ),
    "cumsum shape": (
        """
        a = T.alloc_fragment((8, 4), "float32")
        b = T.alloc_fragment((8,), "float32")
        T.cumsum(a, b)  # <-
        """,
        r"T.cumsum of a \(8, 4\) into b \(8,\); the shapes must be equal",
    ),
    "integer division": ("A[0, 0] = bx / 2  # <-", "`/` of two integers is ambiguous; use `//`"),
    "division by zero": ("A[0, 0] = bx // 0  # <-", "division by zero"),
    "adding a text": ("A[0, 0] = bx + 'a'  # <-", "expected a number or a value of the kernel, got 'a'"),
    "atomic on a fragment": (
        """
        a = T.alloc_fragment((8,), "float32")
        T.atomic_add(a[0], 1)  # <-
        """,
        "T.atomic_add on a in scope fragment; only global and shared memory have atomics",
    ),
    "atomic result under a name": (
        """
        s = T.alloc_shared((8,), "int32")
        x = T.atomic_add(s[0], 1, return_prev=True)  # <-
        """,
        "`x` stands for what an atomic update finds; keep it in a variable",
    ),
    "atomic result in a tensor": (
        """
        s = T.alloc_shared((8,), "int32")
        A[0, 0] = T.atomic_add(s[0], 1, return_prev=True)  # <-
        """,
        "what T.atomic_add finds is kept on chip",
    ),
    "bits of another width": ("A[0, 0] = T.reinterpret(A[0, 1], 'int16')  # <-", "equally many bits"),
    "blocks of a core": ("T.annotate_min_blocks_per_sm(0)  # <-", "a whole number of at least 1"),
    "return under a condition": (
        """
        if bx > 2:  # <-
            return
        """,
        "`return` under a symbolic condition",
    ),
    "return out of a traced loop": (
        """
        for i in T.serial(4):
            return  # <-
        """,
        "`return` out of a traced loop",
    ),
    "name carried by a loop": (
        """
        total = 0.0
        for i in T.serial(4):
            total = total + A[i, 0]  # <-
        """,
        r"`total` is carried from one iteration to the next.*total = T.alloc_var\(dtype",
    ),
    "name from a loop": (
        """
        for i in T.serial(4):
            last = i * 2
        A[last, 0] = 0  # <-
        """,
        "`last` was assigned inside a loop and has no single value after it",
    ),
    "index after its loop": (
        """
        for i in T.serial(4):
            A[i, 0] = 0
        A[i, 0] = 1  # <-
        """,
        "`i` was assigned inside a loop",
    ),
    "name from a branch": (
        """
        x = 1
        if bx > 2:
            x = 2
        A[0, 0] = x  # <-
        """,
        "`x` was assigned under the symbolic condition of line .*T.if_then_else, or a variable",
    ),
    "name assigned too late": (
        """
        if bx > 2:
            A[0, 0] = y  # <-
            y = 2
        """,
        "this name is used before it is assigned",
    ),
    "stale read": (
        """
        x = A[0, 0]
        A[0, 0] = 1
        A[1, 0] = x  # <-
        """,
        r"`x` was read from A \(line \d+\), which is written before this use",
    ),
    "stale read in a loop": (
        """
        x = A[0, 0]
        for i in T.serial(4):
            A[i, 1] = x + 1  # <-
        """,
        "`x` was read from A .* which is written here, later in the same loop",
    ),
    "user's own error": ("A[0, 0] = undefined_name  # <-", "NameError: name 'undefined_name' is not defined"),
    "user's type error": ("T.copy(A)  # <-", r"TypeError: copy\(\) missing 1 required positional argument"),
    "persistent index": (
        """
        for i, j in T.Persistent([4, 4], 4, bx + 1):  # <-
            A[i, j] = 0
        """,
        "T.Persistent needs the block index of a one-axis grid",
    ),
    "persistent wave": (
        """
        for i, j in T.Persistent([4, 4], 5, bx):  # <-
            A[i, j] = 0
        """,
        "wave_size 5 of T.Persistent is not the grid's extent 4",
    ),
    "swizzle": (
        "T.use_swizzle(0)  # <-",
        "panel_size=0 of T.use_swizzle must be a whole number",
    ),
    "layout": ('T.annotate_layout({A: "mine"})  # <-', "layout 'mine' of T.annotate_layout is not known"),
    "number needed": ("range(bx)  # <-", "a whole number is needed here at trace time"),
    "float needed": ("float(bx)  # <-", "a number is needed here at trace time"),
    "infinite integer": ('T.infinity("int32")  # <-', r"int32 has no infinity; use T.max_value\('int32'\)"),
    "nested kernels": (
        """
        @T.prim_func  # <-
        def inner(B: T.Tensor((4,), "float32")):
            pass
        """,
        "kernels cannot be nested; use @T.macro",
    ),
}


def _write(tmp_path, source: str) -> tuple[str, int]:
    path = tmp_path / "kernel.py"
    path.write_text(source)
    lines = [i for i, line in enumerate(source.splitlines(), 1) if "# <-" in line]
    return str(path), lines[0]


def _run(path: str) -> None:
    source = Path(path).read_text()
    exec(compile(source, path, "exec", dont_inherit=True), {"T": T, "__name__": "kernel"})


@pytest.mark.parametrize("case", list(CASES))
def test_misuse_names_the_line_and_the_remedy(case, tmp_path):
    body, message = CASES[case]
    source = (
        '@T.prim_func\ndef main(A: T.Tensor((64, 32), "float32")):\n    with T.Kernel(4) as bx:\n'
        + textwrap.indent(textwrap.dedent(body).strip() + "\n", " " * 8)
    )
    path, line = _write(tmp_path, source)
    with pytest.raises(TraceError) as caught:
        _run(path)
    assert str(caught.value).startswith(f"{path}:{line}: "), str(caught.value)
    assert re.search(message, str(caught.value), re.DOTALL), str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert caught.value.loc is not None
    assert caught.value.loc.line == line


WHOLE: dict[str, tuple[str, str]] = {
    "no kernel": (
        """
        @T.prim_func  # <-
        def main(A: T.Tensor((4,), "float32")):
            pass
        """,
        "main has no `with T.Kernel",
    ),
    "statement outside": (
        """
        @T.prim_func
        def main(A: T.Tensor((4,), "float32")):
            A[0] = 1  # <-
        """,
        "Store statement outside T.Kernel; put it inside",
    ),
    "statement after": (
        """
        @T.prim_func
        def main(A: T.Tensor((4,), "float32")):
            with T.Kernel(1):
                A[0] = 1
            A[0] = 1  # <-
        """,
        "Store statement after the T.Kernel block has ended",
    ),
    "allocation outside": (
        """
        @T.prim_func
        def main(A: T.Tensor((4,), "float32")):
            a = T.alloc_shared((4,), "float32")  # <-
        """,
        "T.alloc_shared outside T.Kernel",
    ),
    "operation without a trace": ('T.alloc_shared((4,), "float32")  # <-', "outside a @T.prim_func"),
    "loop outside": (
        """
        @T.prim_func
        def main(A: T.Tensor((4,), "float32")):
            for i in T.serial(4):  # <-
                A[i] = 0
        """,
        "loop T.serial outside T.Kernel",
    ),
    "four axes": (
        """
        @T.prim_func
        def main(A: T.Tensor((4,), "float32")):
            with T.Kernel(1, 2, 3, 4):  # <-
                A[0] = 1
        """,
        "T.Kernel takes 1 to 3 grid axes, got 4",
    ),
    "threads": (
        """
        @T.prim_func
        def main(A: T.Tensor((4,), "float32")):
            with T.Kernel(1, threads=100):  # <-
                A[0] = 1
        """,
        "threads=100 of T.Kernel must be a positive multiple of 32",
    ),
    "empty grid": (
        """
        @T.prim_func
        def main(A: T.Tensor((4,), "float32")):
            with T.Kernel(0):  # <-
                A[0] = 1
        """,
        "grid extent 0 of T.Kernel must be at least 1",
    ),
    "names of axes": (
        """
        @T.prim_func
        def main(A: T.Tensor((4,), "float32")):
            with T.Kernel(1, 2) as (bx, by, bz):  # <-
                A[0] = 1
        """,
        "T.Kernel has 2 grid axes, but its `as` clause names 3: bx, by, bz",
    ),
    "no annotation": (
        """
        @T.prim_func  # <-
        def main(A):
            pass
        """,
        "parameter `A` of main has no annotation; declare it A: T.Tensor",
    ),
    "scalar parameter": (
        """
        @T.prim_func  # <-
        def main(n: int):
            pass
        """,
        "parameter `n` of main has the annotation .*int.*; declare it n: T.Tensor",
    ),
    "tensor extent": (
        """
        @T.prim_func
        def main(A: T.Tensor((0,), "float32")):  # <-
            pass
        """,
        "tensor extent 0 must be at least 1",
    ),
    "dimension and parameter": (
        """
        A_ = T.dynamic("A")
        @T.prim_func  # <-
        def main(A: T.Tensor((A_,), "float32")):
            pass
        """,
        "`A` names both a parameter and a symbolic dimension",
    ),
    "symbolic if in a plain helper": (
        """
        def helper(A, i):
            if i > 2:
                A[0] = 1
        @T.prim_func
        def main(A: T.Tensor((4,), "float32")):
            with T.Kernel(4) as bx:
                helper(A, bx)  # <-
        """,
        r"a symbolic value has no truth at trace time.*T.if_then_else.*\(at .*kernel.py:2\)",
    ),
    "wrong annotation text": (
        """
        from __future__ import annotations
        @T.prim_func  # <-
        def main(A: T.Tensor((missing,), "float32")):
            pass
        """,
        "annotation .* of parameter `A`: NameError: name 'missing' is not defined",
    ),
    "index of a closed loop from a helper": (
        """
        def helper():
            for i in T.serial(4):
                pass
            return i
        @T.prim_func
        def main(A: T.Tensor((4,), "float32")):
            with T.Kernel(4) as bx:
                A[helper()] = 1  # <-
        """,
        "loop variable `i` is used outside its loop",
    ),
    "symbolic dimension's name": ('T.dynamic("a-b")  # <-', "'a-b' cannot name a symbolic dimension"),
    "async": (
        """
        @T.prim_func
        async def main(A: T.Tensor((4,), "float32")):  # <-
            pass
        """,
        "main is async",
    ),
}


@pytest.mark.parametrize("case", list(WHOLE))
def test_misuse_of_the_frame(case, tmp_path):
    text, message = WHOLE[case]
    path, line = _write(tmp_path, textwrap.dedent(text).strip() + "\n")
    with pytest.raises(TraceError) as caught:
        _run(path)
    assert re.match(re.escape(f"{path}:{line}: "), str(caught.value)), str(caught.value)
    assert re.search(message, str(caught.value), re.DOTALL), str(caught.value)


def test_a_users_exception_is_chained():
    with pytest.raises(TraceError, match="ZeroDivisionError: ") as caught:

        @T.prim_func
        def main(A: T.Tensor((4,), "float32")):
            with T.Kernel(1):
                A[0] = 1 // 0

    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert caught.value.loc is not None
    assert caught.value.loc.file == __file__


def test_source_that_is_not_available():
    text = '@T.prim_func\ndef main(A: T.Tensor((4,), "float32")):\n    pass\n'
    with pytest.raises(TraceError, match=r"the source of main is not available .*from_script"):
        exec(text, {"T": T})


def test_source_that_has_changed(tmp_path):
    path = tmp_path / "kernel.py"
    kernel = 'def main(A: T.Tensor((4,), "float32")):'
    text = f"def factory():\n    @T.prim_func\n    {kernel}\n        pass\n    return main\n"
    path.write_text(text)
    scope: dict[str, Any] = {"T": T}
    exec(compile(text, str(path), "exec"), scope)
    path.write_text("# moved\n" + text)
    with pytest.raises(TraceError, match="has it changed since import"):
        scope["factory"]()


def test_a_buffer_of_another_kernel():
    kept = []

    @T.prim_func
    def first(A: T.Tensor((4,), "float32")):
        with T.Kernel(1):
            kept.append(A)
            T.clear(A)

    with pytest.raises(TraceError, match="A belongs to another kernel"):

        @T.prim_func
        def second(B: T.Tensor((4,), "float32")):
            with T.Kernel(1):
                T.clear(kept[0])
