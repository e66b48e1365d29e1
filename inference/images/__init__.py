"""Decoding pictures: untrusted ones in a sandboxed child process, stored ones in this process."""
