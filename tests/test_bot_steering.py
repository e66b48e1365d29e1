"""Another answer, no more of this one, and a question that changes: what people do about an answer but rate it."""

from __future__ import annotations

import asyncio

import pytest

from bot.keyboards import AGAIN
from inference.messages import Delta
from storage.ledger import Ledger
from storage.records import Model, Rating
from storage.states import ModelState, RunState
from tests.chatting import (
    ADMIN,
    Notebook,
    RunningBot,
    ScriptedEngine,
    Stage,
    png,
    settings,
    shows,
    told,
    until,
)
from tests.killing import all_sends, killed_while
from tests.person import DOWN, UP, Person, button

STOP = "⏹"


async def asked(bot: RunningBot) -> list[str]:
    """The questions that the engine got in its newest prompt, with the answers between them."""
    return [turn.text for turn in bot.engine.prompts[-1].turns]


async def test_another_answer_stands_beside_the_first(stage: Stage) -> None:
    """🔄 gives a second answer that quotes the question; both can be rated, and only the newest offers a third."""
    async with stage.bot("One.", "Two.") as bot, stage.person() as ada:
        question = await ada.sends(photo=png(), caption="What?")
        first = await ada.answer(rated=True)
        await ada.toast(await ada.taps(AGAIN, first))
        second = await ada.answer(rated=True, after=first["message_id"])
        await bot.settled()
        assert second["text"] == "Two."
        assert second["reply_to_message"]["message_id"] == question["message_id"]
        assert [(button(each, UP), button(each, AGAIN)) for each in await ada.bot_messages()] == [
            ("rate:1:1", None),
            ("rate:2:1", "again:2"),
        ]
        one, two = [await bot.ledger.exchange(number) for number in (1, 2)]
        assert (one.replaces, two.replaces) == (None, 1)
        assert (one.question, one.pictures, one.prompt_hash) == (two.question, two.pictures, two.prompt_hash)
        assert one.seed != two.seed
        for message, thumb in ((first, DOWN), (second, UP)):
            await ada.toast(await ada.taps(thumb, message))
        await bot.settled()
        assert [await bot.ledger.rating(number, ada.id) for number in (1, 2)] == [-1, 1]
        assert [button(each, AGAIN) for each in await ada.bot_messages()] == [None, "again:2"]


async def test_the_answer_that_stands_is_what_the_model_remembers(stage: Stage) -> None:
    """A third question sees the first answer's successor in its place, and so does the training of that time."""
    async with stage.bot("One.", "Later.", "Two.", "Last.") as bot, stage.person() as ada:
        first = await ada.asks(photo=png(), caption="a?")
        later = await ada.asks("b?")
        await ada.toast(await ada.taps(AGAIN, first))
        again = await ada.answer(rated=True, after=later["message_id"])
        assert await asked(bot) == ["a?"], "another answer is given as the first one was"
        last = await ada.asks("c?")
        assert await asked(bot) == ["a?", "Two.", "b?", "Later.", "c?"]
        await ada.toast(await ada.taps(UP, again))
        await ada.toast(await ada.taps(UP, last))
        rated = {each.exchange.answer: each for each in await bot.ledger.rated_exchanges()}
        assert [each.answer for each in rated["Two."].history] == []
        assert [each.answer for each in rated["Last."].history] == ["Two.", "Later."]


async def test_retry_is_about_the_last_question(stage: Stage) -> None:
    """/retry answers the last question once more; before any it says that there is none."""
    async with stage.bot("One.", "Two.", "Three.", chat={"temperature": 0}) as bot, stage.person() as ada:
        assert "no answer yet" in (await told(ada, "/retry"))["text"]
        await ada.asks(photo=png(), caption="a?")
        await ada.asks("b?")
        assert (await ada.asks("/retry"))["text"] == "Three."
        assert await asked(bot) == ["a?", "One.", "b?"]
        assert bot.engine.prompts[1].sampling.temperature == 0
        assert bot.engine.prompts[2].sampling.temperature > 0, "the likeliest words would only be said again"
        assert (await bot.ledger.exchange(3)).replaces == 2


async def test_an_old_button_gives_no_further_answer(stage: Stage) -> None:
    """Pressed twice in a hurry, 🔄 under one answer gives one other answer."""
    async with stage.bot() as bot, stage.person() as ada:
        first = await ada.asks(photo=png())
        taps = [await ada.taps(AGAIN, first) for _ in range(2)]
        assert [await ada.toast(query) for query in taps] == ["", "There is a newer answer to this question already."]
        await bot.settled()
        assert len(bot.engine.prompts) == 2


async def test_stop_keeps_what_came(stage: Stage) -> None:
    """⏹ ends the engine's work; what was said until then is the answer, can be rated and is remembered."""
    never = asyncio.Event()
    async with stage.bot(["Half an", never, " answer."], "Next.") as bot, stage.person() as ada:
        await ada.sends(photo=png(), caption="a?")
        unfinished = await shows(ada, "Half an")
        assert await ada.toast(await ada.taps(STOP, unfinished)) == "Stopping…"
        answer = await ada.answer(rated=True)
        assert (answer["text"], button(answer, STOP)) == ("Half an", None)
        assert bot.engine.ended == 1
        exchange = await bot.ledger.exchange(1)
        assert (exchange.answer, exchange.finish, exchange.model) == ("Half an", "abort", "scripted")
        await ada.toast(await ada.taps(UP, answer))
        await ada.asks("b?")
        assert await asked(bot) == ["a?", "Half an", "b?"]
        assert len(await ada.bot_messages()) == 2


async def test_the_stop_command_does_not_wait_for_the_answer(stage: Stage) -> None:
    """/stop ends the answer under way and the questions that wait behind it, and says so; later ones are answered."""
    never = asyncio.Event()
    async with stage.bot(["One", never]) as bot, stage.person() as ada:
        assert (await told(ada, "/stop"))["text"] == "There is nothing to stop."
        await ada.sends(photo=png(), caption="a?")
        await shows(ada, "One")
        await ada.sends("b?")
        await ada.sends("/stop")
        await bot.settled()
        texts = [message["text"] for message in await ada.bot_messages()][1:]
        assert sorted(texts) == ["I have stopped before the first word.", "I have stopped.", "One"]
        assert len(bot.engine.prompts) == 1
        assert (await ada.asks("c?"))["text"] == "Answer 2"


async def test_who_waits_can_stop_waiting(stage: Stage) -> None:
    """⏹ while the question stands in the queue gives the place up; nothing is recorded."""
    never = asyncio.Event()
    async with stage.bot([Delta(waiting=2), never]) as bot, stage.person() as ada:
        await ada.sends(photo=png())
        await ada.toast(await ada.taps(STOP, await shows(ada, "2 questions are before yours…")))
        assert (await told(ada))["text"] == "I have stopped before the first word."
        assert bot.engine.ended == 1
        assert (await bot.ledger.counts())["exchanges"] == 0


async def test_a_late_stop_finds_a_finished_answer(stage: Stage) -> None:
    """A tap on ⏹ that comes after the end changes nothing."""
    gate = asyncio.Event()
    async with stage.bot(["All", gate, " of it."]) as bot, stage.person() as ada:
        await ada.sends(photo=png())
        unfinished = await shows(ada, "All")
        data = button(unfinished, STOP)
        gate.set()
        answer = await ada.answer(rated=True)
        stage.emulator.world.chats[ada.id].messages[answer["message_id"]] = unfinished  # as seen by a slow client
        query = stage.emulator.people.presses(ada.id, answer["message_id"], str(data))
        assert await ada.toast(query) == "That answer is finished already."
        assert (await bot.ledger.exchange(1)).finish == "stop"


async def test_only_who_asked_steers(stage: Stage) -> None:
    """In a group others can neither stop an answer nor ask for another one; an admin can."""
    never = asyncio.Event()
    async with (
        stage.bot(["Half", never], ["Other", never]) as bot,
        stage.person(1001) as ada,
        stage.person(1002, "Bob") as bob,
        stage.person(ADMIN, "Root") as root,
    ):
        group = stage.emulator.add_group("Friends", [ada.id, bob.id, root.id]).id
        await ada.sends(photo=png(), caption="@thumbtune_bot a?", chat=group)
        unfinished = await shows(ada, "Half", group)
        assert await bob.toast(await bob.taps(STOP, unfinished)) == "Only who asked can do that."
        await ada.toast(await ada.taps(STOP, unfinished))
        answer = await ada.answer(rated=True, chat=group)
        assert await bob.toast(await bob.taps(AGAIN, answer)) == "Only who asked can do that."
        await root.toast(await root.taps(AGAIN, answer))
        unfinished = await shows(ada, "Other", group)
        await root.toast(await root.taps(STOP, unfinished))
        await bot.settled()
        assert [(await bot.ledger.exchange(number)).asker for number in (1, 2)] == [ada.id, ada.id]


async def test_an_edited_question_is_answered_in_place(stage: Stage) -> None:
    """The answer's message shows the answer to the new question; the former one is kept and not remembered."""
    async with stage.bot("One.", "Later.", "word " * 1000, "Last.") as bot, stage.person() as ada:
        question = await ada.sends(photo=png(), caption="How many?")
        first = await ada.answer(rated=True)
        await ada.asks("b?")
        await ada.edits(question, "Which colour?")
        await until(lambda: len(bot.engine.prompts) == 3)
        await bot.settled()
        messages = await ada.bot_messages()
        assert [button(each, UP) for each in messages] == [None, "rate:2:1", "rate:3:1"], "a long answer goes on below"
        assert messages[0]["message_id"] == first["message_id"]
        assert messages[0]["text"].startswith("word word")
        former, new = [await bot.ledger.exchange(number) for number in (1, 3)]
        assert (former.question, new.question, new.replaces) == ("How many?", "Which colour?", 1)
        assert former.pictures == new.pictures
        await ada.asks("c?")
        assert (await asked(bot))[0] == "Which colour?"
        await ada.edits(question, "Which shape?")
        await until(lambda: len(bot.engine.prompts) == 5)
        await bot.settled()
        assert [each["text"] for each in await ada.bot_messages()] == ["Answer 5", "Later.", "Last."]
        assert (await bot.ledger.exchange(5)).replaces == 1


async def test_a_question_edited_in_mid_answer_is_put_anew(stage: Stage) -> None:
    """What was being said to the old question is broken off; there is one message, one exchange, one answer."""
    never = asyncio.Event()
    async with stage.bot(["Four", never], "Teal.") as bot, stage.person() as ada:
        question = await ada.sends(photo=png(), caption="How many?")
        await shows(ada, "Four")
        await ada.edits(question, "Which colour?")
        assert (await ada.answer(rated=True))["text"] == "Teal."
        await bot.settled()
        assert [prompt.turns[-1].text for prompt in bot.engine.prompts] == ["How many?", "Which colour?"]
        assert len(await ada.bot_messages()) == 1
        assert (await bot.ledger.counts())["exchanges"] == 1


async def test_a_question_edited_while_it_waits_is_asked_as_edited(stage: Stage) -> None:
    """The engine never sees the former words."""
    gate = asyncio.Event()
    async with stage.bot(["One", gate]) as bot, stage.person() as ada:
        await ada.sends(photo=png(), caption="a?")
        await shows(ada, "One")
        waiting = await ada.sends("b?")
        await ada.edits(waiting, "c?")
        await ada.edits(waiting, "d?")
        await until(lambda: bot.inbox.pending == 4)
        gate.set()
        assert (await ada.answer(rated=True))["text"] == "Answer 2"
        await bot.settled()
        assert [prompt.turns[-1].text for prompt in bot.engine.prompts] == ["a?", "d?"]
        assert len(await ada.bot_messages()) == 2


async def test_an_edit_without_a_change_is_left_alone(stage: Stage) -> None:
    """Telegram calls a message edited also when only its preview came."""
    async with stage.bot() as bot, stage.person() as ada:
        question = await ada.sends(photo=png(), caption="What?")
        await ada.answer(rated=True)
        edits = (await ada.counts())["edits"]
        await ada.edits(question, "What?")
        command = await ada.command("/help")
        await ada.answer(rated=False, quiet=0.2)
        await ada.edits(command, "/start")
        await stage.handled(bot)
        assert len(bot.engine.prompts) == 1
        assert (await ada.counts())["edits"] == edits


async def test_an_edit_mends_a_question_that_was_refused(stage: Stage) -> None:
    """Where the first words got no answer, the new ones get theirs in the same message."""
    async with stage.bot("Yes.", chat={"max_question_characters": 10}) as bot, stage.person() as ada:
        question = await ada.sends(photo=png(), caption="A question that is too long")
        assert "too long" in (await told(ada))["text"]
        await ada.edits(question, "Short?")
        answer = await ada.answer(rated=True)
        assert answer["text"] == "Yes."
        assert len(await ada.bot_messages()) == 1
        assert (await bot.ledger.exchange(1)).replaces is None


async def test_a_stop_and_an_edit_outlive_the_process(stage: Stage) -> None:
    """What was asked while no bot ran is done by the next one: one answer stopped, one changed, none twice."""
    never = asyncio.Event()
    async with stage.person(1001) as ada, stage.person(1002, "Bob") as bob:
        made = settings(stage.url, stage.emulator.token)
        first = RunningBot(made, stage.directory, ScriptedEngine(["Half", never], ["Half", never]), Notebook())
        first.start()
        await ada.sends(photo=png(), caption="a?")
        unfinished = await shows(ada, "Half")
        question = await bob.sends(photo=png(), caption="a?")
        await shows(bob, "Half")
        await first.stop(grace=0)
        await ada.taps(STOP, unfinished)
        await bob.edits(question, "b?")

        engine = ScriptedEngine(otherwise=lambda prompt, _: ["So", *([never] if prompt.turns[-1].text == "a?" else [])])
        async with stage.bot(engine=engine) as second:
            assert (await bob.answer(rated=True, after=question["message_id"]))["text"] == "So"
            await second.settled()
            (stopped,) = await ada.bot_messages()
            assert button(stopped, STOP) is None
            assert stopped["text"] in ("So", "I have stopped before the first word.")
            assert len(await bob.bot_messages()) == 1
            assert await second.ledger.pending_updates() == []


@pytest.mark.parametrize("moment", range(2))
async def test_steering_survives_stops_at_any_moment(stage: Stage, moment: int) -> None:
    """Broken off while somebody retries and edits, without a kill: each wish is fulfilled once."""

    def slowly(prompt: object, number: int) -> list[str | float]:
        return [0.03, "Part ", 0.03, f"{number}."]

    made = settings(stage.url, stage.emulator.token)
    bot = RunningBot(made, stage.directory, ScriptedEngine(otherwise=slowly), Notebook())
    bot.start()

    async def restarted() -> None:
        nonlocal bot
        await asyncio.sleep(0.03 + 0.07 * moment)
        await bot.stop(grace=0)
        bot = RunningBot(made, stage.directory, ScriptedEngine(otherwise=slowly), Notebook())
        bot.start()

    try:
        async with stage.person() as ada:
            question = await ada.sends(photo=png(), caption="a?")
            first = await ada.answer(rated=True)
            await ada.taps(AGAIN, first)
            await restarted()
            second = await ada.answer(rated=True, after=first["message_id"])
            await ada.edits(question, "b?")
            await restarted()
            await until(lambda: _exchanges(bot, 3))
            await bot.settled()
            messages = await ada.bot_messages()
            assert [button(each, UP) for each in messages if button(each, UP)] == ["rate:1:1", "rate:3:1"]
            assert len(messages) <= 2 + await bot.ledger.doubtful_replies()
            assert messages[-1]["message_id"] >= second["message_id"]
    finally:
        await bot.stop(grace=0)


@pytest.mark.parametrize(
    ("kills", "seed"), [(3, 1), *(pytest.param(8, seed, marks=pytest.mark.soak) for seed in range(2, 8))]
)
async def test_steering_survives_kills(stage: Stage, kills: int, seed: int) -> None:
    """`kill -9` while people retry, edit and stop: each question has its one answer, each retry another, no more."""
    rounds = kills + 1
    people = [Person(stage.url, 2000 + number, f"P{number}") for number in range(2)]

    async def talk(person: Person) -> None:
        for number in range(rounds):
            question = await person.sends(photo=png(), caption=f"thing {number}")
            first = await person.answer(rated=True, seconds=120)
            await person.taps(AGAIN, first)
            second = await person.answer(rated=True, after=first["message_id"], seconds=120)
            await person.edits(question, f"stuff {number}")
            await changed(person, second["message_id"], "stuff")

    async def changed(person: Person, message: int, word: str) -> None:
        """Wait for the answer's message to show the answer to the edited question."""
        await until(lambda: shows_final(person, message, word), seconds=120)

    async def shows_final(person: Person, message: int, word: str) -> bool:
        found = [each for each in await person.bot_messages() if each["message_id"] >= message and button(each, UP)]
        return any(word in each["text"] for each in found)

    try:
        await killed_while(stage, people, talk, kills=kills, seed=seed)
        for person in people:
            rated = [message["text"] for message in await person.bot_messages() if button(message, UP)]
            wanted = [f"About {word} {number}: all is well." for number in range(rounds) for word in ("thing", "stuff")]
            assert rated == wanted, await person.chat_so_far()
        async with Ledger.open(stage.directory) as ledger:
            assert (await ledger.counts())["exchanges"] == 3 * rounds * len(people)
            sends = all_sends(stage, people)
            assert 2 * rounds * len(people) <= sends <= 2 * rounds * len(people) + await ledger.doubtful_replies()
    finally:
        for person in people:
            await person.close()


async def _exchanges(bot: RunningBot, number: int) -> bool:
    return (await bot.ledger.counts())["exchanges"] == number


async def test_model_tells_who_taught_it(stage: Stage) -> None:
    """/model names the version, and the thumbs and people behind it; the first one was taught by nobody."""
    async with stage.bot() as bot, stage.person() as ada, stage.person(1002, "小伟", "zh") as wei:
        assert (await told(ada, "/model"))["text"] == "There is no model yet."
        ledger = bot.ledger
        await ledger.add_model(Model("base", "/m/base", ModelState.CANDIDATE, None, 1.0))
        await ledger.promote("base")
        assert "Version 1 (base), as it came." in (await told(ada, "/model"))["text"]
        for person in (ada, wei):
            await person.toast(await _liked(person))
        run = await ledger.start_run("admin")
        await ledger.freeze_selection(run.id, [(1, "train"), (2, "train")])
        for state in (RunState.TRAINING, RunState.MERGING, RunState.EVALUATING, RunState.DONE):
            await ledger.move_run(run.id, state)
        await ledger.add_model(Model("run-1", "/m/1", ModelState.CANDIDATE, run.id, 2.0))
        await ledger.promote("run-1")
        await ledger.rate(Rating(1, 99, 1, 10**12))  # after the fact
        assert (await told(ada, "/model"))["text"] == "Version 2 (run-1), taught by 2 votes of 2 people."
        assert (await told(wei, "/model"))["text"] == "第 2 版（run-1），由 2 个人的 2 次评价教出来的。"


async def _liked(person: Person) -> str:
    """Ask something and like the answer; the tap's query."""
    return await person.taps(UP, await person.asks(photo=png()))
