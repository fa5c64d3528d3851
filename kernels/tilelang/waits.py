"""The end of a pipeline without bulk copies, as TileLang's code generator takes it.

Runs where TileLang is. After a pipelined loop the copies that are still in flight are waited for in a loop of
its own, each iteration for fewer of them: ``for k in T.unroll(2): T.ptx_wait_group(3 - k * 2)``. Where the
pipelined loop has a constant number of iterations TileLang 0.1.15 writes that loop out; where it has not,
the loop stays although its own count is constant, and the code generator refuses the wait ("Downcast from
tirx.Sub to ir.IntImm failed"). Here these loops are written out as well.
"""

from __future__ import annotations

import importlib
from typing import Any


def write_out_waits_before_code() -> None:
    """Have every later compilation write such loops out, just before device code is generated."""
    from tilelang import tvm

    engine = importlib.import_module("tilelang.engine.lower")  # whose name in its package is a function
    prepare = engine._prepare_device_codegen_mod

    def prepared(module: Any) -> Any:
        return waits_written_out(prepare(module), tvm)

    engine._prepare_device_codegen_mod = prepared  # type: ignore[attr-defined]


def waits_written_out(module: Any, tvm: Any) -> Any:
    """A TVM module whose unrolled loops over waits that depend on the iteration are written out."""
    tirx = tvm.tirx
    wait = tvm.ir.Op.get("tirx.ptx_wait_group")
    analyzer = tvm.arith.Analyzer()
    found: list[Any] = []

    def depends(loop: Any) -> bool:
        counted = []

        def look(node: Any) -> None:
            if isinstance(node, tirx.Call) and node.op.same_as(wait):
                counted.append(isinstance(node.args[0], tirx.IntImm))

        tirx.stmt_functor.post_order_visit(loop.body, look)
        return not all(counted)

    def written_out(loop: Any) -> Any:
        count = analyzer.simplify(loop.extent)
        if loop.kind != tirx.ForKind.UNROLLED or not isinstance(count, tirx.IntImm) or not depends(loop):
            return None
        found.append(loop)
        bodies = [
            tirx.stmt_functor.substitute(loop.body, {loop.loop_var: analyzer.simplify(loop.min + i)})
            for i in range(int(count))
        ]
        return tirx.SeqStmt(bodies) if len(bodies) > 1 else bodies[0]

    def function(f: Any, *_: Any) -> Any:
        return f.with_body(tirx.stmt_functor.ir_transform(f.body, None, written_out, ["tirx.For"]))

    whole = tirx.transform.prim_func_pass(function, opt_level=0, name="foretile.WaitsWrittenOut")
    unrolled = whole(module)
    if not found:
        return module
    distinct = tirx.transform.ConvertSSA()(unrolled)  # copies of a body share its variables
    return tirx.transform.Simplify()(distinct)
