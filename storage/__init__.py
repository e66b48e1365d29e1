"""Remembering: the SQLite ledger, picture files and model directories. Knows no other room."""
