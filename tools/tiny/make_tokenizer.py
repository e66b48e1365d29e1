"""Train internvl2-tiny's tokenizer, a byte-level BPE tokenizer with InternVL2's special tokens.

The tokenizer is trained on the model's training text. Every byte is a token, so any text can be encoded
and decoded without loss. No token crosses a line break, and every Chinese character and punctuation mark
is encoded separately, so a conversation gets the same IDs whether it is encoded as a whole or split into
segments after a line break or at a special token.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any, Final

from tokenizers import (  # type: ignore[import-untyped]
    Regex,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)

from inference.chat_format.template import BOS, EOS, SPECIAL_TOKENS, jinja_chat_template
from inference.internvl2.families import INTERNVL2
from inference.internvl2.tiny.held_out_questions import held_out
from inference.internvl2.tiny.words import KINDS, LANGUAGES
from tools.tiny.conversations import converse

UNKNOWN: Final = "<unk>"
MOST_PIECES: Final = 1280

_ALONE: Final = r"\n|\p{Han}|[，。！？、：；“”（）《》·]|\d"


def make_tokenizer(seed: int = 0, samples: int = 12_000) -> Any:
    """Train the tokenizer on `samples` random conversations; the same seed gives the same vocabulary.

    Returns:
        A transformers `PreTrainedTokenizerFast` that prepends `<s>` if called with
        `add_special_tokens=True`.
    """
    from transformers import PreTrainedTokenizerFast

    pieces = Tokenizer(models.BPE(unk_token=None))
    pieces.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_ALONE), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    pieces.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MOST_PIECES,
        min_frequency=4,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces.train_from_iterator(_corpus(Random(seed), samples), trainer)
    start = pieces.token_to_id(BOS)
    pieces.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, start)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        pad_token=EOS,
        additional_special_tokens=[token for token in SPECIAL_TOKENS if token not in (BOS, EOS, UNKNOWN)],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = jinja_chat_template(INTERNVL2)
    return tokenizer


def _corpus(rng: Random, samples: int) -> Iterator[str]:
    """Yield text for training the tokenizer: random conversations, and words of held-out questions.

    The words of held-out questions are yielded one at a time, so that their order is not learned.
    """
    for _ in range(samples):
        chat = converse("short", rng)
        yield from ("system", chat.prompt.system, chat.answer)
        for turn in chat.prompt.turns:
            yield from (turn.role.value, turn.text, "Image-1: " if turn.pictures else "")
    for _ in range(samples // 20):
        words = held_out(rng.choice(LANGUAGES), rng.choice(KINDS), rng).split()
        yield from (f" {word}" for word in words)
