"""Set torch up on Ray Train's workers.

Ray's controller imports this module, so it imports no model library beyond torch.
"""

import contextlib

from ray.exceptions import RayError
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train.backend import BackendConfig
from ray.train.torch.config import TorchConfig, _TorchBackend

from sentiment_core.runtime import cluster


class CheckedTorchConfig(TorchConfig):
    """Ray's setup of torch, behind a check of each worker's GPU."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """The backend that checks first."""
        return _CheckedTorchBackend


class _CheckedTorchBackend(_TorchBackend):
    def on_start(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:
        """Check the GPUs before NCCL does, whose error names no remedy."""
        worker_group.execute(cluster.check_assigned_gpu)
        super().on_start(worker_group, backend_config)  # type: ignore[arg-type]

    def on_shutdown(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:
        """Shut torch down on the workers that are left.

        Ray's callback expects a lost actor's `RayActorError`. It fails on the `OutOfMemoryError` of a worker that Ray killed
        for its memory, and then the workers' CPUs stay taken: new workers wait for them for ever.
        """
        with contextlib.suppress(RayError):
            super().on_shutdown(worker_group, backend_config)
