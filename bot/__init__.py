"""The front door: Telegram, the command line, schedules and the web pages. The only room that knows all the others."""
