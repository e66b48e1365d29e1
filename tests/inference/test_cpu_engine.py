"""Called without HTTP, the CPU engine gives the same text as the model's own `generate`.

This holds with and without caches.
"""

from __future__ import annotations

from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import pytest
import torch

from inference.engines.cpu.engine import ChatEngine
from inference.engines.cpu.preprocessing import GenerationRequest, GenerationResult
from inference.engines.cpu.token_sampling import sample_token
from inference.internvl2.checkpoint import load_model
from inference.internvl2.families import INTERNVL2
from inference.internvl2.tiny import CHECKPOINT
from inference.internvl2.tokenizer import load_tokenizer
from inference.messages import Picture, Prompt, PromptTooLong, Role, Sampling, Turn
from tests.support.generating import GREEDY, answer, ask, engine_ends, history_after, picture, running


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model(CHECKPOINT, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(CHECKPOINT)


@pytest.fixture(scope="module")
def endless() -> Any:
    """A model that never generates a stop token."""
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
def uncached_engine(model: Any, tokenizer: Any) -> Iterator[ChatEngine]:
    """An engine that caches nothing between answers."""
    with running(model, tokenizer, cache_bytes=0) as engine:
        yield engine


@pytest.mark.parametrize(
    "prompt",
    [
        ask("What do you see?", picture(1)),
        ask("图里有什么？", picture(2, (500, 180))),
        ask("What do you see?", picture(3), picture(4)),
        ask("Hello!"),
        ask("Sure?", history=history_after(ask("What colour is it?", picture(5)), "Green.")),
    ],
    ids=["picture", "wide picture", "two pictures", "text", "history"],
)
def test_greedy_answers_equal_the_model_s_generate(
    engine: ChatEngine, model: Any, tokenizer: Any, prompt: Prompt
) -> None:
    """A greedy answer has the same text as the model's own `generate` for the same token IDs and pixels."""
    request = engine.preprocessor.prepare(prompt)
    pixels = [engine.preprocessor.decode(shown.picture, shown.limit) for shown in request.pictures]
    made = model.generate(
        pixel_values=torch.cat(pixels) if pixels else None,
        input_ids=torch.tensor([request.ids]),
        do_sample=False,
        max_new_tokens=GREEDY.max_new_tokens,
    )
    text, result = engine.answer(request)
    assert text == tokenizer.decode(made[0], skip_special_tokens=True)
    assert text
    assert result.usage.completion_tokens == sum(int(token) not in engine_ends(tokenizer) for token in made[0])


@pytest.mark.parametrize("pictures", [(picture(10),), (picture(11), picture(12, (400, 150)))])
def test_a_follow_up_encodes_nothing_and_equals_an_uncached_answer(
    engine: ChatEngine, uncached_engine: ChatEngine, pictures: tuple[Picture, ...]
) -> None:
    """Each of three follow-ups computes only its new turn and gets the same text as without caches."""
    prompt = ask("What do you see?", *pictures)
    text, result = answer(engine, prompt)
    assert result.usage.encoded_tiles > 0
    for question in ("Which colour is it?", "How many are there?", "What shape?"):
        before = result.usage
        prompt = ask(question, history=history_after(prompt, text))
        text, result = answer(engine, prompt)
        assert result.usage.encoded_tiles == 0
        assert result.usage.cached_tokens >= before.prompt_tokens
        fresh_text, uncached = answer(uncached_engine, prompt)
        assert text == fresh_text
        assert uncached.usage.cached_tokens == 0
        assert uncached.usage.encoded_tiles > 0
        assert uncached.usage.prompt_tokens == result.usage.prompt_tokens


def test_a_known_picture_in_another_chat_is_not_encoded_again(engine: ChatEngine) -> None:
    """A picture that is known from another chat or position is not encoded again.

    Features are cached by the picture's digest and the tile limit.
    """
    shown = picture(20)
    assert answer(engine, ask("What do you see?", shown))[1].usage.encoded_tiles > 0
    other = Prompt("You are terse.", (Turn(Role.USER, "And here?", (picture(21), shown)),), "other", GREEDY)
    tiles = answer(engine, ask("x", picture(21)))[1].usage.encoded_tiles
    assert tiles > 0
    assert answer(engine, other)[1].usage.encoded_tiles == 0
    assert answer(engine, ask("What do you see?", shown), tile_limits=[1])[1].usage.encoded_tiles == 1


def test_cache_bytes_stay_bounded_and_the_newest_chat_is_cached(model: Any, tokenizer: Any) -> None:
    """The caches stay within their limit after every answer; the newest chat is cached, the oldest is not."""
    limit = 3 * 2**20
    with running(model, tokenizer, cache_bytes=limit) as engine:
        for seed in range(30, 50):
            prompt = ask("What do you see?", picture(seed))
            text, _ = answer(engine, prompt)
            assert 0 < engine.cache_bytes <= limit
        again = answer(engine, ask("Sure?", history=history_after(prompt, text)))[1].usage
        assert again.encoded_tiles == 0
        assert again.cached_tokens > 60
        assert answer(engine, ask("What do you see?", picture(30)))[1].usage.encoded_tiles > 0


def test_a_picture_larger_than_the_cache_is_encoded_once(engine: ChatEngine, uncached_engine: ChatEngine) -> None:
    """A picture that spans two prefill chunks is encoded only once, even without a cache."""
    prompt = ask("What do you see?", *(picture(seed, (448, 336)) for seed in range(30, 36)))
    request = uncached_engine.preprocessor.prepare(prompt)
    tiles = sum(shown.tiles for shown in request.pictures)
    assert any(shown.span.start // 512 < (shown.span.stop - 1) // 512 for shown in request.pictures), (
        "a picture spans two chunks"
    )
    text, result = uncached_engine.answer(request)
    assert result.usage.encoded_tiles == tiles
    assert text == answer(engine, prompt)[0]


def test_concurrent_answers_equal_those_given_alone(endless: Any, tokenizer: Any) -> None:
    """Six concurrent answers, greedy and sampled, have the same texts as when each is generated alone."""
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
        requests = [engine.preprocessor.prepare(prompt) for prompt in prompts]
        texts = [""] * len(requests)
        ended: SimpleQueue[int] = SimpleQueue()

        def listener(n: int) -> Any:
            def on_event(event: str | GenerationResult | Exception) -> None:
                if isinstance(event, str):
                    texts[n] += event
                else:
                    assert isinstance(event, GenerationResult)
                    ended.put(n)

            return on_event

        for n, request in enumerate(requests):
            engine.submit(request, listener(n))
        assert sorted(ended.get(timeout=60) for _ in requests) == list(range(len(requests)))
    assert texts == alone
    assert len(set(texts)) > 3, "otherwise mixed-up answers would go unnoticed"


def test_a_short_answer_does_not_wait_for_a_long_one(endless: Any, tokenizer: Any) -> None:
    """A short answer overtakes a longer one that began earlier; the longer one ends at once when aborted."""
    with running(endless, tokenizer) as engine:
        events: SimpleQueue[str | GenerationResult | Exception] = SimpleQueue()
        long = engine.preprocessor.prepare(ask("Tell me all.", sampling=Sampling(0, 1, max_new_tokens=1900)))
        engine.submit(long, events.put)
        assert isinstance(events.get(timeout=60), str)
        _, short = answer(engine, ask("Hi", picture(70), sampling=Sampling(0, 1, max_new_tokens=5)))
        assert (short.finish, short.usage.completion_tokens) == ("length", 5)
        long.abort()
        while isinstance(event := events.get(timeout=60), str):
            pass
        assert isinstance(event, GenerationResult)
        assert event.finish == "abort"
        assert 5 <= event.usage.completion_tokens < 1000
        known = answer(engine, ask("Tell me all.", sampling=Sampling(0, 1, max_new_tokens=1)))[1].usage
        assert known.cached_tokens == known.prompt_tokens - 1, "what was computed before the abort stays in the cache"


def test_an_answer_aborted_before_its_picture_computes_nothing(endless: Any, tokenizer: Any) -> None:
    """A request that is aborted before it is submitted encodes no tile and yields no text."""
    with running(endless, tokenizer) as engine:
        request = engine.preprocessor.prepare(ask("What do you see?", picture(71)))
        request.abort()
        text, result = engine.answer(request)
        assert (text, result.finish) == ("", "abort")
        assert (result.usage.encoded_tiles, result.usage.completion_tokens) == (0, 0)


def test_a_failing_answer_fails_alone(model: Any, tokenizer: Any) -> None:
    """An answer that fails raises its exception only for its own caller; the next request is served."""
    with running(model, tokenizer) as engine:
        good = ask("What do you see?", picture(72))
        text, _ = answer(engine, good)
        broken: GenerationRequest = engine.preprocessor.prepare(ask("What do you see?", picture(73)))
        broken.ids[-1] = 10**9
        with pytest.raises(IndexError):
            engine.answer(broken)
        assert answer(engine, good)[0] == text


def test_an_error_in_a_batch_ends_its_answers(endless: Any, tokenizer: Any) -> None:
    """If the next tokens of several answers cannot be computed, each gets the error, and the next one is served."""

    def fail(_module: Any, _args: Any, inputs: dict[str, Any]) -> None:
        if len(inputs.get("input_ids", ())) == 2:
            raise RuntimeError("no memory")

    with running(endless, tokenizer) as engine:
        prompts = [ask("One?", picture(74)), ask("Two?")]
        expected = answer(engine, prompts[0])[0]
        hook = endless.language_model.register_forward_pre_hook(fail, with_kwargs=True)
        try:
            ended: SimpleQueue[str | GenerationResult | Exception] = SimpleQueue()
            for prompt in prompts:
                engine.submit(engine.preprocessor.prepare(prompt), ended.put)
            events: list[GenerationResult | Exception] = []
            while len(events) < 2:
                if not isinstance(event := ended.get(timeout=60), str):
                    events.append(event)
            assert [str(each) for each in events] == ["no memory"] * 2
            assert answer(engine, prompts[0])[0] == expected
        finally:
            hook.remove()


def test_an_answer_ends_with_the_window(endless: Any, tokenizer: Any) -> None:
    """A prompt and its answer never exceed the model's context window; a longer prompt is refused."""
    with running(endless, tokenizer) as engine:
        window = engine.preprocessor.window
        base = len(engine.preprocessor.prepare(ask("1")).ids)
        nearly = "1" * (window - base - 2)
        prompt = ask(nearly, sampling=Sampling(0, 1, max_new_tokens=100))
        _, result = answer(engine, prompt)
        assert result.usage.prompt_tokens == window - 3
        assert (result.finish, result.usage.completion_tokens) == ("length", 3)
        with pytest.raises(PromptTooLong, match=f"{window} tokens or more, and the model's context length is {window}"):
            engine.preprocessor.prepare(ask(nearly + "111"))


def test_a_too_large_album_is_refused_before_all_of_it_is_decoded(engine: ChatEngine) -> None:
    """An album that exceeds the context window is refused before all of its pictures are decoded.

    A broken picture at the end of the album therefore raises no error.
    """
    album = [picture(80)] * (engine.preprocessor.window // 16) + [Picture.of(b"broken")]
    with pytest.raises(PromptTooLong):
        engine.preprocessor.prepare(ask("What do you see?", *album))


def test_open_generates_an_answer_first() -> None:
    """The engine that `ChatEngine.open` returns has already answered a question about a picture.

    The conversation is in its cache.
    """
    engine = ChatEngine.open(CHECKPOINT, dtype=torch.float32, cache_bytes=2**24)
    try:
        assert engine.cache_bytes > 0
        known = answer(engine, Prompt(INTERNVL2.system, (Turn(Role.USER, "Hi"),), "chat", GREEDY))[
            1
        ].usage.cached_tokens
        assert known > 0
    finally:
        engine.close()


def test_sampling_is_greedy_at_temperature_zero() -> None:
    """Sampling is greedy at temperature zero, at a temperature too low to divide by, and for an empty nucleus."""
    logits = torch.tensor([0.0, 3.0, 2.9, -1.0])
    generator = torch.Generator().manual_seed(0)
    for sampling in (Sampling(0, 1), Sampling(1e-30, 1), Sampling(2, 0)):
        assert {sample_token(logits, sampling, generator) for _ in range(50)} == {1}


def test_sampling_follows_temperature_and_nucleus() -> None:
    """Sampled tokens follow the softmax at the given temperature, and none is outside the nucleus."""
    probabilities = torch.tensor([0.1, 0.5, 0.3, 0.1])
    generator = torch.Generator().manual_seed(0)

    def shares(temperature: float, top_p: float) -> torch.Tensor:
        drawn = [sample_token(probabilities.log(), Sampling(temperature, top_p), generator) for _ in range(4000)]
        return torch.bincount(torch.tensor(drawn), minlength=4) / len(drawn)

    assert torch.allclose(shares(1, 1), probabilities, atol=0.03)
    assert torch.allclose(shares(0.5, 1), probabilities**2 / (probabilities**2).sum(), atol=0.03)
    assert torch.allclose(shares(1, 0.75), torch.tensor([0, 5 / 8, 3 / 8, 0]), atol=0.03)
    assert torch.allclose(shares(1, 0.4), torch.tensor([0.0, 1, 0, 0]))


def test_sampling_filters_by_rank_then_by_probability() -> None:
    """The nucleus is taken from the `top_k` most likely tokens, as in TurboMind.

    A `top_k` of 0 or larger than the vocabulary is no limit.
    """
    logits = torch.tensor([0.1, 0.4, 0.3, 0.2]).log()
    generator = torch.Generator().manual_seed(0)

    def drawn(**sampling: Any) -> set[int]:
        return {sample_token(logits, Sampling(temperature=1, **sampling), generator) for _ in range(400)}

    assert drawn(top_k=1, top_p=1) == {1}
    assert drawn(top_k=2, top_p=1) == {1, 2}
    # The most likely token has 4/7 of the probability of the top two, and 0.4 of all.
    assert drawn(top_k=2, top_p=0.5) == {1}
    assert drawn(top_k=0, top_p=0.5) == {1, 2}
    assert drawn(top_k=0, top_p=1) == drawn(top_k=99, top_p=1) == {0, 1, 2, 3}


def test_top_k_of_one_is_greedy(engine: ChatEngine) -> None:
    """At any temperature and seed, a `top_k` of 1 gives the same text as temperature 0."""
    greedy, _ = answer(engine, ask("What do you see?", picture(160)))
    for seed in range(3):
        sampling = Sampling(temperature=2, top_p=1, max_new_tokens=GREEDY.max_new_tokens, seed=seed, top_k=1)
        assert answer(engine, ask("What do you see?", picture(160), sampling=sampling))[0] == greedy
