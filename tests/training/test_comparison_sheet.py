"""The sheet of answers as a web page and as a picture, and its contents."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import pytest
from babel.messages.extract import extract_from_file
from PIL import Image, ImageChops, ImageDraw

from bot.i18n import Translator
from inference.messages import Picture, Role, Turn
from storage.translatable_reason import Reason, join
from tests.support.lessons import SYSTEM, one_turn, photo
from training import plots
from training.data.llava import Lesson
from training.data.selection_counts import beyond_share, cut_off
from training.evaluation_jobs import EvaluationJob
from training.gate.comparison_sheet import TEMPLATES, Row, Sheet
from training.gate.comparison_sheet_png import ROWS, WIDTH, draw
from training.gate.comparison_sheet_translations import CHINESE, localized
from training.gate.fonts import EMOJI, TEXT
from training.gate.report import Decision, Effort, Loss, Report, Taste
from training.gate.run_comparison_sheet import SHOWN, choose_rows, facts, write
from training.gate.text_layout import UNKNOWN, Lettering, lacks_characters
from training.job import RATED
from training.number_format import clock, size
from training.plots import draw_gains
from training.run_folder import GAINS, PICTURE, SHEET

HOSTILE = '<script>alert("x")</script> & <img src=http://a/b.png>'
COLUMNS = ("liked answer", "base, live", "run-3, new")


def sheet(folder: Path, rows: int = 1, **changes: str) -> Sheet:
    """Return a sheet about one photo; `changes` replace the question or the new model's answer."""
    (folder / "cup.jpg").write_bytes(photo("red", (900, 600)))
    question, answer = changes.get("question", "What is it?"), changes.get("answer", "A cup!")
    row = Row(
        question, ("A red cup!", "A cup.", answer), (folder / "cup.jpg",), (("asked", "Hi?"), ("answered", "Yes."))
    )
    return Sheet(
        "Run 3", COLUMNS, (row,) * rows, decision=Decision.ACCEPTED, verdict="better", facts=(("raters", "3"),)
    )


def drawn(text: str) -> Image.Image:
    """Return an image of `text` drawn on one line."""
    image = Image.new("L", (400, 60), "white")
    Lettering(30).write(ImageDraw.Draw(image), (5, 5), text, "black")
    return image


def alike(one: Image.Image, other: Image.Image) -> bool:
    """Return whether all pixels of the two images are equal."""
    return ImageChops.difference(one, other).getbbox() is None


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    """The sheet's page embeds its pictures as thumbnails and refers to no other file or address."""
    page = sheet(tmp_path).html()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 1
    kind, _, data = sources[0].partition(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(BytesIO(b64decode(data))) as small:
        assert small.size == (480, 320)
    assert "http" not in re.sub(r'http-equiv="[^"]*"', "", page)


def test_markup_is_escaped(tmp_path: Path) -> None:
    """Markup in questions and answers is shown as text."""
    page = sheet(tmp_path, question=HOSTILE, answer=HOSTILE).html()
    assert "<script" not in page and "<img src=http" not in page
    assert page.count("&lt;script&gt;") == 2
    assert "default-src 'none'" in page


def test_every_answer_is_under_its_model(tmp_path: Path) -> None:
    """Answers are under their models' names, empty ones are marked, and earlier questions can be expanded."""
    page = sheet(tmp_path, answer="").html()
    pattern = r"<h3>(.*?)</h3>.*?<p.*?>(.*?)</p>"
    assert re.findall(pattern, page, re.DOTALL) == list(
        zip(COLUMNS, ("A red cup!", "A cup.", "no answer"), strict=True)
    )
    assert "1 earlier question<" in page
    assert '<p class="answered">Yes.</p>' in page


def test_the_picture_fits_telegrams_limits(tmp_path: Path) -> None:
    """The picture of a sheet fits Telegram's limits, even with long texts.

    Its sides add up to less than 10,000 pixels, their ratio is at most 20, and the file is below 10 MB.
    """
    draw(sheet(tmp_path, rows=50, question="Why? " * 500, answer="Because. " * 500), tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.width == WIDTH
        assert picture.height < 3000
    assert (tmp_path / "sheet.png").stat().st_size < 10_000_000


def test_the_picture_shows_a_limited_number_of_rows(tmp_path: Path) -> None:
    """The picture of a sheet shows a limited number of rows; one line states how many more there are."""
    heights = []
    for rows in (1, ROWS - 1, ROWS, ROWS + 1, ROWS + 9):
        draw(sheet(tmp_path, rows), tmp_path / "sheet.png")
        with Image.open(tmp_path / "sheet.png") as picture:
            heights.append(picture.height)
    one, fewer, all_shown, counted, many = heights
    assert one < fewer < all_shown < counted == many < all_shown + 60


@pytest.mark.parametrize("text", ["红色的杯子，真漂亮！", "Café – naïve", "Цвет", "😄🎨✨👍", "ありがとう"])
def test_the_fonts_have_common_characters(text: str) -> None:
    """The fonts can draw Chinese, European and Japanese characters and emoji."""
    assert not lacks_characters(text)
    boxes = drawn(UNKNOWN * len(text))
    assert not alike(drawn(text), boxes)
    assert Lettering(30).width(text) > 0


def test_a_character_without_a_font_is_a_box(tmp_path: Path) -> None:
    """A character that no font has is drawn as a box, and the picture explains the box."""
    assert lacks_characters("龘") and not lacks_characters(UNKNOWN)
    assert alike(drawn("a龘b"), drawn(f"a{UNKNOWN}b"))
    draw(sheet(tmp_path, answer="好"), tmp_path / "known.png")
    draw(sheet(tmp_path, answer="龘"), tmp_path / "unknown.png")
    with Image.open(tmp_path / "known.png") as known, Image.open(tmp_path / "unknown.png") as unknown:
        assert unknown.height > known.height


def test_fonts_come_with_their_licence() -> None:
    """The text font and the emoji font come with their licence."""
    assert "SIL OPEN FONT LICENSE" in TEXT.with_name("OFL.txt").read_text(encoding="utf-8")
    assert TEXT.is_file() and EMOJI.is_file()


@pytest.mark.parametrize(
    "text",
    [
        "One two three four five six seven eight nine ten eleven.",
        "我数了一下，一共有三个图形，最大的那个是圆形，旁边还有两个小的三角形。",
        "Donaudampfschifffahrtsgesellschaftskapitän",
        "mixed 混合 words 词语 and spaces 空格 here 这里",
    ],
)
def test_lines_fit_and_lose_nothing(text: str) -> None:
    """Wrapped lines fit the width, and together they contain the whole text.

    Chinese text can break anywhere except before a comma or a full stop.
    """
    letters = Lettering(20)
    lines = letters.wrap(text, 150, 20)
    assert len(lines) > 1
    assert all(letters.width(line) <= 150 for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert not any(line[0] in "，。" for line in lines)


def test_too_many_lines_end_with_an_ellipsis() -> None:
    """If a text has too many lines, the last line ends with an ellipsis and still fits the width."""
    letters = Lettering(20)
    lines = letters.wrap("word " * 100, 150, 3)
    assert len(lines) == 3
    assert lines[-1].endswith("…") and letters.width(lines[-1]) <= 150
    assert letters.wrap("\n\n", 150, 3) == []


def test_every_picture_comes_before_a_second_question() -> None:
    """A sheet shows a limited number of pairs, one about every picture before a second one about any.

    Otherwise the pairs keep their order.
    """
    asked = [one_turn(f"{picture}{number}", "What?", "A cup.", picture) for picture in "ab" for number in range(9)]
    names = [each.name for each in choose_rows(asked)]
    assert names[:4] == ["a0", "b0", "a1", "b1"]
    assert len(names) == SHOWN


def test_the_sheet_of_a_run(tmp_path: Path) -> None:
    """A run's sheet has the names of the models, the numbers, the verdict and the loss curve.

    Pairs that the models answer differently come first.
    """
    (tmp_path / "cup.jpg").write_bytes(photo())
    Image.new("RGB", (960, 480)).save(tmp_path / "curve.png")
    lessons = [one_turn(f"{n}", f"Question {n}?", f"Liked {n}.", "cup.jpg") for n in range(3)]
    before = Turn(Role.USER, "And before?", (Picture(b"", "cup.jpg"),))
    longer = Lesson("3", SYSTEM, (before, Turn(Role.ASSISTANT, "Old."), *lessons[2].turns), (False,) * 3 + (True,))
    job = EvaluationJob(
        run="3",
        candidate="",
        live="",
        data="",
        images=str(tmp_path),
        work=str(tmp_path),
        system=SYSTEM,
        live_name="run-2",
        candidate_name="run-3",
        curve=str(tmp_path / "curve.png"),
    )
    reason = Reason("{number} of its answers are empty or repeat themselves", number=3)
    report = Report(Decision.REJECTED, reason=reason, questions=150, live_correct=0.5, correct=0.25)
    taste = Taste(
        answers=45,
        liked=20,
        raters=3,
        agreement=0.75,
        low=0.65,
        high=0.852,
        p_value=0.00123,
        alpha=0.0304,
        likes=[True, False],
        gains=[0.1, -0.2],
        contrasts=[0.0, 0.01],
    )
    report = replace(report, taste=taste, facts=Loss(150, lost=2, gained=1, bound=3.04, allowed=2.0))
    taught = {RATED: 54, "food.json": 90}
    effort = Effort(54, 3, 56, 75.0, 5.0, 1_250_000_000, 120_000, taught, 2, corrections=6)
    told = replace(report, effort=replace(effort, largest_share=0.184, over_share=12))
    draw_gains(taste, tmp_path / GAINS)
    write(job, told, [*lessons, longer], ["same", "same", "old", "same"], ["same", "same", "new", "same"])
    page = (tmp_path / SHEET).read_text(encoding="utf-8")
    assert re.findall(r'"question">(.*?)<', page) == ["Question 2?", "Question 0?", "Question 1?", "Question 2?"]
    names = ("Run 3: run-3 and run-2 compared", "run-2, live", "run-3, new")
    numbers = (
        "54 liked answers",
        "6 (11 %)",
        "skipped as too long</dt><dd>2<",
        "90 samples",
        "3 people; the largest share is 18 %",
        "12 over the limit per person",
        "45 answers rated by 3 people",
        "75 % (65–85 %)",
        "0.123 % (must not exceed 3.04 %)",
        "50.0 → 25.0 % of 150",
        "facts, against the live model</dt><dd>2 worse, 1 better of 150; net loss at most 3.1 points (2 allowed)<",
        "1:15, 56 steps",
        "1.2 GB",
        "0.1 MB",
    )
    for part in (*names, *numbers, "Liked 1.", "And before?", "rejected", reason):
        assert part in page
    assert "against the base" not in page, "the live model is the base"
    assert page.count("data:image/png") == 2, "the losses and the gains"
    assert (tmp_path / "gains.png").read_bytes() != (tmp_path / "gains.zh.png").read_bytes()
    rare = dict(facts(replace(report, taste=replace(taste, p_value=1.52e-6))))
    assert rare["probability of such agreement by chance"] == "< 0.01 % (must not exceed 3.04 %)"
    assert re.findall(r'<article id="(.*?)"', page) == ["2", "0", "1", "3"]
    assert (tmp_path / PICTURE).read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / localized(SHEET, "zh")).read_text(encoding="utf-8")
    for part in (
        "训练 3：run-3 与 run-2 对比",
        "run-3（新）",
        "54 条好评回答",
        "3 人评价过的 45 条回答",
        "50.0 → 25.0 %，共 150 题",
        "150 题中变差 2 题、变好 1 题；总体最多变差 3.1 个百分点（允许 2 个）",
        "未通过",
        "有 3 条回答",
    ):
        assert part in page
    shown = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)
    said = re.sub(r"Question \d\?|Liked \d\.|And before\?|Old\.|same|new|old|run-\d|[KMG]B", "", shown)
    assert not re.findall(r"[A-Za-z]{2,}", said)
    assert (tmp_path / localized(PICTURE, "zh")).read_bytes() != (tmp_path / PICTURE).read_bytes()


def test_a_personal_bot_is_named_on_the_sheet() -> None:
    """If all lessons come from one rater, the sheet says that the bot is a personal one."""
    report = Report(Decision.ACCEPTED, effort=Effort(pairs=12, raters=1, largest_share=1.0))
    assert ("answers by person", "one person: a personal bot") in facts(report)
    assert not dict(facts(Report(Decision.ACCEPTED))).get("answers by person"), (
        "reports of earlier versions do not have it"
    )


def test_every_word_of_a_sheet_is_translated() -> None:
    """The Chinese catalogue contains every text of a sheet and no others, with the same placeholders.

    Reasons are translated as in the bot's own catalogue.
    """
    sources = [*TEMPLATES.glob("sheet.html"), *TEMPLATES.parent.glob("*sheet*.py"), Path(plots.__file__)]
    said: set[str] = set()
    for path in sources:
        calls = re.findall(r'(?:say|words\(language\))\(((?:"[^"]*"|[^()"])*)', path.read_text(encoding="utf-8"))
        joined = [re.sub(r'"\s+"', "", call) for call in calls]
        said |= {text for call in joined for text in re.findall(r'"([^"]+)"', call)}
    judges = [TEMPLATES.parent / f"{name}.py" for name in ("judge_candidate", "forgetting", "broken_answers", "taste")]
    verdicts = [each for judge in judges for each in extract_from_file("python", judge, keywords={"Reason": None})]
    reasons = {str(text) for _, text, *_ in verdicts}
    limit = cut_off(2, 4)
    assert limit is not None
    reasons |= {limit.template, beyond_share(1).template, join([Reason(""), Reason("")]).template}
    assert said | reasons | set(Decision) == CHINESE.keys()
    everywhere = Translator.load().to("zh")
    assert {each: everywhere.catalogue.gettext(each) for each in reasons} == {each: CHINESE[each] for each in reasons}
    for english, chinese in CHINESE.items():
        assert sorted(re.findall(r"{\w+}", english)) == sorted(re.findall(r"{\w+}", chinese))


def test_a_sheets_style_is_the_only_one_allowed(tmp_path: Path) -> None:
    """The page's content security policy lists the hash of the page's style and allows no other style."""
    page = sheet(tmp_path).html()
    style = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    digest = b64encode(sha256(style[0].encode()).digest()).decode()
    assert len(style) == 1 and f"style-src 'sha256-{digest}'" in page and "unsafe-inline" not in page


def test_times_and_sizes_are_readable() -> None:
    """Times are shown as minutes and seconds, with hours if needed; sizes in MB, or in GB from 1,000 MB."""
    assert [clock(seconds) for seconds in (0.4, 59.6, 3599, 3661)] == ["0:00", "1:00", "59:59", "1:01:01"]
    assert [size(number) for number in (120_000, 99_600_000, 999_600_000)] == ["0.1 MB", "100 MB", "1.0 GB"]
