"""Judge a candidate against the live model, and show the answers of both on a sheet."""
