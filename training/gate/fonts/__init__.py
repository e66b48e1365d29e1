"""Fonts for text on pictures: neither a bare machine nor matplotlib has one with Chinese.

`NotoSansSC.otf` is a subset of Noto Sans CJK SC 2.004 (© 2014-2021 Adobe), `NotoEmoji.ttf` of Noto Emoji 3.002 (© 2013
Google), both under the SIL Open Font License in OFL.txt. The module `subset` makes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

TEXT: Final = Path(__file__).with_name("NotoSansSC.otf")
EMOJI: Final = Path(__file__).with_name("NotoEmoji.ttf")
