"""Administration: runs, models, schedule, monitoring, notices and the erasure of personal data."""
