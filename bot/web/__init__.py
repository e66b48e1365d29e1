"""The web server: health, metrics, the operator page and Telegram's webhook."""
