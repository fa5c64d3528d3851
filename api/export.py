"""An operator or a kernel file as TileLang source, CUDA C++ or machine code."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from foretile import hwmodels
from foretile.frontdoor import ChipRef, Op, resolve
from foretile.kernels import language as T
from foretile.kernels.cuda.nvcc import Resources, compile_kernel
from foretile.kernels.cuda.recipe import LaunchRecipe, TensorArg
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Config, Operator, OperatorError, Shape
from foretile.kernels.tilelang.compiler import Compiler, PassConfigs, flags, switches
from foretile.kernels.tilelang.export import source as tilelang_source

Target = Literal["tilelang", "cuda", "cubin"]


@dataclass(frozen=True, slots=True)
class Exported:
    """One launch as CUDA C++ and, of a cubin, as machine code, with how it is launched."""

    program: TileProgram
    arch: str
    source: str
    recipe: LaunchRecipe
    cubin: bytes = b""
    resources: Resources | None = None


@dataclass(frozen=True, slots=True)
class Traced:
    """The programs to export, launched in order, and where they come from.

    ``sizes``: values of the dimensions that stay symbolic. ``workspace``: tensors that are neither operands
    nor results.
    """

    name: str
    doc: str
    shape: Mapping[str, Any]
    config: Mapping[str, Any]
    programs: tuple[TileProgram, ...]
    sizes: Mapping[str, int]
    workspace: frozenset[str]


def traced(
    op: Op,
    shape: Mapping[str, Any],
    *,
    config: Mapping[str, Any] | None = None,
    chip: ChipRef | None = None,
    dynamic: Sequence[str] = (),
) -> Traced:
    """The programs of an operator or kernel file.

    ``config`` is completed by the best one for ``chip``, or without it by the most promising one.
    ``dynamic`` names parameters of ``shape`` that stay symbolic.

    Raises:
        OperatorError, TraceError, SimulationError: a wrong name, parameter or configuration.
    """
    operator, full = resolve(op, shape, chip=hwmodels.load_chip(chip) if chip is not None else None)
    symbolic = {name: _symbolic(operator, name) for name in dynamic}
    settings = _settings(operator, full, config, chip)
    found = operator.program({**full, **symbolic}, settings)
    programs = (found,) if isinstance(found, TileProgram) else tuple(found)
    free = {v.name for p in programs for v in p.dims}
    return Traced(
        operator.name,
        operator.doc.strip().partition("\n")[0] if operator.params else "",
        full,
        settings,
        programs,
        {name: int(full[name]) for name in free},
        _workspace(operator, full, programs) if operator.params and len(programs) > 1 else frozenset(),
    )


def _symbolic(operator: Operator, name: str) -> Any:
    parameter = operator.param(name) if operator.params else None
    if parameter is None or not parameter.dynamic:
        able = [p.name for p in operator.params if p.dynamic]
        raise OperatorError(
            f"{operator.name}: {name} cannot stay symbolic; {', '.join(able) or 'no parameter'} can"
        )
    return T.dynamic(name)


def _settings(
    operator: Operator, shape: Shape, config: Mapping[str, Any] | None, chip: ChipRef | None
) -> Config:
    if not operator.params:
        return {}
    if chip is None:
        return operator.config(shape, **(config or {}))
    from foretile.simulator.predictor import predict

    return dict(predict(operator, shape, hwmodels.load_chip(chip), dict(config) if config else None).config)


def _workspace(operator: Operator, shape: Shape, programs: tuple[TileProgram, ...]) -> frozenset[str]:
    """Tensors that only carry values from launch to launch; a small example tells what the others are."""
    kinds = {p.name: shape[p.name] for p in operator.params if p.kind != "int"}
    small = operator.shape(**{**operator.example, **kinds})
    inputs = operator.inputs(small, np.random.default_rng(0))
    return frozenset(b.name for p in programs for b in p.params) - {
        *inputs, *operator.reference(small, **inputs)
    }  # fmt: skip


def provenance(found: Traced) -> str:
    """What an exported file says of itself."""
    from foretile import __version__

    def words(values: Mapping[str, Any]) -> str:
        return " ".join(f"{k}={v}" for k, v in values.items())

    lines = [f"{found.name}: {found.doc}" if found.doc else found.name]
    lines += [f"Shape: {words(found.shape)}"] if found.shape else []
    lines += [f"Configuration: {words(found.config)}"] if found.config else []
    lines += [f"Launched in this order: {', '.join(p.name for p in found.programs)}."][
        : len(found.programs) - 1
    ]
    if found.workspace:
        lines.append(f"Workspace, zero before the first launch: {', '.join(sorted(found.workspace))}.")
    return "\n".join([*lines, f"Written by foretile {__version__}."])


def as_tilelang(found: Traced) -> str:
    """The programs as one Python file for TileLang.

    Raises:
        ExportError: TileLang has no words for something in them.
    """
    return tilelang_source(found.programs, provenance(found))


def as_cuda(
    found: Traced,
    arch: str,
    *,
    machine_code: bool = False,
    pass_configs: PassConfigs | None = None,
    compiler: Compiler | None = None,
    progress: Callable[[str], None] = lambda doing: None,
) -> tuple[Exported, ...]:
    """Every launch through the installed TileLang to CUDA C++, with ``machine_code`` through nvcc too.

    Raises:
        ExportError, CompileError, NvccError: who refused which program, and why.
    """
    if compiler is None:
        with Compiler() as own:
            return as_cuda(
                found,
                arch,
                machine_code=machine_code,
                pass_configs=pass_configs,
                compiler=own,
                progress=progress,
            )
    made = []
    for program in found.programs:
        progress(f"TileLang compiles {program.name} for {arch}")
        generated = compiler.generate(program, arch, pass_configs)
        sizes = {v.name: found.sizes[v.name] for v in program.dims}
        one = Exported(program, arch, generated.source, _roles(generated.recipe(**sizes), found.workspace))
        if machine_code:
            progress(f"nvcc compiles {program.name} for {arch}")
            compiled = compile_kernel(
                generated.source, arch, flags=flags(switches(program, pass_configs or {}))
            )
            one = replace(one, cubin=compiled.cubin, resources=compiled.resources[generated.symbol])
        made.append(one)
    return tuple(made)


def _roles(recipe: LaunchRecipe, workspace: frozenset[str]) -> LaunchRecipe:
    def told(arg: Any) -> Any:
        return replace(arg, role="scratch") if isinstance(arg, TensorArg) and arg.name in workspace else arg

    return replace(recipe, args=tuple(map(told, recipe.args)), unbound=tuple(map(told, recipe.unbound)))


def launches_json(found: Sequence[Exported], files: Sequence[Path]) -> list[dict[str, Any]]:
    """How the launches go, one a file, as plain data."""
    listed = []
    for i, one in enumerate(found):
        entry: dict[str, Any] = {"kernel": one.program.name, "arch": one.arch, "launch": one.recipe.to_json()}
        if files:
            entry["file"] = files[i].name
        if one.resources is not None:
            entry["resources"] = {
                "registers": one.resources.registers,
                "spill_store_bytes": one.resources.spill_store_bytes,
                "spill_load_bytes": one.resources.spill_load_bytes,
                "static_shared_bytes": one.resources.static_shared_bytes,
            }
            digits = "".join(c for c in one.arch if c.isdigit())
            capability = (int(digits[:-1]), int(digits[-1]))
            entry["problems"] = one.recipe.problems(capability, one.resources.static_shared_bytes)
        listed.append(entry)
    return listed


def places(out: Path, found: Sequence[Exported]) -> list[Path]:
    """A file a launch: ``out``, or with the kernel's name in it where there are several."""
    if len(found) == 1:
        return [out]
    return [out.with_name(f"{out.stem}.{one.program.name}{out.suffix}") for one in found]


def written(out: Path, found: Sequence[Exported]) -> dict[Path, str | bytes]:
    """The files of an export: machine code or source, and beside it how it is launched."""
    files = places(out, found)
    contents: dict[Path, str | bytes] = {
        file: one.cubin or one.source for file, one in zip(files, found, strict=True)
    }
    launches = launches_json(found, files)
    return {**contents, out.with_suffix(".json"): json.dumps({"launches": launches}, indent=2) + "\n"}
