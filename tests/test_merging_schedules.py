"""Merging schedules: the readings of Janus's (1) and (2), ToMe's fixed r, and their bounds."""

import pytest

from common import merging

SHAPES = [(1, 10), (2, 5), (4, 17), (8, 197), (12, 197), (24, 577), (24, 1569)]


def test_the_exponential_form_is_the_formula() -> None:
    """With an exponent of N - l = 3, 2, 1, 0 and alpha = 1."""
    assert merging.schedule(1.0, 4, 100) == (7, 3, 1, 0)
    assert merging.schedule(0.5, 5, 100) == (3, 1, 1, 0, 0)


@pytest.mark.parametrize(("layers", "tokens"), SHAPES)
def test_an_alpha_of_zero_merges_nothing(layers: int, tokens: int) -> None:
    """The paper: no pruning occurs."""
    assert merging.schedule(0.0, layers, tokens) == (0,) * layers
    assert merging.remaining((0,) * layers, tokens) == (tokens,) * (layers + 1)


def test_the_front_half_merges_nine_tenths() -> None:
    """The paper's example, section III-B: ViT-L with 0.25."""
    merges = merging.schedule(0.25, 24, 577)
    assert 0.9 <= sum(merges[:12]) / sum(merges) <= 0.95


@pytest.mark.parametrize(("layers", "tokens"), SHAPES)
def test_every_alpha_up_to_the_largest_keeps_the_bound(layers: int, tokens: int) -> None:
    """(2), and falling merges; one step further breaks it."""
    alphas = merging.grid(layers, tokens)
    assert alphas[0] == 0.0
    assert alphas[-1] == merging.alpha_max(layers, tokens)
    for alpha in alphas:
        merges = merging.schedule(alpha, layers, tokens)
        assert list(merges) == sorted(merges, reverse=True)
        assert sum(merges) <= tokens - 1
        counts = merging.remaining(merges, tokens)
        assert all(2 * r <= n - 1 for r, n in zip(merges, counts, strict=False))
    if layers > 1:
        with pytest.raises(ValueError, match="allow 0 to"):
            merging.schedule(alphas[-1] + merging.STEP, layers, tokens)


def test_alphas_are_free_of_binary_fractions() -> None:
    """2^(0.29 * 100) and the like come out exact, whatever the platform's rounding."""
    assert merging.grid(24, 577)[:4] == (0.0, 0.01, 0.02, 0.03)
    assert merging.schedule(0.1, 11, 1000)[0] == 1


def test_a_negative_alpha_is_refused() -> None:
    """It would split tokens."""
    with pytest.raises(ValueError, match=r"alpha=-0\.1"):
        merging.schedule(-0.1, 12, 197)


def test_the_linear_form_falls_by_equal_steps() -> None:
    """Down to nothing in the last layer."""
    assert merging.linear(2.0, 4, 100) == (6, 4, 2, 0)


def test_fixed_r_is_cut_where_tokens_run_out() -> None:
    """ToMe on ViT-L@384 merges 23 everywhere: 552 of 577 tokens, 95.7 %."""
    merges = merging.fixed(23, 24, 577)
    assert merges == (23,) * 24
    assert merging.remaining(merges, 577)[-1] == 25
    assert merging.fixed(8, 5, 17) == (8, 4, 2, 1, 0)


def test_a_limit_keeps_what_fits() -> None:
    """Cut layer by layer, each seeing what those before it left."""
    assert merging.limit((9, 9), 9) == (4, 2)
    assert merging.fits((4, 2), 9)
    assert not merging.fits((4, 3), 9)
    assert not merging.fits((-1,), 9)
    with pytest.raises(ValueError, match="-1"):
        merging.limit((-1,), 9)
