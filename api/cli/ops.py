"""``foretile ops``: the operator library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from foretile.cli.arguments import JSON
from foretile.cli.errors import reported

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foretile.kernels.operator import Operator, Param


_MARKDOWN = typer.Option(False, "--markdown", help="The page docs/operator-reference.md.")


def ops(as_json: bool = JSON, as_markdown: bool = _MARKDOWN) -> None:
    """List the operators with their shape parameters and defaults."""
    from foretile.cli import show

    with reported():
        from foretile.kernels.operator import load_operator, operator_names

        operators = [load_operator(name) for name in operator_names()]
        if as_json:
            show.emit_json([_plain(operator) for operator in operators])
            return
        if as_markdown:
            typer.echo(markdown(operators), nl=False)
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


def markdown(operators: Sequence[Operator]) -> str:
    """Every operator's description, parameters, tolerance and kinds of inputs, as a page."""
    lines = [
        "# Operator reference",
        "",
        "Made from the operators themselves by `foretile ops --markdown`. How they are put together is in "
        "[operators.md](operators.md).",
        "",
    ]
    for operator in operators:
        shape = operator.shape(**operator.example)
        tolerance = operator.tolerance(shape)
        example = " ".join(f"{k}={v}" for k, v in operator.example.items())
        lines += [
            f"## {operator.name}",
            "",
            operator.doc.strip(),
            "",
            "| parameter | default | meaning |",
            "| --- | --- | --- |",
        ]
        for p in operator.params:
            choices = f" ({', '.join(p.choices)})" if p.choices else ""
            name = f"*{p.name}*" if p.dynamic else p.name
            lines.append(f"| {name} | {_default(p)} | {p.doc}{choices} |")
        kinds = ", ".join(("random", *operator.adversarial))
        lines += [
            "",
            f"`foretile verify {operator.name} {example}`: tolerance {tolerance.norm:.2g} of the norm, "
            f"{tolerance.peak:.2g} of the largest element; inputs: {kinds}. "
            f"CUDA version: {', '.join(f'`{name}`' for name in cuda_files(operator)) or 'none'}.",
            "",
        ]
    return "\n".join(lines)


def cuda_files(operator: Operator) -> tuple[str, ...]:
    """Files of the operator's CUDA version at its example shape, in order of their launches; none: empty."""
    from foretile.kernels.cuda.registry import cuda_operators, cuda_program

    if operator.name not in cuda_operators():
        return ()
    program = cuda_program(operator.name, operator.shape(**operator.example))
    return tuple(dict.fromkeys(source.file for source, _ in program.launches))


def _default(param: Param) -> str:
    if param.default is None:
        return "required"
    text = str(param.default)
    return f"same as {text[1:]}" if text.startswith("=") else text


def _plain(operator: Operator) -> dict[str, Any]:
    return {
        "name": operator.name,
        "doc": operator.doc,
        "cuda": list(cuda_files(operator)),
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
