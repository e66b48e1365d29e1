"""The rows of the ledger as frozen dataclasses.

Knows what is kept, not how: the queries are in `ledger`, the tables in `migrations`, which state leads where in
`states`. Times are UTC seconds since the epoch (float). Identifiers of people, chats and messages are Telegram's
integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from storage.states import ModelState, RunState

BASE: Final = "base"
"""The id of the model that training starts from."""


@dataclass(frozen=True, slots=True)
class Person:
    """A Telegram user. `language` is what they chose with /language; None follows their client.

    Nobody learns from what an `opted_out` person has asked or voted.
    """

    id: int
    name: str = ""
    client_language: str | None = None
    language: str | None = None
    opted_out: bool = False


@dataclass(frozen=True, slots=True)
class Belongings:
    """How much of a person is kept: questions with their answers, pictures that nobody else sent, votes (all ever
    cast), better answers that they have shown, and rows in the data sets of runs.
    """

    exchanges: int
    pictures: int
    votes: int
    demonstrations: int
    rows: int

    def __bool__(self) -> bool:
        return any((self.exchanges, self.pictures, self.votes, self.demonstrations, self.rows))


class PictureState(StrEnum):
    """What became of a picture: `RAW` is as it was sent, by an earlier version; `CLEAN` was re-encoded; a `QUARANTINED`
    one could not be, and is neither shown to an engine nor trained on, exported or backed up.
    """

    RAW = "raw"
    CLEAN = "clean"
    QUARANTINED = "quarantined"


class Kind(StrEnum):
    """What has to follow rows that were deleted; the names are a picture's sha256, an exchange's and a session's id."""

    PICTURE = "picture"
    ROW = "row"
    SESSION = "session"
    LOG = "log"


@dataclass(frozen=True, slots=True)
class Removal:
    """Something outside the ledger that is yet to be removed, because the ledger has forgotten what it belongs to."""

    kind: Kind
    name: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A Telegram chat; `kind` is private, group, supergroup or channel."""

    id: int
    kind: str = "private"
    title: str = ""


@dataclass(frozen=True, slots=True)
class StoredPicture:
    """A picture's row; its bytes lie in the picture folder under `sha256`. `phash` is a 64-bit perceptual hash in hex.

    `width` and `height` in pixels, `size` in bytes.
    """

    sha256: str
    media_type: str
    width: int
    height: int
    size: int
    phash: str
    created: float = 0.0
    state: PictureState = PictureState.CLEAN


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question and its answer, with all that produced it. `session` is the conversation it belongs to.

    `update` is the Telegram update that asked: unique, so a replay finds the exchange instead of answering twice.
    `pictures` are the sha256 of the question's own pictures, `formerly` what they were before they were cleaned, empty
    where they are the same. `prompt_hash` covers the rendered prompt and pictures, as they were then.
    `replaces` is the first exchange at its place in the conversation, where a question was answered again or edited:
    of all that share a place the newest stands, the others are kept. `finish` is "abort" for an answer that its asker
    stopped: what came until then. `top_k` is None where it was not recorded yet.
    """

    session: int
    chat: int
    asker: int
    update: int
    question: str
    pictures: tuple[str, ...]
    answer: str
    model: str
    system: str
    prompt_hash: str
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int | None
    finish: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    encoded_tiles: int
    first_token_seconds: float
    seconds: float
    replaces: int | None = None
    created: float = 0.0
    id: int = 0
    top_k: int | None = None
    formerly: tuple[str, ...] = ()

    @property
    def place(self) -> int:
        """The id of the first exchange at its place in the conversation."""
        return self.replaces or self.id


@dataclass(frozen=True, slots=True)
class Rating:
    """A thumb: `value` is 1 or -1, or 0 for one that was taken back. Feedback is append-only; the latest row per
    exchange and rater counts. `reason` is why, in a word of the bot's own, empty where nobody said.

    `update` makes a replay of the same tap harmless.
    """

    exchange: int
    rater: int
    value: int
    update: int
    created: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """What would have been a good answer, as `author` sees it. It teaches once somebody has confirmed it."""

    exchange: int
    author: int
    text: str
    update: int
    created: float = 0.0
    confirmed_by: int | None = None
    id: int = 0


@dataclass(frozen=True, slots=True)
class RatedExchange:
    """An exchange with its latest votes and the conversation before it (oldest first, without itself), as it stood
    when the exchange came about.

    Where a better answer was `demonstrated` and confirmed, the exchange has that as its answer, whoever confirmed it
    has voted for it, and nobody else: the votes were on what the model had said.
    """

    exchange: Exchange
    ups: int
    downs: int
    raters: tuple[int, ...]
    liked_by: tuple[int, ...]
    history: tuple[Exchange, ...] = ()
    demonstrated: bool = False


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom the operator trusts less or more than others: people and groups that are `blocked` teach nothing, `admins`
    may confirm their own better answers.
    """

    blocked: frozenset[int] = frozenset()
    admins: frozenset[int] = frozenset()


ALIKE: Final = Trust()
"""Nobody is blocked, nobody an admin."""


@dataclass(frozen=True, slots=True)
class Preference:
    """Of two answers to one prompt the one that people like more, and the text of the other."""

    chosen: RatedExchange
    rejected: str


@dataclass(frozen=True, slots=True)
class Run:
    """A retraining run. `trigger` is schedule, admin or command; `requested_by` the admin's user id if any.

    `step` of `steps`, and `seconds_left` if that can be told, are of the state the run is in; `loss` is the newest.
    """

    id: int
    state: RunState
    trigger: str
    requested_by: int | None
    created: float
    updated: float
    step: int = 0
    steps: int = 0
    loss: float | None = None
    seconds_left: float | None = None
    samples: int = 0
    held_out: int = 0
    raters: int = 0
    directory: str = ""
    reason: str = ""
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """A model directory. `id` is its short name ("base", "run-3"); `run` the run that made it.

    `report` is the evaluation as JSON text; `reason` why it was rejected, empty otherwise. `directory` is empty where
    the files were removed; those of a `pruned` model are merged again from its adapter when it is promoted.
    """

    id: str
    directory: str
    state: ModelState
    run: int | None
    created: float
    reason: str = ""
    report: str = ""
    manifest_hash: str = ""
    pruned: bool = False

    @property
    def kept(self) -> bool:
        """Whether the model can be promoted."""
        return bool(self.directory) or self.pruned


@dataclass(frozen=True, slots=True)
class Taught:
    """What a run was taught by: liked answers, the thumbs up on them when it began, and how many people gave those.

    Without what was forgotten since.
    """

    answers: int = 0
    votes: int = 0
    people: int = 0


@dataclass(frozen=True, slots=True)
class Version:
    """A model as people count them: `number` is 1 for the one the bot began with, and what taught it.

    `created` is when it was made.
    """

    model: str
    number: int
    taught: Taught
    created: float


@dataclass(frozen=True, slots=True)
class Day:
    """What one model answered on one day (ISO date, UTC), and how many thumbs that has."""

    day: str
    model: str
    answers: int
    ups: int
    downs: int


@dataclass(frozen=True, slots=True)
class Approval:
    """The votes on a model's answers: the latest of each rater."""

    ups: int = 0
    downs: int = 0

    @property
    def votes(self) -> int:
        """How many there are."""
        return self.ups + self.downs

    @property
    def share(self) -> float:
        """The share of thumbs up, 0 to 1. Without votes there is none: raises ZeroDivisionError."""
        return self.ups / self.votes


@dataclass(frozen=True, slots=True)
class Participant:
    """A person and what they did: answers they were given, votes that count, and when they were last `seen`."""

    id: int
    name: str
    opted_out: bool
    answers: int
    votes: int
    seen: float


@dataclass(frozen=True, slots=True)
class Promotion:
    """A change of the live model, done or asked for. `by` is an admin's user id, None for the pipeline or a shell.

    A promotion asked for on the command line has `done` None until the running bot carries it out; `error` says
    why it could not.
    """

    id: int
    model: str
    previous: str | None
    by: int | None
    created: float
    done: float | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class StoredUpdate:
    """An update as the inbox keeps it. `lane` orders: updates of one lane are handled one after the other."""

    id: int
    lane: str
    payload: str
    attempts: int
    received: float
    state: str = "stored"
    error: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """A message of ours that belongs to an update: `slot` counts the update's replies from 0.

    Stored before the first send with `message` None ("sending"), then with Telegram's message id. A replay that finds
    an id edits; one that finds None may double a placeholder: the one unavoidable window, counted. `question` is the
    message that it answers, 0 where there is none.
    """

    update: int
    slot: int
    chat: int
    message: int | None
    final: bool = False
    question: int = 0
