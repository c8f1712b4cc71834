r"""Small laws of x given theta with exact densities: a panel of problems on which defaults can be judged.

Each is a torch distribution of x for each theta, so that its density, its score and its draws are torch's:

| law | x | theta |
|---|---|---|
| `linear` | 10 correlated Gaussians, means linear in theta | 10 |
| `banana` | 2 Gaussians, the second about the square of the first | 2 |
| `modes` | 2 Gaussians about theta or about -theta | 2 |
| `mixture` | 3 features, three clusters whose places and shares move with theta | 2 |
| `heteroscedastic` | 5 Gaussians, means and spreads waves of theta | 3 |
| `queue` | arrivals and departures of 5 customers at one counter | 3 |
| `ordered` | 8 sorted draws of a law with location, scale, skew and tails | 4 |
| `glm` | 10 gamma variables, log means linear in theta | 5 |
| `student` | 5 heavy-tailed features | 3 |
| `shares` | 4 beta variables, between 0 and 1 | 3 |
| `spectrum` | 40 band powers of a smooth spectrum, noise by cosmic variance and beam | 5 |
| `counts` | 20 Poisson counts, each with uniform noise on (0, 1) added | 3 |

`law(name, factor=4)` puts the same x on a curved manifold of four times as many features (`Lifted`). Quantities have no
units.
"""

from simulators.laws.law import Law, Lifted
from simulators.laws.panel import LAWS, law

__all__ = ["LAWS", "Law", "Lifted", "law"]
