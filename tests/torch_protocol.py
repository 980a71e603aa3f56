"""What PyTorch's DataLoader does with a map-style dataset, for machines without PyTorch; arrays stand for tensors."""

from __future__ import annotations

import multiprocessing
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np


def default_collate(items: Sequence[Any]) -> Any:
    return tuple(map(np.stack, zip(*items, strict=True)))


class Dataset: ...


class DataLoader:
    """Sends the dataset to each worker, and lists of indices; a worker looks each up and collates."""

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        shuffle: bool = False,
        num_workers: int = 0,
        collate_fn: Callable[[Sequence[Any]], Any] = default_collate,
    ) -> None:
        self.work, self.size, self.shuffle, self.workers = (dataset, collate_fn), batch_size, shuffle, num_workers

    def __iter__(self) -> Iterator[Any]:
        order = list(range(len(self.work[0])))
        if self.shuffle:
            random.shuffle(order)
        batches = [(*self.work, order[begin : begin + self.size]) for begin in range(0, len(order), self.size)]
        if not self.workers:
            yield from map(_fetch, batches)
            return
        with multiprocessing.get_context("fork").Pool(self.workers) as pool:
            yield from pool.imap(_fetch, batches)


def _fetch(batch: tuple[Any, Callable[[Sequence[Any]], Any], list[int]]) -> Any:
    dataset, collate, indices = batch
    return collate([dataset[index] for index in indices])


def install() -> None:
    """Make ``import torch`` give what the examples use."""
    torch, utils, data = (ModuleType(name) for name in ("torch", "torch.utils", "torch.utils.data"))
    torch.__dict__.update(utils=utils, from_numpy=np.asarray, tensor=np.array, long=np.int64)
    utils.__dict__.update(data=data)
    data.__dict__.update(Dataset=Dataset, DataLoader=DataLoader)
    sys.modules.update({module.__name__: module for module in (torch, utils, data)})
