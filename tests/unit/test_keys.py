"""Keyed random numbers: equal keys equal numbers, and nothing else has a say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from truing.keys import generator, uniform, uniforms

KEYS = st.tuples(
    st.integers(0, 2**40), st.sampled_from("ab"), st.lists(st.integers(0, 2**40), max_size=3)
)


def draw(seed: int, stream: str, *indices: int) -> list[int]:
    return generator(seed, stream, *indices).integers(2**60, size=2).tolist()


@given(KEYS, KEYS)
def test_equal_keys_and_only_those_give_equal_numbers(a: tuple, b: tuple) -> None:
    equal = draw(a[0], a[1], *a[2]) == draw(b[0], b[1], *b[2])
    assert equal == (a == b)


def test_keys_that_look_alike() -> None:
    alike = [(1,), (1, 0), (0, 1), (10,), (), (0,), (1, 0, 0)]
    assert len({tuple(draw(0, "s", *key)) for key in alike}) == len(alike)
    assert draw(1, "s", 0) != draw(0, "s", 1)
    assert draw(0, "sample") != draw(0, "shuffle")


def test_the_numbers_stay_what_they_are() -> None:
    # Not derived from anything: runs of an earlier version shall come out the same.
    assert generator(7, "sample", 3, 1).random(2).round(12).tolist() == [
        0.39512256966,
        0.046740801078,
    ]


def test_a_row_does_not_depend_on_its_neighbours_or_its_length() -> None:
    keys = [(4, 0), (4, 1), (0, 4)]
    rows = uniforms(0, "sample", keys, 5)
    assert rows.shape == (3, 5)
    assert ((rows >= 0) & (rows < 1)).all()
    assert np.array_equal(uniforms(0, "sample", keys[::-1], 5), rows[::-1])
    assert np.array_equal(uniforms(0, "sample", keys[1:2], 9)[:, :5], rows[1:2])
    assert np.array_equal(rows[2], generator(0, "sample", 0, 4).random(5))
    assert uniforms(0, "sample", [], 5).shape == (0, 5)


def test_the_numbers_are_uniform() -> None:
    first = uniforms(0, "sample", [(i, 0) for i in range(4000)], 1)[:, 0]
    counts = np.histogram(first, 20, (0, 1))[0]
    # 19 degrees of freedom: the statistic is above 43.8 once in a thousand seeds.
    assert ((counts - 200) ** 2 / 200).sum() < 43.8


def test_the_global_generator_is_left_alone() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    generator(0, "s", 1).random(3)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize("key", [(-1, "s"), (0, "s", -1)])
def test_negative_numbers_are_refused(key: tuple) -> None:
    with pytest.raises(ValueError, match="must hold no negative number"):
        generator(*key)


def test_numbers_of_names() -> None:
    # Not derived from anything: who judges what shall stay the same in a later version.
    assert [round(uniform(7, "side", *names), 12) for names in (("a", 3), ("a", "3"))] == [
        0.687500211396,
        0.916327538644,
    ]
    alike = [
        (),
        ("",),
        (0,),
        ("0",),
        ("a", "b"),
        ("a, b",),
        ("b", "a"),
        ("a", "b", ""),
        (1, 0),
        (10,),
    ]
    assert len({uniform(0, "s", *names) for names in alike}) == len(alike)
    assert uniform(1, "s", 0) != uniform(0, "s", 0) != uniform(0, "t", 0)


def test_numbers_of_names_are_spread_evenly() -> None:
    numbers = np.array([uniform(3, "s", name) for name in range(20_000)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.histogram(numbers, 50, (0, 1))[0]
    # Chi-square with 49 degrees of freedom: above 85.4 once in a thousand seeds.
    assert ((counts - 400) ** 2 / 400).sum() < 85.4
    # Neighbours have nothing to do with each other; four standard errors.
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 4 / 20_000**0.5
