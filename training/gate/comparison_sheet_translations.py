"""Translations of the texts on comparison sheets into the languages of admins; English is the source language."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePath
from typing import Final

from storage.translatable_reason import Reason

Say = Callable[..., str]
"""`say("{number} samples", number=2)`."""

CHINESE: Final = {
    "Run {run}: {candidate} and {live} compared": "训练 {run}：{candidate} 与 {live} 对比",
    "liked answer": "好评回答",
    "{model}, live": "{model}（现用）",
    "{model}, new": "{model}（新）",
    "accepted": "通过检验",
    "rejected": "未通过检验",
    "undecided": "尚无定论",
    "it matches what people like and lost no more facts than allowed": (
        "新模型符合用户的喜好，遗忘的知识也没有超出允许的范围"
    ),
    "the live model has too few rated answers to judge the new model by; at least {number} are needed": (
        "现用模型获得评价的回答太少，不足以检验新模型；至少需要 {number} 条"
    ),
    "nearly all answers are liked ({liked} of {shown}), which says nothing about what people prefer": (
        "几乎所有回答都获得好评（{shown} 条中有 {liked} 条），看不出大家更喜欢什么"
    ),
    "{finding}; give 👎 to answers that you like less": "{finding}；请给不太喜欢的回答点 👎",
    "no difference was found between the answers that people liked and the others, in {answers} rated answers": (
        "在 {answers} 条已评价的回答中，没有发现好评回答与其他回答有什么不同"
    ),
    "no difference was found yet between liked answers and the others, in {answers} rated answers": (
        "在 {answers} 条已评价的回答中，尚未发现好评回答与其他回答有什么不同"
    ),
    "{finding} (more votes help if they all follow the same preference)": (
        "{finding}（如果大家的评价标准一致，多评价一些会有帮助）"
    ),
    "{answers} rated answers are too few to tell": ("{answers} 条已评价的回答还不足以判断"),
    "{few}; about {number} more are needed": ("{few}；大约还需要 {number} 条"),
    "its share of correct factual answers could be up to {bound} points below that of {model} (limit: {allowed})": (
        "与{model}相比，事实题正确率最多可能下降 {bound} 个百分点（上限 {allowed} 个百分点）"
    ),
    "the base model": "基础模型",
    "the live model": "现用模型",
    "it could give in to leading questions up to {bound} points more often than {model} (limit: {allowed})": (
        "与{model}相比，被诱导性问题带偏的比例最多可能高出 {bound} 个百分点（上限 {allowed} 个百分点）"
    ),
    "its answers are {times} times as long as the live model's": ("回答长度是现用模型的 {times} 倍"),
    "it gives {number} different answers to {questions} questions, the live model {live}": (
        "对 {questions} 个问题只给出 {number} 种不同的回答，现用模型给出 {live} 种"
    ),
    "{number} of its answers are empty or repeat themselves": "有 {number} 条回答为空或不断重复",
    "its token IDs differ from the engine's: {difference}": "新模型的词元 ID 与引擎的不一致：{difference}",
    "{reason}; {others}": "{reason}；{others}",
    "learned from": "学习内容",
    "{number} liked answers": "{number} 条好评回答",
    "and from": "以及",
    "{number} disliked answers": "{number} 条差评回答",
    "including corrections": "其中更正",
    "skipped as too long": "因过长而跳过",
    "other sources": "其他来源",
    "{number} samples": "{number} 个样本",
    "votes": "评价",
    "{votes} from {people} people": "{people} 人的 {votes} 次",
    "answers by person": "回答按人分布",
    "one person: a personal bot": "一位用户：个人机器人",
    "{people} people; the largest share is {share} %": "{people} 人，单人最多占 {share} %",
    "left out": "未采用",
    "{number} over the limit per person": "超出每人上限的 {number} 条",
    "cut off": "被截断",
    "{cut} of {liked} liked answers were cut off by the length limit and can't be used: raise chat.max_new_tokens": (
        "{liked} 条好评回答中有 {cut} 条因达到长度上限被截断，无法用于学习，请调高 chat.max_new_tokens"
    ),
    "judged by": "检验依据",
    "no rated answers": "没有可用于检验的已评价回答",
    "{answers} answers rated by {people} people": "{people} 人评价过的 {answers} 条回答",
    "agreement with the votes": "与评价的一致率",
    "probability of such agreement by chance": "偶然出现这种一致的概率",
    "{chance} % (must not exceed {allowed} %)": "{chance} %（不得超过 {allowed} %）",
    "correct factual answers": "事实题正确率",
    "{before} → {after} of {questions}": "{before} → {after}，共 {questions} 题",
    "facts, against the live model": "事实题，与现用模型相比",
    "facts, against the base model": "事实题，与基础模型相比",
    "leading questions, against the live model": "诱导性问题，与现用模型相比",
    "leading questions, against the base model": "诱导性问题，与基础模型相比",
    "empty or looping answers": "为空或不断重复的回答",
    "different answers": "不同的回答",
    "length of answers": "回答长度",
    "{percent} % of the live model's": "现用模型的 {percent} %",
    "{lost} worse, {gained} better of {questions}; net loss at most {bound} points ({allowed} allowed)": (
        "{questions} 题中变差 {lost} 题、变好 {gained} 题；总体最多变差 {bound} 个百分点（允许 {allowed} 个）"
    ),
    "training": "训练",
    "{time}, {steps} steps": "{time}，{steps} 步",
    "merging": "合并",
    "evaluating": "检验",
    "peak memory": "内存峰值",
    "adapter": "适配器",
    "The loss of each step, its moving average, and the previous run's.": (
        "每一步的损失及其移动平均，以及上一次训练的损失。"
    ),
    "How much likelier each rated answer is for the new model than for the live one. If the new model has learned what "
    "people like, liked answers gain more than other answers to the same question, and disliked ones gain less.": (
        "与现用模型相比，新模型给出每条已评价回答的概率提高了多少。如果新模型学到了大家的喜好，"
        "好评回答的增幅会大于同一问题的其他回答，差评回答的增幅则更小。"
    ),
    "step": "步",
    "loss (nats per token)": "损失（每词元 nat）",
    "previous run": "上一次训练",
    "each step": "每一步",
    "moving average": "移动平均",
    "rated answer, oldest first": "已评价的回答（从旧到新）",
    "gain (nats per token)": "增幅（每词元 nat）",
    "liked": "好评",
    "disliked": "差评",
    "others, mean": "其他回答的平均",
    "{number} earlier question": "之前的 {number} 个问题",
    "{number} earlier questions": "之前的 {number} 个问题",
    "[a picture]": "[图片]",
    "(the picture alone)": "（只有图片）",
    "no answer": "没有回答",
    "Each model gives its most likely answer; nothing is sampled.": "每个模型都给出概率最高的回答，不进行随机采样。",
    "{number} more are on the full page.": "另有 {number} 行，见完整页面。",
    "{box} stands for a character that only the full page can show.": "{box} 代表只有完整页面才能显示的字符。",
}

LANGUAGES: Final = {"en": {}, "zh": CHINESE}


def words(language: str) -> Say:
    """Return a function that translates a sentence into `language` and fills in its placeholders.

    In an unknown language, sentences stay in English.
    """
    catalogue = LANGUAGES.get(language, {})

    def say(sentence: str, **values: object) -> str:
        reason = sentence if isinstance(sentence, Reason) else Reason(sentence, **values)
        return reason.translated(lambda template: catalogue.get(template, template))

    return say


def localized(name: str, language: str) -> str:
    """Return a file's name for a language, such as `sheet.html` or, for Chinese, `sheet.zh.html`."""
    path = PurePath(name)
    return name if language == "en" else f"{path.stem}.{language}{path.suffix}"
