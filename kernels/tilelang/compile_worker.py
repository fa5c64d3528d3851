"""The process in which TileLang runs: one request a line on standard input, one answer a line on its output.

``python -m foretile.kernels.tilelang.compile_worker``. TileLang takes seconds to import, prints, and cannot
be interrupted inside of a pass; a process of its own can be ended, and outlives one kernel.

A request is an object with ``source`` (the text of :func:`~foretile.kernels.tilelang.export.source`),
``name`` (which of its functions), ``stop`` (how far to go) and, beyond ``prim_func``, ``arch`` and
``pass_configs``. ``stop``: ``prim_func`` (the front end), ``layouts`` (the passes up to the inference of
layouts, which decide warp roles, pipelines and layouts), ``cuda`` (all of them, to device source).
An answer holds ``error``, or what :mod:`~foretile.kernels.tilelang.compiled` reads.
"""

from __future__ import annotations

import json
import linecache
import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

_LAYOUTS = "tl.LayoutInference"
_COUNTED = {
    "tma_load": "tl::tma_load",
    "tma_store": "tl::tma_store",
    "cp_async": "tl::cp_async",
    "wgmma": "tl::wgmma_",
    "mma_sync": "tl::mma_sync",
    "tcgen05": "tl::tcgen05mma",
}


def main() -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what TileLang prints is no answer
    import tilelang

    from foretile.kernels.tilelang.waits import write_out_waits_before_code

    write_out_waits_before_code()
    logging.disable(logging.CRITICAL)  # errors are answers here
    answers.write(json.dumps({"tilelang": str(tilelang.__version__)}) + "\n")
    answers.flush()
    for line in sys.stdin:
        request = json.loads(line)
        started = time.perf_counter()
        try:
            answer = _answer(request)
        except Exception as error:
            answer = {"error": _first_lines(error), "kind": type(error).__name__}
        answer["seconds"] = round(time.perf_counter() - started, 3)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def prim_func(source: str, name: str) -> Any:
    """TileLang's own ``PrimFunc`` for the function ``name`` of a source text.

    Raises:
        Exception: whatever TileLang's front end raises.
    """
    file = f"<tilelang {name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    namespace: dict[str, Any] = {"__name__": "exported_kernels"}
    exec(compile(source, file, "exec", dont_inherit=True), namespace)
    return namespace[name]


def _answer(request: Mapping[str, Any]) -> dict[str, Any]:
    function = prim_func(request["source"], request["name"])
    if request["stop"] == "prim_func":
        return {"script": function.script()}
    import tilelang
    from tilelang import tvm
    from tilelang.backend.target import determine_target

    seen: dict[str, Any] = {}
    only_layouts = request["stop"] == "layouts"

    class Capture:
        def run_after_pass(self, module: Any, info: Any) -> None:
            if info.name == _LAYOUTS:
                seen["layouts"] = module
                if only_layouts:
                    raise InterruptedError

    target = determine_target({"kind": "cuda", "arch": request["arch"]}, return_object=True)
    context = tvm.transform.PassContext(
        opt_level=3,
        config=dict(request.get("pass_configs") or {}),
        instruments=[tvm.instrument.pass_instrument(Capture)()],
    )
    try:
        with context, target:
            made = tilelang.lower(
                function,
                target=target,
                target_host="c",
                enable_host_codegen=False,
                enable_device_compile=False,
            )
    except Exception:
        # The interruption comes back through TVM as an error of its own.
        if not (only_layouts and "layouts" in seen):
            raise
    from foretile.kernels.tilelang.reading import read_launch, read_layouts

    answer: dict[str, Any] = {"layouts": read_layouts(seen["layouts"])}
    if not only_layouts:
        answer["source"] = str(made.kernel_source)
        answer["launch"] = read_launch(made, function)
        answer["instructions"] = {name: made.kernel_source.count(text) for name, text in _COUNTED.items()}
    return answer


def _first_lines(error: Exception, most: int = 6) -> str:
    """What an error says, without the stack of a C++ library."""
    lines = [line.rstrip() for line in str(error).splitlines() if line.strip()]
    kept = [line for line in lines if not line.lstrip().startswith(("File ", "Stack trace", "[bt]", "at "))]
    return "\n".join((kept or lines or [type(error).__name__])[-most:])


if __name__ == "__main__":
    main()
