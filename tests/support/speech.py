"""Detection of words in the wrong language in the bot's English and Chinese texts.

Chinese text may contain no Latin words except names, commands, settings and units, which are listed
here. English text may contain no Chinese characters. Output of models and libraries, such as the answer
`base/4711/0` of a test engine, is in neither language and is ignored.
"""

from __future__ import annotations

import re
from typing import Final

_CHINESE: Final = re.compile(r"[\u3000-\u303f\u3400-\u9fff\uff00-\uffef]+")
_LATIN: Final = re.compile(r"[A-Za-z]+")
_NAMES: Final = re.compile(
    r"""
    (?<!\w)/[a-z_]+(@\w+)?                                # commands
    | @\w+                                                # the bot's name
    | \b(base|run-\d+)/\d+/\d+                            # an answer
    | \b(base|run-\d+)\b                                  # models
    | \bgpu\d\b                                           # nodes
    | \b(training|chat|telegram|storage|inference)\.[a-z_.]+  # settings
    | \bconfig\.toml\b
    | \b(Telegram|Ada|Bob|Eve|Root)\b
    | \b(JPEG|PNG|WebP|GIF|BMP|TIFF|HEIC)\b
    | \b(GB|MB|UTC)\b
    | \b(cpu|lmdeploy|external|qlora|lora|full)\b         # values of settings
    | \b(dry|ID|TEXT|NODE)\b                              # what is typed after a command
    """,
    re.VERBOSE | re.ASCII,
)


def foreign(text: str, language: str) -> list[str]:
    """Return the words of `text` that are not in `language` ("en" or "zh")."""
    return (_CHINESE if language == "en" else _LATIN).findall(_NAMES.sub(" ", text))
