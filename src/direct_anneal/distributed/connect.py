"""To a cluster, or to workers on this machine alone."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Literal

from direct_anneal.errors import InputError, option

LOOK_SECONDS = 5.0
ANSWER_SECONDS = 15.0
PATIENCE_SECONDS = 600.0  # without any worker; a cluster that grows by itself may need minutes
_SETTINGS = 4  # kind of an HTTP/2 frame


@contextmanager
def connected(address: str | None, workers: int | None, store_bytes: int) -> Iterator[Any]:
    """Connect Ray while this lasts.

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
    given, address = bool(address), address or os.environ.get("RAY_ADDRESS")
    if address:
        check_answers(address, option("ray_address") if given else "RAY_ADDRESS")
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


def check_answers(address: str, named: str) -> None:
    """See that a cluster may be at an address. Ray itself asks for minutes, and tells of it in lines of its own.

    Whoever listens there is greeted as gRPC does it, by HTTP/2, and must answer so within `ANSWER_SECONDS`. Words such
    as "auto" and addresses with a scheme are left to Ray.

    Raises:
        InputError: nobody answers, or not as Ray does, or it is no address.
    """
    if address in ("auto", "local") or "://" in address:
        return
    host, _, port = address.rpartition(":")
    if not host or not address.isprintable() or not (port.isdecimal() and len(port) <= 5 and 0 < int(port) < 2**16):
        raise InputError(
            subject=named,
            must="be host:port, as ray start prints it",
            got=f"but is {address!r:.80}",
            do="see ray status",
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") == "0" and not _speaks_http2(connection):
                raise OSError("what answers there does not speak as Ray does")
    except (OSError, UnicodeError) as error:  # the latter: no name that a host can have
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(
            subject=named,
            must="be where a Ray cluster answers",
            got=f"but at {address:.80}: {reason:.100}",
            do="see ray status there",
        ) from error


def _speaks_http2(connection: socket.socket) -> bool:
    """True if a greeting with empty settings is answered by settings (RFC 9113, 3.4 and 6.5)."""
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0)))
    head = b""
    while len(head) < 4:  # length (3 bytes) and kind of the first frame
        if not (more := connection.recv(9)):
            return False
        head += more
    return head[3] == _SETTINGS


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
