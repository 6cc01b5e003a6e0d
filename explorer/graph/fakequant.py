"""Fake quantization of activations: fixed ranges, or ranges taken from each example as it comes."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from explorer.calibrate import MinMax, Sample, fit
from explorer.formats import Channel, FloatFormat, Granularity, QParams, fake_quantize_
from explorer.formats.roundings import Nearest
from explorer.graph.device import CPU, moved
from explorer.graph.images import as_before, images_first
from explorer.graph.ir import ALONG_FIRST, Along
from explorer.recipe import TensorScheme


def quantize_activation(
    values: Tensor, scheme: TensorScheme, params: QParams | None, channel: int, along: Along = ALONG_FIRST
) -> Tensor:
    """The activation after quantization, in a new tensor.

    Args:
        values: float, of any shape; anything that is not floating-point passes unchanged.
        scheme: the input's scheme, not off.
        params: the fixed parameters; None in dynamic mode and for formats without a scale.
        channel: the channel axis.
        along: where the images lie; what is taken from an image, or drawn for it, is then the same in any batch.
    """
    if not values.is_floating_point():
        return values
    if along != ALONG_FIRST and not (isinstance(scheme.rounds, Nearest) and scheme.mode == "static"):
        channel = channel % values.dim() - values.dim()
        found = quantize_activation(images_first(values, along), scheme, params, channel)
        return as_before(found, along).contiguous()
    number = scheme.number
    if values.device != CPU and not _anywhere(scheme, params):
        return moved(quantize_activation(moved(values, CPU), scheme, params, channel), values.device)
    if isinstance(number, FloatFormat):
        return number.snap(scheme.rounds.floating(values, number, len(values)))
    grain = scheme.grain
    if params is None:
        return _dynamic(values, scheme, channel)
    channel %= values.dim()
    scale, zero_point = params.spread(lambda number: grain.expand(number, values.shape, channel))
    # One number for all is read as a number.
    zero_point = zero_point if zero_point.numel() == 1 else moved(zero_point, values.device)
    spread = moved(scale, values.device), zero_point
    chosen = scheme.rounds.scaled(values, *spread, params, len(values))
    return fake_quantize_(chosen, *spread, params)


def _anywhere(scheme: TensorScheme, params: QParams | None) -> bool:
    """Whether quantization is a few operators of torch: no lists of levels, no chances, no ranges to be found."""
    if not isinstance(scheme.rounds, Nearest):
        return False
    if isinstance(scheme.number, FloatFormat):
        return True
    return params is not None and params.levels is None and params.book is None


def dynamic_rows(values: Tensor, scheme: TensorScheme, channel: int) -> tuple[Tensor, Granularity]:
    """The matrix whose rows have ranges of their own, and how each row is cut further.

    A row is an example (``layer``), or the channels at one position.
    """
    if scheme.grain.name == "layer":
        return values.reshape(len(values), -1), Channel()
    moved = values.movedim(channel, -1)
    cut = scheme.grain if scheme.grain.name.startswith("subchannel") else Channel()
    return moved.reshape(-1, moved.shape[-1]), cut


def dynamic_params(values: Tensor, sample: Sample, scheme: TensorScheme) -> QParams:
    """The parameters of the sample of the :func:`dynamic_rows` of ``values``."""
    # Neither whether codes are signed nor the least range may depend on what happens to be in the batch.
    rules = scheme.grid.convention
    rules = replace(rules, unsigned=False, group_floor=(0.0, rules.group_floor[1]))
    widest = None
    if scheme.grid.scale.shared_bits:
        # What scales share is each example's own.
        widest = values.flatten(1).abs().amax(1).repeat_interleave(sample.groups // len(values))
    return fit(sample, replace(scheme.grid, convention=rules, widest=widest), MinMax())


def _dynamic(values: Tensor, scheme: TensorScheme, channel: int) -> Tensor:
    """Ranges of each example (``layer``), of each position (``token``) or of blocks of channels within one.

    An example's result never depends on the others in its batch, as in deployment at batch size one.
    """
    rows, cut = dynamic_rows(values, scheme, channel)
    params = dynamic_params(values, Sample.of(rows, cut, 0), scheme)
    spread = params.spread(lambda number: cut.expand(number, rows.shape, 0))
    out = fake_quantize_(scheme.rounds.scaled(rows, *spread, params, len(values)), *spread, params)
    if scheme.grain.name == "layer":
        return out.reshape(values.shape)
    return out.reshape(values.movedim(channel, -1).shape).movedim(-1, channel)
