"""The rows of a measurement: operands shared by a shape, a row a kernel and configuration, outcomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from foretile.kernels.cuda.recipe import LaunchRecipe, RecipeError, TensorArg

Status = Literal["ok", "wrong", "failed"]


@dataclass(frozen=True, slots=True)
class Case:
    """An operator at one shape: what all its kernels are given, and what they should give.

    ``fills`` are the operands by tensor (see :mod:`~foretile.calibration.device.generate`), ``outputs`` the
    tensors that are compared, ``norm`` and ``peak`` the tolerance. The reference is a ``formula`` by name, or
    where that is empty what the ``baseline`` gives: the launches of another kernel, with the SHA-256 of their
    machine code.
    """

    name: str
    operator: str
    shape: Mapping[str, Any]
    family: str
    tensors: tuple[TensorArg, ...]
    fills: Mapping[str, Mapping[str, Any]]
    outputs: tuple[str, ...]
    formula: str
    norm: float
    peak: float
    baseline: tuple[tuple[str, LaunchRecipe], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data from which :meth:`from_json` rebuilds it."""
        return {
            **{key: getattr(self, key) for key in ("name", "operator", "family", "formula", "norm", "peak")},
            "shape": dict(self.shape),
            "tensors": [_tensor(t) for t in self.tensors],
            "fills": {name: dict(fill) for name, fill in self.fills.items()},
            "outputs": list(self.outputs),
            "baseline": [_launch(code, recipe) for code, recipe in self.baseline],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Case:
        """Rebuild a case.

        Raises:
            RecipeError: a field that is missing or of the wrong kind.
        """
        try:
            tensors = tuple(
                TensorArg(t["name"], t["dtype"], tuple(t["shape"]), t["role"]) for t in data["tensors"]
            )
            baseline = tuple(map(_launched, data["baseline"]))
            rest = {**data, "tensors": tensors, "outputs": tuple(data["outputs"]), "baseline": baseline}
            return Case(**rest)
        except (KeyError, TypeError) as error:
            raise RecipeError(f"case {data.get('name', '?')}: {error}") from None


def _launch(code: str, recipe: LaunchRecipe) -> dict[str, Any]:
    return {"cubin": code, "recipe": recipe.to_json()}


def _launched(data: Mapping[str, Any]) -> tuple[str, LaunchRecipe]:
    return str(data["cubin"]), LaunchRecipe.from_json(data["recipe"])


def _tensor(tensor: TensorArg) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "role": tensor.role,
    }


@dataclass(frozen=True, slots=True)
class Row:
    """One kernel source at one case: its launches, each with the SHA-256 of its machine code.

    ``predicted_s`` is our own prediction on the chip that the bundle names; NaN if there is none.
    """

    key: str
    case: str
    kernel_source: str
    config: Mapping[str, Any]
    launches: tuple[tuple[str, LaunchRecipe], ...]
    predicted_s: float = float("nan")

    def to_json(self) -> dict[str, Any]:
        """Plain data from which :meth:`from_json` rebuilds it."""
        return {
            "key": self.key,
            "case": self.case,
            "kernel_source": self.kernel_source,
            "config": dict(self.config),
            "launches": [_launch(code, recipe) for code, recipe in self.launches],
            "predicted_s": self.predicted_s if self.predicted_s == self.predicted_s else None,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Row:
        """Rebuild a row.

        Raises:
            RecipeError: a field that is missing or of the wrong kind.
        """
        try:
            launches = tuple(map(_launched, data["launches"]))
            predicted = data.get("predicted_s")
            return Row(
                key=data["key"],
                case=data["case"],
                kernel_source=data["kernel_source"],
                config=data["config"],
                launches=launches,
                predicted_s=float("nan") if predicted is None else float(predicted),
            )
        except (KeyError, TypeError) as error:
            raise RecipeError(f"row {data.get('key', '?')}: {error}") from None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a row. ``values`` are the measured numbers and texts, by column; empty unless timed.

    ``ok``: within tolerance and timed. ``wrong``: timed or not, the result is not right. ``failed``: refused,
    or the device stopped; ``message`` says what.
    """

    key: str
    status: Status
    message: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "key": self.key,
            "status": self.status,
            "message": self.message,
            "values": dict(self.values),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Outcome:
        """Rebuild an outcome."""
        return Outcome(data["key"], data["status"], data["message"], data["values"])
