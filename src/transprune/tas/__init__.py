"""The paper: transformable architecture search (Dong & Yang, 2019, arXiv:1905.09717)."""
