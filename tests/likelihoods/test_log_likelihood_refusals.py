"""What log_likelihood refuses: the type, the words, and before the first network call."""

from __future__ import annotations

import pytest
import torch

import sdegen


def never(x, t, **cond):
    raise AssertionError("The network was called.")


MODEL = sdegen.ScoreModel(never, sdegen.VPSDE())
X = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"model": never}, TypeError, "model must be a ScoreModel or the .model"),
        ({"x": [[0.0]]}, TypeError, "x must be a tensor of shape .* and it is list"),
        ({"x": torch.zeros(3, 2, dtype=torch.long)}, TypeError, r"floating dtype, and it has torch.int64.*Quantized"),
        ({"x": torch.zeros(3)}, ValueError, r"x must have shape \(B, ...\), .* not \(3,\)"),
        ({"x": torch.full((3, 2), float("nan"))}, ValueError, "x holds NaN or infinite values in 3 of its 3 samples"),
        ({"solver": sdegen.SDESolver("euler", 10)}, TypeError, "Only the ODE can be solved both ways: .*SDESolver"),
        ({"solver": "dopri5"}, TypeError, "Only the ODE can be solved both ways: .*'dopri5'"),
        ({"trace": "hutchinson"}, ValueError, "Unknown trace 'hutchinson'; choose one of 'exact', 'auto'"),
        ({"trace": 4}, TypeError, "Unknown trace 4; choose one of 'exact', 'auto'"),
        ({"trace": sdegen.Hutchinson}, TypeError, "Unknown trace <class .*Hutchinson'>; choose one of"),
        ({"prior": 1.0}, TypeError, r"prior must have a method log_prob\(x\) -> \(B,\), and 1\.0 has none"),
        ({"data": [1.0]}, TypeError, "data must be a tensor of shape .* and it is list"),
        (
            {"data": torch.zeros(4, 3)},
            ValueError,
            r"data must be two draws or more with the event of x, \(2,\), and has \(4, 3\)",
        ),
        ({"data": torch.zeros(1, 2)}, ValueError, r"data must be two draws or more .* and has \(1, 2\)"),
        ({"data": torch.full((4, 2), float("inf"))}, ValueError, "data holds NaN or infinite values in 4 of its 4"),
        ({"data": torch.zeros(4, 2, dtype=torch.int)}, TypeError, "data must have a real floating dtype"),
        ({"generator": 0}, TypeError, "generator must be a torch.Generator or a list of them, and 0 is int"),
        ({"generator": [torch.Generator()] * 2}, ValueError, "A batch of 3 needs 3 generators, one per sample, and 2"),
        ({"cond": [1]}, TypeError, "cond must be a mapping from argument names to values, and it is list"),
        ({"cond": {"rows": [1, 2, 3]}, "batch_size": 2}, TypeError, r"cond\['rows'\] is a list, and the batch is cut"),
        ({"u": 0.5}, TypeError, r"u must be a pair \(from, to\) on the straight clock, and it is 0\.5"),
        ({"u": (0.9, 0.1)}, ValueError, r"A solve to the noise needs u with from < to, and it is \(0\.9, 0\.1\)"),
        ({"u": (0.0, 2.0)}, ValueError, r"u = \(0\.0, 2\.0\) leaves the path"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, and it is 0"),
        ({"batch_size": 2.0}, TypeError, r"batch_size must be an integer, and 2\.0 is float"),
        ({"differentiable": "yes", "solver": sdegen.Adams(3)}, TypeError, "differentiable must be True or False"),
    ],
)
@pytest.mark.parametrize("verb", [sdegen.log_likelihood, sdegen.log_prob], ids=["log_likelihood", "log_prob"])
def test_refused_in_a_sentence(verb, options, error, words):
    if verb is sdegen.log_prob and options.keys() & {"data", "differentiable"}:
        pytest.skip("log_prob does not take it")
    options = {"model": MODEL, "x": X, **options}
    with pytest.raises(error, match=words):
        verb(**options)


def test_a_singular_end_is_refused_before_a_call():
    """eps at u = 1 on CondOT: Adams queries both ends, and says which clock is the matter."""
    model = sdegen.ScoreModel(never, sdegen.CondOT(), "eps")
    for solver in (sdegen.Adams(10), sdegen.AdamsUntil()):
        with pytest.raises(ValueError, match="u = 1"):
            sdegen.log_likelihood(model, X, solver, check=False)


def field(x, t):
    return torch.sin(x)


class Prior:
    def __init__(self, answer):
        self.answer = answer

    def log_prob(self, z):
        return self.answer(z)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            lambda z: -z.square(),
            r"prior.log_prob must return one number per sample, shape \(3,\), and it returned \(3, 2\)",
        ),
        (lambda z: 0.0, r"prior.log_prob must return .* and it returned float"),
        (lambda z: z.sum(), r"prior.log_prob must return .* and it returned \(\)"),
    ],
)
def test_a_prior_answers_for_every_sample(answer, words):
    with pytest.raises(ValueError, match=words):
        sdegen.log_likelihood(sdegen.vector_field(field), X, sdegen.Adams(3), prior=Prior(answer))


def test_a_prior_may_vanish_and_may_not_be_nan():
    model = sdegen.vector_field(field)
    ours = sdegen.log_likelihood(model, X, sdegen.Adams(3), prior=Prior(lambda z: torch.full((len(z),), -torch.inf)))
    assert torch.equal(ours.log_prob, torch.full((3,), -torch.inf))
    for bad in (torch.nan, torch.inf):
        with pytest.raises(sdegen.NonFiniteError, match="The log-density of 3 of 3 samples is not finite"):
            sdegen.log_likelihood(model, X, sdegen.Adams(3), prior=Prior(lambda z, bad=bad: torch.full((len(z),), bad)))
    far = torch.tensor([[0.0], [1e200]])
    with pytest.raises(sdegen.NonFiniteError, match=r"1 of 2 samples is not finite at the noise end, u = 1:"):
        sdegen.log_likelihood(model, far, sdegen.Adams(4), check=False)


@pytest.mark.parametrize("solver", [sdegen.Adams(12), sdegen.AdamsUntil()], ids=["adams", "until"])
def test_a_network_that_breaks_on_the_way(solver):
    """NaN near the noise end: a sentence with the clock, no NaN in the numbers."""
    model = sdegen.vector_field(lambda x, t: torch.where(t[:, None] < 0.4, torch.nan, 1.0) * x)
    with pytest.raises(sdegen.NonFiniteError, match="The state is NaN or infinite in 3 of 3 samples at the clock u = "):
        sdegen.log_likelihood(model, X + 1, solver, check=False)


def test_a_solver_without_a_density():
    class Still(sdegen.Solver):
        solves_ode = True

        def run(self, problem):
            return sdegen.Result(problem.y, [problem.u_from, problem.u_to])

    class Nothing(Still):
        def run(self, problem):
            return problem.y

    model = sdegen.vector_field(field)
    with pytest.raises(ValueError, match="solves the ODE without its density: its Result has no divergence"):
        sdegen.log_likelihood(model, X, Still())
    with pytest.raises(TypeError, match="must return a Result, such as march gives"):
        sdegen.log_likelihood(model, X, Nothing())


@pytest.mark.parametrize("trace", ["exact", sdegen.Hutchinson(1), sdegen.Hutchinson(4)], ids=str)
def test_a_network_that_hides_its_gradient(trace):
    hidden = sdegen.vector_field(lambda x, t: torch.sin(x.detach()) + 0 * x)
    with pytest.raises(ValueError, match="The network blocks gradients with respect to its input"):
        sdegen.log_likelihood(hidden, torch.randn(3, 2), sdegen.Adams(3), trace=trace)
    sdegen.log_likelihood(hidden, torch.randn(3, 2), sdegen.Adams(3), trace=trace, check=False)
