"""The table of parameters: every name of every task type, at every depth, with hostile values.

tests/integration/test_params.py runs the parameters through real models.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any

import pytest
import transformers
from pipeq_worker.models.params import refused
from pipeq_worker.models.params.accepted import ceilings, named_rules, signature_names
from pipeq_worker.models.params.compound import Either, Fields, Json, ListOf, Numbers, Pair
from pipeq_worker.models.params.rules import Bound, Choice, Number, Rule, Template, Text, UnfitError, Whole, display
from pipeq_worker.models.params.table import generation_rules
from pipeq_worker.models.signatures import pipeline_class
from pipeq_worker.models.task_types import TASK_TYPES
from pipeq_worker.settings.sections import ParamLimits

BOUNDS = {**ceilings(ParamLimits()), "vocabulary": Bound(99, "the model"), "speakers": Bound(3, "the model")}
ROWS = [row for row in TASK_TYPES.values() if row.has_model]

#: Values that a producer may send, but that no parameter may have.
HOSTILE: list[Any] = [
    10**400,
    10**12,
    2**63,
    -(10**12),
    10**5000,
    1e308,
    -1e308,
    math.nan,
    math.inf,
    -math.inf,
    "{:>9000000000}",
    "{0.__class__}",
    "x" * 10**6,
    "\ud800",
    [0] * 10**5,
    [[0]] * 10**5,
    [[[[0]]]],
    ["x" * 10**5] * 10,
    {"custom_generate": "/tmp/code", "trust_remote_code": True},
    {"__class__": "os.system"},
    {"": {"": {"": {}}}},
]
#: Names of values that run code or read files; they must be accepted nowhere.
EVIL = (
    "custom_generate trust_remote_code generation_config logits_processor stopping_criteria prefix_allowed_tokens_fn "
    "assistant_model assistant_tokenizer assistant_early_exit streamer tokenizer processor feature_extractor "
    "image_processor vocoder model revision device device_map dtype torch_dtype token use_auth_token chat_template "
    "tesseract_config timeout penalty_alpha dola_layers constraints force_words_ids cache_implementation kwargs args "
    "code_revision pipeline_class cache_dir subfolder local_files_only pretrained_model_name_or_path file path"
).split()


def rules_of(task: str) -> dict[str, Rule]:
    """Every rule of a task type, including those of generate if they go into the call."""
    row = TASK_TYPES[task]
    named = named_rules(row, pipeline_class(row))
    return {**generation_rules(task), **named} if row.generation == "call" else named


def walk(rules: dict[str, Rule], where: str = "") -> Iterator[tuple[str, str, Rule]]:
    """Place, name and rule of every parameter, at every depth."""
    for name, rule in rules.items():
        yield where, name, rule
        for one in (rule, *rule.rules) if isinstance(rule, Either) else (rule,):
            if isinstance(one, Fields):
                yield from walk(dict(one.fields), f"{where}{name}.")


def wrapped(where: str, name: str, value: Any) -> dict[str, Any]:
    for part in reversed(where.split(".")[:-1]):
        name, value = part, {name: value}
    return {name: value}


ALL = [(row.name, where, name, rule) for row in ROWS for where, name, rule in walk(rules_of(row.name))]


def test_every_name_that_a_pipeline_or_generate_has_is_decided_on() -> None:
    """A new transformers may bring new names: each needs a rule, or a reason why no task may set it."""
    undecided = []
    generate = set(transformers.GenerationConfig().to_dict()) | set(
        inspect.signature(transformers.GenerationMixin.generate).parameters
    )
    for row in ROWS:
        accepted = rules_of(row.name)
        names = signature_names(pipeline_class(row)) | row.params
        names |= {name for name in generate if not name.startswith("_")} if row.generation == "call" else set()
        for name in names - accepted.keys():
            here = {**refused.WORKERS_OWN, **refused.GENERATION_REFUSED.get(row.name, {})}
            if refused.reason(name, row.name, here) is None:
                undecided.append((row.name, name))
    assert undecided == []


@pytest.mark.parametrize("name", EVIL)
def test_what_names_code_files_devices_or_objects_is_accepted_nowhere(name: str) -> None:
    assert [(task, where) for task, where, one, _ in ALL if one == name] == []


def test_no_value_that_means_harm_passes_any_rule() -> None:
    passed = []
    for task, where, name, rule in ALL:
        for value in HOSTILE:
            if harmless(rule, value):
                continue
            try:
                rule.check(value, BOUNDS, f"{where}{name}")
            except UnfitError as error:
                named = error.where.startswith(f"{where}{name}") and error.sentence.startswith(("not ", "which "))
                passed += [] if named and len(display(error.value)) < 200 else [(task, f"{where}{name}", str(error))]
            else:
                passed.append((task, f"{where}{name}", display(value)))
    assert passed == []


def harmless(rule: Rule, value: Any) -> bool:
    """Values that a rule may allow: text may say anything, and a tool's description is any JSON."""
    if isinstance(rule, Either):
        return any(harmless(one, value) for one in rule.rules)
    if isinstance(rule, Text) and isinstance(value, str):
        return rule.pattern is None and value != "\ud800" and len(value) < 100
    if isinstance(rule, ListOf) and isinstance(rule.item, Json):
        return False
    return isinstance(rule, Template) and value == "{}"


def test_numbers_become_floats_and_have_two_bounds() -> None:
    """A power of integers can be endless, and holds Python's lock: 10**12 as a length_penalty froze whole workers."""
    seen = 0
    for _, where, name, rule in ALL:
        for one in leaves(rule):
            if isinstance(one, Number):
                assert math.isfinite(one.low), f"{where}{name}"
                assert math.isfinite(one.high), f"{where}{name}"
                middle = max(1, math.ceil(one.low)) if one.high >= 1 else one.high
                assert type(one.check(middle, BOUNDS, name)) is float
                seen += 1
            if isinstance(one, Whole):
                high = BOUNDS[one.high].value if isinstance(one.high, str) else one.high
                assert high <= 2**31, f"{where}{name}"
                with pytest.raises(UnfitError):
                    one.check(high + 1, BOUNDS, name)
                with pytest.raises(UnfitError):
                    one.check(one.low - 1, BOUNDS, name)
                with pytest.raises(UnfitError, match="whole number"):
                    one.check(True, BOUNDS, name)
                seen += 1
    assert seen > 500


def leaves(rule: Rule) -> Iterator[Rule]:
    if isinstance(rule, Either):
        for one in rule.rules:
            yield from leaves(one)
    elif isinstance(rule, ListOf):
        yield from leaves(rule.item)
    elif isinstance(rule, Pair):
        yield from leaves(rule.first)
        yield from leaves(rule.second)
    else:
        yield rule


@pytest.mark.parametrize(
    "template",
    ["{:>9000000000}", "{0}", "{!r}", "{x}", "{{}}", "{}{}", "{", "}", "This is it", "", "{} {:}", "{}" + "x" * 2000],
)
def test_a_template_holds_one_place_and_no_format(template: str) -> None:
    with pytest.raises(UnfitError):
        Template().check(template, BOUNDS, "hypothesis_template")
    assert Template().check("a photo of {}.", BOUNDS, "hypothesis_template") == "a photo of {}."


def test_values_are_shown_on_one_line_and_short() -> None:
    for value in [*HOSTILE, "line\nbreak\x1b[31m", {"a": 1}, None, True, 0.1]:
        text = display(value)
        assert text.isprintable()
        assert len(text) < 80


def test_choices_say_what_was_meant() -> None:
    with pytest.raises(UnfitError) as caught:
        Choice((True, False, "word", "char")).check("words", BOUNDS, "return_timestamps")
    assert caught.value.sentence == "not one of true, false, word, char; did you mean 'word'?"


def test_tensors_are_rectangles_of_numbers() -> None:
    rule = Numbers(8)
    assert rule.check([[1, 2], [3, 4]], BOUNDS, "x") == [[1.0, 2.0], [3.0, 4.0]]
    for wrong in ([], [[]] * 9, [1, [2]], [[1], [2, 3]], [["a"]], [[[1]]], [True], [1] * 9, "text", 5, [math.nan]):
        if wrong != [[]] * 9:
            with pytest.raises(UnfitError):
                rule.check(wrong, BOUNDS, "x")
