r"""Charts: where the manifold lies in data space.

A chart is a pair of maps between coordinates u in R^n and points x in R^d,

    decode: u -> x (injective),    encode: x -> u,    encode(decode(u)) = u on the manifold,

and `project = decode . encode` sends any point of data space to the manifold. Two learned charts are here,
both with decode = f . Pad: append d - n zeros to u and apply a bijection f of R^d (a `Flow`), so that the
manifold is the image of a coordinate plane and has no creases.

* `FlowChart` inverts f and keeps the first n coordinates: encode = Proj . f^-1 (M-flow, arXiv:2003.13913 §2.2).
* `EncoderChart` learns encode as a network of its own (M_e-flow, ibid.).

Data come with units and spreads; `Standardized` wraps a chart of the standardised data. Being itself a chart, it
has the right volume factor without bookkeeping. It may also turn the axes: a flow starts as the identity,
so the manifold coordinates begin as the first n axes of its frame, and a frame whose first axes run along
the manifold is most of the way there. `Warped` wraps a chart of data that were bent or shifted first, feature by
feature: values over decades, rare huge ones, offsets that cost digits.

Charts without a bijection: `AutoencoderChart` is a pair of plain networks, `PrescribedChart` a pair of given functions,
`AmbientChart` all of data space.

A `FlowChart` may depend on theta, as the first pseudo-invertible encoders did; `chart.at(theta)` is then a chart. For
all others it is the chart itself.
"""

from mfsbi.charts.abstract import AbstractChart, Normals
from mfsbi.charts.bijective import EncoderChart, FlowChart, Split, Standardized
from mfsbi.charts.plain import AmbientChart, AutoencoderChart, PrescribedChart, ResidualNetwork
from mfsbi.charts.warped import Warped

__all__ = [
    "AbstractChart",
    "AmbientChart",
    "AutoencoderChart",
    "EncoderChart",
    "FlowChart",
    "Normals",
    "PrescribedChart",
    "ResidualNetwork",
    "Split",
    "Standardized",
    "Warped",
]
