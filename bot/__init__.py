"""The application: Telegram chats, the command line, the schedule and web pages.

This is the only package that imports all the others.
"""
