"""The review page, the pages of runs and people, and the pictures on them, over HTTP with the whole bot."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from inference.messages import Picture, Role, Turn
from storage.chat_records import Chat, Person
from storage.learning_records import Rating
from storage.ledger import Ledger
from storage.picture_files import PictureStore
from storage.state_machines import RunState
from tests.support.ledgers import exchange, picture
from tests.support.lessons import photo, seen
from tests.support.whole_bot import ADMIN, WholeBot, whole_bot

ADA, BEN, GROUP = 11, 12, -500


@dataclass
class Desk:
    """An operator's browser on the pages of a running bot, and the bot's ledger."""

    bot: WholeBot
    url: str
    session: aiohttp.ClientSession
    ledger: Ledger

    async def get(self, path: str, *, status: int = 200) -> str:
        async with self.session.get(path) as page:
            assert page.status == status, await page.text()
            return await page.text()

    async def post(self, path: str, *, status: int = 303, page: str = "/review", **form: str) -> str:
        """Send a form with the token from `page`; return where the answer leads or, if nowhere, its text."""
        form = {"csrf": token(await self.get(page)), **form}
        async with self.session.post(path, data=form, allow_redirects=False) as answer:
            assert answer.status == status, await answer.text()
            return answer.headers.get("Location") or await answer.text()


def token(page: str) -> str:
    """Return the token in a page's forms."""
    found = re.search(r'name="csrf" value="([0-9a-f]{64})"', page)
    assert found
    return found[1]


def cards(page: str) -> list[int]:
    """Return the IDs of the exchanges on a page."""
    return [int(each) for each in re.findall(r'id="exchange-(\d+)"', page)]


async def fill(folder: Path, ledger: Ledger) -> None:
    """Record six answers with different pictures: Ada likes the first four and dislikes the others."""
    store = PictureStore(folder / "pictures")
    await ledger.people.save(Person(ADA, "Ada <b>"), Chat(ADA))
    await ledger.people.save(Person(BEN, "Ben"), Chat(GROUP, "group", "Friends"))
    for number, colour in enumerate(("red", "blue", "green", "yellow", "purple", "orange"), start=1):
        name = await store.put(photo(colour))
        await ledger.pictures.add(picture(name, media_type="image/jpeg", phash=f"{number << 20:016x}"), ADA)
        chat, asker = (GROUP, BEN) if number == 6 else (ADA, ADA)
        made = exchange(
            await ledger.sessions.restart(chat, asker),
            number,
            chat=chat,
            asker=asker,
            question=f"Which <colour> is {number}?",
            pictures=(name,),
            answer=f"It is {colour}.",
            created=1e9 + 86_400 * number,
        )
        await ledger.exchanges.record(made)
        await ledger.votes.cast(Rating(number, ADA, 1 if number <= 4 else -1, 100 + number, reason="tone"))


@asynccontextmanager
async def at_work(folder: Path, monkeypatch: pytest.MonkeyPatch, **sections: dict[str, Any]) -> AsyncIterator[Desk]:
    """Run a bot with the answers that `fill` records, and yield a desk.

    A request waits for the model change that it asks for, however slow the machine is.
    """
    monkeypatch.setattr("bot.web.model_changes.PATIENCE", 60.0)
    async with (
        whole_bot(folder, monkeypatch) as bot,
        bot.running(**sections) as application,
        aiohttp.ClientSession(application.address, cookie_jar=aiohttp.CookieJar(unsafe=True)) as session,
        bot.ledger() as ledger,
    ):
        await fill(bot.data, ledger)
        yield Desk(bot, application.address, session, ledger)


@pytest.fixture
async def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    async with at_work(tmp_path, monkeypatch) as made:
        yield made


async def test_cards_and_filters(desk: Desk) -> None:
    """The page shows a card for each rated exchange that the query selects, and escapes what people wrote.

    An invalid value of a filter is ignored.
    """
    page = await desk.get("/review")
    assert cards(page) == [6, 5, 4, 3, 2, 1]
    assert "Which &lt;colour&gt; is 6?" in page and "Ada &lt;b&gt;" in page and "<b></a>" not in page
    assert "It is orange." in page and "(Wrong tone)" in page and "2001-09-15" in page and "Friends" in page
    assert "6 rated answers" in page and "Train on these 4" in page
    assert "Train on these" not in await desk.get("/review?thumb=down")
    for query, expected in {
        "thumb=up": [4, 3, 2, 1],
        "thumb=down&chat=-500": [6],
        "text=IT+IS+GREEN": [3],
        "since=2001-09-11&until=2001-09-12": [3, 2],
        "model=base": [6, 5, 4, 3, 2, 1],
        "model=run-9": [],
        "thumb=sideways&chat=x&since=yesterday&until=0000-00-00&decision=burn&before=z": [6, 5, 4, 3, 2, 1],
        "decision=undo": [6, 5, 4, 3, 2, 1],
        f"chat={'9' * 30}&since=9999-12-31": [],
        "before=4": [3, 2, 1],
    }.items():
        assert cards(await desk.get(f"/review?{query}")) == (expected or []), query


@pytest.mark.parametrize(
    "path",
    [
        "/review?text=%FF%00%ED%A0%80&model=%FF&decision=%FF&thumb=%FF&chat=%D9%A3&before=%FF&since=%FF&language=%FF",
        "/review?text=" + "%25" * 3000,
        f"/review?before={'9' * 19}&chat=-{'9' * 19}",
        "/review?before=-1&text[]=1&text=2&text=3&=",
        f"/runs/{'9' * 18}?judged=%FF",
        f"/people/{'9' * 18}?before=%FF",
        f"/people/{'9' * 18}/erase",
        "/login?next=%FF",
    ],
)
async def test_no_query_is_an_error_of_ours(desk: Desk, path: str) -> None:
    """Whatever a query contains, the answer is a page, a redirect, or a refusal."""
    async with desk.session.get(URL(path, encoded=True), allow_redirects=False) as answer:
        assert answer.status in (200, 303, 400, 404)


async def test_the_filter_stays_in_the_form(desk: Desk) -> None:
    """The form shows the filter in use, even a chat that is not in its list, so that the next one adds to it."""
    page = await desk.get(f"/review?thumb=down&chat={ADA}&since=2001-09-10&text=%22red%22")
    for shown in ('"down" selected', f'"{ADA}" selected', 'value="2001-09-10"', 'value="&#34;red&#34;"'):
        assert shown in page
    assert page.count(" selected") == 4, "the thumb, the chat, and two that do not restrict"
    assert f'"{GROUP}" selected' in await desk.get(f"/review?chat={GROUP}")


async def test_pages_of_cards(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page links to the older cards under the same filter, and back to the newest ones."""
    monkeypatch.setattr("bot.web.review.CARDS", 3)
    page = await desk.get("/review?thumb=up")
    assert cards(page) == [4, 3, 2] and "Newest" not in page
    older = re.search(r'href="([^"]+)" rel="next"', page)
    assert older
    page = await desk.get(html.unescape(older[1]))
    assert cards(page) == [1] and 'rel="next"' not in page and 'href="/review?thumb=up">Newest' in page


async def test_a_lesson_is_dropped_edited_and_kept(desk: Desk) -> None:
    """Decisions are rows with who and when; the page returns to the card and shows the latest one."""
    back = "/review?thumb=up"
    assert await desk.post("/review/3", decision="drop", back=back) == "/review?thumb=up#exchange-3"
    page = await desk.get(back)
    assert "dropped by an operator, 20" in page and "Train on these 3" in page
    assert cards(await desk.get("/review?decision=drop")) == [3]
    await desk.post("/review/5", decision="edit", text=" It is <i>purple</i>!\r\nTruly. ", back=back)
    page = await desk.get("/review?decision=edit")
    assert cards(page) == [5] and "It is &lt;i&gt;purple&lt;/i&gt;!\nTruly.</p>" in page
    assert "Train on this answer" in page
    await desk.post("/review/3", decision="keep", back="//evil.example.org/")
    taught = {each.exchange.id: each.exchange.answer for each in await desk.ledger.votes.rated_exchanges()}
    assert taught[3] == "It is green." and taught[5] == "It is <i>purple</i>!\nTruly."


async def test_a_decision_is_undone(desk: Desk) -> None:
    """After an undo the card, the filters and the count are as before the decision, and the card tells of both."""
    await desk.post("/review/5", decision="edit", text="It is <i>purple</i>!")
    page = await desk.get("/review")
    assert "Train on these 5" in page and page.count('value="undo"') == 1
    assert cards(await desk.get("/review?decision=none")) == [6, 4, 3, 2, 1]
    back = "/review?decision=edit"
    assert await desk.post("/review/5", decision="undo", back=back) == f"{back}#exchange-5"
    page = await desk.get("/review")
    assert "Train on these 4" in page and 'value="undo"' not in page and 'class="said better"' not in page
    assert "undone by an operator, 20" in page and "1 earlier decision<" in page
    assert "edited by an operator, 20" in page and "<p>It is &lt;i&gt;purple&lt;/i&gt;!</p>" in page
    assert cards(await desk.get(back)) == []
    assert cards(await desk.get("/review?decision=none")) == [6, 5, 4, 3, 2, 1]
    assert 'value="none" selected' in await desk.get("/review?decision=none")
    assert "已撤销" in await desk.get("/review?language=zh")


async def test_bad_decisions_are_refused(desk: Desk) -> None:
    """An unknown decision, an empty edit and an unknown exchange change nothing; links elsewhere are not followed."""
    assert await desk.post("/review/3", decision="keep", back="//evil.example.org/") == "/review#exchange-3"
    assert await desk.post("/review/3", decision="keep", back="/\\evil") == "/review#exchange-3"
    before = await desk.ledger.reviews.newest()
    await desk.post("/review/3", decision="burn", status=400)
    assert "can't be empty" in await desk.post("/review/3", decision="edit", text=" ", status=409)
    await desk.post("/review/999", decision="drop", status=404)
    await desk.post("/review/3", decision="drop", csrf="", status=403)
    async with desk.session.post("/review/3", data={"decision": "drop"}) as answer:
        assert answer.status == 403
    many = {f"field-{number}": "" for number in range(100)}
    async with desk.session.post("/review/3", data=many) as answer:
        assert answer.status == 400
    async with desk.session.get("/review/3") as answer:
        assert answer.status == 405
    assert await desk.ledger.reviews.newest() == before


async def test_a_run_on_the_selection(desk: Desk) -> None:
    """The button starts a run on exactly the liked answers that were filtered and kept, and leads to its page.

    The page shows what the run learned from; later decisions do not change it.
    """
    await desk.post("/review/5", decision="edit", text="It is purple!")
    await desk.post("/review/2", decision="drop")
    query = "text=it+is&until=2001-09-14"
    assert "Train on these 4" in await desk.get(f"/review?{query}")
    assert await desk.post(f"/review/train?{query}") == "/runs/1"
    run = await desk.bot.ended(1)
    assert (run.state, run.trigger, run.limited, run.requested_by) == (RunState.DONE, "web", True, None)
    assert [number for number, split in await desk.ledger.run_selections.of(1) if split == "train"] == [1, 3, 4, 5]
    await desk.post("/review/5", decision="edit", text="Changed after the run.")
    page = await desk.get("/runs/1")
    assert cards(page) == [5, 4, 3, 1] and "It is purple!" in page and "Changed after" not in page
    assert "only from answers that an operator selected" in page and 'action="/review/' not in page
    judged = await desk.get("/runs/1?judged=1")
    assert cards(judged) == [] and 'href="/runs/1"' in await desk.get("/")
    await desk.get("/runs/2", status=404)


async def test_why_no_run_starts(desk: Desk) -> None:
    """A refused run is explained on the page; a run without news needs a second press."""
    refused = await desk.post("/review/train?thumb=down", status=409)
    assert "Not enough yet: 0 liked answers, 4 needed. Collect 4 more 👍." in refused
    assert cards(refused) == [6, 5]
    assert await desk.post("/review/train") == "/runs/1"
    await desk.bot.ended(1)
    refused = await desk.post("/review/train", status=409)
    assert "Nothing has changed since run 1. Train again anyway?" in refused
    assert await desk.post("/review/train", confirmed="1") == "/runs/2"
    await desk.bot.ended(2)
    async with desk.session.post("/review/train", data={"csrf": "0" * 64}) as answer:
        assert answer.status == 403
    assert len(await desk.ledger.runs.latest()) == 2


async def test_a_run_that_nothing_could_judge_is_named_beforehand(desk: Desk) -> None:
    """Beside the button the page says why a run would be refused, or end undecided for lack of rated answers."""
    assert "Not enough yet: 1 liked answer, 4 needed." in await desk.get("/review?text=red")
    assert "takes at least 12 rated answers of the live model" in await desk.get("/review")
    for number in range(10, 22):
        name = f"{number:064x}"
        await desk.ledger.pictures.add(picture(name, phash=f"{number:02x}" * 8), ADA)
        position = await desk.ledger.sessions.restart(ADA, ADA)
        made = exchange(position, number, chat=ADA, asker=ADA, question=f"And {number}?", pictures=(name,))
        asked = Turn(Role.USER, made.question, (Picture(b"", name),))
        await desk.ledger.exchanges.record(replace(made, prompt_hash=seen(made, asked)))
        await desk.ledger.votes.cast(Rating(number - 3, ADA, 1, 200 + number))
        if number == 20:
            assert "So far: 11." in await desk.get("/review")
    assert "would end undecided" not in await desk.get("/review")


async def test_a_person_is_blocked_and_unblocked(desk: Desk) -> None:
    """A person's page shows what they left behind, and blocks and unblocks them; admins cannot be blocked."""
    page = await desk.get("/people")
    assert f'<a href="/people/{ADA}">Ada &lt;b&gt;</a></td><td>5</td><td>6</td>' in page
    assert f'<a href="/people/{BEN}">Ben</a></td><td>1</td><td>0</td>' in page and "blocked" not in page
    page = await desk.get(f"/people/{BEN}")
    assert cards(page) == [6] and "Ben" in page and "Unblock" not in page
    assert "pictures that nobody else sent" in page and "asked by: <a" in page
    assert cards(await desk.get(f"/people/{ADA}")) == [6, 5, 4, 3, 2, 1]
    assert await desk.post(f"/people/{BEN}/block") == f"/people/{BEN}"
    assert "Unblock" in await desk.get(f"/people/{BEN}")
    assert "<td>blocked</td>" in await desk.get("/people")
    assert await desk.ledger.blocks.includes(BEN) and not await desk.ledger.blocks.includes(ADA)
    assert await desk.post(f"/people/{BEN}/unblock") == f"/people/{BEN}"
    assert not await desk.ledger.blocks.includes(BEN)
    assert "telegram.admins" in await desk.post(f"/people/{ADMIN}/block", status=409)
    await desk.get("/people/404", status=404)
    assert "提问者：<a" in await desk.get(f"/people/{BEN}?language=zh")


async def test_a_person_is_erased_after_confirmation(desk: Desk) -> None:
    """The erasure page says what would go; only its button erases, together with reviews and picture files."""
    await desk.post("/review/1", decision="drop")
    page = await desk.get(f"/people/{ADA}/erase")
    assert "Permanently erase everything stored about Ada &lt;b&gt;?" in page
    assert (await desk.ledger.personal_data.count(ADA)).exchanges == 6
    await desk.post(f"/people/{ADA}/erase", csrf="forged", status=403)
    assert (await desk.ledger.personal_data.count(ADA)).exchanges == 6
    erased = await desk.post(f"/people/{ADA}/erase", status=200)
    assert f"Everything stored about {ADA} was erased." in erased
    assert not await desk.ledger.personal_data.count(ADA)
    assert [*(desk.bot.data / "pictures").glob("??/*")] == []
    assert cards(await desk.get("/review")) == []


async def test_pictures_are_private(desk: Desk) -> None:
    """A picture is sent with its type and may be cached by the operator's browser only."""
    (path,) = set(re.findall(r'src="(/pictures/[0-9a-f]{64})"', await desk.get("/review?text=red.")))
    async with desk.session.get(path) as answer:
        assert (answer.status, answer.content_type) == (200, "image/jpeg")
        assert answer.headers["Cache-Control"] == "private, max-age=3600"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert await answer.read() == photo("red")
    await desk.get(f"/pictures/{'0' * 64}", status=404)
    await desk.get("/pictures/..%2Fledger.db", status=404)


async def test_the_pages_speak_chinese_once_chosen(desk: Desk) -> None:
    """A language chosen on one page holds on the others; the links to a language keep the filter."""
    page = await desk.get("/review?thumb=up")
    assert 'href="/review?thumb=up&amp;language=zh"' in page
    assert "用这 4 条回答训练" in await desk.get("/review?thumb=up&language=zh")
    for path in ("/review", "/people", f"/people/{ADA}", f"/people/{ADA}/erase", "/"):
        assert '<html lang="zh">' in await desk.get(path)
    assert "还不够" in await desk.post("/review/train?thumb=down", status=409)
    assert '<html lang="en">' in await desk.get("/review?language=en")


async def test_every_private_page_needs_the_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing about exchanges is shown or changed without the password."""
    async with at_work(tmp_path, monkeypatch, web={"port": 0, "token": "a-password"}) as desk:
        stored = next((desk.bot.data / "pictures").glob("??/*")).name
        for path in ("/review", "/runs/1", "/people", f"/people/{ADA}", f"/people/{ADA}/erase", f"/pictures/{stored}"):
            await desk.get(path, status=401)
        for path in ("/review/1", "/review/train", f"/people/{ADA}/block", f"/people/{ADA}/erase", "/logout"):
            async with desk.session.post(path, data={"decision": "drop"}, allow_redirects=False) as answer:
                assert answer.status == 401
        assert await desk.ledger.reviews.newest() == 0
        async with desk.session.post("/login", data={"token": "a-password", "name": "Olga", "next": "/review"}) as page:
            assert cards(await page.text()) == [6, 5, 4, 3, 2, 1]
        await desk.post("/review/1", decision="drop")
        assert "dropped by Olga, 20" in await desk.get("/review")
