"""The comparison of candidate streams: who is set beside whom, and that every form is a model."""

from __future__ import annotations

import numpy as np
import pytest

from loadtest.candidate_stream import FORMS, Quality, at_equal_ms
from model.architectures.kunlun.config import KunlunConfig
from model.architectures.registry import load_preset

LITERAL = [form for form in FORMS if "wukong" in FORMS[form]]
GATED = [form for form in FORMS if "hidden" in FORMS[form]]


def test_a_literal_form_is_set_beside_the_best_gated_one_that_is_no_slower() -> None:
    speed = {form: {"ms": 2.0} for form in LITERAL} | {
        form: {"ms": ms} for form, ms in zip(GATED, (1.0, 2.0, 3.0), strict=True)
    }
    ne = dict.fromkeys(LITERAL, 0.9) | dict(zip(GATED, (0.92, 0.89, 0.80), strict=True))
    draws = np.linspace(-0.001, 0.001, 101)
    found = {form: Quality(value, value + draws) for form, value in ne.items()}
    speed[LITERAL[0]] = {"ms": 0.5}
    verdicts = at_equal_ms(speed, found)
    assert LITERAL[0] not in verdicts, "no gated form is as fast"
    for form in LITERAL[1:]:
        assert (verdicts[form]["beside"], verdicts[form]["ms_ratio"]) == (GATED[1], 1.0)
        assert verdicts[form]["ne_value"] == pytest.approx(-0.01)
        assert verdicts[form]["ne_low"] == verdicts[form]["ne_high"] == pytest.approx(-0.01), "the draws are paired"


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_a_model(form: str) -> None:
    config = KunlunConfig.model_validate(load_preset("small").model_dump() | {"candidate": FORMS[form]})
    assert (config.candidate.wukong is None) == (config.candidate.hidden is not None)
