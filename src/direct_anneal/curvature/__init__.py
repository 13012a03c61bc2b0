"""The curvature of the validation loss: its eigenpairs, and the split into stiff and flat directions."""

from direct_anneal.curvature.crossfit import CrossFit, cross_fit
from direct_anneal.curvature.spectrum import Spectrum

__all__ = ["CrossFit", "Spectrum", "cross_fit"]
