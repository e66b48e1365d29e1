"""Commands for models: `compare`, `evaluate`, `finetune`, `publish` and `models`. The bot need not be running."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from bot.cli import stored_data
from bot.cli.session import ConfigOption, YesOption, load_in_force, with_ledger
from training.command_jobs import ScoringMethod
from training.settings import Source

app = typer.Typer()
models_app = typer.Typer(invoke_without_command=True)
app.add_typer(models_app, name="models")


@app.command()
def compare(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="IDs of stored models, or checkpoint folders.")
    ],
    images: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Folder of pictures. Questions, one per line, are in questions.txt (about all pictures) or NAME.txt "
            "(about NAME.jpg).",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page to write.")] = Path("compare.html"),
    config: ConfigOption = None,
) -> None:
    """Compare several models' answers about your own pictures on one HTML page; the bot need not be running."""
    from bot.cli.compare import compare as compare_models

    asyncio.run(compare_models(load_in_force(config), models, images, out))


@app.command()
def evaluate(  # noqa: PLR0917 - the options of a command
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="IDs of stored models, or checkpoint folders.")
    ],
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
        ScoringMethod,
        typer.Option(help="How an answer is scored against the right one; loss: the model's loss on the right one."),
    ] = ScoringMethod.CONTAINS,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write all answers to a JSON file.")] = None,
    config: ConfigOption = None,
) -> None:
    """Score models on your own questions with known answers, and compare each with the first.

    The bot need not be running.
    """
    from bot.cli.evaluate import evaluate as evaluate_models

    asyncio.run(evaluate_models(load_in_force(config), models, questions, images, score, out))


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
            "--set", metavar="TEST", help="Test questions with answers, in LLaVA's format; both models answer them."
        ),
    ] = None,
    score: Annotated[
        ScoringMethod,
        typer.Option(help="How an answer is scored against the given one; loss: the model's loss on the given one."),
    ] = ScoringMethod.LOSS,
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
    asyncio.run(command.finetune(settings, rows, test, out.absolute()))


@app.command()
def publish(  # noqa: PLR0917 - the options of a command
    model: Annotated[str, typer.Argument(metavar="ID")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="The repository: OWNER/NAME. It is created if needed.")],
    adapter: Annotated[bool, typer.Option("--adapter", help="Upload only the adapter, which is smaller.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Make the repository public; default: private.")] = False,
    config: ConfigOption = None,
    yes: YesOption = False,
) -> None:
    """Upload a trained model and its card to the Hugging Face hub (HF_TOKEN, HF_ENDPOINT), without any pictures."""
    from bot.cli.publish import Publication
    from bot.cli.publish import publish as publish_model

    request = Publication(model, repo, adapter=adapter, public=public)
    with_ledger(config, lambda ledger, settings: publish_model(ledger, settings, request, yes))


@models_app.callback()
def models(context: typer.Context, config: ConfigOption = None) -> None:
    """List all models with their share of likes; `delete ID` deletes one."""
    context.obj = config
    if context.invoked_subcommand is None:
        with_ledger(config, lambda ledger, settings: stored_data.models(ledger, settings))


@models_app.command("delete")
def delete_model(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="ID")],
    config: ConfigOption = None,
    yes: YesOption = False,
) -> None:
    """Permanently delete a model and its adapter; the base model and the live model cannot be deleted."""
    with_ledger(config or context.obj, lambda ledger, _: stored_data.delete_model(ledger, model, yes))
