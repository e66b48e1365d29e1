"""Statistics of the judge: pure functions over numbers, without models, files or the ledger.

Each function names its source. Offline tests decide whether a candidate prefers what people like; anytime-valid tests
watch it while it answers people.
"""
