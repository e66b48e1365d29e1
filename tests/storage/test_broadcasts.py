"""The ledger's broadcast rows: each recipient is due once, however the process ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from storage.chat_records import Chat, Person
from storage.ledger import Ledger
from storage.state_machines import RecipientState

ADA, BEN, CEM = 1001, 1002, 1003


@pytest_asyncio.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    """A ledger with three users and two updates that request broadcasts."""
    async with Ledger.open(tmp_path) as opened:
        for person in (ADA, BEN, CEM):
            await opened.people.save(Person(person, f"P{person}"), Chat(person))
        await opened.inbox.store([(1, "broadcast:7", "{}"), (2, "broadcast:8", "{}")])
        yield opened


async def test_each_recipient_is_due_once(ledger: Ledger) -> None:
    """Recipients are due once each, in the order in which they first used the bot.

    A broadcast begun again continues, but skips the recipient whose message was being sent.
    """
    await ledger.broadcasts.begin(1, [CEM, BEN, ADA])
    assert await ledger.broadcasts.next_recipient(1) == ADA
    await ledger.broadcasts.set_recipient(1, ADA, RecipientState.DELIVERED)
    assert await ledger.broadcasts.next_recipient(1) == BEN
    await ledger.broadcasts.begin(1, [ADA, BEN, CEM, 404])
    assert await ledger.broadcasts.next_recipient(1) == CEM
    await ledger.broadcasts.set_recipient(1, CEM, RecipientState.UNREACHABLE)
    assert await ledger.broadcasts.next_recipient(1) is None
    assert await ledger.broadcasts.recipients(1) == {
        ADA: RecipientState.DELIVERED,
        BEN: RecipientState.DOUBTFUL,
        CEM: RecipientState.UNREACHABLE,
    }


async def test_cancelling_spares_those_who_wait(ledger: Ledger) -> None:
    """Cancelling a broadcast skips its waiting recipients but lets a delivery in progress finish.

    Other broadcasts continue.
    """
    await ledger.broadcasts.begin(1, [ADA, BEN])
    await ledger.broadcasts.begin(2, [ADA])
    await ledger.broadcasts.next_recipient(1)
    assert await ledger.broadcasts.cancel(1) == 1
    assert await ledger.broadcasts.cancel(1) == 0
    assert await ledger.broadcasts.next_recipient(1) is None
    assert await ledger.broadcasts.recipients(1) == {ADA: RecipientState.SENDING, BEN: RecipientState.SKIPPED}
    assert await ledger.broadcasts.next_recipient(2) == ADA


async def test_who_is_forgotten_is_not_told(ledger: Ledger) -> None:
    """Erasing a user deletes their broadcast row for good, whether delivery is pending or in progress."""
    await ledger.broadcasts.begin(1, [ADA, BEN])
    assert await ledger.broadcasts.next_recipient(1) == ADA
    await ledger.personal_data.erase(ADA)
    await ledger.personal_data.erase(BEN)
    await ledger.broadcasts.set_recipient(1, ADA, RecipientState.DELIVERED)
    assert await ledger.broadcasts.next_recipient(1) is None
    assert await ledger.broadcasts.recipients(1) == {}


async def test_the_next_broadcast_clears_what_is_over(ledger: Ledger) -> None:
    """Broadcast rows stay until their update is finished and another broadcast begins.

    Unknown chats have no rows.
    """
    await ledger.broadcasts.begin(1, [ADA, 404])
    await ledger.broadcasts.begin(2, [BEN])
    assert list(await ledger.broadcasts.recipients(1)) == [ADA]
    await ledger.inbox.finish(1)
    assert list(await ledger.broadcasts.recipients(1)) == [ADA]
    await ledger.inbox.store([(3, "broadcast:7", "{}")])
    await ledger.broadcasts.begin(3, [ADA])
    assert await ledger.broadcasts.recipients(1) == {}
    assert list(await ledger.broadcasts.recipients(2)) == [BEN]
