"""Work on many machines, by way of Ray, which nothing else here imports."""

from direct_anneal.cluster.connecting import check_installed
from direct_anneal.cluster.engine import RayEngine
from direct_anneal.cluster.products import TaskMap

__all__ = ["RayEngine", "TaskMap", "check_installed"]
