"""Commands for stored data: people, pictures, backups, and the import and export of training data."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from bot.cli import stored_data
from bot.cli.import_export import export_data, import_file
from bot.cli.session import ConfigOption, YesOption, load_in_force, require_data, with_ledger
from bot.config import load_settings

app = typer.Typer()
sources_app = typer.Typer(invoke_without_command=True)
app.add_typer(sources_app, name="sources")


@app.command()
def people(config: ConfigOption = None) -> None:
    """List users with their answers, votes and last message; show who is blocked or opted out of training."""
    with_ledger(config, lambda ledger, settings: stored_data.people(ledger, settings.limits.blocked))


@app.command()
def forget(
    user: Annotated[int, typer.Argument(metavar="USER", help="The person's user ID, as shown by the bot's /start.")],
    config: ConfigOption = None,
    yes: YesOption = False,
) -> None:
    """Delete everything stored about a user, as /delete_my_data does; the bot need not be running."""
    with_ledger(config, lambda ledger, _: stored_data.forget(ledger, user, yes))


@app.command()
def sweep(config: ConfigOption = None, yes: YesOption = False) -> None:
    """Delete picture files that the database does not list; the daily cleanup keeps them if there are many."""
    with_ledger(config, lambda ledger, _: stored_data.sweep(ledger, yes))


@app.command()
def backup(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to create.")],
    config: ConfigOption = None,
    models: Annotated[bool, typer.Option("--models", help="Also copy the trained models.")] = False,
) -> None:
    """Copy the database and the pictures, and verify the copies; the bot may be running.

    The copy is laid out like `storage.dir`.
    """
    with_ledger(config, lambda ledger, _: stored_data.backup(ledger, out, models))


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="LLaVA rows: a .json list or a .jsonl file.")],
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder of its pictures; default: the file's own.")
    ] = None,
    config: ConfigOption = None,
    name: Annotated[str, typer.Option(help="The source's name; default: the file's.")] = "",
    repeat_times: Annotated[
        float | None,
        typer.Option(
            min=1e-6, help="How often to use each row, such as 0.5 or 2.5; default: as many rows as liked answers."
        ),
    ] = None,
) -> None:
    """Add a LLaVA file and its pictures to the training data.

    All rows are checked before anything is copied. If one row is invalid, nothing is added.
    """
    asyncio.run(import_file(load_in_force(config), file, images, name=name, repeat_times=repeat_times))


@app.command()
def export(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to create.")], config: ConfigOption = None
) -> None:
    """Export liked answers (LLaVA), all votes (KTO), pairs (DPO) and the pictures; `load_dataset` opens the folder."""
    with_ledger(config, lambda ledger, settings: export_data(ledger, settings, out))


@sources_app.callback()
def sources(context: typer.Context, config: ConfigOption = None) -> None:
    """List the training data other than liked answers; `delete NAME` deletes an imported source."""
    context.obj = config
    if context.invoked_subcommand is None:
        settings = load_settings(config)
        require_data(settings)
        stored_data.sources(settings)


@sources_app.command("delete")
def delete_source(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    config: ConfigOption = None,
    yes: YesOption = False,
) -> None:
    """Delete an imported source with its pictures, so that later runs do not use it."""
    settings = load_settings(config or context.obj)
    require_data(settings)
    asyncio.run(stored_data.delete_source(settings, name, yes))
