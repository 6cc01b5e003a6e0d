"""A Dask cluster as workers; Dask is imported when somebody asks for it.

A scheduler's port runs what it is sent.  Reach one in a network that you trust, or by TLS, which is set up in Dask's
own configuration (``distributed.comm.tls``).
"""

from __future__ import annotations

import time
from typing import Any

from explorer.errors import JobError
from explorer.workers.bench import Here, Network, work
from explorer.workers.crew import LEAST_STORE, Hands, Promise

# Seconds to wait for a scheduler and its first worker.
PATIENCE = 10.0
# Seconds for which a list of workers is good.
_FRESH = 2.0
# Tasks of more bytes than this do not go through the scheduler.
_LARGE = 1 << 20


class DaskHands(Hands):
    """The workers of a Dask cluster.

    Args:
        client: a ``distributed.Client``.
        budget: bytes for results in each worker; None takes a quarter of the memory that the smallest may use.

    Raises:
        JobError: when there is no worker, or one with another version of this program or of torch.
    """

    spreads = True

    def __init__(self, client: Any, budget: int | None = None) -> None:
        self._client = client
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError:
            raise JobError(
                f"The scheduler {_address(client)} has no worker; start some: dask worker {_address(client)}."
            ) from None
        self._check()
        facts = client.scheduler_info(n_workers=-1)["workers"].values()
        limits = [fact["memory_limit"] for fact in facts if fact["memory_limit"]]
        self.budget = budget or max(LEAST_STORE, min(limits, default=4 * LEAST_STORE) // 4)
        self._looked = 0.0
        self._addresses: list[str] = []
        self._threads = 0

    def _check(self) -> None:
        mine = Here.now()
        try:
            found: dict[str, Here] = self._client.run(Here.now)
        except Exception as error:
            raise JobError(
                f"The workers of {_address(self._client)} cannot run this program ({type(error).__name__}: {error}); "
                "install the same version of quantization-explorer there and here."
            ) from error
        for address, here in found.items():
            here.check(mine, f"The worker {address}")

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked > _FRESH:
            running = self._client.status == "running"
            threads = self._client.nthreads() if running else {}
            self._addresses, self._threads = sorted(threads), sum(threads.values())
            self._looked = now

    @property
    def count(self) -> int:
        self._look()
        return max(1, self._threads)

    @property
    def anybody(self) -> bool:
        self._look()
        return self._threads > 0

    def close(self) -> None:
        self._client.close()

    def spread(self, content: bytes) -> Any:
        return self._client.scatter(content, broadcast=True, hash=False)

    def submit(self, place: int, network: Network, order: bytes, content: Any) -> Promise:
        self._look()
        # Where images have been before, a worker may still hold what it has computed of them.
        wanted = [self._addresses[place % len(self._addresses)]] if self._addresses else None
        carried = self._client.scatter(order, workers=wanted, hash=False) if len(order) > _LARGE else order
        promise: Promise = self._client.submit(
            work,
            network,
            carried,
            content,
            pure=False,
            workers=wanted,
            allow_other_workers=wanted is not None,
        )
        return promise


def _address(client: Any) -> str:
    scheduler = client.scheduler
    return str(scheduler.address) if scheduler is not None else "of the cluster"


def connect(address: str, budget: int | None = None, patience: float = PATIENCE) -> DaskHands:
    """The workers of the Dask scheduler at ``address``.

    Args:
        address: for example ``tcp://10.0.0.1:8786``, or ``tls://...``.
        budget: bytes for results in each worker.
        patience: seconds to wait for an answer.

    Raises:
        JobError: when Dask is not installed, nobody answers, or the workers do not fit.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise JobError(
            "A cluster needs the package distributed; install quantization-explorer[cluster], here and on the workers."
        ) from error
    try:
        client = Client(address, timeout=patience, set_as_default=False)
    except Exception as error:  # OSError, ValueError, and what comms raise
        reason = str(error).rstrip(".").partition("\n")[0] or type(error).__name__
        raise JobError(
            f"No Dask scheduler answers at {address!r} ({reason}); give the address that dask scheduler prints, "
            "for example tcp://10.0.0.1:8786."
        ) from error
    try:
        return DaskHands(client, budget)
    except BaseException:  # passed on, an interruption too: nobody else would close it
        client.close()
        raise


def hands_of(executor: Any, budget: int | None = None) -> Hands:
    """Workers, of whatever can be asked to compute.

    Args:
        executor: of ``concurrent.futures``; a Dask client, or what its ``get_executor()`` gives; or :class:`Hands`.
        budget: bytes for results in each worker; None takes a share of what is free.

    Raises:
        JobError: for something else, or workers that do not fit.
    """
    if isinstance(executor, Hands):
        return executor
    if type(executor).__module__.partition(".")[0] == "distributed":
        return DaskHands(getattr(executor, "_client", executor), budget)
    if not callable(getattr(executor, "submit", None)):
        raise JobError(
            f"An executor is one of concurrent.futures or a Dask client, not {type(executor).__name__}."
        )
    return Hands(executor, None, budget)
