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

A frame may also put linear functions of the data in place of the coordinates of its chart (`mfsbi.charts.linear`).

Charts without a bijection: `AutoencoderChart` is a pair of plain networks, `PrescribedChart` a pair of given functions,
`AmbientChart` all of data space.

Which chart a model has is said by a `ChartConfig`, a frozen dataclass of settings whose `build` makes it once the
dimensions are known: `CutFlow`, `WithEncoder`, `Autoencoder`, `Prescribed`, `Ambient`, or a subclass of your own.

A `FlowChart` may depend on theta, as the first pseudo-invertible encoders did; `chart.at(theta)` is then a chart. For
all others it is the chart itself.
"""

from mfsbi.charts.abstract import AbstractChart, ChartConfig, Normals, Split, charted
from mfsbi.charts.bijective import CutFlow, EncoderChart, FlowChart, WithEncoder
from mfsbi.charts.plain import Ambient, AmbientChart, Autoencoder, AutoencoderChart, Prescribed, PrescribedChart
from mfsbi.charts.wrapped import Standardized, Warped, WrappedChart

__all__ = [
    "AbstractChart",
    "Ambient",
    "AmbientChart",
    "Autoencoder",
    "AutoencoderChart",
    "ChartConfig",
    "CutFlow",
    "EncoderChart",
    "FlowChart",
    "Normals",
    "Prescribed",
    "PrescribedChart",
    "Split",
    "Standardized",
    "Warped",
    "WithEncoder",
    "WrappedChart",
    "charted",
]
