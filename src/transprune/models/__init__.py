"""Networks to begin with: the paper's ResNets, those of torchvision and timm, the user's; and their trained weights."""
