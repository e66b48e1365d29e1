"""Updates and replies in the ledger, and their recovery after a crash."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storage.chat_records import StoredReply
from storage.errors import IllegalTransition, StorageError, UnknownRecord
from storage.ledger import Ledger
from tests.support.ledgers import exchange


class Clock:
    """A clock that stands still at `now` until a test changes it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def ledger(tmp_path: Path, clock: Clock) -> AsyncIterator[Ledger]:
    async with Ledger.open(tmp_path, clock=clock) as ledger:
        yield ledger


async def pending(ledger: Ledger) -> list[int]:
    return [update.id for update in await ledger.inbox.pending()]


async def test_an_update_is_stored_once(ledger: Ledger) -> None:
    """Storing an update returns True the first time and False afterwards, and the first payload is kept."""
    assert await ledger.inbox.store([(7, "chat 1", '{"text": "一 \\ud83d"}')]) == [True]
    assert await ledger.inbox.store([(7, "chat 2", "{}")]) == [False]
    (stored,) = await ledger.inbox.pending()
    assert (stored.id, stored.lane, stored.payload, stored.attempts) == (7, "chat 1", '{"text": "一 \\ud83d"}', 0)
    assert (stored.state, stored.received) == ("stored", 1000.0)


async def test_updates_that_arrive_together_are_each_stored_once(ledger: Ledger) -> None:
    """When duplicate updates are stored concurrently, exactly one of each is reported as new."""
    await ledger.inbox.store([(3, "a", "{}")])
    fresh = await asyncio.gather(*(ledger.inbox.store([(update, "a", "{}")]) for update in (1, 2, 3, 1, 2, 1)))
    assert fresh == [[True], [True], [False], [False], [False], [False]]
    assert await ledger.inbox.store([(4, "a", "{}"), (1, "a", "{}"), (4, "b", "{}")]) == [True, False, False]
    assert await ledger.inbox.store([]) == []
    assert await pending(ledger) == [1, 2, 3, 4]


async def test_payloads_of_every_kind_come_back(ledger: Ledger) -> None:
    """Payloads with quotes, newlines, control characters, emoji or 100,000 characters are stored unchanged.

    An unpaired surrogate is refused.
    """
    payloads = ['{"a": "\\"\\n"}', "\x01\x7f\u2028 ' \" \\", "🟥🀄 文字", "x" * 100_000, ""]
    await asyncio.gather(*(ledger.inbox.store([(number, "a", text)]) for number, text in enumerate(payloads)))
    assert [update.payload for update in await ledger.inbox.pending()] == payloads
    with pytest.raises(StorageError, match="not valid Unicode"):
        await ledger.inbox.store([(99, "a", "\ud83d")])


async def test_attempts_are_counted(ledger: Ledger) -> None:
    """Each `begin` counts as an attempt, and an update that was begun but not finished stays pending."""
    await ledger.inbox.store([(1, "a", "{}"), (2, "a", "{}")])
    assert [await ledger.inbox.begin(1), await ledger.inbox.begin(1), await ledger.inbox.begin(2)] == [1, 2, 1]
    assert [(update.id, update.attempts) for update in await ledger.inbox.pending()] == [(1, 2), (2, 1)]


async def test_a_finished_update_is_over(ledger: Ledger) -> None:
    """A finished update is no longer pending, has lost its payload, stays known and cannot be begun again."""
    await ledger.inbox.store([(1, "a", '{"secret": 1}')])
    await ledger.inbox.begin(1)
    await ledger.inbox.finish(1)
    await ledger.inbox.finish(1)
    assert await pending(ledger) == []
    assert (await ledger.inbox.get(1)).payload == ""
    assert await ledger.inbox.store([(1, "a", "{}")]) == [False]
    with pytest.raises(IllegalTransition, match="finished"):
        await ledger.inbox.begin(1)


async def test_an_update_set_aside_waits_for_the_operator(ledger: Ledger) -> None:
    """An update set aside is not pending, and its payload and the error are kept."""
    await ledger.inbox.store([(1, "a", '{"poison": 1}')])
    await ledger.inbox.set_aside(1, "failed 5 times: boom")
    assert await pending(ledger) == []
    kept = await ledger.inbox.get(1)
    assert (kept.state, kept.payload, kept.error) == ("aside", '{"poison": 1}', "failed 5 times: boom")
    assert (await ledger.counts.totals())["updates_set_aside"] == 1


async def test_the_reason_for_an_undelivered_answer_is_kept(ledger: Ledger) -> None:
    """When two updates finish together, only the row of the undelivered answer records a reason."""
    await ledger.inbox.store([(1, "a", "{}"), (2, "b", "{}")])
    await asyncio.gather(ledger.inbox.finish(1), ledger.inbox.finish(2, "bot was blocked by the user"))
    rows = [await ledger.inbox.get(update) for update in (1, 2)]
    assert [(row.state, row.error) for row in rows] == [("done", ""), ("done", "bot was blocked by the user")]


async def test_unknown_updates(ledger: Ledger) -> None:
    """Beginning, finishing or setting aside an unknown update raises an error for that update only."""
    await ledger.inbox.store([(1, "a", "{}")])
    results = await asyncio.gather(ledger.inbox.begin(1), ledger.inbox.begin(2), return_exceptions=True)
    assert results[0] == 1
    assert isinstance(results[1], UnknownRecord)
    finished = await asyncio.gather(ledger.inbox.finish(1), ledger.inbox.finish(2), return_exceptions=True)
    assert finished[0] is None
    assert isinstance(finished[1], UnknownRecord)
    with pytest.raises(UnknownRecord):
        await ledger.inbox.set_aside(2, "")
    with pytest.raises(UnknownRecord):
        await ledger.inbox.get(2)
    assert await pending(ledger) == []


async def test_old_finished_updates_are_pruned(ledger: Ledger, clock: Clock) -> None:
    """Pruning deletes updates finished before the given time, except the last one received.

    Unfinished updates are kept.
    """
    for update in (1, 2, 3, 4):
        await ledger.inbox.store([(update, "a", "{}")])
        await ledger.replies.begin(update, 0, 1)
        await ledger.replies.sent(update, 0, 50 + update)
        if update != 2:
            await ledger.inbox.finish(update)
        clock.now += 10
    assert await ledger.inbox.prune(before=1025.0) == 2
    assert await pending(ledger) == [2]
    assert [len(await ledger.replies.for_update(update)) for update in (1, 2, 3, 4)] == [0, 1, 0, 1]
    assert await ledger.inbox.prune(before=clock.now + 99) == 0
    assert await ledger.inbox.store([(4, "a", "{}")]) == [False]
    assert await ledger.inbox.store([(1, "a", "{}")]) == [True]
    assert await ledger.inbox.prune(before=clock.now + 99) == 1
    assert await ledger.inbox.store([(4, "a", "{}")]) == [True]


async def test_the_last_update_is_the_one_that_came_last(ledger: Ledger, clock: Clock) -> None:
    """After Telegram restarts its update numbering, pruning keeps the newest update, not the highest-numbered."""
    for updates in ([500, 502, 501], [20]):
        await ledger.inbox.store([(update, "a", "{}") for update in updates])
        await asyncio.gather(*(ledger.inbox.finish(update) for update in updates))
        clock.now += 1
    assert await ledger.inbox.prune(before=clock.now) == 3
    assert (await ledger.inbox.get(20)).state == "done"


async def test_the_replies_that_show_an_answer_stay(ledger: Ledger, clock: Clock) -> None:
    """Even after its update is pruned, a message showing an exchange leads to the exchange and its question."""
    session = await ledger.sessions.open(1, 1)
    await ledger.inbox.store([(update, "a", "{}") for update in (1, 2, 3)])
    found = (await ledger.exchanges.record(exchange(session, 1))).id
    for update in (1, 2):
        await ledger.replies.begin(update, 0, 1, question=40 + update)
        await ledger.replies.sent(update, 0, 50 + update)
        await ledger.inbox.finish(update)
    clock.now += 10
    assert await ledger.inbox.prune(before=clock.now) == 2
    assert [each.message for each in await ledger.replies.for_question(1, 41)] == [51]
    shown = await ledger.exchanges.for_message(1, 51)
    assert shown is not None and shown.id == found
    assert await ledger.exchanges.for_question(1, 41) == shown
    assert await ledger.replies.for_question(1, 42) == []
    assert await ledger.exchanges.for_message(1, 52) is None


async def test_a_reply_not_yet_sent_hides_no_earlier_answer(ledger: Ledger) -> None:
    """A reply that was begun but not sent before a kill does not hide the question's earlier answer."""
    await ledger.replies.begin(1, 0, 5, question=41)
    await ledger.replies.sent(1, 0, 51)
    await ledger.replies.begin(2, 0, 5, question=41)
    assert [each.message for each in await ledger.replies.for_question(5, 41)] == [51]


async def test_a_replayed_reply_is_found(ledger: Ledger) -> None:
    """A sent reply is found by its update and slot, with its message, and does not count as doubtful."""
    assert await ledger.replies.begin(1, 0, 5) == StoredReply(1, 0, 5, None)
    await ledger.replies.sent(1, 0, 900)
    assert await ledger.replies.begin(1, 0, 5) == StoredReply(1, 0, 5, 900)
    await ledger.replies.begin(1, 1, 5)
    await ledger.replies.finish(1, 0)
    assert await ledger.replies.for_update(1) == [StoredReply(1, 0, 5, 900, final=True), StoredReply(1, 1, 5, None)]
    assert (await ledger.counts.totals())["replies_doubtful"] == 0


async def test_a_reply_begun_again_without_a_message_is_in_doubt(ledger: Ledger) -> None:
    """Each time a reply without a recorded message is begun again, it counts as doubtful, even if sent later."""
    await ledger.replies.begin(1, 0, 5)
    assert await ledger.replies.begin(1, 0, 5) == StoredReply(1, 0, 5, None)
    await ledger.replies.begin(1, 0, 5)
    await ledger.replies.sent(1, 0, 900)
    assert (await ledger.counts.totals())["replies_doubtful"] == 2


async def test_a_reply_must_be_begun(ledger: Ledger) -> None:
    """Marking a reply as sent or finished raises an error if the reply was not begun."""
    with pytest.raises(UnknownRecord, match="call `begin` first"):
        await ledger.replies.sent(1, 0, 900)
    with pytest.raises(UnknownRecord, match="call `begin` first"):
        await ledger.replies.finish(1, 0)


async def test_a_closed_update_is_not_set_aside(ledger: Ledger) -> None:
    """A finished update is not set aside or reopened, as it has no payload left for the operator to examine."""
    await ledger.inbox.store([(1, "a:1", "{}")])
    await ledger.inbox.begin(1)
    await ledger.inbox.finish(1)
    assert not await ledger.inbox.set_aside(1, "RuntimeError: broken")
    assert ((await ledger.inbox.get(1)).state, (await ledger.counts.totals())["updates_set_aside"]) == ("done", 0)
    with pytest.raises(UnknownRecord):
        await ledger.inbox.set_aside(2, "RuntimeError: broken")
