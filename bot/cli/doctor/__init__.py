"""`thumbtune doctor`: the checks of an installation."""
