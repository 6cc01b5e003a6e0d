"""Number formats: numbers only, no network and no file.

``FORMATS`` is the table that menus, command line, recipes and tests iterate over.
"""

from __future__ import annotations

import torch

from explorer.errors import SchemeError, unknown
from explorer.formats.base import (
    MOST_VALUES,
    OVERFLOWS,
    Format,
    IntegerFormat,
    Parameter,
    check_finite,
    entry_named,
    family,
    spelled,
)
from explorer.formats.codebook import CODEBOOK_FORMATS, Codebook, CodebookFormat
from explorer.formats.floating import FloatFormat
from explorer.formats.granularity import GRANULARITIES, Channel, Granularity, granularity
from explorer.formats.levels import LEVEL_FORMATS, LevelFormat
from explorer.formats.packing import pack, packed_bytes, unpack
from explorer.formats.roundings import ROUNDINGS, Nearest, Rounding, rounding
from explorer.formats.scales import SCALES, ScaleRule
from explorer.formats.uniform import (
    CONVENTIONS,
    Convention,
    Grid,
    QParams,
    convention,
    decode,
    encode,
    fake_quantize_,
)

__all__ = [
    "CONVENTIONS",
    "FORMATS",
    "GRANULARITIES",
    "MOST_VALUES",
    "OVERFLOWS",
    "ROUNDINGS",
    "SCALES",
    "Channel",
    "Codebook",
    "CodebookFormat",
    "Convention",
    "FloatFormat",
    "Format",
    "Granularity",
    "Grid",
    "IntegerFormat",
    "LevelFormat",
    "Nearest",
    "Parameter",
    "QParams",
    "Rounding",
    "ScaleRule",
    "check_finite",
    "convention",
    "decode",
    "encode",
    "entry_named",
    "fake_quantize_",
    "family",
    "format_named",
    "granularity",
    "pack",
    "packed_bytes",
    "rounding",
    "spelled",
    "unpack",
]

FORMATS: dict[str, Format] = {
    "fp32": FloatFormat("fp32", 32, "32-bit float: not quantized", torch.float32),
    "fp16": FloatFormat("fp16", 16, "16-bit float, 5 exponent and 10 mantissa bits", torch.float16),
    "bf16": FloatFormat("bf16", 16, "16-bit float, 8 exponent and 7 mantissa bits", torch.bfloat16),
    **{
        f"int{bits}": IntegerFormat(f"int{bits}", bits, f"signed integer of {bits} bits, scaled", True)
        for bits in range(2, 17)
    },
    **{
        f"uint{bits}": IntegerFormat(f"uint{bits}", bits, f"unsigned integer of {bits} bits, scaled", False)
        for bits in range(2, 17)
    },
    **LEVEL_FORMATS,
    **CODEBOOK_FORMATS,
}


def format_named(name: str) -> Format:
    """The format called ``name``.

    Raises:
        SchemeError: when there is none, with the nearest one.

    >>> format_named("int4").bits
    4
    """
    if name not in FORMATS:
        raise SchemeError(unknown("format", name, FORMATS))
    return FORMATS[name]
