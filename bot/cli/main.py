"""The `thumbtune` command line.

Results go to standard output, everything else to standard error. The exit code is 0 on success, 1 for a
refusal or a failure, and 2 for an invalid command line. Commands reach a running bot through the ledger,
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

import typer
from rich.markup import escape

from bot.admin.refusals import AdminRefusal
from bot.cli import control, inventory
from bot.cli.data import export_data, import_file
from bot.cli.fetch import REPO
from bot.cli.fetch import fetch as fetch_checkpoint
from bot.cli.session import ConfigOption, YesOption, load_in_force, require_data, with_bot, with_ledger
from bot.cli.terminal import CommandRefused, notes, results
from bot.config import ConfigError, Settings, load_settings
from bot.log_lines import LogFormat
from bot.shutdown import end_process
from inference.hub.listing import Hub
from inference.messages import InferenceError
from inference.settings import TINY
from storage.errors import StorageError
from storage.ledger import Ledger
from training.command_jobs import Score
from training.job import TrainingError
from training.settings import Source

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help=__doc__,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,  # their boxes would clutter the journal of a service
)
models_app = typer.Typer(invoke_without_command=True)
sources_app = typer.Typer(invoke_without_command=True)
app.add_typer(models_app, name="models")
app.add_typer(sources_app, name="sources")


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
    port: Annotated[int, typer.Option(help="Port of the chat page; 0 takes any free port.")] = 8090,
    keep: Annotated[Path | None, typer.Option(help="Keep the demo's data in this folder.")] = None,
    engine: Annotated[DemoEngine, typer.Option(help="lmdeploy needs a GPU and `make install-gpu`.")] = DemoEngine.CPU,
    model: Annotated[
        str,
        typer.Option(metavar="DIR", help="A checkpoint folder, or tiny: the shipped model."),
    ] = TINY,
) -> None:
    """Chat with the bot in a browser, without Telegram; the default tiny model needs no GPU."""
    from bot.cli.demo import run_demo

    asyncio.run(run_demo(config, port, keep, results, engine=engine, model=model))
    end_process()


@app.command()
def init(config: ConfigOption = None) -> None:
    """Ask for the token, the admins, the model and the engine, check them, and write the settings file."""
    from bot.cli.init import initialise

    initialise(config, results)


@app.command()
def run(
    config: ConfigOption = None,
    log_format: Annotated[LogFormat, typer.Option(help="Log lines for people, or one JSON object per line.")] = (
        LogFormat.TEXT
    ),
) -> None:
    """Run the bot with Telegram, or with the Bot API server set in `telegram.api_base`."""
    from bot.process import run_bot

    asyncio.run(run_bot(load_settings(config), log_format))
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
    from bot.cli.doctor.checks import examine
    from bot.cli.doctor.findings import report

    if not report(examine(load_settings(config), answer=answer), results, verbose=verbose):
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
    asyncio.run(fetch_checkpoint(directory, source, repo, revision, results))


@app.command()
def retrain(
    config: ConfigOption = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Show the progress and wait until the new model is live or has failed.")
    ] = False,
    yes: YesOption = False,
) -> None:
    """Have the running bot retrain on the liked answers; ask for confirmation if nothing is new."""

    async def request(ledger: Ledger, settings: Settings, running: Callable[[], bool]) -> None:
        await control.confirm_without_news(ledger, running, settings, yes)
        await control.retrain(ledger, running, wait, results, approve=settings.training.approve)

    with_bot(config, request)


@app.command()
def status(config: ConfigOption = None) -> None:
    """Show the live model, the amount of collected data, and the latest runs."""
    with_bot(config, lambda ledger, settings, running: control.status(ledger, running(), results, trust=settings.trust))


@models_app.callback()
def models(context: typer.Context, config: ConfigOption = None) -> None:
    """List all models with their share of likes; `delete ID` deletes one."""
    context.obj = config
    if context.invoked_subcommand is None:
        with_ledger(config, lambda ledger, _: inventory.models(ledger, results))


@models_app.command("delete")
def delete_model(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="ID")],
    config: ConfigOption = None,
    yes: YesOption = False,
) -> None:
    """Permanently delete a model and its adapter; the base model and the live model cannot be deleted."""
    with_ledger(config or context.obj, lambda ledger, _: inventory.delete_model(ledger, model, yes, results))


@sources_app.callback()
def sources(context: typer.Context, config: ConfigOption = None) -> None:
    """List the training data other than liked answers; `delete NAME` deletes an imported source."""
    context.obj = config
    if context.invoked_subcommand is None:
        settings = load_settings(config)
        require_data(settings)
        inventory.sources(settings, results)


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
    asyncio.run(inventory.delete_source(settings, name, yes, results))


@app.command()
def people(config: ConfigOption = None) -> None:
    """List users with their answers, votes and last message; show who is blocked or opted out of training."""
    with_ledger(config, lambda ledger, settings: inventory.people(ledger, settings.limits.blocked, results))


@app.command()
def compare(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="IDs of kept models, or checkpoint folders.")],
    images: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Folder of pictures. Questions, one per line: about all in questions.txt, about NAME.jpg in NAME.txt.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page to write.")] = Path("compare.html"),
    config: ConfigOption = None,
) -> None:
    """Compare several models' answers about your own pictures on one HTML page; the bot need not be running."""
    from bot.cli.compare import compare as compare_models

    asyncio.run(compare_models(load_in_force(config), models, images, out, results))


@app.command()
def evaluate(  # noqa: PLR0917 - the options of a command
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="IDs of kept models, or checkpoint folders.")],
    questions: Annotated[
        Path,
        typer.Option(
            "--set", metavar="FILE", help="Questions in LLaVA's format; the last answer of each row is the right one."
        ),
    ],
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The pictures; default: the file's folder.")
    ] = None,
    score: Annotated[
        Score,
        typer.Option(help="How an answer is scored against the right one; loss: the model's loss on the right one."),
    ] = Score.CONTAINS,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write all answers to a JSON file.")] = None,
    config: ConfigOption = None,
) -> None:
    """Score models on your own questions with known answers, each against the first; the bot need not be running."""
    from bot.cli.evaluate import evaluate as evaluate_models

    asyncio.run(evaluate_models(load_in_force(config), models, questions, images, score, out, results))


@app.command()
def finetune(  # noqa: PLR0913, PLR0917 - the options of a command
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="LLaVA rows to train on: a .json list or a .jsonl file.")
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder to fill: model, sheet.html, run.")],
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The pictures; default: the folder of each file.")
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            "--set", metavar="TEST", help="Questions in LLaVA's format that both models answer, with given answers."
        ),
    ] = None,
    score: Annotated[
        Score,
        typer.Option(help="How an answer is scored against the given one; loss: the model's loss on the given one."),
    ] = Score.LOSS,
    recipe: Annotated[
        str | None, typer.Option(help="food, jokes, tiny, or an XTuner configuration; default: training.recipe.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="The base model, downloaded if it is missing; default: inference.model."),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Train on a LLaVA file without a bot, and compare the new model with the base on test questions.

    All rows are checked first. Repeat an interrupted command to continue from the last checkpoint.
    """
    from bot.cli import finetune as command

    settings = command.with_options(load_in_force(config), recipe, model)
    rows = Source(path=data.absolute(), images=(images or data.parent).absolute(), repeat_times=1)
    test = None
    if questions:
        test = command.Questions(questions.absolute(), (images or questions.parent).absolute(), score)
    asyncio.run(command.finetune(settings, rows, test, out.absolute(), results))


@app.command()
def promote(
    model: Annotated[str, typer.Argument(metavar="ID")], config: ConfigOption = None, yes: YesOption = False
) -> None:
    """Ask the running bot to switch to a model; a rejected model needs confirmation."""
    with_bot(config, lambda ledger, _, running: control.promote(ledger, running, model, yes, results))


@app.command()
def rollback(config: ConfigOption = None, yes: YesOption = False) -> None:
    """Ask the running bot to switch back to the previous model; repeat to go further back."""
    with_bot(config, lambda ledger, _, running: control.rollback(ledger, running, yes, results))


@app.command()
def forget(
    user: Annotated[int, typer.Argument(metavar="USER", help="The person's user ID, as the bot's /start shows it.")],
    config: ConfigOption = None,
    yes: YesOption = False,
) -> None:
    """Delete everything stored about a user, as /delete_my_data does; the bot need not be running."""
    with_ledger(config, lambda ledger, _: inventory.forget(ledger, user, yes, results))


@app.command()
def sweep(config: ConfigOption = None, yes: YesOption = False) -> None:
    """Delete picture files that the ledger does not list; the daily cleanup keeps them if there are many."""
    with_ledger(config, lambda ledger, _: inventory.sweep(ledger, yes, results))


@app.command()
def backup(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to create.")],
    config: ConfigOption = None,
    models: Annotated[bool, typer.Option("--models", help="Also copy the trained models.")] = False,
) -> None:
    """Copy the ledger and the pictures, and verify the copies; the bot may be running.

    The copy is laid out like `storage.dir`.
    """
    with_ledger(config, lambda ledger, _: inventory.backup(ledger, out, models, results))


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="LLaVA rows: a .json list or a .jsonl file.")],
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The folder of its pictures; default: the file's own."),
    ] = None,
    config: ConfigOption = None,
    name: Annotated[str, typer.Option(help="The source's name; default: the file's.")] = "",
    repeat_times: Annotated[
        float | None,
        typer.Option(
            min=1e-6, help="How often each row is used, such as 0.5 or 2.5; default: as many rows as liked answers."
        ),
    ] = None,
) -> None:
    """Add a LLaVA file and its pictures to the training data.

    All rows are checked before anything is copied. If one row is invalid, nothing is added.
    """
    asyncio.run(import_file(load_in_force(config), file, images, results, name=name, repeat_times=repeat_times))


@app.command()
def export(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to create.")], config: ConfigOption = None
) -> None:
    """Export liked answers (LLaVA), all votes (KTO), pairs (DPO) and the pictures; `load_dataset` opens the folder."""
    with_ledger(config, lambda ledger, settings: export_data(ledger, settings, out, results))


@app.command()
def publish(  # noqa: PLR0917 - the options of a command
    model: Annotated[str, typer.Argument(metavar="ID")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="The repository: OWNER/NAME. It is created if needed.")],
    adapter: Annotated[bool, typer.Option("--adapter", help="Upload only the adapter, which is smaller.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Make the repository public; default: private.")] = False,
    config: ConfigOption = None,
    yes: YesOption = False,
) -> None:
    """Upload a trained model and its card to the Hugging Face hub (HF_TOKEN, HF_ENDPOINT); never anyone's pictures."""
    from bot.cli.publish import Publication
    from bot.cli.publish import publish as publish_model

    request = Publication(model, repo, adapter=adapter, public=public)
    with_ledger(config, lambda ledger, settings: publish_model(ledger, settings, request, yes, results))


if __name__ == "__main__":
    main()
