"""Loads one file with TileLang kernels, in a process of its own, and answers with tile programs.

The request is JSON on standard input, the answer JSON in the file that the request names: what the
loaded file prints does not mix with it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any


def main() -> int:
    """Answer one request."""
    request = json.load(sys.stdin)
    answer = _answer(request)
    target = Path(request["answer"])
    part = target.with_suffix(".part")
    part.write_text(json.dumps(answer), encoding="utf-8")
    part.replace(target)
    return 0


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    from foretile.kernels.errors import TraceError

    try:
        return _load(request)
    except TraceError as error:
        loc = error.loc
        return {"error": error.reason, "file": loc.file if loc else "", "line": loc.line if loc else 0}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}


def _load(request: dict[str, Any]) -> dict[str, Any]:
    from foretile.kernels.load import REQUIRED, converted_arguments
    from foretile.kernels.tilelang import absent, probes, renames
    from foretile.kernels.tilelang import held as holding
    from foretile.kernels.tilelang.device import Device
    from foretile.kernels.tilelang.versions import require

    path = Path(request["path"])
    require(str(path))
    os.environ.setdefault("TILELANG_ENABLE_IR_SPAN", "1")
    device = Device.from_json(request["device"])
    probes.answer(device)
    renames.apply()
    target = probes.target_of(device)
    with holding.capture(), target, absent.stand_ins():
        module = _module(path)
        found = _named(module, path, request["name"])
        if request["what"] == "parameters":
            signature = holding.signature_of(found)
            parameters = signature.parameters.values() if signature is not None else ()
            shown = {p.name: None if p.default is REQUIRED else repr(p.default) for p in parameters}
            return {"parameters": shown, "files": _files(path)}
        arguments = request["arguments"]
        signature = holding.signature_of(found)
        if signature is not None:
            spec = f"{path}:{request['name']}"
            arguments = converted_arguments(spec, signature, arguments, others=True)
        programs = holding.from_tilelang(found, **arguments)
    several = programs if isinstance(programs, tuple) else (programs,)
    return {"programs": [p.to_json() for p in several], "files": _files(path)}


def _module(path: Path) -> Any:
    from foretile.kernels.tilelang.messages import trace_error

    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    sys.argv = [str(path)]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except SystemExit:
        pass  # a script that ends itself has been read
    except Exception as error:
        raise trace_error(error) from error
    return module


def _named(module: Any, path: Path, name: str) -> Any:
    import difflib
    import inspect

    from foretile.kernels.errors import TraceError
    from foretile.kernels.tilelang.held import is_held

    found = getattr(module, name, None)
    if found is not None and (is_held(found) or callable(found)):
        return found
    local = [
        k
        for k, v in vars(module).items()
        if is_held(v) or (inspect.isfunction(v) and v.__module__ == module.__name__)
    ]
    near = difflib.get_close_matches(name, local, n=3)
    hint = f"did you mean {', '.join(near)}?" if near else f"it has: {', '.join(local) or 'none'}"
    raise TraceError(f"{path} has no kernel or function {name!r}; {hint}")


def _files(path: Path) -> list[str]:
    """The author's files that were loaded: the answer holds as long as they stay as they are."""
    folder = path.resolve().parent
    found = {str(path.resolve())}
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        # Modules that are made at run time (torch._classes) name files that are none.
        if file and Path(file).is_file() and Path(file).resolve().is_relative_to(folder):
            found.add(str(Path(file).resolve()))
    return sorted(found)


if __name__ == "__main__":
    sys.exit(main())
