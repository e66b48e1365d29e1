"""lmdeploy."""
