"""Programs whose whole run is in x, so that the joint score and the joint density have a closed form."""

import math

import pyro
import pyro.distributions as dist
import torch

STEPS = 5


def normal(x, mean, log_std):
    """log N(x; mean, std^2), written out."""
    return -0.5 * ((x - mean) / log_std.exp()) ** 2 - log_std - 0.5 * math.log(2 * math.pi)


def bernoulli(bit, logit):
    return bit * logit - torch.nn.functional.softplus(logit)


def linear(theta):
    z = pyro.sample("z", dist.Normal(theta[..., 0], 1.0))
    y = pyro.sample("y", dist.Normal(2 * z + theta[..., 1], 0.5))
    return torch.stack([z, y], -1)


def linear_density(x, theta):
    (z, y), (a, b) = x.unbind(-1), theta.unbind(-1)
    return normal(z, a, torch.zeros(())) + normal(y, 2 * z + b, torch.tensor(0.5).log())


def linear_score(x, theta):
    (z, y), (a, b) = x.unbind(-1), theta.unbind(-1)
    return torch.stack([z - a, (y - 2 * z - b) / 0.25], -1)


def mixture(theta):
    k = pyro.sample("k", dist.Bernoulli(logits=theta[..., 0]))
    y = pyro.sample("y", dist.Normal(torch.where(k == 1, theta[..., 1], -1.0), 1.0))
    return torch.stack([k, y], -1)


def mixture_density(x, theta):
    (k, y), (a, b) = x.unbind(-1), theta.unbind(-1)
    return bernoulli(k, a) + normal(y, torch.where(k == 1, b, -1.0), torch.zeros(()))


def mixture_score(x, theta):
    (k, y), (a, b) = x.unbind(-1), theta.unbind(-1)
    return torch.stack([k - a.sigmoid(), k * (y - b)], -1)


def walk_in_a_plate(theta):
    with pyro.plate("steps", STEPS):
        steps = pyro.sample("step", dist.Normal(theta[..., 0], theta[..., 1].exp()))
    return steps.cumsum(0).T


def walk_in_a_loop(theta):
    positions = [torch.zeros(())]
    for i in range(STEPS):
        positions.append(pyro.sample(f"position {i}", dist.Normal(positions[-1] + theta[..., 0], theta[..., 1].exp())))
    return torch.stack(positions[1:], -1)


def walk_in_a_vector(theta):
    mean, std = theta[..., :1].expand(-1, STEPS), theta[..., 1:].exp()
    steps = pyro.sample("steps", dist.Normal(mean, std).to_event(1))
    steps += 1.0  # in place: not done to the value that is held
    return pyro.deterministic("path", (steps - 1.0).cumsum(-1))


def walk_density(x, theta):
    steps = torch.diff(x, dim=-1, prepend=torch.zeros(len(x), 1))
    return normal(steps, theta[:, :1], theta[:, 1:]).sum(-1)


def walk_score(x, theta):
    offsets = torch.diff(x, dim=-1, prepend=torch.zeros(len(x), 1)) - theta[:, :1]
    variance = (2 * theta[:, 1:]).exp()
    return torch.stack([(offsets / variance).sum(-1), (offsets**2 / variance - 1).sum(-1)], -1)


def galton(theta):
    """A ball turns right at each nail with odds that depend on where it is."""
    place, turns = torch.zeros(()), []
    for i in range(STEPS):
        turns.append(pyro.sample(f"nail {i}", dist.Bernoulli(logits=theta[..., 0] + theta[..., 1] * place)))
        place = place + turns[-1] - 0.5
    return torch.stack(turns, -1)


def places(turns):
    return (turns - 0.5).cumsum(-1) - turns + 0.5


def galton_density(x, theta):
    return bernoulli(x, theta[:, :1] + theta[:, 1:] * places(x)).sum(-1)


def galton_score(x, theta):
    surprise = x - (theta[:, :1] + theta[:, 1:] * places(x)).sigmoid()
    return torch.stack([surprise.sum(-1), (surprise * places(x)).sum(-1)], -1)


PROGRAMS = {
    "linear Gaussian": (linear, linear_density, linear_score),
    "mixture with a discrete site": (mixture, mixture_density, mixture_score),
    "walk in a plate": (walk_in_a_plate, walk_density, walk_score),
    "walk in a loop": (walk_in_a_loop, walk_density, walk_score),
    "walk in a vector": (walk_in_a_vector, walk_density, walk_score),
    "Galton board": (galton, galton_density, galton_score),
}
