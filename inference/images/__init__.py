"""Picture decoding: untrusted pictures in a sandboxed child process, stored pictures in this process."""
