"""Fonts for pictures with text: a bare machine has none for Chinese, and what comes with matplotlib has none either.

`NotoSansSC.otf` is a part of Noto Sans CJK SC 2.004 (© 2014-2021 Adobe), `NotoEmoji.ttf` a part of Noto Emoji 3.002
(© 2013 Google), both under the SIL Open Font License in OFL.txt. `subset` makes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

TEXT: Final = Path(__file__).with_name("NotoSansSC.otf")
EMOJI: Final = Path(__file__).with_name("NotoEmoji.ttf")
