"""To a cluster, or to workers on this machine alone."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Literal

from direct_anneal.errors import InputError, option

LOOK_SECONDS = 5.0
PATIENCE_SECONDS = 600.0  # without any worker; a cluster that grows by itself may need minutes


@contextmanager
def connected(address: str | None, workers: int | None, store_bytes: int) -> Iterator[Any]:
    """Ray, connected while this lasts.

    Args:
        address: of a cluster, as `ray start` prints it, or "auto"; where left out, that of the environment's
            RAY_ADDRESS, and without one, processes on this machine.
        workers: how many processes there shall be room for on this machine, if not one a core.
        store_bytes: of Ray's shared memory, on this machine.

    Raises:
        InputError: there is no such cluster.
    """
    import ray

    if ray.is_initialized():  # by whoever calls us; theirs to end
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS")
    own: dict[str, Any] = {"num_cpus": workers, "object_store_memory": store_bytes, "include_dashboard": False}
    try:
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **({} if address else own))
    except Exception as error:  # which Ray itself raises, bare, where its processes do not come up in time
        reason = " ".join(str(error).split())
        where = f"the cluster at {address}" if address else "this machine"
        raise InputError(
            f"{option('engine')} ray needs Ray to start on {where}, but it could not: {reason:.200}"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def room_for(ray: Any, resource: Literal["CPU", "GPU"]) -> int:
    """Count the workers that the cluster has room for, one for each.

    Raises:
        InputError: none.
    """
    there = int(ray.cluster_resources().get(resource, 0))
    if there < 1:
        raise InputError(
            f"each worker needs a {'GPU' if resource == 'GPU' else 'core'}, but the cluster has none: check ray status"
        )
    return there


def check_installed() -> None:
    """See that Ray is there.

    Raises:
        InputError: it is not.
    """
    if find_spec("ray") is None:
        raise InputError(f"{option('engine')} ray needs Ray, which is not installed: pip install 'direct-anneal[ray]'")
