"""Size work by what the Ray cluster has, or may still start."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import ray
import yaml
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sentiment_core.errors import UserError

DeviceKind = Literal["CPU", "GPU"]
DeviceChoice = Literal["auto", "cpu", "gpu"]  # of a user

LAUNCHER_CONFIG = Path("~/ray_bootstrap_config.yaml")  # where `ray up` puts its configuration on the head
STATE_TIMEOUT_S = 60  # for Ray's dashboard to answer
CPUS_PER_WORKER = 2  # of the default number of workers on CPUs


def max_devices(kind: DeviceKind) -> int:
    """Count the cluster's CPUs or GPUs, with those its launcher may still start."""
    return max(int(ray.cluster_resources().get(kind, 0)), _launchable_devices(kind))


def can_grow() -> bool:
    """Return whether the cluster's launcher may still start nodes with CPUs."""
    return _launchable_devices("CPU") > 0


def _launchable_devices(kind: DeviceKind) -> int:
    """Count the CPUs or GPUs of the nodes that Ray's launcher may start."""
    return sum(nodes * devices for devices, nodes in _launchable_nodes(kind))


def _launchable_nodes(kind: DeviceKind) -> list[tuple[int, int]]:
    """List the CPUs or GPUs of a node that Ray's launcher may start, and the number of such nodes, largest first.

    There are none without a launcher. It leaves its configuration on the head node, where the drivers of submitted jobs
    run.
    """
    try:
        config = yaml.safe_load(LAUNCHER_CONFIG.expanduser().read_text())
    except (OSError, yaml.YAMLError):
        return []
    nodes_left = config.get("max_workers", 0)
    groups = [group for name, group in config["available_node_types"].items() if name != config["head_node_type"]]
    sizes = [(int(group.get("resources", {}).get(kind, 0)), group.get("max_workers", nodes_left)) for group in groups]
    launchable = []
    for devices_per_node, max_nodes in sorted(sizes, reverse=True):
        nodes = min(nodes_left, max_nodes)
        launchable.append((devices_per_node, nodes))
        nodes_left -= nodes
    return launchable


def device_kind(choice: DeviceChoice = "auto") -> DeviceKind:
    """Return what the model runs on: as the user chooses, else GPUs where the cluster has any or can add some.

    Raises `UserError` for a cluster that has neither GPUs nor CPUs yet, as one that is scaled to zero.
    """
    if choice != "auto":
        return "GPU" if choice == "gpu" else "CPU"
    if max_devices("GPU"):
        return "GPU"
    if not max_devices("CPU"):
        raise UserError(
            "the cluster has no CPUs and no GPUs yet; say what its nodes will have: --device gpu (or cpu) --workers N"
        )
    return "CPU"


def number_of_workers(requested: int | None, units: int, kind: DeviceKind) -> int:
    """Return the workers to start: as requested, else one per GPU or per two CPUs.

    Without a request never more than there are `units` of work. `preflight.check_workers` tells whether the cluster can
    have them.
    """
    devices_per_worker = 1 if kind == "GPU" else CPUS_PER_WORKER
    return requested or min(units, max(1, max_devices(kind) // devices_per_worker))


def threads_per_worker(workers: int) -> int:
    """Return the threads each of `workers` computes with: its share of all CPUs, and no more than a node has.

    All CPUs compute: reading, tokenizing and writing need few percent of them.
    """
    live = [int(node["Resources"].get("CPU", 0)) for node in live_nodes()]
    launchable = [cpus for cpus, nodes in _launchable_nodes("CPU") if nodes]
    return max(1, min(max_devices("CPU") // workers, max([*live, *launchable], default=1)))


def actor_resources(workers: int, task_cpus: Sequence[float], kind: DeviceKind) -> dict[str, float]:
    """Return what an actor that holds the model reserves: up to one CPU, and a GPU to compute there.

    Beside a GPU the CPU is for the thread that launches the work.

    `task_cpus`: what one task of each other stage reserves. Every node keeps room for one of each, however Ray spreads
    the actors; without that the stream would stand still. An actor never reserves the same as a task: Ray would fuse
    the two, and the model would wait for the tokenizer.
    """
    if kind == "GPU":  # an actor has to fit on the node of its GPU
        nodes = [node["Resources"] for node in live_nodes() if node["Resources"].get("GPU")]
        shares = [(node.get("CPU", 0) - sum(task_cpus)) / node["GPU"] for node in nodes if node.get("CPU")]
        has_cpus = len(shares) == len(nodes)
        return {
            "num_gpus": 1,
            "num_cpus": min(1.0, max(0.01, int(100 * min(shares)) / 100)) if nodes and has_cpus else 0,
        }
    room = count_nodes_with_cpus() * sum(task_cpus)
    share = min(1.0, max(0.01, int(100 * (max_devices("CPU") - room) / workers) / 100))
    return {"num_cpus": share if share not in task_cpus else share - 0.01}


def cpus_per_worker(workers: int) -> int:
    """Return the most CPUs each worker can have, where none spans two nodes.

    It is at least 1.
    """
    counts = [int(node["Resources"].get("CPU", 0)) for node in live_nodes()]
    return next((cpus for cpus in range(max(counts), 1, -1) if sum(n // cpus for n in counts) >= workers), 1)


def live_nodes() -> list[dict]:
    """List the nodes that are alive, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def check_assigned_gpu() -> None:
    """Raise `UserError` if Ray gave this worker a GPU that torch cannot use.

    Ray counts GPUs by their driver. Without this check torch computes on a CPU, and no message says so.
    """
    if ray.get_gpu_ids():
        from sentiment_core.runtime import hardware  # torch: seconds, which other stages need not spend

        hardware.check_gpu()


def count_nodes_with_cpus() -> int:
    """Count the live nodes that run tasks on CPUs."""
    return sum(node["Resources"].get("CPU", 0) > 0 for node in live_nodes())


def fewest_cpus() -> float:
    """Return the CPUs of the smallest live node that has any; infinite before such a node is there."""
    return min((cpus for node in live_nodes() if (cpus := node["Resources"].get("CPU", 0))), default=math.inf)


def pin_to_this_node() -> NodeAffinitySchedulingStrategy:
    """Return the scheduling strategy that keeps a task or actor on the driver's node."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def describe_wait() -> str:
    """Say in a few words why a job may stand still: what the cluster has left."""
    free = ray.available_resources()
    counts = ", ".join(
        f"{free.get(kind, 0):g} of {ray.cluster_resources().get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU")
    )
    return f"its workers; free on {len(live_nodes())} nodes: {counts}"


def has_dashboard() -> bool:
    """Return whether Ray's dashboard answers.

    Ray Train asks it whether a training was killed, to free what that had reserved.
    """
    try:
        from ray.util.state import list_nodes

        return bool(list_nodes(limit=1, timeout=STATE_TIMEOUT_S))
    except Exception:  # of the import, the connection, or Ray's own
        return False


def free_reserved_cpus() -> None:
    """Free the CPUs and GPUs of all placement groups.

    Call it where nothing runs: the groups are then those of killed trainings.
    """
    for id, group in placement_group_table().items():
        if group["state"] != "REMOVED" and any(bundle.get("CPU") for bundle in group["bundles"].values()):
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(id))))
