"""Answering: one InternVL2, the engines that run it as child processes, the policy over them. Knows no other room."""
