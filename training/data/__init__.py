"""Turn liked answers and other sources into validated training rows."""
