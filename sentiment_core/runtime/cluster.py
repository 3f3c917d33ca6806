"""The Ray cluster a job runs on: this machine, or the one the job was submitted to."""

import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import ray
import yaml
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sentiment_core.errors import UserError
from sentiment_core.runtime import storage

LAUNCHER_CONFIG = Path("~/ray_bootstrap_config.yaml")  # where `ray up` puts its configuration on the head
_SCHEDULES = hasattr(os, "sched_setscheduler")  # Linux
REACH_SECONDS = 10  # for the head to take a connection
PROBE_SECONDS = 60  # for a node to start a process and say whether it sees a folder


def connect() -> None:
    """Join the cluster of RAY_ADDRESS (set for submitted jobs) or the one running here, else start one here."""
    if ray.is_initialized():
        return
    _check_reachable()
    on_stop = signal.getsignal(signal.SIGTERM)
    try:
        with _quiet_start(), _in_background():
            # the workers' lines would bury what the job says; their errors come to the driver all the same
            ray.init(logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False)
    except SystemExit:  # what Ray makes of a SIGTERM while it starts
        raise KeyboardInterrupt(signal.SIGTERM) from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_stop)  # Ray put a handler of its own there


def connect_for(workers: int, place: str) -> None:
    """Connect to a cluster that can have so many workers, all of which reach the folder `place` to write to. Raises
    `UserError`."""
    connect()
    require(workers)
    storage.check_writable(place)
    check_shared(place, "--out", writable=True)


def _check_reachable() -> None:
    """Refuse a cluster where nobody listens: Ray would wait for it for many minutes without a word."""
    address = os.environ.get("RAY_ADDRESS", "")
    origin, remedy = "RAY_ADDRESS", "expected the address of a running one, or none to start Ray here"
    if address in ("", "auto"):  # Ray then joins what it noted at the last `ray start`, be that alive or not
        address = ray._private.utils.read_ray_address() or ""
        origin, remedy = "noted here by `ray start`", "start it again, or let `ray stop` forget it"
    host, _, port = address.rpartition(":")
    if not host or "://" in address or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()
    except OSError as error:
        raise UserError(f"the cluster {address} ({origin}) cannot be reached: {error}; {remedy}") from None


@contextlib.contextmanager
def _quiet_start() -> Iterator[None]:
    """Holds back what Ray's C++ side writes to stderr while it starts; shown after all if it does not start."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except Exception:
            held.seek(0)
            os.write(stderr, held.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


@contextlib.contextmanager
def _in_background() -> Iterator[None]:
    """Processes started meanwhile do not interrupt what computes, they wait for their turn (Linux's SCHED_BATCH): each
    of Ray's wakes a hundred times a second to look around, and all threads of a model wait for the one interrupted."""
    if not _SCHEDULES or os.sched_getscheduler(0) != os.SCHED_OTHER:
        yield
        return
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        yield
    finally:
        in_foreground()


def in_foreground() -> None:
    """For the thread that computes, and those it starts: not in the background, where Ray's processes are."""
    if _SCHEDULES and os.sched_getscheduler(0) == os.SCHED_BATCH:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def largest(kind: str) -> int:
    """CPUs or GPUs of the cluster, counting what Ray's cluster launcher may still start."""
    return max(int(ray.cluster_resources().get(kind, 0)), _launchable(kind))


def _launchable(kind: str) -> int:
    """CPUs or GPUs of the workers that the launcher may start; 0 without it. It leaves its configuration on the head
    node, where the drivers of submitted jobs run."""
    try:
        config = yaml.safe_load(LAUNCHER_CONFIG.expanduser().read_text())
    except (OSError, yaml.YAMLError):
        return 0
    left = config.get("max_workers", 0)
    groups = [group for name, group in config["available_node_types"].items() if name != config["head_node_type"]]
    found = 0
    for each, most in sorted(
        ((g.get("resources", {}).get(kind, 0), g.get("max_workers", left)) for g in groups), reverse=True
    ):
        nodes = min(left, most)
        found += nodes * int(each)
        left -= nodes
    return found


def device_kind() -> str:
    """What the model runs on: GPUs where the cluster has any or can add some, else CPUs."""
    return "GPU" if largest("GPU") else "CPU"


def require(workers: int) -> None:
    """Refuse more workers than the cluster can ever have devices for; Ray would wait for them."""
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return  # KubeRay's autoscaler does not tell how far it may go
    kind = device_kind()
    if workers > largest(kind):
        raise UserError(
            f"{workers} workers are asked for and the cluster has at most {largest(kind)} {kind}s; choose fewer with "
            "--workers or add nodes"
        )


def has_dashboard() -> bool:
    """Whether Ray's dashboard answers, which Ray Train asks if a training was killed, to free what it had reserved."""
    try:
        from ray.util.state import list_nodes

        return bool(list_nodes(limit=1, timeout=PROBE_SECONDS))
    except Exception:  # of the import, the connection, or Ray's own
        return False


def free_reserved_cpus() -> None:
    """Free the CPUs, and the GPUs with them, of all placement groups: of trainings that were killed, if none is
    running."""
    for id, group in placement_group_table().items():
        if group["state"] != "REMOVED" and any(bundle.get("CPU") for bundle in group["bundles"].values()):
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(id))))


def cpus_each(workers: int) -> int:
    """The most CPUs that each of `workers` can have when none spans two nodes; at least 1."""
    counts = [int(node["Resources"].get("CPU", 0)) for node in _nodes()]
    return next((c for c in range(max(counts), 1, -1) if sum(n // c for n in counts) >= workers), 1)


def nodes_with_cpus() -> int:
    return sum(node["Resources"].get("CPU", 0) > 0 for node in _nodes())


def check_shared(place: str, flag: str, writable: bool) -> None:
    """Refuse a local folder (which must exist) that the cluster's other nodes do not see. In a writable one they must
    see a file made for this; of one to read from they must have the path."""
    here = ray.get_runtime_context().get_node_id()
    others = {node["NodeID"]: node for node in _nodes() if node["NodeID"] != here and node["Resources"].get("CPU")}
    if not others or not storage.is_local(place):
        return
    probe = storage.join(place, storage.temporary_name()) if writable else place
    if writable:
        storage.write_file(probe, b"")
    try:
        asked = {
            _sees.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(probe): node
            for node in others
        }
        done, late = ray.wait(list(asked), num_returns=len(asked), timeout=PROBE_SECONDS)
        blind = [asked[ref] for ref in done if not ray.get(ref)] + [asked[ref] for ref in late]
    finally:
        if writable:
            storage.delete_file(probe)
    if blind:
        raise UserError(
            f"{flag} {place} is a local folder that node {others[blind[0]]['NodeManagerAddress']} does not see; "
            "expected one all nodes share (NFS, EFS, ...) or a URI such as s3://bucket/path"
        )


@ray.remote(num_cpus=0, max_retries=0)
def _sees(path: str) -> bool:
    return storage.exists(path)


def waiting_for() -> str:
    """A few words on why a job may stand still: what the cluster has left."""
    free = ray.available_resources()
    counts = ", ".join(
        f"{free.get(kind, 0):g} of {ray.cluster_resources().get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU")
    )
    return f"its workers; free on {len(_nodes())} nodes: {counts}"


def _nodes() -> list[dict]:
    return [node for node in ray.nodes() if node["Alive"]]


def here() -> NodeAffinitySchedulingStrategy:
    """Keeps a task or actor on the driver's node."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
