"""`thumbtune`: the command line.

Each command reads the settings, does one thing and says how it went: results on standard output, all else on standard
error. The exit code is 0 when it is done, 1 when it was refused or failed, 2 for a wrong command line. Commands beside
a running bot talk to it through the ledger, so they need no port and no password.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from bot.admin.protocol import AdminRefusal
from bot.cli import control, inventory, maintenance
from bot.cli.data import export_data, import_file
from bot.cli.fetch import REPO
from bot.cli.fetch import fetch as fetch_checkpoint
from bot.cli.terminal import Refused, notes, results
from bot.config import ConfigError, Settings, load_settings
from bot.instance_lock import at_work
from bot.shutdown import end_process
from inference.hub.listing import Source
from inference.messages import InferenceError
from inference.settings import TINY
from storage.errors import StorageError
from storage.ledger import FILE_NAME, Ledger
from training.job import TrainingError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help=__doc__,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,  # a journal is no terminal
)
models_app = typer.Typer(invoke_without_command=True)
sources_app = typer.Typer(invoke_without_command=True)
app.add_typer(models_app, name="models")
app.add_typer(sources_app, name="sources")

ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="PATH", help="The settings file; default: config.toml here.")
]
YesOption = Annotated[bool, typer.Option("--yes", help="Go ahead without asking.")]


class DemoEngine(StrEnum):
    """The engines that the demo can start."""

    CPU = "cpu"
    LMDEPLOY = "lmdeploy"


def main() -> None:
    """Entry point of the results script."""
    try:
        app(standalone_mode=True)
    except (ConfigError, Refused, AdminRefusal, StorageError, InferenceError, TrainingError) as error:
        notes.print(f"[red]thumbtune:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise SystemExit(1) from error


def _tell_version(wanted: bool) -> None:
    if wanted:
        results.print(f"thumbtune {version('thumbtune')}", highlight=False)
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    _: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """What stands before a command."""
    if context.invoked_subcommand != "fetch":  # a checkpoint is public, and another user may be the one who runs it
        os.umask(0o077)


@app.command()
def demo(
    config: ConfigOption = None,
    port: Annotated[int, typer.Option(help="Port of the chat page; 0 takes a free one.")] = 8090,
    keep: Annotated[Path | None, typer.Option(help="Keep the demo's data in this folder.")] = None,
    engine: Annotated[DemoEngine, typer.Option(help="lmdeploy needs a GPU and `make install-gpu`.")] = DemoEngine.CPU,
    model: Annotated[
        str, typer.Option(metavar="DIR", help="A checkpoint, as `thumbtune fetch` brings it; tiny: the shipped one.")
    ] = TINY,
) -> None:
    """Chat in a browser, without token or Telegram; as it stands with the shipped tiny model, without a GPU."""
    from bot.cli.demo import run_demo

    asyncio.run(run_demo(config, port, keep, results, engine=engine, model=model))
    end_process()


@app.command()
def run(config: ConfigOption = None) -> None:
    """Run the bot against Telegram, or the Bot API server of telegram.api_base."""
    from bot.app import run_bot

    asyncio.run(run_bot(load_settings(config)))
    end_process()


@app.command()
def doctor(
    config: ConfigOption = None,
    answer: Annotated[
        bool, typer.Option("--answer", help="Also start the engine once and let it answer a picture.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Also list what is well.")] = False,
) -> None:
    """Check what is installed and configured, and say what to do about what is not; exit code 1 if something fails."""
    from bot.cli.doctor.checks import examine
    from bot.cli.doctor.findings import report

    if not report(examine(load_settings(config), answer=answer), results, verbose=verbose):
        raise SystemExit(1)


@app.command()
def fetch(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where the checkpoint shall lie.")],
    source: Annotated[Source, typer.Option(help="The Hugging Face hub (HF_ENDPOINT, HF_TOKEN) or ModelScope.")] = (
        Source.HUB
    ),
    repo: Annotated[str, typer.Option(help="OWNER/NAME there.")] = REPO,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit; default: the main branch.")] = "",
) -> None:
    """Bring a checkpoint from a hub: checked by its hashes, whole or not at all; run again, it goes on."""
    asyncio.run(fetch_checkpoint(directory, source, repo, revision, results))


@app.command()
def retrain(
    config: ConfigOption = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Show the progress; end when the new model answers, or is known not to.")
    ] = False,
) -> None:
    """Ask the running bot to retrain on what was liked."""
    _with_bot(config, lambda ledger, running: control.retrain(ledger, running, wait, results))


@app.command()
def status(config: ConfigOption = None) -> None:
    """Say which model answers, what was collected, and how the runs went."""
    _with_bot(config, lambda ledger, running: control.status(ledger, running(), results))


@models_app.callback()
def models(context: typer.Context, config: ConfigOption = None) -> None:
    """List every model, with its approval; `delete ID` deletes one."""
    context.obj = config
    if context.invoked_subcommand is None:
        _with_ledger(load_settings(config), lambda ledger: inventory.models(ledger, results))


@models_app.command("delete")
def delete_model(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="ID")],
    config: ConfigOption = None,
    yes: YesOption = False,
) -> None:
    """Delete a model's files and its adapter for good; never the base, nor the one that answers."""
    settings = load_settings(config or context.obj)
    folder = settings.storage.dir
    _with_ledger(settings, lambda ledger: inventory.delete_model(ledger, folder, model, yes, results))


@sources_app.callback()
def sources(context: typer.Context, config: ConfigOption = None) -> None:
    """List what is learned from beside the liked answers; `delete NAME` deletes what was imported."""
    context.obj = config
    if context.invoked_subcommand is None:
        settings = load_settings(config)
        _require_data(settings)
        inventory.sources(settings, results)


@sources_app.command("delete")
def delete_source(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    config: ConfigOption = None,
    yes: YesOption = False,
) -> None:
    """Delete an imported source with its pictures: no later training learns from it."""
    settings = load_settings(config or context.obj)
    _require_data(settings)
    asyncio.run(inventory.delete_source(settings, name, yes, results))


@app.command()
def people(config: ConfigOption = None) -> None:
    """List who has talked with the bot: answers, votes, when last, who is blocked or not learned from."""
    settings = load_settings(config)
    _with_ledger(settings, lambda ledger: inventory.people(ledger, settings.limits.blocked, results))


@app.command()
def compare(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Ids of kept models, or checkpoint folders.")],
    images: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Pictures. questions.txt there is asked about each, NAME.txt about NAME.jpg; a line each.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page to write.")] = Path("compare.html"),
    config: ConfigOption = None,
) -> None:
    """Let models answer questions about your own pictures, side by side on one HTML page; no bot need run."""
    from bot.cli.compare import compare as compare_models

    asyncio.run(compare_models(load_settings(config), models, images, out, results))


@app.command()
def promote(
    model: Annotated[str, typer.Argument(metavar="ID")], config: ConfigOption = None, yes: YesOption = False
) -> None:
    """Ask the running bot to answer with this model; asks first where it was rejected."""
    _with_bot(config, lambda ledger, running: control.promote(ledger, running, model, yes, results))


@app.command()
def rollback(config: ConfigOption = None, yes: YesOption = False) -> None:
    """Ask the running bot to answer with the model before the present one; again, with the one before that."""
    _with_bot(config, lambda ledger, running: control.rollback(ledger, running, yes, results))


@app.command()
def forget(
    user: Annotated[int, typer.Argument(metavar="USER", help="The person's user id; the bot's /start tells it.")],
    config: ConfigOption = None,
    yes: YesOption = False,
) -> None:
    """Delete all that is kept of a person, as /delete_my_data does; beside a running bot or without one."""
    settings = load_settings(config)
    _with_ledger(settings, lambda ledger: maintenance.forget(ledger, settings.storage.dir, user, yes, results))


@app.command()
def sweep(config: ConfigOption = None, yes: YesOption = False) -> None:
    """Delete picture files that the ledger does not know; the daily tidy leaves them where they are many."""
    settings = load_settings(config)
    _with_ledger(settings, lambda ledger: maintenance.sweep(ledger, settings.storage.dir, yes, results))


@app.command()
def backup(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that does not exist yet.")],
    config: ConfigOption = None,
    models: Annotated[bool, typer.Option("--models", help="The trained models as well.")] = False,
) -> None:
    """Copy the ledger and the pictures, checked, while the bot is at work; laid out as storage.dir is."""
    settings = load_settings(config)
    folder = settings.storage.dir
    _with_ledger(settings, lambda ledger: maintenance.backup(ledger, folder, out, models, results))


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="LLaVA rows: a .json list, or a .jsonl.")],
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="What its picture names are relative to; default: its own folder."),
    ] = None,
    config: ConfigOption = None,
    name: Annotated[str, typer.Option(help="What the source is called; default: as the file.")] = "",
    repeat_times: Annotated[
        float | None,
        typer.Option(
            min=1e-6, help="How often each row is taken, 0.5 or 2.5 too; default: one to one with what is liked."
        ),
    ] = None,
) -> None:
    """Learn from a LLaVA file as well: checked row by row and copied with its pictures, all of it or nothing."""
    asyncio.run(import_file(load_settings(config), file, images, name, repeat_times, results))


@app.command()
def export(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")], config: ConfigOption = None
) -> None:
    """Write the liked answers as LLaVA and every thumb as rows for KTO into a folder, with the pictures."""
    settings = load_settings(config)
    _with_ledger(settings, lambda ledger: export_data(ledger, settings, out, results))


def _with_ledger(settings: Settings, work: Callable[[Ledger], Awaitable[None]]) -> None:
    """Do `work` on the ledger that is there. Raises ConfigError where there is none, and makes none."""
    _require_data(settings, FILE_NAME)

    async def session() -> None:
        async with Ledger.open(settings.storage.dir) as ledger:
            await work(ledger)

    asyncio.run(session())


def _require_data(settings: Settings, file: str = "") -> None:
    """Raise ConfigError where the data folder, or that file of it, is not there."""
    folder = settings.storage.dir.absolute()
    if not (folder / file).exists():
        raise ConfigError(
            f"There is no {'ledger in' if file else 'data folder'} {folder}: name the bot's settings with --config, or "
            "go to its folder. `thumbtune run` makes one."
        )


def _with_bot(config: Path | None, work: Callable[[Ledger, Callable[[], bool]], Awaitable[None]]) -> None:
    """Do `work` on the ledger and with a function that tells whether a bot is running."""
    settings = load_settings(config)
    _with_ledger(settings, lambda ledger: work(ledger, lambda: at_work(settings.storage.dir)))


if __name__ == "__main__":
    main()
