"""The PP-OCR detector as OpenVINO computes it best: the same function of the same weights in fewer, cheaper steps.

    backbone -> neck: four maps, enlarged and joined -> 3 x 3 convolution -> head: enlarged twice by two -> sigmoid

Four rewritings, exact but for the last digits, take an eighth off a pass together: 0.86 to 0.88 of the CPU time of the graph as
the file states it, both in one run (`benchmarks/detector.py`, 512 x 480, one thread). That is why this file stands here:

- The head's transposed convolutions step as far as they reach, so each is a 1 x 1 convolution whose channels are then
  laid out as pixels; both are done before anything is laid out.
- A convolution of a map enlarged by repetition is one transposed convolution of the small map, with four taps instead
  of nine; and of joined maps the sum of the convolutions of each.
- Squeeze and excitation with a shortcut, x + s x, is (1 + s) x.
- The sigmoid is left out: OpenVINO's own takes a twentieth of a pass, numpy's a third of that.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from usfmae.core.log import note

_LOG = logging.getLogger(__name__)

Weights = NDArray[np.float32]
Output = Any  # one output of a node of OpenVINO's graph

_TAIL = ("Sigmoid", "Add", "ConvolutionBackpropData", "Relu", "Add", "ConvolutionBackpropData", "Relu", "Add",
         "Convolution", "Concat")  # fmt: skip


def openvino() -> Any:
    """The package, imported so that it does not look at the network."""
    # A None entry makes `import openvino_telemetry` fail; OpenVINO then takes its own silent stub.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def _ops() -> Any:
    openvino()
    from openvino import opset13

    return opset13


def _from(node: Any, index: int = 0) -> Output:
    """What enters a node at an input, behind nodes that change nothing."""
    output = node.input_value(index)
    while output.get_node().get_type_name() in ("Identity", "Convert"):
        output = output.get_node().input_value(0)
    return output


def _weights(node: Any, index: int = 1) -> Weights:
    return np.asarray(_from(node, index).get_node().data, np.float32)


def _replace(old: Output, new: Output) -> None:
    for target in list(old.get_target_inputs()):
        target.replace_source_output(new)


def _convolution(source: Output, weights: Weights, stride: int = 1, pad: int = 0) -> Any:
    ops = _ops()
    kernel = ops.constant(np.ascontiguousarray(weights))
    return ops.convolution(source, kernel, [stride] * 2, [pad] * 2, [pad] * 2, [1, 1])


def _tail(model: Any) -> dict[int, Any]:
    """The last nodes of the network in the order of _TAIL; LookupError where it is built otherwise."""
    node, nodes = model.output(0).get_node(), {}
    for place, kind in enumerate(_TAIL):
        node = _from(node).get_node()
        if node.get_type_name() != kind:
            raise LookupError(f"its end holds {node.get_type_name()} in place of {kind}")
        nodes[place] = node
    return nodes


def _head(tail: dict[int, Any]) -> Output:
    """Both enlargements as 1 x 1 convolutions of the neck's map, laid out as pixels at the very end."""
    ops = _ops()
    _, plus_last, last, _, plus_first, first, neck, *_ = tail.values()
    inner, outer = _weights(first), _weights(last)[:, 0]  # (in, out, 2, 2) and (in, 2, 2)
    count, channels = inner.shape[:2]
    hidden = _convolution(neck.output(0), inner.transpose(2, 3, 1, 0).reshape(4 * channels, count, 1, 1))
    bias = np.tile(_weights(plus_first).ravel(), 4).reshape(1, -1, 1, 1)
    hidden = ops.relu(ops.add(hidden, ops.constant(bias)))
    spread = np.zeros((2, 2, 2, 2, 2, 2, channels), np.float32)  # row, column: both within a quarter; then of which
    for row, column in np.ndindex(2, 2):
        spread[row, :, column, :, row, column] = outer.transpose(1, 2, 0)
    pixels = _convolution(hidden, spread.reshape(16, 4 * channels, 1, 1))
    pixels = ops.add(pixels, ops.constant(_weights(plus_last).reshape(1, 1, 1, 1)))
    return ops.depth_to_space(pixels, "blocks_first", 4).output(0)


def _of_enlarged(weights: Weights) -> Weights:
    """A 3 x 3 convolution (out, in, 3, 3) of a map repeated twice each way, as a transposed one (in, out, 4, 4).

    Row r of the result takes row (r + t - 1) // 2 of the small map at tap t, so that row i of this is used at taps
    2 i - r + 1 and 2 i - r + 2: of the transposed kernel's row u = r - 2 i + 1 these are 2 - u and 3 - u.
    """
    kernel = np.zeros((*weights.shape[1::-1], 4, 4), np.float32)
    for row, column in np.ndindex(3, 3):
        kernel[:, :, 2 - row : 4 - row, 2 - column : 4 - column] += weights[:, :, row, column].T[:, :, None, None]
    return kernel


def _neck(convolution: Any, joined: Any) -> None:
    """The enlarged maps at half their size into one transposed convolution; the map of full size on its own."""
    ops = _ops()
    weights, start = _weights(convolution), 0
    small, of_small, whole = [], [], []
    for index in range(joined.get_input_size()):
        source = _from(joined, index)
        channels = source.get_partial_shape()[1].get_length()
        part = weights[:, start : start + channels]
        start += channels
        if source.get_node().get_type_name() == "Interpolate":
            small.append(_at_half(source.get_node()))
            of_small.append(part)
        else:
            whole.append(_convolution(source, part, pad=1))
    kernel = ops.constant(_of_enlarged(np.concatenate(of_small, 1)))
    total = ops.convolution_backprop_data(
        ops.concat(small, 1), kernel, strides=[2, 2], pads_begin=[1, 1], pads_end=[1, 1], dilations=[1, 1]
    )
    for each in whole:
        total = ops.add(each, total)
    _replace(convolution.output(0), total.output(0))


def _at_half(enlarged: Any) -> Output:
    """What an enlargement by a power of two makes of its map, at half the size."""
    ops = _ops()
    scale = _weights(enlarged) / np.array([1, 1, 2, 2], np.float32)
    source = _from(enlarged)
    if (scale == 1).all():
        return source
    return ops.interpolate(source, scale, **enlarged.get_attributes()).output(0)


def _stem(node: Any) -> None:
    """A convolution of two joined maps as the sum of two."""
    joined = _from(node).get_node()
    weights, attributes = _weights(node), node.get_attributes()
    first, second = (_from(joined, i) for i in range(2))
    middle = first.get_partial_shape()[1].get_length()
    stride, pad = attributes["strides"][0], attributes["pads_begin"][0]
    apart = (
        _convolution(first, weights[:, :middle], stride, pad),
        _convolution(second, weights[:, middle:], stride, pad),
    )
    _replace(node.output(0), _ops().add(*apart).output(0))


def _excitation(node: Any) -> None:
    """Of an addition x + s x the form (1 + s) x; other additions stay."""
    ops = _ops()
    for shortcut, scaled in ((_from(node), _from(node, 1)), (_from(node, 1), _from(node))):
        if scaled.get_node().get_type_name() != "Multiply":
            continue
        same, factor = (_from(scaled.get_node(), i) for i in range(2))
        if same == shortcut and factor.get_node().get_type_name() == "HardSigmoid":
            one = ops.constant(np.ones((1, 1, 1, 1), np.float32))
            _replace(node.output(0), ops.multiply(shortcut, ops.add(factor, one)).output(0))
            return


def streamlined(model: Any) -> Any:
    """The detector from normalised pixels (1, 3, H, W) to logits (1, 1, H, W); H and W multiples of 32.

    A network that is built otherwise than the one known here is taken as it is, and a line in the log says so.
    """
    try:
        return _rewritten(model.clone())
    except Exception as error:  # whatever another network's graph makes of the steps
        note(
            _LOG,
            "text detector is not the known one and runs as it is, a sixth slower",
            logging.WARNING,
            why=str(error),
        )
        return _plain(model)


def _plain(model: Any) -> Any:
    """The network with logits in place of its probabilities (1, 1, H, W)."""
    ops = _ops()
    probability = ops.clamp(_from(model.output(0).get_node()), 1e-6, 1 - 1e-6).output(0)
    odds = ops.divide(probability, ops.subtract(np.float32(1), probability))
    return openvino().Model([ops.log(odds).output(0)], model.get_parameters(), "detector")


def _rewritten(model: Any) -> Any:
    tail = _tail(model)
    *_, convolution, joined = tail.values()
    logits = _head(tail)
    _neck(convolution, joined)
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Add":
            _excitation(node)
        elif node.get_type_name() == "Convolution" and _from(node).get_node().get_type_name() == "Concat":
            _stem(node)
    return openvino().Model([logits], model.get_parameters(), "detector")


def of_pixels(model: Any) -> Any:
    """A network of the PP-OCR family from RGB pixels (1, H, W, 3) uint8, as a picture lies in memory: it scales them to
    -1..1 and takes blue first, as it was trained."""
    openvino()
    from openvino import Layout, Type
    from openvino.preprocess import ColorFormat, PrePostProcessor

    steps = PrePostProcessor(model)
    source = steps.input(0)
    source.tensor().set_element_type(Type.u8).set_layout(Layout("NHWC")).set_color_format(ColorFormat.RGB)
    source.model().set_layout(Layout("NCHW"))
    scaled = source.preprocess().convert_element_type(Type.f32).convert_color(ColorFormat.BGR)
    scaled.mean([127.5] * 3).scale([127.5] * 3)
    return steps.build()
