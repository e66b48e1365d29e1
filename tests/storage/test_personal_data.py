"""Erasing a user deletes the user's data, leaves that of others, and keeps nothing erased on disk."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from storage.chat_records import Chat, Exchange, Person
from storage.errors import UnknownRecord
from storage.learning_records import Correction, Rating
from storage.ledger import FILE_NAME, Ledger
from storage.pending_removals import Removal, RemovalKind
from storage.personal_data import PersonalDataSummary
from storage.state_machines import RunState
from tests.support.ledgers import exchange, picture

ADA, BEN = 7_412_589_630, 7_412_589_631
GROUP = -100_200
DAY = 86_400.0


@pytest_asyncio.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with Ledger.open(tmp_path) as opened:
        yield opened


class Talk:
    """Records users' questions and votes in a ledger, with the updates, the replies, and who sent each picture."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._update = 0

    async def asks(
        self, person: int, *pictures: str, chat: int | None = None, together: bool = False, created: float = 0.0
    ) -> int:
        """Record an answered question and return the exchange's ID.

        With `together`, the question belongs to the conversation shared by the whole chat.
        """
        self._update += 1
        chat = chat or person
        lane = f"chat:{chat}" if chat == person else f"chat:{chat}:{person}"
        await self.ledger.people.save(
            Person(person, f"Name of {person}"), Chat(chat, "private" if chat == person else "group")
        )
        await self.ledger.inbox.store([(self._update, lane, f"the words of {person}")])
        await self.ledger.inbox.begin(self._update)
        await self.ledger.replies.begin(self._update, 0, chat)
        for each in pictures:
            await self.ledger.pictures.add(picture(each, created=created), person)
        asked: Exchange = exchange(
            await self.ledger.sessions.open(chat, chat if together else person),
            self._update,
            chat=chat,
            asker=person,
            question=f"the words of {person}",
            pictures=pictures,
            created=created,
        )
        number = (await self.ledger.exchanges.record(asked)).id
        await self.ledger.inbox.finish(self._update)
        return number

    async def votes(self, person: int, number: int, value: int = 1) -> None:
        """Record a vote by `person` on exchange `number`; `value` is 1 for 👍 and -1 for 👎."""
        self._update += 1
        await self.ledger.inbox.store([(self._update, f"taps:{person}", "{}")])
        await self.ledger.votes.cast(Rating(number, person, value, self._update))
        await self.ledger.inbox.finish(self._update)


@pytest.fixture
def talk(ledger: Ledger) -> Talk:
    return Talk(ledger)


async def test_a_person_goes_and_others_stay(ledger: Ledger, talk: Talk, tmp_path: Path) -> None:
    """After an erasure, no table contains the user's ID; other users keep their answers, votes and pictures."""
    hers = await talk.asks(ADA, "aa", "shared")
    in_group = await talk.asks(ADA, chat=GROUP)
    his = await talk.asks(BEN, "bb", "shared")
    await ledger.pictures.add(picture("sent by both"), ADA)
    await ledger.pictures.add(picture("sent by both"), BEN)
    await ledger.pictures.add(picture("never answered"), ADA)
    await talk.votes(ADA, hers)
    await talk.votes(BEN, in_group)
    await talk.votes(ADA, his, -1)
    await talk.votes(BEN, his)
    await ledger.inbox.store([(900, f"commands:{ADA}", f"set aside: {ADA}")])
    await ledger.inbox.set_aside(900, f"{ADA} broke it")
    await ledger.corrections.add(Correction(his, ADA, f"better, says {ADA}", 901))
    bettered = await talk.asks(BEN)
    shown = await ledger.corrections.add(Correction(bettered, ADA, f"better, says {ADA}", 902))
    await ledger.corrections.confirm(shown, BEN)
    await ledger.inbox.store([(903, f"broadcast:{BEN}", "{}")])
    await ledger.broadcasts.begin(903, [ADA, BEN])
    run = await ledger.runs.start("admin", ADA)
    selected = [(hers, "train"), (in_group, "held_out"), (bettered, "train"), (await talk.asks(BEN), "train")]
    await ledger.run_selections.freeze(run.id, selected)
    expected = PersonalDataSummary(exchanges=2, pictures=2, votes=2, corrections=2, rows=3)
    assert await ledger.personal_data.count(ADA) == expected
    assert await ledger.personal_data.erase(ADA) == expected
    assert not await ledger.personal_data.count(ADA)
    assert _named(tmp_path, ADA) == []
    assert [(each.exchange.id, each.ups, each.downs) for each in await ledger.votes.rated_exchanges()] == [(his, 1, 0)]
    assert {each.sha256 for each in await ledger.pictures.all()} == {"bb", "shared", "sent by both"}
    assert await ledger.run_selections.of(run.id) == selected[-1:]
    assert await ledger.personal_data.pending_removals() == [
        Removal(RemovalKind.LOG, ""),
        Removal(RemovalKind.PICTURE, "aa"),
        Removal(RemovalKind.PICTURE, "never answered"),
        Removal(RemovalKind.ROW, str(hers)),
        Removal(RemovalKind.ROW, str(in_group)),
        Removal(RemovalKind.ROW, str(bettered)),
        Removal(RemovalKind.SESSION, "1"),
        Removal(RemovalKind.SESSION, "2"),
    ]


async def test_what_others_asked_about_a_picture_goes_with_it(ledger: Ledger, talk: Talk) -> None:
    """Erasing a user also deletes other users' questions about the user's pictures, and any follow-ups."""
    await ledger.pictures.add(picture("hers"), ADA)
    about_hers = await talk.asks(BEN, chat=GROUP)
    database = ledger._writer
    await database.do(
        lambda each: each.execute(
            "INSERT INTO exchange_pictures(exchange, position, sha256) VALUES (?, 0, 'hers')", [about_hers]
        )
    )
    follow_up, about_his = await talk.asks(BEN, chat=GROUP), await talk.asks(BEN, "bb", chat=GROUP)
    assert (await ledger.personal_data.count(ADA)).exchanges == 2
    await ledger.personal_data.erase(ADA)
    with pytest.raises(UnknownRecord):
        await ledger.exchanges.get(follow_up)
    assert (await ledger.exchanges.get(about_his)).pictures == ("bb",)
    assert [each.sha256 for each in await ledger.pictures.all()] == ["bb"]


async def test_in_a_shared_conversation_the_others_stay(ledger: Ledger) -> None:
    """In a shared conversation, questions about other users' pictures survive an erasure.

    An answer in flight to the erased user is not recorded.
    """
    session = await ledger.sessions.open(GROUP, GROUP)
    for sender, name in ((ADA, "aa"), (BEN, "bb")):
        await ledger.pictures.add(picture(name), sender)
    asked = [(ADA, ("aa",)), (BEN, ()), (BEN, ("bb",)), (ADA, ()), (BEN, ())]
    for update, (asker, pictures) in enumerate(asked):
        await ledger.exchanges.record(exchange(session, update, chat=GROUP, asker=asker, pictures=pictures))
    await ledger.inbox.store([(99, f"chat:{GROUP}:{ADA}", "{}")])
    await ledger.personal_data.erase(ADA)
    assert [(each.update, each.asker) for each in await ledger.exchanges.history(session, 9)] == [(2, BEN), (4, BEN)]
    with pytest.raises(UnknownRecord, match="closed"):
        await ledger.exchanges.record(exchange(session, 99, chat=GROUP, asker=ADA))
    assert await ledger.people.get(ADA) is None


async def test_work_on_a_closed_update_brings_nothing_back(ledger: Ledger, tmp_path: Path) -> None:
    """If a user is erased while their update is being handled, no record of the user is written."""
    await ledger.inbox.store([(1, f"chat:{ADA}", "{}")])
    await ledger.inbox.begin(1)
    await ledger.personal_data.erase(ADA)
    for late in (
        ledger.people.save(Person(ADA), Chat(ADA), update=1),
        ledger.pictures.add(picture("late"), ADA, update=1),
        ledger.sessions.open(ADA, ADA, update=1),
    ):
        with pytest.raises(UnknownRecord, match="closed"):
            await late
    assert _named(tmp_path, ADA) == []
    assert await ledger.pictures.all() == []


async def test_a_second_deletion_leaves_what_is_at_work_closed(ledger: Ledger, tmp_path: Path) -> None:
    """After its sender is erased twice, an update in progress can finish without restoring the sender's data."""
    await ledger.inbox.store([(1, f"chat:{ADA}", "{}"), (2, f"taps:{ADA}", "{}"), (3, f"taps:{ADA}", "{}")])
    for update in (1, 2, 3):
        await ledger.inbox.begin(update)
    await ledger.replies.begin(1, 0, ADA)
    for tap in (2, 3):
        await ledger.personal_data.erase(ADA, during=tap)
        await ledger.inbox.finish(tap)
    with pytest.raises(UnknownRecord, match="closed"):
        await ledger.sessions.open(ADA, ADA, update=1)
    await ledger.inbox.finish(1)
    assert await ledger.people.get(ADA) is None
    assert _named(tmp_path, ADA) == []


async def test_nothing_is_left_in_free_pages(ledger: Ledger, talk: Talk, tmp_path: Path) -> None:
    """After an erasure, no ledger file contains any of the user's text, whether long or short, old or new."""
    for number in range(60):
        await talk.asks(ADA if number % 2 else BEN)
        session = await ledger.sessions.open(ADA, ADA)
        long = f"<{ADA} secret>" * (number * 20)
        await ledger.exchanges.record(exchange(session, 10_000 + number, chat=ADA, asker=ADA, question=long))
    words = f"the words of {ADA}".encode(), f"{ADA} secret".encode()
    assert all(any(word in each.read_bytes() for each in tmp_path.glob(f"{FILE_NAME}*")) for word in words)
    await ledger.personal_data.erase(ADA)
    assert await ledger.empty_log()
    for each in tmp_path.glob(f"{FILE_NAME}*"):
        assert not any(word in each.read_bytes() for word in words), each.name
    assert f"the words of {BEN}".encode() in (tmp_path / FILE_NAME).read_bytes()


async def test_the_log_is_emptied_when_others_let_it(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`empty_log` returns False while another process is reading an older state, and succeeds afterwards."""
    monkeypatch.setattr("storage.ledger.LOG_SECONDS", 0.1)
    await ledger.inbox.store([(1, "a", "{}")])
    other = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    try:
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM inbox").fetchone()
        await ledger.inbox.store([(2, "a", "{}")])
        assert not await ledger.empty_log()
    finally:
        other.close()
    assert await ledger.empty_log()


async def test_what_waits_is_not_handled(ledger: Ledger) -> None:
    """Erasure closes the user's other updates and deletes their text; the update that requested it continues."""
    lanes = {1: f"chat:{ADA}", 2: f"taps:{ADA}", 3: f"chat:{GROUP}:{ADA}", 4: f"chat:{BEN}", 5: f"chat:{GROUP}:{BEN}"}
    await ledger.inbox.store([(number, lane, "words") for number, lane in lanes.items()])
    await ledger.inbox.begin(1)
    await ledger.replies.begin(1, 0, ADA)
    await ledger.inbox.begin(2)
    await ledger.personal_data.erase(ADA, during=2)
    assert [each.id for each in await ledger.inbox.pending()] == [2, 4, 5]
    assert (await ledger.inbox.get(1)).payload == ""
    await ledger.replies.finish(1, 0)
    await ledger.inbox.finish(1)


async def test_opting_out_stays(ledger: Ledger, talk: Talk, tmp_path: Path) -> None:
    """A user who opted out stays opted out after an erasure; for other erased users, not even the ID is kept."""
    await talk.asks(ADA)
    await ledger.people.set_opted_out(ADA, True)
    await ledger.personal_data.erase(ADA)
    assert await ledger.people.get(ADA) == Person(ADA, opted_out=True)
    assert _named(tmp_path, ADA) == ["users.id"]


async def test_who_opted_out_teaches_nothing(ledger: Ledger, talk: Talk) -> None:
    """While a user is opted out, their questions, the votes on them and their own votes do not count."""
    hers, his = await talk.asks(ADA), await talk.asks(BEN)
    for person, number in ((BEN, hers), (BEN, his), (ADA, his), (ADA, hers)):
        await talk.votes(person, number)
    await ledger.people.set_opted_out(ADA, True)
    assert [(each.exchange.id, each.raters) for each in await ledger.votes.rated_exchanges()] == [(his, (BEN,))]
    await ledger.people.set_opted_out(ADA, False)
    assert [(each.exchange.id, each.ups) for each in await ledger.votes.rated_exchanges()] == [(hers, 2), (his, 2)]


@pytest.mark.parametrize("teaches", ["asks", "shows a better answer"])
@pytest.mark.parametrize("leaves", ["forgets", "opts out"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "just selected"])
async def test_a_run_that_learns_from_who_leaves_is_cancelled(
    ledger: Ledger, talk: Talk, training: bool, leaves: str, teaches: str
) -> None:
    """If a user is erased or opts out, a run that learns from the user is cancelled and marked as withdrawn.

    The erasure of an unrelated user does not cancel the run.
    """
    hers, his = await talk.asks(ADA if teaches == "asks" else BEN), await talk.asks(BEN)
    if teaches != "asks":
        await ledger.corrections.confirm(await ledger.corrections.add(Correction(hers, ADA, "better", 901)), BEN)
    run = await ledger.runs.start("schedule")
    await ledger.run_selections.freeze(run.id, [(hers, "train"), (his, "held_out")])
    if training:
        await ledger.runs.move(run.id, RunState.TRAINING)
    await ledger.personal_data.erase(404)
    assert (await ledger.runs.cancel_requested(run.id), await ledger.run_selections.withdrawn(run.id)) == (False, False)
    await (ledger.personal_data.erase(ADA) if leaves == "forgets" else ledger.people.set_opted_out(ADA, True))
    assert (await ledger.runs.cancel_requested(run.id), await ledger.run_selections.withdrawn(run.id)) == (True, True)


@pytest.mark.parametrize("leaves", ["forgets", "opts out"])
@pytest.mark.parametrize("learns", ["before", "after"])
async def test_a_run_whose_lessons_show_who_leaves_is_cancelled(
    ledger: Ledger, talk: Talk, learns: str, leaves: str
) -> None:
    """In a shared conversation, a user's erasure or opt-out cancels runs that learn from later answers.

    Those answers have the user's question in their history. Runs that learn only from earlier answers
    continue.
    """
    before, _, after = [await talk.asks(asker, chat=GROUP, together=True) for asker in (BEN, ADA, BEN)]
    run = await ledger.runs.start("schedule")
    await ledger.run_selections.freeze(run.id, [(before if learns == "before" else after, "train")])
    await (ledger.personal_data.erase(ADA) if leaves == "forgets" else ledger.people.set_opted_out(ADA, True))
    shown = learns == "after"
    assert (await ledger.runs.cancel_requested(run.id), await ledger.run_selections.withdrawn(run.id)) == (shown, shown)


async def test_opting_out_takes_their_rows_out_of_files(ledger: Ledger, talk: Talk) -> None:
    """Opting out schedules the removal of the user's rows from the files of all runs, even cancelled ones.

    Other users' rows stay.
    """
    hers, his = await talk.asks(ADA), await talk.asks(BEN)
    run = await ledger.runs.start("schedule")
    await ledger.run_selections.freeze(run.id, [(hers, "train"), (his, "train")])
    await ledger.people.set_opted_out(ADA, True)
    assert await ledger.runs.cancel_requested(run.id)
    assert await ledger.personal_data.pending_removals() == [Removal(RemovalKind.ROW, str(hers))]


async def test_opting_in_again_does_not_undo_a_withdrawal(ledger: Ledger, talk: Talk) -> None:
    """A run cancelled by a withdrawal stays withdrawn and is repeated, even if the user opts in again."""
    hers = await talk.asks(ADA)
    run = await ledger.runs.start("schedule")
    await ledger.run_selections.freeze(run.id, [(hers, "train")])
    for wish in (True, False):
        await ledger.people.set_opted_out(ADA, wish)
    await ledger.runs.request_cancel(run.id)
    assert (await ledger.runs.cancel_requested(run.id), await ledger.run_selections.withdrawn(run.id)) == (True, True)


async def test_a_better_answer_that_is_taken_back_ends_no_run(ledger: Ledger, talk: Talk) -> None:
    """Retracting a correction's confirmation does not cancel a run; an opt-out of the author still does.

    Like retracting a vote, retracting a confirmation affects only later runs.
    """
    hers = await talk.asks(BEN)
    shown = await ledger.corrections.add(Correction(hers, ADA, "better", 901))
    await ledger.corrections.confirm(shown, BEN)
    run = await ledger.runs.start("schedule")
    await ledger.run_selections.freeze(run.id, [(hers, "train")])
    await ledger.corrections.confirm(shown, None)
    assert (await ledger.runs.cancel_requested(run.id), await ledger.run_selections.withdrawn(run.id)) == (False, False)
    await ledger.people.set_opted_out(ADA, True)
    assert (await ledger.runs.cancel_requested(run.id), await ledger.run_selections.withdrawn(run.id)) == (True, True)


async def test_an_answer_corrected_by_a_person_who_opted_out_teaches(ledger: Ledger, talk: Talk) -> None:
    """After the author of a correction opts out, the model's own answer and its votes are used instead.

    A run that uses this answer is not withdrawn.
    """
    hers = await talk.asks(BEN)
    await talk.votes(BEN, hers)
    await ledger.corrections.confirm(await ledger.corrections.add(Correction(hers, ADA, "better", 901)), BEN)
    await ledger.people.set_opted_out(ADA, True)
    assert [each.exchange.id for each in await ledger.votes.rated_exchanges()] == [hers]
    run = await ledger.runs.start("schedule")
    await ledger.run_selections.freeze(run.id, [(hers, "train")])
    assert not await ledger.run_selections.withdrawn(run.id)


async def test_exchanges_without_votes_expire(ledger: Ledger, talk: Talk) -> None:
    """Old exchanges without votes expire with their pictures.

    Rated and new exchanges are kept, and so are earlier exchanges in the same conversations.
    """
    before_a_vote = await talk.asks(ADA, "aa", created=1 * DAY)
    voted = await talk.asks(ADA, created=2 * DAY)
    await talk.asks(ADA, "cc", created=3 * DAY)
    await talk.votes(BEN, voted)
    await talk.asks(BEN, "dd", created=3 * DAY)
    await ledger.sessions.restart(BEN, BEN)
    old_but_talking = await talk.asks(BEN, "ee", created=3 * DAY)
    new = await talk.asks(BEN, created=9 * DAY)
    await ledger.pictures.add(picture("old and unused", created=3 * DAY), ADA)
    await ledger.pictures.add(picture("sent again", created=3 * DAY), ADA)
    await ledger.pictures.add(picture("sent again", created=9 * DAY), BEN)
    assert await ledger.personal_data.expire(5 * DAY) == 2
    kept = [each.id for session in (1, 2, 3) for each in await ledger.exchanges.history(session, 10)]
    assert kept == [before_a_vote, voted, old_but_talking, new]
    assert {each.sha256 for each in await ledger.pictures.all()} == {"aa", "ee", "sent again"}
    gone = [each.name for each in await ledger.personal_data.pending_removals() if each.kind is RemovalKind.PICTURE]
    assert gone == ["cc", "dd", "old and unused"]
    assert await ledger.personal_data.expire(5 * DAY) == 0


async def test_what_was_set_aside_grows_old(ledger: Ledger, tmp_path: Path) -> None:
    """The text of a dead letter expires at the same age as the text of a question without votes."""
    await ledger.inbox.store([(1, f"chat:{ADA}", f"the words of {ADA}")])
    await ledger.inbox.set_aside(1, "RuntimeError: broken")
    received = (await ledger.inbox.get(1)).received
    await ledger.personal_data.expire(received)
    assert (await ledger.inbox.get(1)).payload
    await ledger.personal_data.expire(received + 1)
    assert _named(tmp_path, ADA) == []
    assert [each.kind for each in await ledger.personal_data.pending_removals()] == [RemovalKind.LOG]


async def test_a_picture_that_was_sent_again_stays(ledger: Ledger, talk: Talk) -> None:
    """When the removal of a picture is due, its file is deleted unless the picture was sent again.

    In either case the removal is marked as done.
    """
    await talk.asks(ADA, "aa", "bb")
    await ledger.personal_data.erase(ADA)
    await ledger.pictures.add(picture("bb"), BEN)
    removed: list[str] = []
    assert await ledger.personal_data.remove_picture("aa", lambda: removed.append("aa"))
    assert not await ledger.personal_data.remove_picture("bb", lambda: removed.append("bb"))
    assert removed == ["aa"]
    assert [each for each in await ledger.personal_data.pending_removals() if each.kind is RemovalKind.PICTURE] == []


async def test_a_file_that_cannot_be_removed_stays_noted(ledger: Ledger, talk: Talk) -> None:
    """If a picture file cannot be removed, its removal stays pending, so that it is tried again later."""
    await talk.asks(ADA, "aa")
    await ledger.personal_data.erase(ADA)

    def fails() -> None:
        raise OSError("not now")

    with pytest.raises(OSError, match="not now"):
        await ledger.personal_data.remove_picture("aa", fails)
    assert Removal(RemovalKind.PICTURE, "aa") in await ledger.personal_data.pending_removals()


def _named(directory: Path, person: int) -> list[str]:
    """Return the ledger columns, as `table.column`, in which a user's ID occurs, alone or within text."""
    database = sqlite3.connect(directory / FILE_NAME)
    try:
        tables = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = []
        for table in tables:
            for column in [row[1] for row in database.execute(f"PRAGMA table_info({table})")]:
                sql = f'SELECT count(*) FROM "{table}" WHERE CAST("{column}" AS TEXT) LIKE ?'
                if database.execute(sql, [f"%{person}%"]).fetchone()[0]:
                    found.append(f"{table}.{column}")
        return found
    finally:
        database.close()
