"""Inference: InternVL2, the engines that serve it as child processes, and the deployment that keeps them serving."""
