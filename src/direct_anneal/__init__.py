"""Choose the data of the annealing phase by curvature (DiReCT, arXiv:2605.31175)."""
