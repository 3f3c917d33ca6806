"""Refuse, before any work starts, a path or a cluster that the work would fail on.

Each check raises `UserError` with one sentence; none of them computes anything.
"""

import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sentiment_core.errors import UserError
from sentiment_core.runtime import cluster, storage
from sentiment_core.runtime.precision import Precision

CONNECT_TIMEOUT_S = 10  # for the head to take a connection
PROBE_TIMEOUT_S = 60  # for a node to start a process and answer


def check_lasting(out: str) -> None:
    """Refuse a relative --out in a submitted job.

    Ray deletes the folder in which such a job runs.
    """
    if "://" not in out and not os.path.isabs(os.path.expanduser(out)) and "working_dir_files" in os.getcwd():
        raise UserError(f"--out {out} is relative to a folder that ends with the job; give an absolute path or a URI")


def check_writable(folder: str, flag: str = "--out") -> None:
    """Refuse an output folder that cannot be written to. Creates the folder."""
    probe = storage.join(folder, storage.temporary_name())
    try:
        storage.write_file(probe, b"")
        storage.delete_file(probe)
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error}; choose another {flag}") from None


def check_file(path: str, flag: str) -> None:
    """Refuse a path that no file can be written to."""
    check_lasting(path)
    if storage.is_folder(path):
        raise UserError(f"{flag} {path} is a folder; give a file in it")
    check_writable(storage.parent(path), flag)


def check_space(folder: str, needed_bytes: int) -> None:
    """Refuse a local output folder on a disk with less than `needed_bytes` free."""
    if not storage.is_local(folder):
        return
    existing = Path(storage.locate(folder)[1])
    while not existing.exists():
        existing = existing.parent
    stat = os.statvfs(existing)
    free_bytes = stat.f_bavail * stat.f_frsize
    if free_bytes < needed_bytes:
        raise UserError(
            f"{folder} has {free_bytes / 1e9:.1f} GB free and about {needed_bytes / 1e9:.1f} GB are needed; "
            "free some or choose another --out"
        )


def check_overlap(root: str, out: str, recursive: bool) -> None:
    """Refuse an output folder that overlaps the input.

    It must not hold the input's `root`, nor lie in it if files are searched below it (`recursive`).
    """
    if (recursive and storage.contains(root, out)) or storage.contains(out, root):
        raise UserError(f"--out {out} and --input {root} overlap; choose an --out outside the input")


def check_reachable() -> None:
    """Refuse a cluster where nobody listens.

    Ray would wait for it for many minutes without a word.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    origin, remedy = "RAY_ADDRESS", "set the address of a running cluster, or none to start Ray here"
    if address in ("", "auto"):  # Ray then joins what the last `ray start` noted, whether that still runs or not
        address = ray._private.utils.read_ray_address() or ""
        origin, remedy = "noted here by `ray start`", "start it again, or let `ray stop` forget it"
    host, _, port = address.rpartition(":")
    if not host or "://" in address or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise UserError(f"the cluster {address} ({origin}) cannot be reached: {error}; {remedy}") from None


def check_workers(workers: int, kind: cluster.DeviceKind) -> None:
    """Refuse more workers than the cluster can ever have devices for.

    Ray would wait for them.
    """
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return  # KubeRay's autoscaler does not tell how far it may go
    available = cluster.max_devices(kind)
    if workers > available:
        raise UserError(
            f"--workers {workers} needs {workers} {kind}s; the cluster has at most {available}. Lower it or add nodes."
        )


def check_memory(weight_bytes: int, models: str, workers: int, kind: cluster.DeviceKind) -> None:
    """Refuse models, of these names, whose weights no node has the memory for, once for each of its workers.

    Only where they compute on CPUs and no node can be added.
    """
    if kind == "GPU" or "KUBERNETES_SERVICE_HOST" in os.environ or cluster.can_grow():
        return
    nodes = cluster.live_nodes()
    most = max((node["Resources"].get("memory", 0) for node in nodes), default=0)
    workers_of_node = -(-workers // max(1, len(nodes)))
    if 0 < most < weight_bytes * workers_of_node:
        raise UserError(
            f"the models {models} have {weight_bytes / 1e9:.1f} GB of weights, which each of {workers_of_node} workers "
            f"of a node holds; the cluster's largest node has {most / 1e9:.1f} GB of memory to use; score with fewer "
            "models, with fewer --workers, or on a larger node"
        )


def check_precision(precision: Precision, kind: cluster.DeviceKind) -> None:
    """Refuse a number type that the chips of some node do not compute natively. All compute float32."""
    if precision in ("auto", "float32"):
        return
    nodes = [node["NodeID"] for node in cluster.live_nodes() if node["Resources"].get(kind)]
    answers = _ask_nodes(_why_not_computed, nodes, precision, kind)
    for reason in filter(None, answers.values()):
        raise UserError(reason)


@ray.remote(num_cpus=0, max_retries=0)
def _why_not_computed(precision: Precision, kind: cluster.DeviceKind) -> str:
    import torch

    from sentiment_core.runtime import hardware

    try:
        hardware.allowed_number_types(torch.device("cpu") if kind == "CPU" else hardware.device(), precision)
    except UserError as error:
        return str(error)
    return ""


def check_shared(folder: str, flag: str, writable: bool) -> None:
    """Refuse a local folder that the cluster's other nodes do not see.

    The folder must exist. Of a writable folder each node must see a file made for this; of one to read from it must
    have the path.
    """
    driver_node = ray.get_runtime_context().get_node_id()
    nodes = {
        node["NodeID"]: node
        for node in cluster.live_nodes()
        if node["NodeID"] != driver_node and node["Resources"].get("CPU")
    }
    if not nodes or not storage.is_local(folder):
        return
    probe = storage.join(folder, storage.temporary_name()) if writable else folder
    if writable:
        storage.write_file(probe, b"")
    try:
        blind = [node for node, sees in _ask_nodes(_sees, nodes, probe).items() if not sees]
    finally:
        if writable:
            storage.delete_file(probe)
    if blind:
        raise UserError(
            f"{flag} {folder} is a local folder that node {nodes[blind[0]]['NodeManagerAddress']} does not see; "
            "expected one all nodes share (NFS, EFS, ...) or a URI such as s3://bucket/path"
        )


@ray.remote(num_cpus=0, max_retries=0)
def _sees(path: str) -> bool:
    return storage.exists(path)


def _ask_nodes(question: Any, nodes: Iterable[str], *arguments: Any) -> dict[str, Any]:
    """Run a remote function on nodes, by their ids; return the answers, None of those that give none in time."""
    asked = {
        node: question.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(*arguments)
        for node in nodes
    }
    if not asked:
        return {}
    done, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=PROBE_TIMEOUT_S)
    return {node: ray.get(ref) if ref in done else None for node, ref in asked.items()}
