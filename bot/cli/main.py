"""The `thumbtune` command line.

Results go to standard output, everything else to standard error. The exit code is 0 on success, 1 for a
refusal or a failure, and 2 for an invalid command line. Commands reach a running bot through the database,
so they need no port and no password.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import structlog
import typer
from rich.markup import escape

from bot.admin.refusals import AdminRefusal
from bot.aiogram_import import import_aiogram
from bot.cli import control, data_commands, model_commands
from bot.cli.fetch import REPO
from bot.cli.fetch import fetch as fetch_checkpoint
from bot.cli.session import ConfigOption, YesOption, with_bot
from bot.cli.terminal import CommandRefused, notes, results
from bot.config import ConfigError, Settings, load_settings
from bot.log_lines import LogFormat, configure_logging
from bot.shutdown import end_process
from inference.hub.listing import Hub
from inference.messages import InferenceError
from inference.settings import TINY
from storage.errors import StorageError
from storage.ledger import Ledger
from training.job import TrainingError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help=__doc__,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,  # their boxes would clutter the journal of a service
)
app.add_typer(model_commands.app)
app.add_typer(data_commands.app)


class DemoEngine(StrEnum):
    """The engines that the demo can start."""

    CPU = "cpu"
    LMDEPLOY = "lmdeploy"


def main() -> None:
    """Run the command line. The console script `thumbtune` calls this function."""
    try:
        app(standalone_mode=True)
    except (ConfigError, CommandRefused, AdminRefusal, StorageError, InferenceError, TrainingError) as error:
        notes.print(f"[red]thumbtune:[/] {escape(str(error))}", soft_wrap=True)
        raise SystemExit(1) from error


def _print_version(wanted: bool) -> None:
    if wanted:
        results.print(f"thumbtune {version('thumbtune')}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Handle the options that precede a command."""
    if context.invoked_subcommand != "fetch":  # a checkpoint is public, and may be run by another user
        os.umask(0o077)


@app.command()
def demo(
    config: ConfigOption = None,
    port: Annotated[int, typer.Option(help="Port of the chat page; 0 selects any free port.")] = 8090,
    keep: Annotated[Path | None, typer.Option(help="Keep the demo's data in this folder.")] = None,
    engine: Annotated[DemoEngine, typer.Option(help="lmdeploy needs a GPU and `make install-gpu`.")] = DemoEngine.CPU,
    model: Annotated[
        str, typer.Option(metavar="DIR", help="A checkpoint folder, or tiny for the shipped model.")
    ] = TINY,
) -> None:
    """Chat with the bot in a browser, without Telegram; the default tiny model needs no GPU."""
    notes.print("Starting the demo …")
    import_aiogram()
    from bot.cli.demo import run_demo

    asyncio.run(run_demo(config, port, keep, engine=engine, model=model))
    end_process()


@app.command()
def init(config: ConfigOption = None) -> None:
    """Ask for the token, the admins, the model and the engine, check them, and write the settings file."""
    notes.print("Starting …")
    import_aiogram()
    from bot.cli.init import initialize

    initialize(config)


@app.command()
def run(
    config: ConfigOption = None,
    log_format: Annotated[LogFormat, typer.Option(help="Log lines for people, or one JSON object per line.")] = (
        LogFormat.TEXT
    ),
) -> None:
    """Run the bot with Telegram, or with the Bot API server set in `telegram.api_base`."""
    settings = load_settings(config)  # first, so that a mistake in the file is reported at once
    configure_logging(form=log_format, token=settings.telegram.token.get_secret_value())
    structlog.get_logger().info("starting")
    import_aiogram()
    from bot.process import run_bot

    asyncio.run(run_bot(settings, log_format))
    end_process()


@app.command()
def doctor(
    config: ConfigOption = None,
    answer: Annotated[
        bool, typer.Option("--answer", help="Also start the engine and have it answer a question about a picture.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Also list the checks that pass.")] = False,
) -> None:
    """Check the installation and settings and say how to fix problems; exit with status 1 if a check fails."""
    notes.print("Checking the installation …")
    import_aiogram()
    from bot.cli.doctor.checks import examine
    from bot.cli.doctor.findings import report

    if not report(examine(load_settings(config), answer=answer), verbose=verbose):
        raise SystemExit(1)


@app.command()
def fetch(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to create.")],
    source: Annotated[Hub, typer.Option(help="The Hugging Face hub (HF_ENDPOINT, HF_TOKEN) or ModelScope.")] = (
        Hub.HUGGING_FACE
    ),
    repo: Annotated[str, typer.Option(help="The repository: OWNER/NAME.")] = REPO,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit; default: the main branch.")] = "",
) -> None:
    """Download a checkpoint and verify its hashes; repeat the command to continue an interrupted download."""
    asyncio.run(fetch_checkpoint(directory, source, repo, revision))


@app.command()
def retrain(
    config: ConfigOption = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Show the progress; wait until the new model is live or the run has failed.")
    ] = False,
    yes: YesOption = False,
) -> None:
    """Have the running bot retrain on the liked answers; ask for confirmation if there is nothing new."""

    async def request(ledger: Ledger, settings: Settings, running: Callable[[], bool]) -> None:
        await control.confirm_without_news(ledger, running, settings, yes)
        await control.retrain(ledger, running, wait, approve=settings.training.approve)

    with_bot(config, request)


@app.command()
def status(config: ConfigOption = None) -> None:
    """Show the live model, the amount of collected data, and the latest runs."""
    with_bot(config, lambda ledger, settings, running: control.status(ledger, running(), trust=settings.trust))


@app.command()
def promote(
    model: Annotated[str, typer.Argument(metavar="ID")], config: ConfigOption = None, yes: YesOption = False
) -> None:
    """Ask the running bot to switch to a model; a rejected model needs confirmation."""
    with_bot(config, lambda ledger, _, running: control.promote(ledger, running, model, yes))


@app.command()
def rollback(config: ConfigOption = None, yes: YesOption = False) -> None:
    """Ask the running bot to switch back to the previous model; repeat to go further back."""
    with_bot(config, lambda ledger, _, running: control.rollback(ledger, running, yes))


if __name__ == "__main__":
    main()
