"""ODESolver(steps_for="sample"): every sample alone, as the batch solver would solve it were it a batch of one."""

from __future__ import annotations

import pytest
import torch
from often import often
from problems import PATHS, ring
from torch import Tensor, nn
from torchdiffeq._impl.odeint import SOLVERS

import sdegen
from sdegen.solvers.persample import PAIRS

STAGES = {"dopri5": 6, "dopri8": 13}
OUTLIERS = torch.tensor([[100.0, 0.0], [0.0, -100.0], [70.0, 70.0]], dtype=torch.float64)
both_ways = pytest.mark.parametrize("to", ["data", "noise"])
both_pairs = pytest.mark.parametrize("method", PAIRS)


def own(method: str = "dopri5", rtol: float = 1e-6, **options: object) -> sdegen.ODESolver:
    return sdegen.ODESolver(method, rtol=rtol, steps_for="sample", **options)


def bend(x: Tensor, t: Tensor) -> Tensor:
    """A field that leaves 0 where it is."""
    return torch.sin(3 * x) * torch.cos(5 * t).reshape(-1, *[1] * (x.ndim - 1))


class Recorder(nn.Module):
    """A field dx/dt = rate * bend that keeps the times it was asked at, and the rate of every row that asked."""

    def __init__(self):
        super().__init__()
        self.asked: list[tuple[list[float], list[float]]] = []

    def forward(self, x, t, rate):
        self.asked.append((t.tolist(), rate.tolist()))
        return rate[:, None] * bend(x, t)


@both_pairs
def test_the_last_slope_of_a_step_is_the_first_of_the_next(method):
    """What SampleSteps takes for granted: the last stage stands at the new state, at the end of the step."""
    table = SOLVERS[method].tableau
    assert table.alpha[-1] == 1
    assert table.c_sol[-1] == 0
    assert torch.equal(table.c_sol[:-1], table.beta[-1])


@both_ways
@both_pairs
def test_one_sample_takes_the_steps_of_the_batch_solver(method, to):
    """torchdiffeq on a batch of one is the reference, step for step."""
    model, rejected = ring().model(sdegen.VPSDE()), 0
    for x in torch.cat([torch.randn(4, 1, 2), OUTLIERS[:1, None]]):
        ours = sdegen.solve(model, x, own(method), to=to)
        theirs = sdegen.solve(model, x, sdegen.ODESolver(method, rtol=1e-6), to=to)
        assert (ours.calls, ours.accepted, ours.rejected) == (theirs.calls, theirs.accepted, theirs.rejected)
        rejected += ours.rejected
        torch.testing.assert_close(ours.x, theirs.x, rtol=0, atol=1e-10)
        torch.testing.assert_close(ours.error, theirs.error, rtol=1e-4, atol=1e-6)
        assert ours.sample_calls.tolist() == [ours.calls]
        assert theirs.sample_calls is None
    assert rejected > 0


@both_ways
@both_pairs
def test_a_sample_does_not_depend_on_its_batch_mates(method, to):
    """Alone, with five others, and with outliers at |x| = 100 before it: state, error and calls."""
    model, x = ring().model(sdegen.VPSDE()), torch.randn(6, 2)
    alone = [sdegen.solve(model, row[None], own(method), to=to) for row in x]
    batch = sdegen.solve(model, x, own(method), to=to)
    crowd = sdegen.solve(model, torch.cat([OUTLIERS, x]), own(method), to=to)
    for i, single in enumerate(alone):
        for solution, row in ((batch, i), (crowd, i + len(OUTLIERS))):
            torch.testing.assert_close(solution.x[row], single.x[0], rtol=0, atol=1e-12)
            torch.testing.assert_close(solution.error[row], single.error[0], rtol=1e-6, atol=1e-9)
            assert solution.sample_calls[row] == single.calls
    assert batch.accepted == sum(single.accepted for single in alone)
    assert batch.rejected == sum(single.rejected for single in alone) > 0
    assert batch.calls == max(single.calls for single in alone)


@pytest.mark.parametrize("path", often(PATHS, "subvp", "ve", "ddpm zero snr", "condot", "own flow"))
def test_every_path_both_ways_as_the_batch_solver(path):
    model, x = ring().model(PATHS[path]), torch.randn(5, 2)
    tight, theirs = own("dopri8", 1e-9), sdegen.ODESolver("dopri8", rtol=1e-9)
    for verb in (sdegen.encode, sdegen.decode):
        torch.testing.assert_close(verb(model, x, tight), verb(model, x, theirs), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(sdegen.decode(model, sdegen.encode(model, x, tight), tight), x, rtol=0, atol=1e-6)


def test_fewer_calls_a_sample_than_the_batch_needs_at_a_tenth_of_its_error():
    """Eight modes, 512 latents: batch dopri5 at 1e-5 takes 110 calls for a worst error of 1e-4; here 126 for 3e-6."""
    model, z = ring().model(sdegen.VPSDE()), torch.randn(512, 2, generator=torch.Generator().manual_seed(0))
    exact = sdegen.decode(model, z, sdegen.ODESolver("dopri8", rtol=1e-11))
    ours = sdegen.solve(model, z, own(rtol=2e-7))
    assert float(ours.sample_calls.double().mean()) <= 128
    assert float((ours.x - exact).norm(dim=1).max()) <= 1e-5
    loose = sdegen.solve(model, z, own(rtol=1e-3))
    assert float(loose.sample_calls.double().mean()) < 0.5 * float(ours.sample_calls.double().mean())


@both_ways
@both_pairs
def test_samples_leave_when_they_have_arrived_exactly(method, to):
    """Each row's last question is at the end itself, by a step like any; none lies outside, none comes after."""
    net, rate = Recorder(), torch.cat([torch.tensor([20.0, 1e-3, 0.0]), torch.linspace(0.5, 9, 29)])
    model = sdegen.vector_field(net, t_data=0.0, t_noise=1.0)
    ends = (0.93, 0.07) if to == "data" else (0.07, 0.93)
    t_from, t_to = model.path.time(torch.tensor(ends)).tolist()
    solution = sdegen.solve(model, torch.full((32, 2), 0.7), own(method), to=to, u=ends, cond={"rate": rate})
    assert len(net.asked) == solution.calls
    assert solution.u.tolist() == list(ends)
    assert solution.t.tolist() == [t_from, t_to]
    assert solution.trajectory is None
    for row, r in enumerate(rate.tolist()):
        times = [t[rates.index(r)] for t, rates in net.asked if r in rates]
        assert len(times) == solution.sample_calls[row]
        assert min(t_from, t_to) <= min(times)
        assert max(times) <= max(t_from, t_to)
        assert (times[0], times[-1]) == (t_from, t_to)
        assert abs(times[-1] - times[-STAGES[method]]) > 1e-6
    sizes = [len(t) for t, _ in net.asked]
    assert sizes == sorted(sizes, reverse=True)
    assert len({*sizes}) > 2
    tried = solution.accepted + solution.rejected
    assert int((solution.sample_calls - 2).sum()) == STAGES[method] * tried
    assert solution.sample_calls.dtype is torch.int64


def test_samples_at_rest():
    """Fixed points beside one that moves: they stay, with no error, and it goes its own way."""
    x, moves = torch.full((8, 2), 0.7), torch.zeros(8)
    moves[3] = 1
    model = sdegen.vector_field(lambda x, t, moves: bend(x, t) * moves[:, None])
    ours = sdegen.solve(model, x, own(), cond={"moves": moves})
    single = sdegen.solve(model, x[3:4], sdegen.ODESolver("dopri5", rtol=1e-6), cond={"moves": moves[3:4]})
    torch.testing.assert_close(ours.x[3:4], single.x, rtol=0, atol=1e-12)
    still = [i for i in range(8) if i != 3]
    assert torch.equal(ours.x[still], x[still])
    assert float(ours.error[still].max()) == 0 < float(ours.error[3])
    theirs = sdegen.solve(model, x[:1], sdegen.ODESolver("dopri5", rtol=1e-6), cond={"moves": moves[:1]})
    assert ours.sample_calls[still].tolist() == [theirs.calls] * 7


@pytest.mark.parametrize("size", [0.0, 1e-12, 1e-10, 1e-8, 1e3, 1e9])
def test_first_steps_are_those_of_the_batch_solver(size):
    """From states far below and far above the tolerance."""
    model, x = sdegen.vector_field(lambda x, t: torch.cos(3 * x + 5 * t[:, None])), torch.full((1, 2), size)
    ours, theirs = sdegen.solve(model, x, own()), sdegen.solve(model, x, sdegen.ODESolver("dopri5", rtol=1e-6))
    assert (ours.calls, ours.rejected) == (theirs.calls, theirs.rejected)
    torch.testing.assert_close(ours.x, theirs.x, rtol=1e-12, atol=1e-9)


def test_conditions_are_cut_with_the_rows():
    """A row per sample follows it; what is Shared, or as long as a smaller batch, stays whole."""

    def field(x, t, rate, table, few, power):
        assert table.shape == (5, 2)
        assert few.shape == (3, 2)  # three samples are left at some time
        return rate * bend(x, t) * (1 + 0.1 * table.sum() + 0.1 * few.sum()) ** power

    x, rate = torch.randn(5, 2), torch.tensor([[9.0], [0.2], [3.0], [0.2], [6.0]])
    table, few = torch.rand(5, 2), torch.rand(3, 2)
    rest = {"table": sdegen.Shared(table), "few": few, "power": 2}
    model = sdegen.vector_field(field)
    ours = sdegen.solve(model, x, own(), cond={"rate": rate, **rest})
    assert len({*ours.sample_calls.tolist()}) > 2
    for i in range(5):
        single = sdegen.solve(model, x[i : i + 1], own(), cond={"rate": rate[i : i + 1], **rest})
        torch.testing.assert_close(ours.x[i : i + 1], single.x, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        sdegen.log_prob(model, x, own(), cond={"rate": rate, **rest})[1:2],
        sdegen.log_prob(model, x[1:2], own(), cond={"rate": rate[1:2], **rest}),
        rtol=0,
        atol=1e-12,
    )
    drawn = sdegen.sample(model, (5, 2), own(), x_T=x, cond={"rate": rate, **rest})
    assert torch.equal(drawn, ours.x)


def test_wrapped_models_and_models_on_another_path():
    """Each clock has its own factors, in the wrapper and in the model inside."""

    class Guided(sdegen.Wrapped):
        def change(self, D, y, u, r, t, cond):
            one, two = D(torch.cat([y, 0.5 * y]), cond=cond).chunk(2)
            return one + (u * r) * two

    net = sdegen.ScoreModel(lambda x, t: torch.sin(2 * x + t[:, None]), sdegen.VPSDE(), "eps")
    x = torch.randn(5, 2)
    for model in (net.on(sdegen.CondOT()), Guided(net), Guided(net).on(sdegen.VESDE())):
        span = {"u": (0.95, 0.02)}
        ours = sdegen.solve(model, x, own(rtol=1e-9), **span)
        theirs = sdegen.solve(model, x, sdegen.ODESolver("dopri5", rtol=1e-9), **span)
        torch.testing.assert_close(ours.y, theirs.y, rtol=1e-6, atol=1e-6)
        assert len({*ours.sample_calls.tolist()}) > 1


def test_events_of_any_shape_and_states_of_any_precision():
    model, x = sdegen.vector_field(bend), torch.randn(4, 6)
    flat, shaped = (sdegen.solve(model, y, own()) for y in (x, x.reshape(4, 1, 3, 2)))
    assert shaped.x.shape == (4, 1, 3, 2)
    torch.testing.assert_close(shaped.x.flatten(1), flat.x, rtol=0, atol=1e-13)
    assert torch.equal(shaped.sample_calls, flat.sample_calls)
    single = sdegen.solve(model, x.float(), own(rtol=1e-5))
    assert single.x.dtype is single.error.dtype is torch.float32
    torch.testing.assert_close(single.x.double(), flat.x, rtol=0, atol=1e-3)


def test_an_empty_batch_arrives_without_a_call():
    model = sdegen.ScoreModel(lambda x, t: pytest.fail("the network was called"), sdegen.VPSDE(), "v")
    solution = sdegen.solve(model, torch.zeros(0, 2), own())
    assert (solution.x.shape, solution.calls, solution.accepted) == ((0, 2), 0, 0)
    assert sdegen.log_prob(model, torch.zeros(0, 2), own()).shape == (0,)
    assert sdegen.sample(model, (0, 2), own()).shape == (0, 2)


@both_pairs
def test_steps_in_vain_are_counted_for_every_sample(method):
    """A jolt halfway throws steps back; max_steps is the number that one sample may try."""
    model = sdegen.vector_field(lambda x, t: torch.tanh(200 * (t - 0.5))[:, None].expand_as(x))
    x = torch.randn(1, 2).expand(4, 2).clone()
    solution = sdegen.solve(model, x, own(method, 1e-5))
    assert solution.rejected > 0
    assert solution.rejected % 4 == solution.accepted % 4 == 0  # four times the same sample
    tried = (solution.accepted + solution.rejected) // 4
    assert solution.calls == 2 + STAGES[method] * tried
    sdegen.solve(model, x, own(method, 1e-5, max_steps=tried))
    with pytest.raises(ValueError, match=rf"tried max_steps = {tried - 1} steps, and 4 of 4 samples have not arrived"):
        sdegen.solve(model, x, own(method, 1e-5, max_steps=tried - 1))


def test_what_cannot_go_on_is_raised():
    def broken(where):
        return sdegen.vector_field(lambda x, t: torch.where((where(t) & (x[:, 0] > 1))[:, None], torch.nan, bend(x, t)))

    x = torch.tensor([[0.5, 0.5], [2.0, 2.0], [0.1, 0.1]])
    with pytest.raises(sdegen.NonFiniteError, match="NaN or infinite at the start of the solve, u = 1;"):
        sdegen.solve(broken(lambda t: t <= 0), x, own())
    with pytest.raises(sdegen.NonFiniteError, match="cut a sample's step to nan at u = 1 after 0 tries"):
        sdegen.solve(broken(lambda t: t > 0), x, own())
    with pytest.raises(sdegen.NonFiniteError, match=r"cut a sample's step to nan at u = 0\.\d+ after \d+ tries"):
        sdegen.solve(broken(lambda t: t > 0.4), x, own())
    blows = sdegen.vector_field(lambda x, t: x**3)  # from 2 it is infinite at t = 1/8
    with pytest.raises(sdegen.NonFiniteError, match="cut a sample's step to"):
        sdegen.solve(blows, x, own())
    pole = sdegen.vector_field(lambda x, t: (1 / (t - 0.4321))[:, None].expand_as(x))
    with pytest.raises(sdegen.NonFiniteError, match=r"cut a sample's step to \d\S* at u = 0\.5679"):
        sdegen.solve(pole, x, own())
    with pytest.raises(sdegen.NonFiniteError, match="cut a sample's step to"):  # a state beyond the largest number
        sdegen.solve(sdegen.vector_field(lambda x, t: 0 * x + 1e306), torch.full((1, 1), 1.795e308), own())


def test_what_does_not_fit_is_refused_before_the_first_call():
    def net(x, t, **cond):
        pytest.fail("the network was called")

    model, x = sdegen.ScoreModel(net, sdegen.VPSDE(), "v"), torch.randn(3, 2)
    with pytest.raises(ValueError, match="trajectory=True needs steps that the samples share"):
        sdegen.solve(model, x, own(), trajectory=True)
    with pytest.raises(ValueError, match=r"asks for more than torch\.float32 states can hold"):
        sdegen.solve(model, x.float(), own(rtol=1e-8))
    for to in ("data", "noise"):
        with pytest.raises(ValueError, match=r"u = 1, where .* is singular for 'eps'"):
            sdegen.solve(sdegen.ScoreModel(net, sdegen.CondOT(), "eps"), x, own(), to=to)
    with pytest.raises(TypeError, match=r"cond\['names'\] is a list, and the batch is cut into rows"):
        sdegen.solve(model, x, own(), cond={"names": ["a", "b", "c"]})


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"method": "bosh3"}, ValueError, "by 'dopri5' or 'dopri8', and the method is 'bosh3'"),
        ({"method": "rk4", "steps": 4}, ValueError, "by 'dopri5' or 'dopri8', and the method is 'rk4'"),
        ({"norm": "batch"}, ValueError, "norm='sample', and norm = 'batch'"),
        ({"steps_for": "row"}, ValueError, "Unknown steps_for 'row'; choose one of 'batch', 'sample'"),
        ({"steps_for": True}, TypeError, "Unknown steps_for True"),
    ],
)
def test_options_that_do_not_fit_together(options, error, says):
    with pytest.raises(error, match=says):
        sdegen.ODESolver(**{"steps_for": "sample", **options})
