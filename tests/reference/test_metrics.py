from __future__ import annotations

import pytest

from spwnet import metrics
from tests.reference.published import load

PUBLISHED = {
    "rand": "rand_score",
    "adjusted_mutual_information": "adjusted_mutual_info_score",
    "homogeneity": "homogeneity_score",
    "completeness": "completeness_score",
    "v_measure": "v_measure_score",
    "fowlkes_mallows": "fowlkes_mallows_score",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_metric(name):
    golden = load("metrics.npz")
    scores = metrics.score(golden["prediction"], golden["truth"])
    assert scores[name] == pytest.approx(float(golden[PUBLISHED[name]]), rel=1e-9)
