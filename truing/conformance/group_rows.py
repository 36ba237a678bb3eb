"""The rows of `truing.conformance.groups`: each method against its own fixed point."""

from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor

from truing.algorithms import centred, group_scaled
from truing.conformance.groups import (
    Method,
    TokenK2,
    by_own_deviation,
    first_order,
    forward_optimum,
    largest_advantage,
    learnt,
    method,
    missing_mass,
    scaled_optimum,
    settled,
)
from truing.conformance.rows import FIXED, SAMPLED, ZERO, Check
from truing.conformance.spaces import Space, bandit, tree
from truing.stages.estimate import above_mean, by_group
from truing.stages.objective import Level, average
from truing.stages.online import RECIPES

Measure = Callable[[], float]
# What is solved exactly is held to be exact.
SOLVED = 1e-10
BEST = "pi_ref exp(r / beta) / Z"
# What each loss of `truing grpo` has for an advantage, and what it divides it by.
DIVIDED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "grpo": (group_scaled, "responses"),
    "gspo": (group_scaled, "responses"),
    "dapo": (group_scaled, "tokens"),
    "cispo": (group_scaled, "tokens"),
    "dr_grpo": (centred, "longest"),
}


def checks(*, quick: bool) -> Iterator[Check]:
    yield from kl_in_the_loss(bandit())
    yield from kl_in_the_loss_of_a_tree(tree(), quick=quick)
    yield from without_baseline(tree(), quick=quick)
    yield from at_the_optimum(tree())
    yield from to_first_order(tree())
    yield from to_the_best(bandit())
    if not quick:
        yield from sampled(tree())
        yield from large_groups(bandit())


def end(space: Space, of: Method, target: Tensor | None = None) -> float:
    """How far the fixed point is from a target, pi* where none is given."""
    return space.divergence(settled(space, of), target)


def ends(space: Space, target: Tensor | None, **methods: Method) -> dict[str, Measure]:
    """The distances of broken variants; their names with spaces."""
    return {n.replace("_", " "): partial(end, space, of, target) for n, of in methods.items()}


def kl_in_the_loss(space: Space) -> Iterator[Check]:
    """k3 in the loss of a bandit, whose fixed point has a closed form."""
    right = method("dr_grpo", space, in_loss=1.0)
    target = forward_optimum(space, 2 * space.beta)
    yield Check(
        f"dr_grpo, k3 loss, {space.name}",
        "population",
        "2 beta pi_ref / (lambda - r): groups of two double beta; "
        f"{space.divergence(target):.2f} nats from pi*",
        SOLVED,
        partial(end, space, right, target),
        {
            **ends(
                space,
                target,
                beta_doubled=right.having(kl_loss_coef=2 * space.beta),
                leave_one_out=right.measured(by_group),
                reference_of_other_rows=right._replace(rolled=True),
            ),
            "pi* for a target": partial(end, space, right),
        },
    )
    right = method("grpo", space, in_loss=1.0).measured(by_own_deviation(space))
    target = scaled_optimum(space)
    yield Check(
        f"grpo, k3 loss, {space.name}",
        "population",
        "2 beta sigma pi_ref / (lambda - r), sigma of the policy's own rewards; "
        f"{space.divergence(target):.2f} nats from pi*",
        SOLVED,
        partial(end, space, right, target),
        {
            **ends(
                space,
                target,
                not_scaled=right.measured(above_mean),
                beta_doubled=right.having(kl_loss_coef=2 * space.beta),
            ),
            "pi* for a target": partial(end, space, right),
        },
    )


def kl_in_the_loss_of_a_tree(space: Space, *, quick: bool) -> Iterator[Check]:
    """k2 of whole responses: the gradient of the divergence itself, so the end is pi*."""
    right = method("reinforce", space, in_loss=1.0).measured(by_group)
    right = right.having(kl_loss_estimator="k2")
    wrong = {"k2_of_each_token": right._replace(objective=TokenK2)}
    if not quick:
        wrong |= {
            "k3_of_each_token": right.having(kl_loss_estimator="k3"),
            "the_group's_own_mean": right.measured(above_mean),
        }
    yield Check(
        f"rloo, k2 loss, {space.name}",
        "population",
        BEST,
        SOLVED,
        partial(end, space, right),
        ends(space, None, **wrong),
    )


def without_baseline(space: Space, *, quick: bool) -> Iterator[Check]:
    """REINFORCE and REINFORCE++, whose samples do have advantages at pi*."""
    for name in ("reinforce", "reinforce_plus_plus"):
        right = method(name, space, in_reward=1.0)
        wrong = {"beta_doubled": right.having(kl_coef=2 * space.beta)}
        if not quick:
            wrong["reference_of_other_rows"] = right._replace(rolled=True)
        yield Check(
            f"{name}, {space.name}",
            "population",
            BEST,
            SOLVED,
            partial(end, space, right),
            ends(space, None, **wrong),
        )


def at_the_optimum(space: Space) -> Iterator[Check]:
    """Where a group is the baseline and the KL is in the reward."""
    for name in ("reinforce_plus_plus_baseline", "grpo", "dr_grpo"):
        right = method(name, space, in_reward=1.0)
        yield Check(
            f"{name}, {space.name}",
            "at the optimum",
            "no sample has an advantage",
            ZERO,
            partial(largest_advantage, space, right),
            {
                what: partial(largest_advantage, space, wrong)
                for what, wrong in {
                    "beta doubled": right.having(kl_coef=2 * space.beta),
                    "KL added, not subtracted": right.having(kl_coef=-space.beta),
                    "reference of other rows": right._replace(rolled=True),
                    "k3 in the reward": right.having(kl_estimator="k3"),
                }.items()
            },
        )


def to_first_order(space: Space) -> Iterator[Check]:
    """At ratio 1 the clips and levels are of no account: the gradient is the group's."""
    for name, (group, by) in DIVIDED.items():

        def off(of: Method, group: Callable[..., Tensor] = group, by: str = by) -> float:
            return first_order(space, of, by, group)

        right = method(name, space)
        recipe = right.recipe
        wrong = {
            "the mean of the others": right.measured(by_group),
            "a mean weighed as a sum": right._replace(
                recipe=recipe._replace(level=Level(average, average))
            ),
            "reward negated": right._replace(sign=-1.0),
        }
        wrong |= {
            f"the weights of {other}": right._replace(
                recipe=recipe._replace(reduction=RECIPES[other].reduction)
            )
            for other, (_, theirs) in DIVIDED.items()
            if theirs != by
        }
        yield Check(
            f"{name}, {space.name}",
            "unit, at ratio 1",
            f"the mean of A grad log pi, by {by}",
            FIXED,
            partial(off, right),
            {what: partial(off, of) for what, of in wrong.items()},
        )


def to_the_best(space: Space) -> Iterator[Check]:
    """Without a KL nothing is left but the best string."""
    for name in DIVIDED:
        right = method(name, space).having(kl_loss_coef=0.0)
        yield Check(
            f"{name}, {space.name}",
            "population, no KL",
            "all mass on the best",
            SAMPLED,
            partial(missing_mass, space, right),
            {
                "reward negated": partial(missing_mass, space, right._replace(sign=-1.0)),
                "a KL in the loss": partial(missing_mass, space, right.having(kl_loss_coef=0.1)),
            },
        )


def sampled(space: Space) -> Iterator[Check]:
    """From samples, with whitening where it is the default, and the deviation of real groups."""
    for name, groups in (("reinforce_plus_plus", 1), ("reinforce_plus_plus_baseline", 4)):
        yield from from_samples(space, name, method(name, space, in_reward=1.0), groups)
    yield from from_samples(space, "grpo", method("grpo", space, in_reward=1.0), 8)


def from_samples(
    space: Space, name: str, of: Method, group: int, steps: int = 400
) -> Iterator[Check]:
    def missed(of: Method) -> float:
        return space.divergence(learnt(space, of, steps, groups=512 // group))

    right = of.having(num_generations=group)
    yield Check(
        f"{name}, {space.name}",
        f"sampled, {steps} steps",
        BEST,
        SAMPLED,
        partial(missed, right),
        {"beta doubled": partial(missed, right.having(kl_coef=2 * space.beta))},
    )


def large_groups(space: Space, steps: int = 400, group: int = 64) -> Iterator[Check]:
    """GRPO with the deviation of real groups: of many responses it is nearly the policy's own."""
    target = scaled_optimum(space, group)

    def missed(of: Method, target: Tensor | None = target) -> float:
        return space.divergence(learnt(space, of, steps, groups=8), target)

    right = method("grpo", space, in_loss=1.0).having(num_generations=group)
    yield Check(
        f"grpo, k3 loss, {space.name}",
        f"sampled, {steps} steps",
        f"beta' pi_ref / (lambda - r), beta' = {group}/{group - 1} beta sigma",
        SAMPLED,
        partial(missed, right),
        {
            "beta doubled": partial(missed, right.having(kl_loss_coef=2 * space.beta)),
            "reference of other rows": partial(missed, right._replace(rolled=True)),
            "pi* for a target": partial(missed, right, None),
        },
    )
