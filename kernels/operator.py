"""What an operator is: a name, shape parameters, tile programs, a configuration space, exact counts.

An operator module (``kernels/operators/<name>.py``) ends in ``OPERATOR = Operator(...)``; being in
that folder is all it takes to be found, predicted, compared and documented.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import numpy as np

from foretile.kernels.dtypes import dtype
from foretile.kernels.ir import TileProgram

Shape = dict[str, Any]
Config = dict[str, Any]
Arrays = dict[str, np.ndarray]
ParamKind = Literal["int", "dtype", "bool"]


class OperatorError(ValueError):
    """A wrong operator name, shape parameter or configuration; the message says what is right."""


@dataclass(frozen=True)
class Param:
    """One shape parameter of an operator.

    ``dynamic`` parameters may be symbolic while a program is traced, so that one trace serves
    every value; the others are constants of the trace (they decide buffer shapes). ``default``
    is a value, or the name of the parameter it copies (``"=heads"``), or ``None`` if required.
    ``default_map`` replaces values on that copy: ``(("fp8", "bf16"),)`` with ``default="=dtype"``
    makes an fp8 operator write bf16 unless told otherwise.
    """

    name: str
    doc: str
    kind: ParamKind = "int"
    default: int | str | bool | None = None
    dynamic: bool = False
    minimum: int = 1
    choices: tuple[str, ...] = ()  # for kind "dtype": canonical short names, or names of scaled formats
    default_map: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Tolerance:
    """How far a tile program's results may be from the float64 reference, for every output.

    ``norm`` bounds ‖out − ref‖ / ‖ref‖ (Frobenius), ``peak`` max |out − ref| / max |ref|. An operator
    states what its roundings explain: zero for exact ones.
    """

    norm: float
    peak: float


def storage_tolerance(shape: Shape) -> Tolerance:
    """For operators whose error is that of rounding results to the type they are stored in.

    With unit roundoff u (half the spacing at one) a rounded result differs by at most u relative to
    itself; as much again is left for the float32 arithmetic before it. Operators that round
    intermediate results too (attention's weights) state more.
    """
    stored = dtype(str(shape.get("out_dtype", shape.get("dtype", "fp32"))))
    u = 2.0 ** -(1 + stored.mantissa_bits) if stored.kind == "float" else 0.0
    return Tolerance(norm=u, peak=2.0 * u)


@dataclass(frozen=True)
class Operator:
    """An operator kernel and everything that is exactly known about it.

    ``program(shape, config)`` traces one tile program, or a tuple of programs launched one after
    the other: tensors of equal name are the same tensor, those that are neither an input nor a
    key of the reference are workspace, zero before the first launch. ``configs(shape)`` lists the
    configuration space (plain dicts, most promising first); ``flops`` and ``min_bytes`` take the
    resolved shape (values may be NumPy arrays of equal length) and return exact counts: arithmetic
    operations of the mathematical function, and the bytes that must cross DRAM once.
    ``inputs(shape, rng)`` makes operands, ``reference(shape, **inputs)`` the float64 result.
    ``check(shape)`` raises :class:`OperatorError` for combinations that make no sense.
    ``tensors(shape)`` are the integer operands whose values decide trip counts (lengths, offsets),
    typical ones of the shape, for predictions. ``tolerance(shape)`` is what :func:`verify` holds the
    results to; ``adversarial`` names further ``inputs``-like functions that provoke an operator's
    special cases (ties, empty groups); ``comparable(shape, inputs, outputs)`` turns results of which
    several are right (indices of equal values, rows in any order) into arrays that can be compared.
    ``example`` is a small shape that divides no tile, for verification and documentation. ``toolchain``:
    who decides the schedule of its programs (:class:`~foretile.kernels.ir.TileProgram`); empty: they say.
    """

    name: str
    doc: str
    params: tuple[Param, ...]
    program: Callable[[Shape, Config], TileProgram | tuple[TileProgram, ...]]
    configs: Callable[[Shape], Sequence[Config]]
    flops: Callable[[Shape], Any]
    min_bytes: Callable[[Shape], Any]
    inputs: Callable[[Shape, np.random.Generator], dict[str, np.ndarray]]
    reference: Callable[..., dict[str, np.ndarray]]
    check: Callable[[Shape], None] = field(default=lambda shape: None)
    tensors: Callable[[Shape], Mapping[str, np.ndarray]] | None = None
    tolerance: Callable[[Shape], Tolerance] = storage_tolerance
    adversarial: Mapping[str, Callable[[Shape, np.random.Generator], Arrays]] = field(
        default_factory=dict, compare=False
    )
    example: Mapping[str, Any] = field(default_factory=dict, compare=False)
    comparable: Callable[[Shape, Arrays, Arrays], Arrays] = lambda shape, inputs, outputs: outputs
    compute_dtype: Callable[[Shape], str] = field(default=lambda shape: str(shape.get("dtype", "bf16")))
    toolchain: str = ""

    def param(self, name: str) -> Param:
        """The parameter called ``name``.

        Raises:
            OperatorError: there is none; the message names the nearest.
        """
        for p in self.params:
            if p.name == name:
                return p
        names = [p.name for p in self.params]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise OperatorError(f"{self.name} has no parameter {name!r}; {hint}it takes: {', '.join(names)}")

    def shape(self, **given: Any) -> Shape:
        """The full, checked shape: every parameter present, converted and in range.

        Raises:
            OperatorError: a name, type or value that is wrong, or a required one missing.
        """
        for name in given:
            self.param(name)
        resolved: Shape = {}
        for p in self.params:
            value = given.get(p.name)
            resolved[p.name] = p.default if value is None else self._convert(p, value)
            if resolved[p.name] is None:
                raise OperatorError(f"{self.name} needs {p.name} ({p.doc})")
        for p in self.params:
            value = resolved[p.name]
            if isinstance(value, str) and value.startswith("="):
                copied = resolved[value[1:]]
                resolved[p.name] = dict(p.default_map).get(copied, copied) if p.default_map else copied
        self.check(resolved)
        return resolved

    def _convert(self, p: Param, value: Any) -> Any:
        if p.kind == "dtype":
            if value in p.choices:  # fp8_block, nvfp4: an element type with a layout of scales
                return value
            try:
                short = dtype(str(value)).short
            except ValueError as error:
                raise OperatorError(f"{self.name}: {p.name}: {error}") from None
            if p.choices and short not in p.choices:
                raise OperatorError(f"{self.name}: {p.name}={short} is not one of {', '.join(p.choices)}")
            return short
        if p.kind == "bool":
            text = str(value).lower()
            if text in ("1", "true", "yes", "on"):
                return True
            if text in ("0", "false", "no", "off"):
                return False
            raise OperatorError(f"{self.name}: {p.name}={value!r} is not true or false")
        if isinstance(value, np.ndarray):
            if np.any(value < p.minimum):
                raise OperatorError(
                    f"{self.name}: {p.name} holds {value.min()}; at least {p.minimum} is needed"
                )
            return value
        try:
            number = int(value)
            exact = float(value) == number
        except (TypeError, ValueError, OverflowError):
            exact, number = False, 0
        if not exact or isinstance(value, bool):
            raise OperatorError(f"{self.name}: {p.name}={value!r} is not a whole number")
        if number < p.minimum:
            raise OperatorError(
                f"{self.name}: {p.name}={number} is too small; at least {p.minimum} is needed"
            )
        return number

    def config(self, shape: Shape, **given: Any) -> Config:
        """A member of the configuration space with ``given`` keys replaced, types converted.

        The first configuration that agrees with all given values is completed from; if none does,
        the space's first one lends the remaining keys.

        Raises:
            OperatorError: a key that no configuration of this operator has, or a value of the wrong type.
        """
        space = self.configs(shape)
        keys = {k: type(v) for c in space for k, v in c.items()}
        converted: Config = {}
        for name, value in given.items():
            if name not in keys:
                near = difflib.get_close_matches(name, keys, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise OperatorError(
                    f"{self.name} has no configuration key {name!r}; {hint}it takes: {', '.join(keys)}"
                )
            try:
                converted[name] = (
                    str(value).lower() in ("1", "true", "yes", "on")
                    if keys[name] is bool
                    else keys[name](value)
                )
            except (TypeError, ValueError):
                raise OperatorError(
                    f"{self.name}: configuration {name}={value!r} is not of type {keys[name].__name__}"
                ) from None
            zero_is_off = name == "num_stages" or any(c.get(name) == 0 for c in space)
            if keys[name] is int and converted[name] < (0 if zero_is_off else 1):
                raise OperatorError(f"{self.name}: configuration {name}={converted[name]} is too small")
        for candidate in space:
            if all(candidate.get(k) == v for k, v in converted.items()):
                return dict(candidate)
        return {**space[0], **converted}


def operator_names() -> tuple[str, ...]:
    """Names of all operators in the library, sorted; imports none of them."""
    import foretile.kernels.operators as package

    return tuple(sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")))


@cache
def load_operator(name: str) -> Operator:
    """The library operator called ``name``.

    Raises:
        OperatorError: there is none; the message names the nearest.
    """
    names = operator_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(names)}"
        raise OperatorError(f"unknown operator {name!r}; {hint}")
    module = importlib.import_module(f"foretile.kernels.operators.{name}")
    operator = module.OPERATOR
    assert isinstance(operator, Operator)
    return operator
