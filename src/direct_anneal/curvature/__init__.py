"""The curvature of the validation loss: its eigenpairs, and the split into stiff and flat directions."""

from direct_anneal.curvature.spectrum import Spectrum

__all__ = ["Spectrum"]
