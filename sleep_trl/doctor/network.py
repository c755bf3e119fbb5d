"""Addresses: what has to be free, and what has to answer."""

from __future__ import annotations

import socket

from .case import Case
from .child import ChildFailed, run_python
from .finding import Finding, fault, ok, skipped, warning

SERVE_PORT = 8000  # of `sleep-trl serve`
CONNECT_WITHIN = 5.0  # seconds
JOIN_WITHIN = 60.0

JOIN = "import sys; from sleep_trl.distributed.ray import connect; connect(sys.argv[1])"


def join_ray(case: Case) -> Finding:
    """Join the Ray cluster that the run names."""
    address = case.config and case.config.rollout.ray_address
    if not address:
        return skipped("no rollout.ray_address: a Ray of this machine is started when it is needed")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return fault(f"{address!r} is no address", "Give rollout.ray_address as host:port, such as 10.0.0.1:6379.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_WITHIN).close()
    except (OSError, OverflowError) as error:
        return fault(
            f"nothing listens at {address}: {error}",
            f"Start a Ray there (`ray start --head --port {port}`), correct rollout.ray_address, or leave it out.",
        )
    from ..distributed.ray import LOOPBACK

    try:
        run_python("-c", JOIN, address, deadline=JOIN_WITHIN)
    except ChildFailed as error:
        if "authentication token" in error.said.lower():
            return fault(
                f"the Ray at {address} lets nobody in without its token, which is missing here or another one",
                "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN as where it was started.",
            )
        return fault(
            f"something listens at {address}, but it cannot be joined as a Ray: {error}",
            "Give the port of Ray's GCS (6379 by default), with the same versions of Python and Ray on both sides. One "
            f"that listens on the loopback address alone is joined with {LOOPBACK}=0.",
        )
    return ok(f"{address} can be joined")


def find_launch_port(case: Case) -> Finding:
    """Look whether the port at which launched processes meet is free."""
    port = case.launch.port
    if not port:
        return skipped("any free port, or one process alone")
    if reason := _taken(port):
        return fault(
            f"port {port}, at which the processes would meet, is taken: {reason}",
            "End what listens there, or give `accelerate launch` another --main_process_port (0: any free one).",
        )
    return ok(f"{port} is free")


def find_serve_port(case: Case) -> Finding:
    """Look whether the port at which a model is served is free."""
    port = SERVE_PORT if case.port is None else case.port
    if reason := _taken(port):
        told = f"port {port}, at which `sleep-trl serve` listens, is taken: {reason}"
        remedy = "End what listens there, or serve at another --port (0: any free one)."
        return warning(told, remedy) if case.port is None else fault(told, remedy)
    return ok(f"{port} is free")


def _taken(port: int) -> str | None:
    """Return why a port of this machine cannot be had, or `None` if it can."""
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            return getattr(error, "strerror", None) or str(error)
    return None
