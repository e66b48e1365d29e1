"""InternVL2: configuration, model, tiling, tokenizer and checkpoints.

Importing this package does not import torch.
"""
