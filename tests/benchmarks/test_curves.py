"""The fits against curves of their own form."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.curves import fit_logarithm, fit_power_law, fit_saturating

FITTED, ASKED = [1, 4, 8, 16, 32], [64, 256]
n, far = np.array(FITTED, float), np.array(ASKED, float)


def test_each_form_finds_a_curve_of_its_own_and_no_other_form_predicts_it_better() -> None:
    curves = {
        "log": (0.3 + 0.05 * np.log(n), 0.3 + 0.05 * np.log(far)),
        "power": (1 - 0.7 * n**-0.3, 1 - 0.7 * far**-0.3),
        "saturating": (0.7 - 0.4 * n**-0.9, 0.7 - 0.4 * far**-0.9),
    }
    forms = {"log": fit_logarithm, "power": fit_power_law, "saturating": fit_saturating}
    for name, (curve, truth) in curves.items():
        errors = {
            form: np.abs(fit(np.array([curve]), FITTED, ASKED).predicted[0] - truth).max()
            for form, fit in forms.items()
        }
        assert errors[name] < 0.003, (name, errors)
        # A power law is a saturating form with the ceiling 1: there both find it.
        assert errors[name] <= min(errors.values()) + 0.003


def test_ceilings() -> None:
    curves = np.array([0.7 - 0.4 * n**-0.9, 1 - 0.5 * n**-0.2, 0.2 + 0.1 * np.log(n)])
    assert fit_saturating(curves, FITTED, ASKED).ceiling[0] == pytest.approx(0.7, abs=0.01)
    assert fit_saturating(curves, FITTED, ASKED).ceiling.max() <= 1.0
    assert np.isnan(fit_logarithm(curves, FITTED, ASKED).ceiling).all()
    assert (fit_power_law(curves, FITTED, ASKED).ceiling == 1.0).all()
