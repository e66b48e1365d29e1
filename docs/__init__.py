"""The documentation's pictures and the script that makes them."""
