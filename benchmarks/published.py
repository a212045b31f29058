"""Published rows: the five best of about 100 peer variants per number of network calls, with their figures.

512 fixed latents, error as in `targets`, against the fine solution where each sampler natively ends. They hold rows of
packages that are not installed (the official dpm_solver is not on PyPI), and fix what "the best peer" is, whatever is
installed. Peers: dpm-solver (its repository's single file), diffusers 0.42.1, azula 0.11.1, flow_matching 1.0.10,
torchdiffeq 0.2.5, k-diffusion, score_sde_pytorch. A peer may have made fewer calls than it was allowed.
"""

from __future__ import annotations

from collections.abc import Mapping

Row = tuple[str, float]

PUBLISHED: Mapping[str, Mapping[int, tuple[Row, ...]]] = {
    "ring8": {
        5: (
            ("torchdiffeq heun2 · logsnr-grid", 0.04),
            ("diffusers DPMSolver3M · exp,sigma_min", 0.042),
            ("diffusers DPMSolver2M · exp,sigma_min", 0.042),
            ("dpm-solver ++multis3 · time_quadratic", 0.044),
            ("dpm-solver ++multis2 · time_quadratic", 0.045),
        ),
        8: (
            ("dpm-solver ++single3 · time_quadratic", 0.015),
            ("azula zEAB3 · logsnr", 0.016),
            ("dpm-solver ++single2 · time_quadratic", 0.018),
            ("dpm-solver multis2 · logSNR", 0.019),
            ("azula REAB3 · logsnr", 0.021),
        ),
        10: (
            ("dpm-solver multis2 · time_quadratic", 0.0036),
            ("diffusers DEIS3 · exp", 0.0097),
            ("diffusers DPMSolver3M · exp,sigma_min", 0.012),
            ("azula zEAB3 · logsnr", 0.013),
            ("dpm-solver multis3 · logSNR", 0.014),
        ),
        15: (
            ("dpm-solver multis2 · time_quadratic", 0.0025),
            ("diffusers UniPC2 · exp,sigma_min", 0.0064),
            ("diffusers UniPC2 · exp,zero", 0.0065),
            ("azula zEAB3 · logsnr", 0.007),
            ("dpm-solver multis3 · time_quadratic", 0.0071),
        ),
        20: (
            ("dpm-solver multis2 · time_quadratic", 0.0019),
            ("dpm-solver multis3 · time_quadratic", 0.0037),
            ("diffusers UniPC2 · exp,zero", 0.0039),
            ("diffusers UniPC2 · exp,sigma_min", 0.004),
            ("flow_matching midpoint · CondOT", 0.0042),
        ),
        30: (
            ("diffusers UniPC3 · exp,zero", 0.0012),
            ("flow_matching midpoint · CondOT", 0.0012),
            ("dpm-solver multis2 · time_quadratic", 0.0013),
            ("diffusers UniPC3 · exp,sigma_min", 0.0013),
            ("dpm-solver multis3 · time_quadratic", 0.0015),
        ),
        50: (
            ("dpm-solver ++single3 · time_quadratic", 0.00029),
            ("flow_matching rk4 · CondOT", 0.00029),
            ("dpm-solver ++multis3 · time_quadratic", 0.00033),
            ("dpm-solver multis3 · time_quadratic", 0.00042),
            ("diffusers UniPC3 · exp,zero", 0.00043),
        ),
        100: (
            ("score_sde scipy-RK45 · t", 1.6e-5),
            ("flow_matching dopri5 · CondOT", 1.8e-5),
            ("flow_matching rk4 · CondOT", 2.1e-5),
            ("torchdiffeq rk4 · logsnr-grid", 3.8e-5),
            ("dpm-solver ++multis3 · time_quadratic", 5e-5),
        ),
    },
    "gmm16": {
        5: (
            ("flow_matching midpoint · CondOT", 0.082),
            ("dpm-solver ++single3 · time_quadratic", 0.1),
            ("dpm-solver ++multis3 · time_quadratic", 0.11),
            ("dpm-solver multis3 · time_quadratic", 0.12),
            ("dpm-solver ++multis2 · time_quadratic", 0.12),
        ),
        8: (
            ("dpm-solver ++multis2 · time_quadratic", 0.016),
            ("flow_matching midpoint · CondOT", 0.02),
            ("flow_matching rk4 · CondOT", 0.025),
            ("dpm-solver multis3 · time_quadratic", 0.031),
            ("dpm-solver multis2 · time_quadratic", 0.031),
        ),
        10: (
            ("flow_matching midpoint · CondOT", 0.013),
            ("diffusers DPMSolver3M · karras,sigma_min", 0.022),
            ("azula zEAB3 · logsnr", 0.024),
            ("flow_matching rk4 · CondOT", 0.025),
            ("dpm-solver multis2 · time_quadratic", 0.025),
        ),
        15: (
            ("flow_matching heun3 · CondOT", 0.0074),
            ("flow_matching midpoint · CondOT", 0.0075),
            ("azula zEAB2 · t", 0.0077),
            ("diffusers DEIS2 · trailing", 0.0077),
            ("diffusers DEIS2 · linspace", 0.0078),
        ),
        20: (
            ("flow_matching rk4 · CondOT", 0.0029),
            ("flow_matching midpoint · CondOT", 0.0045),
            ("flow_matching heun3 · CondOT", 0.005),
            ("azula vAB3 · t", 0.0062),
            ("dpm-solver ++multis3 · time_quadratic", 0.0067),
        ),
        30: (
            ("flow_matching rk4 · CondOT", 0.0012),
            ("diffusers PNDM(plms) · leading", 0.0012),
            ("flow_matching heun3 · CondOT", 0.0013),
            ("k-diffusion lms · vp,min", 0.0017),
            ("diffusers LMS · trailing", 0.0018),
        ),
        50: (
            ("flow_matching rk4 · CondOT", 0.00023),
            ("flow_matching heun3 · CondOT", 0.00038),
            ("k-diffusion lms · vp,min", 0.00048),
            ("torchdiffeq rk4 · t", 0.0005),
            ("diffusers LMS · linspace", 0.00051),
        ),
        100: (
            ("flow_matching rk4 · CondOT", 1.7e-5),
            ("flow_matching dopri5 · CondOT", 2.8e-5),
            ("score_sde scipy-RK45 · t", 3.1e-5),
            ("torchdiffeq dopri5+step_t · t", 3.2e-5),
            ("torchdiffeq rk4 · t", 4.5e-5),
        ),
    },
    "narrow9": {
        5: (
            ("azula vAB3 · logsnr", 0.0393),
            ("dpm-solver ++multis3 · time_quadratic", 0.0506),
            ("azula REAB3 · logsnr", 0.0616),
            ("dpm-solver ++multis2 · time_quadratic", 0.0628),
            ("azula REAB2 · logsnr", 0.0728),
        ),
        8: (
            ("azula vAB3 · logsnr", 0.013),
            ("dpm-solver multis3 · time_quadratic", 0.0234),
            ("dpm-solver ++multis2 · time_quadratic", 0.0262),
            ("dpm-solver multis2 · time_quadratic", 0.0276),
            ("dpm-solver ++single3 · time_quadratic", 0.0303),
        ),
        10: (
            ("diffusers DEIS3 · exp", 0.00875),
            ("azula REAB3 · logsnr", 0.00931),
            ("azula zEAB3 · logsnr", 0.0105),
            ("azula vAB3 · logsnr", 0.0109),
            ("dpm-solver multis2 · time_quadratic", 0.0125),
        ),
        15: (
            ("dpm-solver multis2 · time_quadratic", 0.00274),
            ("diffusers DPMSolver++3S · exp,zero", 0.00298),
            ("diffusers DPMSolver++3S · exp,sigma_min", 0.00313),
            ("diffusers UniPC2 · exp,zero", 0.00366),
            ("diffusers UniPC2 · exp,sigma_min", 0.00373),
        ),
        20: (
            ("dpm-solver multis2 · time_quadratic", 0.00114),
            ("diffusers DPMSolver++3S · exp,sigma_min", 0.00279),
            ("diffusers DPMSolver++3S · exp,zero", 0.00281),
            ("dpm-solver ++multis2 · time_quadratic", 0.00285),
            ("diffusers UniPC2 · exp,zero", 0.003),
        ),
        30: (
            ("dpm-solver multis2 · time_quadratic", 0.000586),
            ("diffusers UniPC3 · exp,zero", 0.00104),
            ("diffusers UniPC3 · exp,sigma_min", 0.0011),
            ("dpm-solver ++multis2 · time_quadratic", 0.00114),
            ("dpm-solver multis3 · time_quadratic", 0.00116),
        ),
        50: (
            ("flow_matching heun3 · CondOT", 0.000268),
            ("dpm-solver multis2 · time_quadratic", 0.000303),
            ("flow_matching midpoint · CondOT", 0.000314),
            ("diffusers UniPC3 · exp,sigma_min", 0.000318),
            ("dpm-solver multis3 · time_quadratic", 0.000323),
        ),
    },
}


def best(target: str, calls: int, rank: int = 1) -> Row | None:
    """The rank-th best row of a target at a number of calls, None where there is none."""
    rows = PUBLISHED.get(target, {}).get(calls, ())
    return rows[rank - 1] if len(rows) >= rank else None
