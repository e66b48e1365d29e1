"""The CPU engine without HTTP: the same words as the model's own `generate`, with and without its caches."""

from __future__ import annotations

from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import pytest
import torch

from inference.chat_format.template import SYSTEM
from inference.engines.cpu.engine import ChatEngine, draw
from inference.engines.cpu.tasks import Result, Task
from inference.internvl2.checkpoint import load_model
from inference.internvl2.tiny import CHECKPOINT
from inference.internvl2.tokenizer import load_tokenizer
from inference.messages import Picture, Prompt, PromptTooLong, Role, Sampling, Turn
from tests.support.generating import GREEDY, answer, ask, engine_ends, picture, running, said


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model(CHECKPOINT, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(CHECKPOINT)


@pytest.fixture(scope="module")
def endless() -> Any:
    """The model with the end of an answer unlearned: it goes on until it is told to stop."""
    model = load_model(CHECKPOINT, dtype=torch.float32)
    output: Any = model.language_model.output
    with torch.no_grad():
        output.weight[list(engine_ends(load_tokenizer(CHECKPOINT)))] = 0
    return model


@pytest.fixture(scope="module")
def engine(model: Any, tokenizer: Any) -> Iterator[ChatEngine]:
    with running(model, tokenizer) as engine:
        yield engine


@pytest.fixture(scope="module")
def forgetful(model: Any, tokenizer: Any) -> Iterator[ChatEngine]:
    """An engine that remembers nothing from one answer to the next."""
    with running(model, tokenizer, cache_bytes=0) as engine:
        yield engine


@pytest.mark.parametrize(
    "prompt",
    [
        ask("What do you see?", picture(1)),
        ask("图里有什么？", picture(2, (500, 180))),
        ask("What do you see?", picture(3), picture(4)),
        ask("Hello!"),
        ask("Sure?", history=said(ask("What colour is it?", picture(5)), "Green.")),
    ],
    ids=["picture", "wide picture", "two pictures", "text", "history"],
)
def test_greedy_answers_are_the_model_s_own(engine: ChatEngine, model: Any, tokenizer: Any, prompt: Prompt) -> None:
    """Word for word what `generate` of inference.internvl2 says to the same ids and pixels."""
    task = engine.preparer.prepare(prompt)
    pixels = [engine.preparer.decode(view.picture, view.limit) for view in task.views]
    made = model.generate(
        pixel_values=torch.cat(pixels) if pixels else None,
        input_ids=torch.tensor([task.ids]),
        do_sample=False,
        max_new_tokens=GREEDY.max_new_tokens,
    )
    text, result = engine.answer(task)
    assert text == tokenizer.decode(made[0], skip_special_tokens=True)
    assert text
    assert result.usage.completion_tokens == sum(int(token) not in engine_ends(tokenizer) for token in made[0])


@pytest.mark.parametrize("pictures", [(picture(10),), (picture(11), picture(12, (400, 150)))])
def test_a_follow_up_encodes_nothing_and_says_what_an_uncached_one_says(
    engine: ChatEngine, forgetful: ChatEngine, pictures: tuple[Picture, ...]
) -> None:
    """Only the new turn is computed, three turns long, and the words are those of a model without memory."""
    prompt = ask("What do you see?", *pictures)
    text, result = answer(engine, prompt)
    assert result.usage.encoded_tiles > 0
    for question in ("Which colour is it?", "How many are there?", "What shape?"):
        before = result.usage
        prompt = ask(question, history=said(prompt, text))
        text, result = answer(engine, prompt)
        assert result.usage.encoded_tiles == 0
        assert result.usage.cached_tokens >= before.prompt_tokens
        afresh, uncached = answer(forgetful, prompt)
        assert text == afresh
        assert uncached.usage.cached_tokens == 0
        assert uncached.usage.encoded_tiles > 0
        assert uncached.usage.prompt_tokens == result.usage.prompt_tokens


def test_a_known_picture_in_another_chat_is_not_encoded_again(engine: ChatEngine) -> None:
    """Its features are remembered by its digest, wherever it stands; another tile limit is another picture."""
    shown = picture(20)
    assert answer(engine, ask("What do you see?", shown))[1].usage.encoded_tiles > 0
    other = Prompt("You are terse.", (Turn(Role.USER, "And here?", (picture(21), shown)),), "other", GREEDY)
    tiles = answer(engine, ask("x", picture(21)))[1].usage.encoded_tiles
    assert tiles > 0
    assert answer(engine, other)[1].usage.encoded_tiles == 0
    assert answer(engine, ask("What do you see?", shown), tile_limits=[1])[1].usage.encoded_tiles == 1


def test_cache_bytes_stay_bounded_and_the_newest_chat_is_known(model: Any, tokenizer: Any) -> None:
    """After every answer the caches are within their limit; the chat just had is found, the first is not."""
    limit = 3 * 2**20
    with running(model, tokenizer, cache_bytes=limit) as engine:
        for seed in range(30, 50):
            prompt = ask("What do you see?", picture(seed))
            text, _ = answer(engine, prompt)
            assert 0 < engine.cache_bytes <= limit
        again = answer(engine, ask("Sure?", history=said(prompt, text)))[1].usage
        assert again.encoded_tiles == 0
        assert again.cached_tokens > 60
        assert answer(engine, ask("What do you see?", picture(30)))[1].usage.encoded_tiles > 0


def test_a_picture_larger_than_the_cache_is_encoded_once(engine: ChatEngine, forgetful: ChatEngine) -> None:
    """Pictures that begin in one chunk and end in another are not encoded again there, also where nothing is kept."""
    prompt = ask("What do you see?", *(picture(seed, (448, 336)) for seed in range(30, 36)))
    task = forgetful.preparer.prepare(prompt)
    tiles = sum(len(view.pixels) for view in task.views if view.pixels is not None)
    assert any(view.span.start // 512 < (view.span.stop - 1) // 512 for view in task.views), "one lies on a border"
    text, result = forgetful.answer(task)
    assert result.usage.encoded_tiles == tiles
    assert text == answer(engine, prompt)[0]


def test_answers_side_by_side_are_those_given_alone(endless: Any, tokenizer: Any) -> None:
    """Six chats at once, greedy and drawn: nobody hears another's words."""
    prompts = [
        ask(
            f"Question {n}?",
            *([picture(60 + n)] if n else []),
            sampling=Sampling(temperature=n % 3 / 2, top_p=0.9, max_new_tokens=20, seed=n),
        )
        for n in range(6)
    ]
    with running(endless, tokenizer, cache_bytes=0) as engine:
        alone = [answer(engine, prompt)[0] for prompt in prompts]
        tasks = [engine.preparer.prepare(prompt) for prompt in prompts]
        texts = [""] * len(tasks)
        ended: SimpleQueue[int] = SimpleQueue()

        def listener(n: int) -> Any:
            def hear(event: str | Result | Exception) -> None:
                if isinstance(event, str):
                    texts[n] += event
                else:
                    assert isinstance(event, Result)
                    ended.put(n)

            return hear

        for n, task in enumerate(tasks):
            engine.submit(task, listener(n))
        assert sorted(ended.get(timeout=60) for _ in tasks) == list(range(len(tasks)))
    assert texts == alone
    assert len(set(texts)) > 3, "else a mix-up could not be seen"


def test_a_short_answer_does_not_wait_for_a_long_one(endless: Any, tokenizer: Any) -> None:
    """A chat that comes later and says less is done first; the long one, aborted then, ends at once."""
    with running(endless, tokenizer) as engine:
        events: SimpleQueue[str | Result | Exception] = SimpleQueue()
        long = engine.preparer.prepare(ask("Tell me all.", sampling=Sampling(0, 1, max_new_tokens=1900)))
        engine.submit(long, events.put)
        assert isinstance(events.get(timeout=60), str)
        _, short = answer(engine, ask("Hi", picture(70), sampling=Sampling(0, 1, max_new_tokens=5)))
        assert (short.finish, short.usage.completion_tokens) == ("length", 5)
        long.abort()
        while isinstance(event := events.get(timeout=60), str):
            pass
        assert isinstance(event, Result)
        assert event.finish == "abort"
        assert 5 <= event.usage.completion_tokens < 1000
        known = answer(engine, ask("Tell me all.", sampling=Sampling(0, 1, max_new_tokens=1)))[1].usage
        assert known.cached_tokens == known.prompt_tokens - 1, "what was computed before the abort is kept"


def test_an_answer_aborted_before_its_picture_costs_nothing(endless: Any, tokenizer: Any) -> None:
    """A task that is aborted in time encodes no tile and says no word."""
    with running(endless, tokenizer) as engine:
        task = engine.preparer.prepare(ask("What do you see?", picture(71)))
        task.abort()
        text, result = engine.answer(task)
        assert (text, result.finish) == ("", "abort")
        assert (result.usage.encoded_tiles, result.usage.completion_tokens) == (0, 0)


def test_a_failing_answer_fails_alone(model: Any, tokenizer: Any) -> None:
    """Whoever asked hears the exception; the chat beside it and the next one are served."""
    with running(model, tokenizer) as engine:
        good = ask("What do you see?", picture(72))
        text, _ = answer(engine, good)
        broken: Task = engine.preparer.prepare(ask("What do you see?", picture(73)))
        broken.ids[-1] = 10**9
        with pytest.raises(IndexError):
            engine.answer(broken)
        assert answer(engine, good)[0] == text


def test_an_answer_ends_with_the_window(endless: Any, tokenizer: Any) -> None:
    """Prompt and answer together never exceed the positions the model was made for; a longer prompt is refused."""
    with running(endless, tokenizer) as engine:
        window = engine.preparer.window
        base = len(engine.preparer.prepare(ask("1")).ids)
        nearly = "1" * (window - base - 2)
        prompt = ask(nearly, sampling=Sampling(0, 1, max_new_tokens=100))
        _, result = answer(engine, prompt)
        assert result.usage.prompt_tokens == window - 3
        assert (result.finish, result.usage.completion_tokens) == ("length", 3)
        with pytest.raises(PromptTooLong, match=f"{window} tokens or more and the model's context length is {window}"):
            engine.preparer.prepare(ask(nearly + "111"))


def test_an_album_too_large_is_refused_before_it_is_decoded_whole(engine: ChatEngine) -> None:
    """Pictures behind those that fill the window are not looked at, not even a broken one."""
    album = [picture(80)] * (engine.preparer.window // 16) + [Picture.of(b"broken")]
    with pytest.raises(PromptTooLong):
        engine.preparer.prepare(ask("What do you see?", *album))


def test_stop_strings_end_an_answer(engine: ChatEngine) -> None:
    """The answer ends before the stop string, and "stop" is how."""
    prompt = ask("What do you see?", picture(1))
    whole, _ = answer(engine, prompt)
    cut = whole[5:8]
    text, result = answer(engine, prompt, stop=[cut])
    assert (text, result.finish) == (whole[: whole.index(cut)], "stop")


def test_open_has_really_generated() -> None:
    """An engine that `open` returns has a conversation about a picture in its cache."""
    engine = ChatEngine.open(CHECKPOINT, dtype=torch.float32, cache_bytes=2**24)
    try:
        assert engine.cache_bytes > 0
        known = answer(engine, Prompt(SYSTEM, (Turn(Role.USER, "Hi"),), "chat", GREEDY))[1].usage.cached_tokens
        assert known > 0
    finally:
        engine.close()


def test_draw_takes_the_likeliest_at_temperature_zero() -> None:
    """Whatever the seed; also at a temperature too low to divide by, and for an empty nucleus."""
    logits = torch.tensor([0.0, 3.0, 2.9, -1.0])
    chance = torch.Generator().manual_seed(0)
    for sampling in (Sampling(0, 1), Sampling(1e-30, 1), Sampling(2, 0)):
        assert {draw(logits, sampling, chance) for _ in range(50)} == {1}


def test_draw_follows_temperature_and_nucleus() -> None:
    """Over many draws shares are those of the softmax; outside of the nucleus nothing is drawn."""
    probabilities = torch.tensor([0.1, 0.5, 0.3, 0.1])
    chance = torch.Generator().manual_seed(0)

    def shares(temperature: float, top_p: float) -> torch.Tensor:
        drawn = [draw(probabilities.log(), Sampling(temperature, top_p), chance) for _ in range(4000)]
        return torch.bincount(torch.tensor(drawn), minlength=4) / len(drawn)

    assert torch.allclose(shares(1, 1), probabilities, atol=0.03)
    assert torch.allclose(shares(0.5, 1), probabilities**2 / (probabilities**2).sum(), atol=0.03)
    assert torch.allclose(shares(1, 0.75), torch.tensor([0, 5 / 8, 3 / 8, 0]), atol=0.03)
    assert torch.allclose(shares(1, 0.4), torch.tensor([0.0, 1, 0, 0]))


def test_draw_filters_by_rank_then_by_probability() -> None:
    """As TurboMind: the nucleus is counted within the `top_k` likeliest; 1 is greedy, 0 and too many are no limit."""
    logits = torch.tensor([0.1, 0.4, 0.3, 0.2]).log()
    chance = torch.Generator().manual_seed(0)

    def drawn(**sampling: Any) -> set[int]:
        return {draw(logits, Sampling(temperature=1, **sampling), chance) for _ in range(400)}

    assert drawn(top_k=1, top_p=1) == {1}
    assert drawn(top_k=2, top_p=1) == {1, 2}
    # Of the two likeliest the first alone makes 4/7, of all tokens 0.4.
    assert drawn(top_k=2, top_p=0.5) == {1}
    assert drawn(top_k=0, top_p=0.5) == {1, 2}
    assert drawn(top_k=0, top_p=1) == drawn(top_k=99, top_p=1) == {0, 1, 2, 3}


def test_with_one_token_to_draw_from_the_engine_is_greedy(engine: ChatEngine) -> None:
    """At any temperature and seed, `top_k` 1 says what temperature 0 says."""
    greedy, _ = answer(engine, ask("What do you see?", picture(160)))
    for seed in range(3):
        sampling = Sampling(temperature=2, top_p=1, max_new_tokens=GREEDY.max_new_tokens, seed=seed, top_k=1)
        assert answer(engine, ask("What do you see?", picture(160), sampling=sampling))[0] == greedy
