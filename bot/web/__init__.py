"""The web server: health, metrics, the operator's pages and Telegram's webhook."""
