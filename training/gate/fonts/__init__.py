r"""Fonts for text in pictures, because neither a minimal system nor matplotlib has a font for Chinese.

`NotoSansSC.otf` is a subset of Noto Sans CJK SC 2.004 (© 2014-2021 Adobe), `NotoEmoji.ttf` of Noto Emoji
3.002 (© 2013 Google), both under the SIL Open Font License in OFL.txt. Together they have the characters
of GB 2312 with full-width punctuation, the alphabets of Europe, and the emoji that consist of one code
point. The subsets are made with fontTools from the complete fonts, which are in Debian's fonts-noto-cjk
and in the googlefonts/noto-emoji repository::

    python - > characters.txt << END
    cells = ((row, cell) for row in range(0xA1, 0xF8) for cell in range(0xA1, 0xFF))
    print("€™−×÷≈≤≥✓✗★☆♥□■○●", *(bytes(each).decode("gb2312", "ignore") for each in cells))
    END
    pyftsubset NotoSansCJK-Regular.ttc --font-number=2 --text-file=characters.txt \
        --unicodes=20-7e,a0-17f,370-45f,2010-203a,2190-2199,2460-2473,3000-301f,ff01-ff5e \
        --no-hinting --layout-features= --name-IDs='*' --output-file=NotoSansSC.otf
    fonttools varLib.instancer 'NotoEmoji[wght].ttf' wght=400 --output=regular.ttf
    pyftsubset regular.ttf --unicodes=2600-27bf,2b00-2bff,1f300-1f64f,1f680-1f6ff,1f900-1faff \
        --no-hinting --layout-features= --name-IDs='*' --output-file=NotoEmoji.ttf
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

TEXT: Final = Path(__file__).with_name("NotoSansSC.otf")
EMOJI: Final = Path(__file__).with_name("NotoEmoji.ttf")
