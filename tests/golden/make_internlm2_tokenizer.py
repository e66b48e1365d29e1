"""Script that makes tests/golden/internlm2_tokenizer/ with the official tokenizer.

Run it with `python -m tests.golden.make_internlm2_tokenizer OFFICIAL`, where OFFICIAL is the folder
internvl_chat of a checkout of github.com/OpenGVLab/InternVL. The SentencePiece model is trained here on
the texts below; the official tokenizer class provides only the token IDs and the decoded texts.
"""

from __future__ import annotations

import io
import json
import random
import sys
from pathlib import Path

import sentencepiece
from transformers import AddedToken

FOLDER = Path(__file__).parent / "internlm2_tokenizer"
# As in the official tokenizer, some added tokens replace unused pieces and some follow the vocabulary.
SPECIAL = ("<|plugin|>", "<|im_end|>", "<|im_start|>", "<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</box>")
REPLACED = 3
SENTENCES = (
    "How many red squares are in this picture?",
    "There are three red squares in the picture.",
    "图片里有三个红色的方块。",
    "请描述这张图片，里面有什么颜色？",
    "A photo shows a bridge over a river, two boats and one cloud.",
    "It isn't easy to say what colour it is, is it ?",
    "The answer is 42; the other answers are 7, 1.5 and -3.",
    "你好！我是书生多模态大模型。",
)
PIECES = (
    *SENTENCES, "", " ", "  two  spaces ", "\n", "\n\n\ttab", "▁", "naïve café", "😀 emoji 👍🏽", "日本語テキスト",
    "<image>", "<s>", "</s>", "<unk>", "[UNUSED_TOKEN_1]", "<|im_end", "|>", "a" * 40, "\u200b", "é", "Ａ１", "<0x41>",
    *SPECIAL,
)  # fmt: skip


def train() -> bytes:
    """Train a small BPE model with byte fallback and return its bytes.

    Like InternLM2's model, the model has unused pieces at the end.
    """
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3),
        model_writer=written,
        model_type="bpe",
        vocab_size=480,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        user_defined_symbols=[f"[UNUSED_TOKEN_{n}]" for n in range(REPLACED)],
        minloglevel=2,
    )
    return written.getvalue()


def texts() -> list[str]:
    """Return each text of `PIECES` alone, and 80 random sequences of them."""
    draw = random.Random(0)
    return [*PIECES, *("".join(draw.choices(PIECES, k=draw.randint(2, 6))) for _ in range(80))]


def main(official: Path) -> None:
    """Train the model, and write it together with the official class's token IDs and decoded texts."""
    sys.path.insert(0, str(official))
    from internvl.model.internlm2.tokenization_internlm2 import (  # type: ignore[import-not-found, unused-ignore]
        InternLM2Tokenizer,
    )

    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "tokenizer.model").write_bytes(train())
    bare = InternLM2Tokenizer(str(FOLDER / "tokenizer.model"))
    first = bare.convert_tokens_to_ids("[UNUSED_TOKEN_0]")
    ids = [*range(first, first + REPLACED), *range(bare.vocab_size, bare.vocab_size + len(SPECIAL) - REPLACED)]
    named = dict(zip([*range(3), *ids], ["<unk>", "<s>", "</s>", *SPECIAL], strict=True))
    added = {str(number): _fields(content) for number, content in sorted(named.items())}
    _write("tokenizer_config.json", {
        "add_bos_token": True, "add_eos_token": False, "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIAL), "auto_map": {
            "AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None],
        },
        "bos_token": "<s>", "clean_up_tokenization_spaces": False, "eos_token": "</s>", "model_max_length": 8192,
        "pad_token": "</s>", "tokenizer_class": "InternLM2Tokenizer", "unk_token": "<unk>",
    })  # fmt: skip
    tokenizer = InternLM2Tokenizer.from_pretrained(FOLDER)
    answers = []
    for text in texts():
        encoded = tokenizer(text)["input_ids"]
        kept = tokenizer.decode(encoded)
        bare_text = tokenizer.decode(encoded, skip_special_tokens=True)
        answers.append({"text": text, "ids": encoded, "decoded": kept, "skipped": bare_text})
    added_later = InternLM2Tokenizer.from_pretrained(FOLDER)
    added_later.add_tokens([AddedToken("<later>", special=True)])
    _write("answers.json", {
        "length": len(tokenizer), "vocab_size": tokenizer.vocab_size,
        "later": added_later.convert_tokens_to_ids("<later>"), "texts": answers,
    })  # fmt: skip


def _fields(content: str) -> dict[str, object]:
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {"content": content, **plain}


def _write(name: str, content: object) -> None:
    (FOLDER / name).write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
