"""The bot's own settings: the sections [telegram], [chat], [limits], [storage] and [web] of config.toml.

`bot.config` reads the file and the environment.
"""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path
from typing import Literal

from pydantic import Field, IPvAnyNetwork, SecretStr, model_validator

from bot.i18n import later
from inference.settings import LocalPath, Section


class WebhookSettings(Section):
    """The [telegram.webhook] section, which is read only if `telegram.mode` is `webhook`."""

    url: str = ""
    """The public https address that Telegram calls, including the path. The bot itself receives the calls at
    /telegram on web.port."""

    secret: SecretStr = SecretStr("")
    """The secret that Telegram sends with every call: 1-256 letters, digits, _ and -. Calls without it are refused."""

    networks: tuple[IPvAnyNetwork, ...] = ()
    """Accept calls only from these networks; Telegram's are 149.154.160.0/20 and 91.108.4.0/22. Empty: from
    anywhere, with the secret."""

    proxies: tuple[IPvAnyNetwork, ...] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
    """Networks of the proxy that terminates TLS; its X-Forwarded-For header is trusted."""


class TelegramSettings(Section):
    """The [telegram] section: the bot's account and its rate limits."""

    token: SecretStr = SecretStr("")
    """The bot's token from @BotFather, preferably set as THUMBTUNE_TELEGRAM__TOKEN."""

    api_base: str = "https://api.telegram.org"
    """The Bot API server: Telegram's, your own telegram-bot-api, or an emulator."""

    mode: Literal["polling", "webhook"] = "polling"
    """polling: the bot asks for updates. webhook: Telegram calls telegram.webhook.url."""

    admins: tuple[int, ...] = ()
    """User IDs of the admins, who may retrain, promote and roll back. /start shows each user their ID."""

    webhook: WebhookSettings = WebhookSettings()
    poll_seconds: int = Field(default=25, ge=0, le=50)
    """How long one getUpdates call waits for updates."""

    edit_seconds: float = Field(default=1.0, ge=0)
    """Seconds between two edits of a streaming answer; in groups, three times as long."""

    calls_per_second: float = Field(default=30, gt=0)
    """The maximum number of messages and edits per second in all chats together. Telegram allows about 30. If
    Telegram refuses calls in several chats at once, the bot halves its rate and returns to the maximum within minutes.
    Typing actions have a separate budget, a third of the maximum."""

    group_calls_per_minute: float = Field(default=20, gt=0)
    """Messages and edits per minute in one group. Telegram allows about 20."""

    @model_validator(mode="after")
    def _webhook_has_an_address(self) -> TelegramSettings:
        if self.mode == "webhook" and not (self.webhook.url and self.webhook.secret.get_secret_value()):
            raise ValueError("telegram.mode = webhook needs telegram.webhook.url and telegram.webhook.secret")
        return self


DEFAULT_QUESTION = later("What is in this picture?")


class ChatSettings(Section):
    """The [chat] section: conversations and the sampling of answers."""

    system_prompt: str = ""
    """The system prompt, used for chats and training. Empty: the official one of the model's family."""

    default_question: str = Field(default=DEFAULT_QUESTION, min_length=1)
    """The question for a picture without a caption. The default is translated into the user's language."""

    temperature: float = Field(default=0.8, ge=0, le=2)
    """Sampling temperature. 0 always selects the most likely token."""

    top_p: float = Field(default=0.8, gt=0, le=1)
    """Nucleus sampling: tokens are drawn from the most likely ones, up to this probability mass."""

    max_new_tokens: int = Field(default=512, ge=1)
    """The maximum length of an answer, in tokens."""

    history_turns: int = Field(default=8, ge=0)
    """How many earlier questions of a conversation the model sees. The picture is always kept."""

    history_pictures: int = Field(default=1, ge=1)
    """How many of the latest messages with pictures the model sees. With more than one, people can compare pictures
    that they sent one after another, at the cost of time and memory."""

    group_sessions: Literal["person", "shared"] = "person"
    """person: each member of a group has a separate conversation in each topic. shared: the group has one
    conversation."""

    max_question_characters: int = Field(default=4096, ge=1)
    """The maximum length of a question, in characters."""

    max_pictures: int = Field(default=10, ge=1)
    """The maximum number of pictures in an album. About four large ones fit into the context of InternVL2-2B."""

    max_picture_megapixels: float = Field(default=50, gt=0, le=89)
    """The maximum size of a picture. Larger pictures are refused before they are decoded."""

    album_seconds: float = Field(default=1.2, ge=0)
    """How long to wait for the next picture of an album. They arrive one by one, without an end marker."""

    picture_threads: bool = False
    """Whether each new picture in a private chat opens its own topic, if topics are turned on in @BotFather."""

    guests: bool = False
    """Whether people may ask the bot in chats where it is not a member, by mentioning it in a message with a picture or
    in a reply to one. The bot learns from these answers only with the asker's permission in /privacy."""

    answer_hours: float = Field(default=6, ge=0)
    """After downtime, questions older than this are not answered; the bot asks each person to ask again. 0: answer
    all. Telegram keeps updates for a day."""

    def conversation_owner(self, chat: int, person: int) -> int:
        """Return the owner of a conversation: `person`, or `chat` for a group whose members share one conversation.

        The ID of a group is negative.
        """
        return chat if chat < 0 and self.group_sessions == "shared" else person


class LimitsSettings(Section):
    """The [limits] section: who may use the bot, and how much. Admins are not limited."""

    allowed: tuple[int, ...] = ()
    """User IDs and group IDs (negative): only these users, and everybody in these groups, may use the bot. Empty:
    everybody. Admins are always allowed, without limits."""

    blocked: tuple[int, ...] = ()
    """IDs of users and groups that are not allowed to use the bot. Their earlier votes and corrections are not used for
    training."""

    questions_per_minute: int = Field(default=0, ge=0)
    """Questions per minute for each person. 0: no limit."""

    answers_per_person: int = Field(default=0, ge=0)
    """Answers in flight for each person in all chats. 0: no limit."""

    corrections_per_day: int = Field(default=10, ge=0)
    """Corrections per day for each person. A correction is used for training after an admin or another member of the
    group has confirmed it. 0: no limit."""

    answers_at_once: int = Field(default=0, ge=0)
    """Answers in flight in all chats together, including queued ones. Further questions are refused with the time
    to wait. 0: no limit."""

    picture_megabytes_per_person: int = Field(default=1000, ge=0)
    """Stored pictures of each person, in megabytes. Above that, the bot asks the person to delete their data. 0: no
    limit."""

    def allows(self, person: int, chat: int) -> bool:
        """Return whether updates from the user `person` (0 if unknown) in `chat` are accepted."""
        here = {person, chat}
        return here.isdisjoint(self.blocked) and (not self.allowed or not here.isdisjoint(self.allowed))


class StorageSettings(Section):
    """The [storage] section: the data folder and how long data is kept."""

    dir: LocalPath = Path("data")
    """Folder of the database, the pictures, the models and the runs. The bot creates it for its own user only; if the
    engine runs as another user, give that user access to `models`."""

    min_free_gigabytes: float = Field(default=1.0, ge=0)
    """Alert the admins when less disk space than this is free."""

    retention_days: int = Field(default=0, ge=0)
    """Days after which unrated answers are deleted with their pictures. 0: never."""


class WebSettings(Section):
    """Settings of the web server for /health, /metrics, the operator's pages and Telegram's webhook."""

    host: str = Field("127.0.0.1")
    """Address to listen on."""

    port: int = Field(8080, ge=0, le=65535)
    """Port to listen on; 0 selects a free one."""

    token: SecretStr = Field(SecretStr(""))
    """Password of the operator's pages and /metrics: for the login form, and for scripts as a bearer token or the
    password of basic authentication. Empty: only this machine may open them, as 127.0.0.1 or localhost. A proxy that
    terminates TLS should send X-Forwarded-For and X-Forwarded-Proto."""

    public_url: str = Field("")
    """The public https address at which a proxy serves the operator's pages, such as https://bot.example.org. If
    set, /review opens the review page inside Telegram, where admins need no password. Empty: /review shows the answers
    in the chat."""

    @model_validator(mode="after")
    def _public_pages_have_a_password(self) -> WebSettings:
        if self.public_url and not re.fullmatch(r"https://[^/?#\s]+", self.public_url):
            raise ValueError("web.public_url: expected https:// and a host, without a path")
        if self.public_url and not self.token.get_secret_value():
            raise ValueError(
                "web.public_url needs web.token, because requests through a proxy appear to come from this machine"
            )
        return self
