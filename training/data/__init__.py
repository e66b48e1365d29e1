"""Turn liked answers and other sources into validated rows to train on."""
