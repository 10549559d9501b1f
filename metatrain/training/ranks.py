"""Exchange values among the ranks of a `torch.distributed` group, which take the same steps at the same time.

Every exchange begins with a header from each rank: whether it failed, and how many bytes follow. So an error on one
rank, wherever that was, is raised on all at their next exchange, and none waits for ever. Values travel as
`training.packed` writes them and are read without running code.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from metatrain.errors import TaskFailed, WorkersLost
from metatrain.training.packed import pack, read

T = TypeVar("T")
_CPU = torch.device("cpu")


class Ranks:
    """The ranks of the default process group, seen from this one.

    device: where values are exchanged, by NCCL on a GPU; headers stay on the CPU and need gloo beside it. As a context
    manager, it tells the other ranks of an error that ends the block.
    """

    def __init__(self, device: torch.device = _CPU) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._device = device
        self._error: TaskFailed | WorkersLost | None = None

    @property
    def leads(self) -> bool:
        """Tell whether this is the rank that keeps the run."""
        return self.rank == 0

    @property
    def ended(self) -> bool:
        """Tell whether an error has ended the exchange: no rank waits for another any more."""
        return self._error is not None

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell the other ranks of `error`, unless they know of it or are gone."""
        if error is not None and not self.ended:
            text = str(error) if isinstance(error, TaskFailed) else f"{type(error).__name__}: {error}"
            with suppress(WorkersLost):
                self._agree(len(text.encode()), text.encode())

    def gather(self, compute: Callable[[], T]) -> list[T]:
        """Return what `compute` returns on each rank, in order of rank: a tree of tensors and plain values.

        Each rank receives as many bytes as all ranks send, those of the longest value for each of them. Tensors are on
        the CPU, in the memory that they were received in.
        An error of this rank is raised as it is; TaskFailed: another rank's; WorkersLost: a rank has gone.
        """
        self._require_others()
        with self:
            found = compute()
        packed = pack(found)
        sizes = self._agree(packed.size)
        parts = self._all_gather(packed.as_bytes(max(sizes)).to(self._device))
        return [read(part.cpu()) for part in parts]

    def once(self, action: Callable[[], T]) -> T:
        """Return what `action` returns on rank 0, which alone calls it: a tree of tensors and plain values.

        Once the exchange has ended, rank 0 goes on alone, to keep what was computed. Raises what `gather` does.
        """
        if self.leads and self.ended:
            return action()
        self._require_others()
        packed, found = None, None
        if self.leads:
            with self:
                found = action()
            packed = pack(found)
        size = self._agree(packed.size if packed else 0)[0]
        part = packed.as_bytes(size) if packed else torch.empty(size, dtype=torch.uint8)
        part = part.to(self._device)
        with self._with_others():
            dist.broadcast(part, 0)
        return found if self.leads else read(part.cpu())  # type: ignore[return-value]

    def swap(self, sent: Tensor, sizes: Sequence[int], received: Sequence[int]) -> Tensor:
        """Send each rank the next `sizes`[rank] numbers of `sent`; return those of all ranks for this one, in order.

        received: how many each rank sends here. WorkersLost: a rank has gone.
        """
        found = torch.empty(sum(received), dtype=sent.dtype, device=self._device)
        with self._with_others():
            dist.all_to_all_single(found, sent.to(self._device), list(received), list(sizes))
        return found.cpu()

    def _agree(self, size: int, failure: bytes = b"") -> Sequence[int]:
        """Exchange headers; return the size of each rank's value. TaskFailed: of the first other rank that failed."""
        headers = [header.tolist() for header in self._all_gather(torch.tensor([bool(failure), size]))]
        sizes = [size for _, size in headers]
        failures = [rank for rank, (other, _) in enumerate(headers) if other]
        if failures:
            longest = max(sizes[rank] for rank in failures)
            texts = self._all_gather(torch.tensor(list(failure.ljust(longest)), dtype=torch.uint8))
            first = failures[0]
            self._error = TaskFailed(bytes(texts[first][: sizes[first]].tolist()).decode())
            if not failure:
                raise self._error
        return sizes

    def _all_gather(self, tensor: Tensor) -> list[Tensor]:
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        with self._with_others():
            dist.all_gather(found, tensor)
        return found

    def _require_others(self) -> None:
        """Raise again the error that ended the exchange."""
        if self._error is not None:
            raise self._error

    @contextmanager
    def _with_others(self) -> Iterator[None]:
        """Raise WorkersLost where the connection to another rank ends, or it stays silent for too long."""
        try:
            yield
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            self._error = WorkersLost(f"a rank has gone ({reason})")
            raise self._error from error
