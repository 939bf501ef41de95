"""The command ``channelwise``."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="Structured channel pruning for PyTorch.", no_args_is_help=True, add_completion=False,
    pretty_exceptions_enable=False,
)  # fmt: skip


@app.callback()
def channelwise() -> None:
    """Structured channel pruning for PyTorch."""


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="torchvision:NAME, timm:NAME, or package.module:NAME of your own.")],
    input: Annotated[
        list[str],
        typer.Option(
            help="Shape of an input with its batch: 1,3,224,224; 1,77:long for other types; [3,320,320]: a list of one."
        ),
    ],
    argument: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE for what makes the model; values are JSON. May be repeated."),
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Layers to leave alone: names or patterns.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """What can be pruned of a model, what must stay, why, and what to do about it."""
    # Imported here so that --help does not wait for torch.
    from channelwise.api import trace
    from channelwise.cli.models import build_model, parse_input
    from channelwise.errors import ChannelwiseError
    from channelwise.report.inspection import inspection

    try:
        inputs = tuple(parse_input(text) for text in input)
        built = build_model(model, _arguments(argument or []))
        start = time.perf_counter()
        graph = trace(built, inputs, excludes=exclude or ())
        seconds = time.perf_counter() - start
    except ChannelwiseError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    data = {"model": model, "inputs": input, "seconds": round(seconds, 3), **inspection(graph.structure)}
    if as_json:
        typer.echo(json.dumps(data, indent=2))
        return
    total = data["prunable_outputs"] + data["frozen_outputs"]
    typer.echo(str(graph))
    typer.echo(
        f"{data['prunable_outputs']:,} of {total:,} output channels can be pruned"
        + (f" ({data['prunable_outputs'] / total:.1%})" if total else "")
        + f"; traced in {seconds:.1f} s"
    )


def _arguments(given: list[str]) -> dict[str, Any]:
    from channelwise.errors import InvalidArgumentError

    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise InvalidArgumentError(f"--argument {text}: write NAME=VALUE.")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


if __name__ == "__main__":
    app()
