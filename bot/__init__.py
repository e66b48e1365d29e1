"""The application: Telegram chats, command line, schedule and web pages. The only package that imports all others."""
