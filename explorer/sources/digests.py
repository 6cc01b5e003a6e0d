"""Fingerprints by which somebody else can tell that they look at the same network and the same images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def sha256_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """The sha256 of named tensors: name, dtype, shape and bytes of each, in the order given.

    >>> one = sha256_of([("w", torch.zeros(2, 3))])
    >>> one == sha256_of([("w", torch.zeros(2, 3))]), one == sha256_of([("w", torch.zeros(3, 2))])
    (True, False)
    """
    digest = hashlib.sha256()
    for name, tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name}\x00{plain.dtype}\x00{tuple(plain.shape)}\x00".encode())
        if plain.numel():
            digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
