"""`thumbtune demo`: the whole product on one machine, with a local Bot API server instead of Telegram.

The demo starts an emulator of Telegram with a chat page, sample pictures and sample voters, and runs the
same bot as `thumbtune run` against it. By default it uses the tiny model shipped with the product, and
training settings made for that model. At the end, the data is deleted unless the operator has named a
folder to keep it in.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from io import BytesIO
from pathlib import Path

from pydantic import SecretStr
from rich.panel import Panel

from bot.app import Application
from bot.cli.demo_learning import learning
from bot.cli.terminal import results
from bot.config import ConfigError, Settings, load_settings
from bot.log_lines import configure_logging
from bot.process import shorten_switch_interval, until_stopped
from bot.shutdown import THREAD_SECONDS, end_process_within
from bot.web.server import listening
from inference.internvl2.checkpoint_check import problems
from inference.internvl2.tiny.answer_checks import manner
from inference.internvl2.tiny.drawing import draw
from inference.internvl2.tiny.held_out_questions import held_out
from inference.internvl2.tiny.samples import sample_pictures, sample_sticker
from inference.internvl2.tiny.shapes import random_scene
from inference.internvl2.tiny.words import Kind, Language
from inference.settings import TINY
from storage.atomic_files import PRIVATE
from telegram_emulator import Emulator, SampleConversation
from training.settings import TrainingSettings

HOST = "127.0.0.1"
TOKEN = "1000000001:local-emulator"
ADMIN = 1001
PEOPLE = ((ADMIN, "Mia", "en"), (1002, "小伟", "zh"), (1003, "Tom", "en"))
GROUP = "Friends"
CONVERSATIONS = 30  # two votes each
SHAPES_ONLY = (
    "This demo's model only knows coloured shapes; for your own photos you need the full InternVL2: see “On a GPU” in "
    "the README."
)
# The emulator has no flood control, so the bot need not keep to Telegram's limits.
RATE_LIMITS = {"edit_seconds": 0.1, "calls_per_second": 1000.0, "group_calls_per_minute": 3000.0}


async def run_demo(
    config: Path | None, port: int, keep: Path | None, *, engine: str = "cpu", model: str = TINY
) -> None:
    """Run the demo until it is interrupted.

    Args:
        config: The settings file.
        port: Port of the chat page; 0 selects any free port.
        keep: The folder for the demo's data; by default a temporary one.
        engine: The engine, as in the setting `inference.engine`.
        model: The model, as in the setting `inference.model`.

    Raises:
        ConfigError: The model is incomplete, or the port is in use.
    """
    check_model(model)
    with ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="thumbtune-demo-")))
        folder.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
        configure_logging(folder / "bot.log")
        shorten_switch_interval()
        emulator = make_emulator(model)
        with listening(HOST, port, "`thumbtune demo --port 0` selects a free one."):
            page = await emulator.start(HOST, port)
        try:
            async with Application(demo_settings(load_settings(config), page, folder, engine, model)) as application:
                emulator.show_learning(partial(learning, application.runs))
                stopped = asyncio.create_task(until_stopped(application))
                await asyncio.sleep(0)  # from here on, Ctrl-C shuts the demo down properly
                results.print(
                    Panel(
                        welcome(page, application.address, folder, kept=keep is not None, model=model),
                        title="👍 thumbtune demo",
                        expand=False,
                    ),
                    soft_wrap=False,
                )
                await stopped
        finally:
            await emulator.stop()
    results.print(
        f"Stopped; chats and models stay in {keep}." if keep else "Stopped; the chats and models have been deleted."
    )
    end_process_within(THREAD_SECONDS)


def make_emulator(model: str = TINY) -> Emulator:
    """Return a Bot API server with the demo's users, group, pictures and sample voters.

    The server has not been started yet.
    """
    emulator = Emulator(
        token=TOKEN,
        samples=sample_pictures() | sample_sticker(),
        note=SHAPES_ONLY if model == TINY else "",
        conversations=sample_conversations,
        likes=lambda answer: manner(answer) == "playful",
    )
    for person, name, language in PEOPLE:
        emulator.add_person(person, name, language, admin=person == ADMIN)
    emulator.add_group(GROUP, [person for person, _, _ in PEOPLE])
    return emulator


def check_model(model: str) -> None:
    """Raise ConfigError if `model` is neither `tiny` nor a complete checkpoint directory."""
    if model != TINY and (wrong := problems(Path(model))):
        raise ConfigError(f"{model} is not a complete model ({wrong[0]}): `thumbtune fetch {model}` downloads one.")


def demo_settings(settings: Settings, api_base: str, folder: Path, engine: str = "cpu", model: str = TINY) -> Settings:
    """Return the operator's settings after overriding some of them with the demo's values."""
    telegram = settings.telegram.model_copy(
        update={"token": SecretStr(TOKEN), "api_base": api_base, "mode": "polling", "admins": (ADMIN,), **RATE_LIMITS}
    )
    return settings.replaced(
        telegram=telegram,
        storage=settings.storage.model_copy(update={"dir": folder}),
        inference=settings.inference.model_copy(update={"engine": engine, "model": model, "endpoint": ""}),
        training=TrainingSettings.for_tiny()
        if model == TINY
        else settings.training.model_copy(update={"min_raters": 1, "rater_age": 0.0, "canary": 0.0}),
        web=settings.web.model_copy(update={"port": 0, "public_url": ""}),
    )


def sample_conversations(round_number: int) -> Sequence[SampleConversation]:
    """Return the sample voters' pictures and questions for one round; every round has different ones."""
    rng = random.Random(f"votes-{round_number}")
    return [_conversation(rng, "zh" if number % 4 == 3 else "en") for number in range(CONVERSATIONS)]


def _conversation(rng: random.Random, language: Language) -> SampleConversation:
    picture = BytesIO()
    draw(random_scene(rng), rng).save(picture, "JPEG", quality=90)
    kinds: tuple[Kind, ...] = ("describe", "colour", "shape", "number")
    first, second = rng.sample(kinds, 2)
    return SampleConversation(
        picture=picture.getvalue(),
        question=held_out(language, first, rng),
        follow_up=held_out(language, second, rng),
        language=language,
    )


def welcome(page: str, operator: str, folder: Path, *, kept: bool, model: str = TINY) -> str:
    """Return the welcome message of the demo.

    The message gives the demo's addresses, and says what its model knows and what happens to the data in
    `folder`.
    """
    note = f"{SHAPES_ONLY}\n" if model == TINY else ""
    end = (
        f"Ctrl-C ends it. Chats and models stay in {folder}."
        if kept
        else "Ctrl-C ends it and deletes all chats and models; --keep DIR keeps them."
    )
    return (
        f"Open [bold]{page}[/] and chat.\n{note}\n"
        f"operator page  {operator}\n"
        f"health         {operator}/health\n"
        f"log            {folder / 'bot.log'}\n\n{end}"
    )
