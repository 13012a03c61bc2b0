"""Work on many machines, by way of Ray, which nothing else here imports."""

from direct_anneal.cluster.connecting import check_installed
from direct_anneal.cluster.engine import RayEngine

__all__ = ["RayEngine", "check_installed"]
