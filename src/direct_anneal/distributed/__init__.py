"""Work on many machines, by way of Ray, which nothing else here imports."""

from direct_anneal.distributed.actor_map import ActorMap
from direct_anneal.distributed.connect import check_installed
from direct_anneal.distributed.distributed_map import TaskMap
from direct_anneal.distributed.ray_engine import RayEngine

__all__ = ["ActorMap", "RayEngine", "TaskMap", "check_installed"]
