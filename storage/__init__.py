"""Storage: the SQLite ledger, picture files and model directories."""
