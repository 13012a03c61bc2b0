"""Work on many machines: by way of Ray, which nothing else here imports, or by processes of torchrun."""

from direct_anneal.distributed.actor_map import ActorMap
from direct_anneal.distributed.connect import check_installed
from direct_anneal.distributed.distributed_map import TaskMap
from direct_anneal.distributed.ray_engine import RayEngine
from direct_anneal.distributed.torchrun import Group

__all__ = ["ActorMap", "Group", "RayEngine", "TaskMap", "check_installed"]
