from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from cache.config import Strict
from cache.errors import ConfigError
from student.config.student import StudentConfig
from student.distill.adapters import AdapterConfig
from student.distill.config import DistillConfig
from student.distill.terms import TERMS
from student.distill.terms.base import PairTerm, pick
from student.distill.terms.fgd import FgdTerm

PAIRS = [
    {"student": "backbone1", "teacher": "backbone1", "student_adapter": {"kind": "upsample_3layer", "factor": 4}},
    {"student": "head", "teacher": "head", "student_adapter": "1x1conv"},
]


def parse(**changes: Any) -> DistillConfig:
    return DistillConfig.parse({"pairs": PAIRS, "terms": [{"kind": "fgd"}], **changes}, "test.yaml")


def test_a_value_for_all_pairs_or_one_for_each() -> None:
    config = parse(terms=[{"kind": "fgd", "fg_weight": 0.5, "bg_weight": [0.1, 0.2]}])
    (term,) = config.terms
    assert isinstance(term, FgdTerm)
    assert [pick(term.fg_weight, pair) for pair in range(2)] == [0.5, 0.5]
    assert [pick(term.bg_weight, pair) for pair in range(2)] == [0.1, 0.2]


def test_pairs_of_a_term() -> None:
    config = parse(terms=[{"kind": "all"}, {"kind": "fgd", "pairs": ["head"]}])
    assert [[pair.label for pair in config.pairs_of(term)] for term in config.terms] == [
        ["backbone1", "head"],
        ["head"],
    ]


def test_labels_of_pairs() -> None:
    pairs = [
        {"student": "backbone0", "teacher": "head"},
        {"student": "head", "teacher": "head"},
        {"student": "head", "teacher": "head", "cache": 1},
        {"student": "head", "teacher": "head", "cache": 2, "name": "fusion"},
    ]
    assert [pair.label for pair in parse(pairs=pairs).pairs] == ["backbone0-head", "head", "head@1", "fusion"]


def test_a_bare_string_is_an_adapter() -> None:
    assert AdapterConfig.model_validate("1x1conv") == AdapterConfig(kind="1x1conv")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pears": []}, "unknown key 'pears': did you mean 'pairs'"),
        ({"terms": [{"kind": "fgd", "fg_wait": 1}]}, "fg_wait.*did you mean 'fg_weight'"),
        ({"terms": [{"kind": "fdg"}]}, "'fgd'"),
        ({"terms": []}, "terms: .*at least 1"),
        ({"terms": [{"kind": "fgd", "fg_weight": -1}]}, "greater than or equal to 0"),
        ({"terms": [{"kind": "fgd", "spatial_temperature": 0}]}, "greater than 0"),
        ({"terms": [{"kind": "fgd", "threshold": 1.5}]}, "less than or equal to 1"),
        ({"terms": [{"kind": "fgd", "foreground_mask": "gt2"}]}, "foreground_mask.*'gauss_in_gt'"),
        ({"terms": [{"kind": "all", "p": 3}]}, "p: Input should be 1 or 2, got 3"),
        ({"terms": [{"kind": "s2m2_ssd_feature", "mode": "newest"}]}, "'new' or 'old'"),
        (
            {"terms": [{"kind": "fgd", "fg_weight": [1, 2, 3]}]},
            r"fg_weight has the wrong number of values \(distill.terms, fgd\); got 3; expected one for all pairs, or "
            r"one for each of the 2 pairs \(backbone1, head\)\. List one value",
        ),
        ({"terms": [{"kind": "fgd", "pairs": ["head"], "spatial_attention": ["none"] * 2}]}, "each of the 1 pairs"),
        ({"terms": [{"kind": "all", "pairs": ["neck"]}]}, "got neck; expected backbone1, head"),
        ({"pairs": []}, "got no pairs at all; expected at least one entry under distill.pairs"),
        ({"pairs": [PAIRS[1], PAIRS[1]]}, "two pairs share a name.*got head.*Give each pair a `name`"),
        ({"terms": [{"kind": "all"}, {"kind": "all"}]}, "two terms share a name"),
        ({"pairs": [{**PAIRS[1], "student_adapter": "upsample"}]}, "'upsample' and its factor do not fit; got 1"),
        (
            {"pairs": [{**PAIRS[1], "teacher_adapter": {"kind": "3x3conv", "factor": 2}}]},
            "expected 1: this adapter keeps the number of cells",
        ),
        ({"terms": [{"kind": "fgd", "scale_mask": "combine_extend"}]}, "extended scale needs an extended foreground"),
        (
            {"terms": [{"kind": "fgd", "foreground_mask": "negative_linear_gauss_in_gt", "fg_weight": [1, 0]}]},
            "divides by fg_weight",
        ),
        (
            {"terms": [{"kind": "fgd", "affinity_mode": "foreground+fp", "affinity_weight": 1}]},
            "needs false positives in all its pairs",
        ),
        (
            {"terms": [{"kind": "fgd", "affinity_mode": ["none", "attention"], "spatial_attention": "none"}]},
            "needs a spatial attention",
        ),
        ({"terms": [{"kind": "fgd", "fp_weight": 0.1}]}, "fp_weight does nothing.*Set false_positives"),
        ({"terms": [{"kind": "fgd", "affinity_weight": 0.1}]}, "affinity_weight does nothing"),
        ({"terms": [{"kind": "fgd", "context_cells": 2}]}, "a context ring needs both"),
        (
            {"pairs": [{**PAIRS[1], "weight_by": "variance"}], "terms": [{"kind": "unidistill_points"}]},
            r"weight_by does nothing.*pairs, head\).*got unidistill_points; expected fgd, all, .*leave weight_by out",
        ),
    ],
)
def test_what_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(**changes)


def test_every_model_is_strict_and_documents_itself() -> None:
    def descendants(model: type[Strict]) -> set[type[Strict]]:
        return {model}.union(*map(descendants, model.__subclasses__()))

    models = {model for model in descendants(Strict) if model.__module__.startswith("student.distill.")}
    assert len(models) >= 15
    assert all(model.__doc__ for model in models)


def test_the_recipe_fits_in_a_students_configuration() -> None:
    config = StudentConfig.parse({"distill": {"pairs": PAIRS, "terms": [{"kind": "fgd"}]}}, "student.yaml")
    assert config.distill is not None
    assert DistillConfig.parse(config.distill.model_dump(mode="json"), "again") == config.distill


def test_the_recipe_of_the_documentation_is_the_papers() -> None:
    text = (Path(__file__).parents[3] / "docs" / "objective.md").read_text()
    recipes = [yaml.safe_load(block.split("```")[0]) for block in text.split("```yaml\n")[1:]]
    config = DistillConfig.parse(recipes[0]["distill"], "docs/objective.md")
    assert [(pair.label, pair.student_adapter.kind, pair.student_adapter.factor) for pair in config.pairs] == [
        ("backbone1", "upsample_3layer", 4),
        ("backbone2", "upsample_3layer", 4),
        ("head", "1x1conv", 1),
    ]
    (term,) = config.terms
    assert isinstance(term, FgdTerm)
    assert (term.fg_weight, term.bg_weight, term.spatial_weight, term.fp_weight) == (6e-3, 4e-2, 2.5e-3, 6e-2)
    assert (term.spatial_attention, term.spatial_temperature, term.channel_attention) == ("teacher_student", 0.5, False)
    assert (term.foreground_mask, term.scale_mask, term.fp_scale, term.threshold) == (
        "gt",
        "combine_gt",
        "average",
        0.1,
    )
    assert term.false_positives == ("none", "none", "teacher")
    assert config.inherit_head
    assert len(DistillConfig.parse(recipes[1], "docs/objective.md").pairs) == 2


def test_each_term_is_listed_under_its_kind() -> None:
    for kind, (config, _) in TERMS.items():
        assert get_args(config.model_fields["kind"].annotation) == (kind,)


def test_the_terms_that_weight_by_reaches_are_those_of_the_message() -> None:
    pair = {**PAIRS[1], "weight_by": "variance"}
    with pytest.raises(ConfigError) as refused:
        parse(pairs=[pair], terms=[{"kind": "heatmap_temperature"}])
    kinds = {kind for kind, (term, _) in TERMS.items() if issubclass(term, PairTerm) and term.weighs_cells}
    assert set(str(refused.value.expected).replace(" or ", ", ").split(", ")) == kinds
    assert "got no term" in str(refused.value)
