"""The command line: ``foretile chips | ops | predict | explain | trace | compare | verify | check |
export | calibrate | validate | bundle | measure``.

Data goes to standard output, prose to standard error. Exit codes: 0 done, 1 a fault of ours,
2 something to put right in what was asked, 3 a verification outside of its tolerance, 130
interrupted. Modules that cost time to import are imported inside the commands, so that
``foretile --help`` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from foretile.cli import (
    bundle,
    calibrate,
    check,
    chips,
    compare,
    export,
    measure,
    ops,
    predict,
    validate,
    verify,
)
from foretile.cli.arguments import spread_config

__all__ = ["app", "main"]

app = typer.Typer(
    name="foretile",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: [bold]foretile predict gemm m=4096 n=7168 k=2048 --chip h20 --chip h200[/bold]",
)
app.add_typer(chips.app, name="chips")
app.add_typer(bundle.app, name="bundle")
app.command("ops")(ops.ops)
app.command("predict")(predict.predict)
app.command("explain")(predict.explain)
app.command("trace")(predict.trace)
app.command("compare")(compare.compare)
app.command("verify")(verify.verify)
app.command("check")(check.check)
app.command("export")(export.export)
app.command("measure")(measure.measure)
app.command("calibrate")(calibrate.calibrate)
app.command("validate")(validate.validate)


def _version(wanted: bool) -> None:
    if wanted:
        import platform

        from foretile import __version__

        typer.echo(f"foretile {__version__} (Python {platform.python_version()}, {platform.system()})")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", help="Show the version and exit.", callback=_version, is_eager=True
    ),
) -> None:
    """What a tile kernel computes, how long it takes on a chip you do not have, and why."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line on ``argv`` (default: the process's) and exit with its code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    app(spread_config(arguments), prog_name="foretile")
