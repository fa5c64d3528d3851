"""``foretile ops``: the operator library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foretile.cli.arguments import JSON
from foretile.cli.errors import reported

if TYPE_CHECKING:
    from foretile.kernels.operator import Operator, Param


def ops(as_json: bool = JSON) -> None:
    """List the operators with their shape parameters and defaults."""
    from foretile.cli import show

    with reported():
        from foretile.kernels.operator import load_operator, operator_names

        operators = [load_operator(name) for name in operator_names()]
        if as_json:
            show.emit_json([_plain(operator) for operator in operators])
            return
        from rich.text import Text

        out = show.console()
        for operator in operators:
            out.print(
                Text.assemble(
                    (operator.name, "bold cyan"),
                    "  ",
                    operator.doc.strip().partition(". ")[0].rstrip(".") + ".",
                )
            )
            made = show.table("  parameter", "default", "meaning")
            for param in operator.params:
                choices = f" ({', '.join(param.choices)})" if param.choices else ""
                made.add_row(f"  {param.name}", _default(param), Text(param.doc + choices))
            out.print(made)


def _default(param: Param) -> str:
    if param.default is None:
        return "required"
    text = str(param.default)
    return f"same as {text[1:]}" if text.startswith("=") else text


def _plain(operator: Operator) -> dict[str, Any]:
    return {
        "name": operator.name,
        "doc": operator.doc,
        "params": [
            {
                "name": p.name,
                "doc": p.doc,
                "kind": p.kind,
                "required": p.default is None,
                "default": p.default,
                "minimum": p.minimum,
                "choices": list(p.choices),
            }
            for p in operator.params
        ],
    }
