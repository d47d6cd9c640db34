"""Unpruned networks (the paper's ResNets, those of torchvision and timm, and the user's) and their trained weights."""
