"""The documentation's screenshots and the script that makes them."""
