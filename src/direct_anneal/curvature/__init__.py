"""The curvature of the validation loss: its eigenpairs, and the split into stiff and flat directions."""

from direct_anneal.curvature.cutoff import PAPER_SHARE, Elbow, energy_share, fixed_number, widest_gap
from direct_anneal.curvature.estimators import (
    CurvatureEstimator,
    CurvatureName,
    Estimate,
    SecondMoment,
    estimate,
)
from direct_anneal.curvature.holdout import CrossFit, cross_energies, cross_fit
from direct_anneal.curvature.lanczos import MatrixFree
from direct_anneal.curvature.mc_fisher import monte_carlo_sketches
from direct_anneal.curvature.spectrum import Spectrum
from direct_anneal.curvature.storage import check_estimate, load_estimate, save_estimate

__all__ = [
    "PAPER_SHARE",
    "CrossFit",
    "CurvatureEstimator",
    "CurvatureName",
    "Elbow",
    "Estimate",
    "MatrixFree",
    "SecondMoment",
    "Spectrum",
    "check_estimate",
    "cross_energies",
    "cross_fit",
    "energy_share",
    "estimate",
    "fixed_number",
    "load_estimate",
    "monte_carlo_sketches",
    "save_estimate",
    "widest_gap",
]
