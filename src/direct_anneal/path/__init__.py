"""The descent path: each document's exact progress as the checkpoint is annealed on the validation set."""

from direct_anneal.path.config import PathConfig
from direct_anneal.path.losses import PathLosses, columns_at
from direct_anneal.path.pipeline import descend, descend_in_part

__all__ = ["PathConfig", "PathLosses", "columns_at", "descend", "descend_in_part"]
