"""The bot's own settings: [telegram], [chat], [limits] and [storage] of config.toml.

`bot.config` reads the file and the environment.
"""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, IPvAnyNetwork, SecretStr, model_validator

from bot.i18n import later
from inference.chat_format.template import SYSTEM
from inference.settings import LocalPath


class WebhookSettings(BaseModel):
    """[telegram.webhook]: only read when `mode` is webhook."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(
        default="",
        description="The public https address that Telegram shall call, its path included. The bot itself takes the "
        "calls at /telegram on web.port.",
    )
    secret: SecretStr = Field(
        default=SecretStr(""),
        description="Telegram sends this with every call (1-256 letters, digits, _ and -); others are refused.",
    )
    networks: tuple[IPvAnyNetwork, ...] = Field(
        default=(),
        description="Only calls from these networks are taken; Telegram's are 149.154.160.0/20 and 91.108.4.0/22. "
        "Empty: from anywhere, with the secret.",
    )
    proxies: tuple[IPvAnyNetwork, ...] = Field(
        default=(ip_network("127.0.0.0/8"), ip_network("::1/128")),
        description="Networks of the proxy that ends TLS: its word (X-Forwarded-For) on who calls is believed.",
    )


class TelegramSettings(BaseModel):
    """[telegram]: the bot's account and its rate limits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: SecretStr = Field(
        default=SecretStr(""), description="The bot's token from @BotFather. Better given as THUMBTUNE_TELEGRAM__TOKEN."
    )
    api_base: str = Field(
        default="https://api.telegram.org",
        description="The Bot API server: Telegram's, your own telegram-bot-api, an emulator.",
    )
    mode: Literal["polling", "webhook"] = Field(
        default="polling",
        description="polling: the bot asks for updates. webhook: Telegram calls telegram.webhook.url.",
    )
    admins: tuple[int, ...] = Field(
        default=(), description="User ids that may retrain, promote and roll back. /start tells everybody theirs."
    )
    webhook: WebhookSettings = WebhookSettings()
    poll_seconds: int = Field(default=25, ge=0, le=50, description="How long one getUpdates call waits for news.")
    edit_seconds: float = Field(
        default=1.0,
        ge=0,
        description="Seconds between two edits of a streaming answer; groups get three times as long.",
    )
    calls_per_second: float = Field(
        default=30,
        gt=0,
        description="Messages and edits a second over all chats, at most. Telegram allows about 30. Where it refuses "
        "calls in many chats at once the bot halves its pace, and comes back to this one within minutes. A third as "
        "many more say that the bot is typing.",
    )
    chat_calls_per_second: float = Field(
        default=1,
        gt=0,
        description="Messages and edits a second in a private chat where Telegram has lately complained of more.",
    )
    group_calls_per_minute: float = Field(
        default=20, gt=0, description="Messages and edits a minute in one group. Telegram allows about 20."
    )

    @model_validator(mode="after")
    def _webhook_has_an_address(self) -> TelegramSettings:
        if self.mode == "webhook" and not (self.webhook.url and self.webhook.secret.get_secret_value()):
            raise ValueError("telegram.mode = webhook needs telegram.webhook.url and telegram.webhook.secret")
        return self


DEFAULT_QUESTION = later("What is in this picture?")


class ChatSettings(BaseModel):
    """[chat]: conversations and the sampling of answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    system_prompt: str = Field(
        default="",
        description="The bot's persona. Empty = InternVL2's official system text. Reaches the training as well.",
    )
    default_question: str = Field(
        default=DEFAULT_QUESTION,
        min_length=1,
        description="What a picture without a caption asks. Left as shipped, it is asked in the person's language.",
    )
    temperature: float = Field(default=0.8, ge=0, le=2, description="0 always takes the likeliest word.")
    top_p: float = Field(default=0.8, gt=0, le=1, description="Draw from the likeliest words that make up this share.")
    max_new_tokens: int = Field(default=512, ge=1, description="The longest answer, in tokens.")
    history_turns: int = Field(
        default=8,
        ge=0,
        description="How many earlier questions of a conversation the model sees; the picture always stays.",
    )
    history_pictures: int = Field(
        default=1,
        ge=1,
        description="How many of the newest picture messages the model sees. Learning uses conversations about one; "
        "more lets people compare pictures sent one after another, at the cost of time and memory for each.",
    )
    group_sessions: Literal["person", "shared"] = Field(
        default="person",
        description="In groups each person has a conversation of their own in each topic; shared: all have one.",
    )
    max_question_characters: int = Field(default=4096, ge=1, description="The longest question, in characters.")
    max_pictures: int = Field(
        default=10,
        ge=1,
        description="Albums of more pictures are refused. InternVL2-2B sees some four large ones at once.",
    )
    max_picture_megapixels: float = Field(
        default=50, gt=0, le=89, description="Larger pictures are refused by their header, before any decoding."
    )
    album_seconds: float = Field(
        default=1.2,
        ge=0,
        description="Pictures of one album come one by one, without an end mark: wait this long for the next.",
    )
    answer_hours: float = Field(
        default=6,
        ge=0,
        description="Questions older than that, after a long downtime, are not answered: one sentence asks each person "
        "to ask again. 0 answers all; Telegram keeps them for a day.",
    )

    def talker(self, chat: int, person: int) -> int:
        """Return the owner of the conversation: the person, or the group (a negative id) if it shares one."""
        return chat if chat < 0 and self.group_sessions == "shared" else person

    @property
    def persona(self) -> str:
        """Return the system prompt of chats and training."""
        return self.system_prompt or SYSTEM


class LimitsSettings(BaseModel):
    """[limits]: who may use the bot, and how much. Admins have no limits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    allowed: tuple[int, ...] = Field(
        default=(),
        description="User ids, and group ids (negative): only these people, and all in these groups, may talk with the "
        "bot. Empty: everybody.",
    )
    blocked: tuple[int, ...] = Field(
        default=(),
        description="User ids, and group ids, that may not. What they taught before teaches no later run either.",
    )
    questions_per_minute: int = Field(
        default=0, ge=0, description="Questions that one person may ask within a minute. 0: any number."
    )
    answers_per_person: int = Field(
        default=0, ge=0, description="Answers that one person may be given at once, in all chats. 0: any number."
    )
    corrections_per_day: int = Field(
        default=10,
        ge=0,
        description="Answers that one person may correct within a day. A correction teaches once an admin, or another "
        "person in the group, confirms it. 0: any number.",
    )
    answers_at_once: int = Field(
        default=0,
        ge=0,
        description="Answers that may be under way at once, those that wait for an engine included. Who asks more is "
        "told how long to wait. 0: any number; they queue.",
    )
    picture_megabytes_per_person: int = Field(
        default=1000,
        ge=0,
        description="Pictures kept for one person, in megabytes; a person with more is asked to delete some. 0: no limit.",
    )

    def welcome(self, person: int, chat: int) -> bool:
        """Return whether updates of this person (0: unknown) in this chat are accepted."""
        here = {person, chat}
        return here.isdisjoint(self.blocked) and (not self.allowed or not here.isdisjoint(self.allowed))


class StorageSettings(BaseModel):
    """[storage]: the data folder and the retention."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dir: LocalPath = Field(
        default=Path("data"), description="Folder of the ledger, the pictures, the models and the runs."
    )
    min_free_gigabytes: float = Field(
        default=1.0, ge=0, description="The admins are told when less disk space than this is free."
    )
    retention_days: int = Field(
        default=0,
        ge=0,
        description="Answers that nobody rated are deleted after so many days, with their pictures. 0 keeps them.",
    )


class BotSettings(Protocol):
    """The settings that the chat reads."""

    @property
    def telegram(self) -> TelegramSettings:
        """The section [telegram]."""

    @property
    def chat(self) -> ChatSettings:
        """The section [chat]."""

    @property
    def limits(self) -> LimitsSettings:
        """The section [limits]."""

    @property
    def storage(self) -> StorageSettings:
        """The section [storage]."""
