"""Stickers as pictures, and the maximum number of pictures in an album."""

from __future__ import annotations

from tests.support.chatting import Stage, final_reply, png


async def test_a_sticker_is_a_picture(stage: Stage) -> None:
    """A static sticker counts as a picture and can be replied to later; an animated sticker is refused."""
    async with stage.bot() as bot, stage.person() as ada:
        sticker = await ada.sends(sticker=png(form="WEBP"))
        await ada.answer(rated=True)
        await ada.asks(photo=png(colour="red"))
        await ada.asks("What about this one?", reply_to=sticker["message_id"])
        seen = [[picture.sha256 for picture in prompt.turns[-1].pictures] for prompt in bot.engine.prompts]
        assert seen[0] == seen[2] != seen[1]
        for kind in ("application/x-tgsticker", "video/webm"):
            assert "videos or animations" in (await final_reply(ada, sticker=b"moves", media_type=kind))["text"]


async def test_an_album_may_be_too_large(stage: Stage) -> None:
    """An album of the maximum size is one question; a larger album is refused."""
    colours = ("red", "green", "blue")
    async with stage.bot(chat={"max_pictures": 2}) as bot, stage.person() as ada:
        await ada.asks(album=[png(colour=each) for each in colours[:2]], caption="Which one?")
        assert (
            "up to 2 pictures at once, and you sent 3"
            in (await final_reply(ada, album=[png(colour=each) for each in colours]))["text"]
        )
        (prompt,) = bot.engine.prompts
        assert (prompt.turns[-1].text, len(prompt.turns[-1].pictures)) == ("Which one?", 2)
