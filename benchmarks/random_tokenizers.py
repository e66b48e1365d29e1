"""Tokenizers of the official kinds and sizes for random-weight checkpoints: those of InternLM2, Phi-3 and Qwen2.

The first two are slow (pure Python), as in real checkpoints, so a realistic benchmark of a server includes their
cost per token. The pieces are letters, bytes and invented syllables, so every token ID that random
weights produce can be decoded.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import sentencepiece.sentencepiece_model_pb2 as sentencepiece_model
from transformers import AddedToken, LlamaTokenizer, Qwen2TokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import bytes_to_unicode

from inference.chat_format.template import SPECIAL_TOKENS
from inference.internvl2.tokenization_internlm2 import InternLM2Tokenizer

PIECES: Final = 92_544
"""The size of InternLM2's vocabulary."""

QWEN_PIECES: Final = 151_643
"""The size of Qwen2's vocabulary without the added tokens."""

PHI3_PIECES: Final = 32_000
"""The size of Phi-3's vocabulary without the added tokens."""

_PHI3_ADDED: Final = ("assistant", *(f"placeholder{n}" for n in range(1, 5)), "system", "end", "placeholder5",
                      "placeholder6", "user")  # fmt: skip
"""The tokens that Phi-3 adds after `<|endoftext|>`, without the marks `<|` and `|>`. White space after them is
dropped."""

_QWEN_ADDED: Final = ("<|im_start|>", "<|im_end|>", *SPECIAL_TOKENS[SPECIAL_TOKENS.index("<img>") :])
"""The tokens that InternVL2-1B adds after `<|endoftext|>`, with their official IDs."""

_NAMED: Final = SPECIAL_TOKENS[SPECIAL_TOKENS.index("<|plugin|>") :]
"""The special tokens after sentencepiece's own three."""

_FIRST_NAMED: Final = 92_538
"""The ID of the first token in `_NAMED`; the rest follow, as in the official vocabulary (`<|im_end|>` is 92542)."""


_SYLLABLES: Final = tuple(itertools.product("bcdfghjklmnpqrstvwz", "aeiou"))


def make_tokenizer(directory: Path) -> InternLM2Tokenizer:
    """Write `tokenizer.model` into `directory` and load it.

    The official special tokens have their official IDs.
    """
    _write_pieces(directory, PIECES, unused=16)
    controls = {
        number: AddedToken(piece, special=True, normalized=False)
        for number, piece in enumerate(("<unk>", "<s>", "</s>"))
    }
    named = {
        _FIRST_NAMED + number: AddedToken(token, special=True, normalized=False) for number, token in enumerate(_NAMED)
    }
    return InternLM2Tokenizer(
        str(directory / "tokenizer.model"),
        added_tokens_decoder={**controls, **named},
        additional_special_tokens=list(_NAMED),
    )


def make_phi3_tokenizer(directory: Path, pieces: int = PHI3_PIECES, *, legacy: bool = False) -> LlamaTokenizer:
    """Write `tokenizer.model` into `directory` and load it, with the added tokens of InternVL2-4B.

    With the default number of pieces, the added tokens have their official IDs. For `legacy`, see LlamaTokenizer.
    """
    _write_pieces(directory, pieces, add_dummy_prefix=True)
    tokenizer = LlamaTokenizer(
        str(directory / "tokenizer.model"), eos_token="<|endoftext|>", pad_token="<|endoftext|>", legacy=legacy
    )
    own = [AddedToken(f"<|{name}|>", rstrip=True, special=True, normalized=False) for name in _PHI3_ADDED]
    tokenizer.add_tokens(own, special_tokens=True)
    tokenizer.add_tokens(list(_QWEN_ADDED[2:]), special_tokens=True)
    return tokenizer


def _write_pieces(directory: Path, count: int, *, unused: int = 0, add_dummy_prefix: bool = False) -> None:
    """Write a `tokenizer.model` with `count` pieces, the last of which are `unused` placeholders."""
    proto = sentencepiece_model.ModelProto()
    proto.trainer_spec.model_type = sentencepiece_model.TrainerSpec.BPE
    proto.trainer_spec.byte_fallback = True
    proto.trainer_spec.vocab_size = count
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.remove_extra_whitespaces = False
    proto.normalizer_spec.add_dummy_prefix = add_dummy_prefix
    kinds = sentencepiece_model.ModelProto.SentencePiece
    texts: list[tuple[str, int]] = [("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)]
    texts += [(f"<0x{value:02X}>", kinds.BYTE) for value in range(256)]
    letters = [chr(code) for code in (0x2581, *range(0x21, 0x7F), *range(0x4E00, 0x5600))]
    syllables = ["".join(pair) for pair in _SYLLABLES]
    words = ("\u2581" + first + second for first, second in itertools.product(syllables, syllables))
    longer = ("\u2581" + "".join(three) for three in itertools.product(syllables, syllables, syllables))
    pieces = itertools.chain(letters, syllables, words, longer)
    texts += [(piece, kinds.NORMAL) for piece in itertools.islice(pieces, count - len(texts) - unused)]
    texts += [(f"[UNUSED_TOKEN_{number}]", kinds.USER_DEFINED) for number in range(unused)]
    for number, (piece, kind) in enumerate(texts):
        proto.pieces.add(piece=piece, score=-float(number), type=kind)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.model").write_bytes(proto.SerializeToString())


def make_qwen_tokenizer(directory: Path, pieces: int = QWEN_PIECES) -> Any:
    """Write `vocab.json` and `merges.txt` into `directory` and load them, with the added tokens of InternVL2-1B."""
    letters = list(bytes_to_unicode().values())
    merges = list(itertools.islice(_merges(), pieces - len(letters)))
    tokens = [*letters, *("".join(pair) for pair in merges)]
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary, rules = directory / "vocab.json", directory / "merges.txt"
    vocabulary.write_text(json.dumps({token: number for number, token in enumerate(tokens)}), encoding="utf-8")
    rules.write_text("#version: 0.2\n" + "".join(f"{one} {two}\n" for one, two in merges), encoding="utf-8")
    tokenizer = Qwen2TokenizerFast(str(vocabulary), str(rules))
    tokenizer.add_special_tokens({"additional_special_tokens": list(_QWEN_ADDED)})
    return tokenizer


def _merges() -> Iterator[tuple[str, str]]:
    """Yield the merges of invented words of one to three syllables."""
    yield from _SYLLABLES
    syllables = ["".join(pair) for pair in _SYLLABLES]
    yield from itertools.product(syllables, syllables)
    for one, two, three in itertools.product(syllables, syllables, syllables):
        yield one + two, three
