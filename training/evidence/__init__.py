"""Statistics for judging models: pure functions of numbers, without models, files or the ledger.

Each function cites its source. Offline tests decide whether a candidate prefers the answers that users
like; anytime-valid tests monitor the candidate while it answers users.
"""
