"""Changes of models on the web page, when several requests wait for the same one."""

from __future__ import annotations

import asyncio

import pytest

from bot.admin.refusals import AdminRefusal
from bot.web.model_changes import Change, ModelChanges, OnProgress
from storage.translatable_reason import Reason


@pytest.mark.parametrize("next_change", [False, True])
async def test_a_refusal_reaches_the_request_that_began_the_change(next_change: bool) -> None:
    """A refusal is returned to its request even if a page has shown it before, or another change has begun."""
    changes, refused = ModelChanges(), asyncio.Event()

    async def refuse(_: OnProgress) -> Reason:
        await refused.wait()
        raise AdminRefusal(Reason("The operator has blocked you."))

    async def wait(_: OnProgress) -> Reason:
        await asyncio.Event().wait()
        return Reason("")

    change, other = Change(Reason(""), "", ""), Change(Reason(""), "", "")
    beginning = asyncio.create_task(changes.begin(change, refuse))
    await asyncio.sleep(0)
    refused.set()
    while not change.over:
        await asyncio.sleep(0)
    assert not beginning.done()
    if next_change:
        following = asyncio.create_task(changes.begin(other, wait))
        await asyncio.sleep(0)
    else:
        following = None
        assert changes.latest() is change
    assert await beginning is change
    assert changes.latest() is (other if next_change else None)
    await changes.stop()
    if following:
        await following
