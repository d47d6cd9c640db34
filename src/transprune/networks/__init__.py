"""Networks: the paper's, the supernet of any of them, and the smaller ones derived. None is changed once built."""
