"""A slow (pure Python) tokenizer like InternLM2's, with 92,544 pieces, for random-weight checkpoints.

Real checkpoints have a tokenizer of this kind, so a realistic benchmark of a server includes its cost
per token. The pieces are letters, bytes and invented syllables, so there is a text for every token ID
that random weights produce.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Final

import sentencepiece.sentencepiece_model_pb2 as sentencepiece_model
from transformers import AddedToken

from inference.chat_format.template import SPECIAL_TOKENS
from inference.internvl2.tokenization_internlm2 import InternLM2Tokenizer

PIECES: Final = 92_544
_NAMED: Final = SPECIAL_TOKENS[SPECIAL_TOKENS.index("<|plugin|>") :]
"""The special tokens after sentencepiece's own three."""

_FIRST_NAMED: Final = 92_538
"""Id of the first of them; the rest follow, as in the official vocabulary (`<|im_end|>` is 92542)."""


def make_tokenizer(directory: Path) -> InternLM2Tokenizer:
    """Write `tokenizer.model` into `directory` and load it.

    The official special tokens have their official IDs.
    """
    proto = sentencepiece_model.ModelProto()
    proto.trainer_spec.model_type = sentencepiece_model.TrainerSpec.BPE
    proto.trainer_spec.byte_fallback = True
    proto.trainer_spec.vocab_size = PIECES
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = False
    kinds = sentencepiece_model.ModelProto.SentencePiece
    texts: list[tuple[str, int]] = [("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)]
    texts += [(f"<0x{value:02X}>", kinds.BYTE) for value in range(256)]
    letters = [chr(code) for code in (0x2581, *range(0x21, 0x7F), *range(0x4E00, 0x5600))]
    consonants, vowels = "bcdfghjklmnpqrstvwz", "aeiou"
    syllables = ["".join(pair) for pair in itertools.product(consonants, vowels)]
    words = ("\u2581" + first + second for first, second in itertools.product(syllables, syllables))
    longer = ("\u2581" + "".join(three) for three in itertools.product(syllables, syllables, syllables))
    pieces = itertools.chain(letters, syllables, words, longer)
    texts += [(piece, kinds.NORMAL) for piece in itertools.islice(pieces, PIECES - len(texts) - 16)]
    texts += [(f"[UNUSED_TOKEN_{number}]", kinds.USER_DEFINED) for number in range(PIECES - len(texts))]
    for number, (piece, kind) in enumerate(texts):
        proto.pieces.add(piece=piece, score=-float(number), type=kind)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.model").write_bytes(proto.SerializeToString())
    controls = {
        number: AddedToken(piece, special=True, normalized=False) for number, (piece, _) in enumerate(texts[:3])
    }
    named = {
        _FIRST_NAMED + number: AddedToken(token, special=True, normalized=False) for number, token in enumerate(_NAMED)
    }
    return InternLM2Tokenizer(
        str(directory / "tokenizer.model"),
        added_tokens_decoder={**controls, **named},
        additional_special_tokens=list(_NAMED),
    )
