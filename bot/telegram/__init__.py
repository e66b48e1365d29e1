"""The Telegram side of replies: delivery, rate limits, formatting, streaming and buttons."""
